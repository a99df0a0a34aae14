//! The seat of a store, by itself: who gets it, who keeps it, who learns that it is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::etcd::{EtcdClient, op};
use pitr_cluster::seat::{Seat, SeatError, holder_key, holders, last_key};
use tokio::time::sleep;

use crate::pd_servers::PdServers;
use crate::system::Cluster;

const STORE: u64 = 7;
/// The shortest lease that etcd with PD's election time-out grants as it is asked for.
const TTL: Duration = Duration::from_secs(5);
/// After it a lease has surely ended.
const LONGER: Duration = Duration::from_millis(8000);

async fn take(etcd: &Arc<EtcdClient>, who: &str) -> Result<Seat, Bytes> {
    let value = Bytes::copy_from_slice(who.as_bytes());
    Seat::take(etcd.clone(), STORE, TTL, value).await.unwrap()
}

fn etcd(cluster: &Cluster) -> Arc<EtcdClient> {
    EtcdClient::new(&cluster.pds()).unwrap()
}

/// Who has the seat by an error that says so.
fn replaced_by<T: std::fmt::Debug>(result: Result<T, SeatError>) -> Bytes {
    match result {
        Err(SeatError::Taken { by, .. }) => by,
        other => panic!("not replaced: {other:?}"),
    }
}

async fn one_holder_at_a_time(etcd: Arc<EtcdClient>) {
    let first = take(&etcd, "first").await.unwrap();
    assert_eq!(take(&etcd, "second").await.err().unwrap(), "first");
    first.renew("first, running".into()).await.unwrap();
    let told = holders(&etcd).await.unwrap();
    assert_eq!(told, [(STORE, Bytes::from("first, running"))]);
    // Renewing keeps it longer than one lease.
    for _ in 0..8 {
        sleep(Duration::from_secs(1)).await;
        first.renew("first, running".into()).await.unwrap();
    }
    assert!(take(&etcd, "second").await.is_err());
    first.leave().await.unwrap();
    let second = take(&etcd, "second").await.unwrap();
    assert_eq!(replaced_by(first.confirm().await), "second");
    assert_eq!(replaced_by(first.renew("x".into()).await), "second");
    first.lost().await;
    second.confirm().await.unwrap();
    assert_eq!(holders(&etcd).await.unwrap()[0].1, "second");
}

#[tokio::test]
async fn a_seat_has_one_holder_and_is_given_on_by_leaving() {
    one_holder_at_a_time(etcd(&Cluster::start())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_at_a_real_pd_has_one_holder_and_is_given_on_by_leaving() {
    let Some(pd) = tokio::task::block_in_place(|| PdServers::start(1)) else {
        return;
    };
    one_holder_at_a_time(EtcdClient::new(&pd.urls()).unwrap()).await;
    tokio::task::block_in_place(|| drop(pd));
}

#[tokio::test]
async fn who_slept_past_the_lease_gets_the_seat_back_only_if_nobody_sat_there() {
    let cluster = Cluster::start();
    let etcd = etcd(&cluster);
    let first = take(&etcd, "first").await.unwrap();
    sleep(LONGER).await;
    assert!(holders(&etcd).await.unwrap().is_empty());
    let of_first = first.condition().await;
    first.confirm().await.unwrap();
    assert_eq!(holders(&etcd).await.unwrap()[0].1, "first");

    // A condition from before counts no more: a transaction is made with a fresh one.
    let write = |condition, text: &'static str| {
        let put = op::put("/t", text);
        let etcd = etcd.clone();
        async move {
            etcd.txn(vec![condition], vec![put])
                .await
                .unwrap()
                .succeeded
        }
    };
    assert!(!write(of_first, "late").await);
    assert!(write(first.condition().await, "in time").await);

    sleep(LONGER).await;
    let second = take(&etcd, "second").await.unwrap();
    assert!(!write(first.condition().await, "replaced").await);
    assert!(write(second.condition().await, "successor").await);
    second.leave().await.unwrap();
    assert_eq!(replaced_by(first.confirm().await), "second");
    assert!(holders(&etcd).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_attempt_that_had_its_effect_without_an_answer_is_not_taken_for_another_one() {
    let cluster = Cluster::start();
    let etcd = etcd(&cluster);
    let first = take(&etcd, "first").await.unwrap();
    first.leave().await.unwrap();
    // What the lost attempt left: both keys, under a lease that the process does not know.
    let lease = etcd.grant_lease(TTL).await.unwrap();
    let puts = |lease| {
        vec![
            op::put_leased(holder_key(STORE), "first", lease),
            op::put(last_key(STORE), "first"),
        ]
    };
    etcd.txn(Vec::new(), puts(lease)).await.unwrap();
    first.confirm().await.unwrap();
    // The same, but the lease has ended meanwhile.
    first.leave().await.unwrap();
    let lease = etcd.grant_lease(TTL).await.unwrap();
    etcd.txn(Vec::new(), puts(lease)).await.unwrap();
    etcd.end_lease(lease).await.unwrap();
    first.confirm().await.unwrap();
    assert_eq!(take(&etcd, "second").await.err().unwrap(), "first");
}
