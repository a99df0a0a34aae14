//! A playground whose PD has GC states, through its port: what is new, how the old calls are mapped,
//! and that one without the option knows nothing of it (cdc-and-pd 4.7 to 4.9).

use pitr_playground::{Playground, PlaygroundConfig, StartError};
use pitr_proto::pdpb::{
    AdvanceGcSafePointRequest, AdvanceTxnSafePointRequest, DeleteGcBarrierRequest, ErrorType,
    GcBarrierInfo, GcState, GetGcSafePointRequest, GetGcStateRequest, GetMembersRequest,
    KeyspaceScope, ResponseHeader, SetGcBarrierRequest, UpdateGcSafePointRequest,
    UpdateServiceGcSafePointRequest, keyspace_scope::Keyspace,
};
use tonic::Code;

use super::system::{SELDOM, System};

/// What the header refuses, all of it with type UNKNOWN.
fn refused<T>(header: Option<ResponseHeader>, answer: T) -> Result<T, String> {
    let error = header.unwrap().error.unwrap_or_default();
    match error.r#type() {
        ErrorType::Ok => Ok(answer),
        ErrorType::Unknown => Err(error.message),
        other => panic!("{other:?}"),
    }
}

fn scope(id: u32) -> Option<KeyspaceScope> {
    let keyspace = Some(Keyspace::KeyspaceId(id));
    Some(KeyspaceScope { keyspace })
}

/// A barrier's id, ts and TTL.
type Barrier = (String, u64, i64);

fn barrier(info: GcBarrierInfo) -> Barrier {
    (info.barrier_id, info.barrier_ts, info.ttl_seconds)
}

fn named(id: &str, ts: u64, ttl: i64) -> Barrier {
    (id.to_owned(), ts, ttl)
}

/// The calls, as short as the tests want them.
struct Calls<'a>(&'a System);

impl Calls<'_> {
    async fn state(&self, keyspace: Option<KeyspaceScope>) -> Result<GcState, String> {
        let request = GetGcStateRequest {
            header: self.0.header(),
            keyspace_scope: keyspace,
            ..Default::default()
        };
        let answer = self.0.pd.clone().get_gc_state(request).await.unwrap();
        let answer = answer.into_inner();
        refused(answer.header, answer.gc_state).map(Option::unwrap)
    }

    /// Txn safe point, GC safe point, barriers.
    async fn all(&self) -> (u64, u64, Vec<Barrier>) {
        let state = self.state(None).await.unwrap();
        let barriers = state.gc_barriers.into_iter().map(barrier).collect();
        (state.txn_safe_point, state.gc_safe_point, barriers)
    }

    async fn set(&self, id: &str, ts: u64, ttl: i64) -> Result<Barrier, String> {
        let request = SetGcBarrierRequest {
            header: self.0.header(),
            keyspace_scope: scope(u32::MAX),
            barrier_id: id.to_owned(),
            barrier_ts: ts,
            ttl_seconds: ttl,
        };
        let answer = self.0.pd.clone().set_gc_barrier(request).await.unwrap();
        let answer = answer.into_inner();
        refused(answer.header, answer.new_barrier_info).map(|info| barrier(info.unwrap()))
    }

    async fn delete(&self, id: &str) -> Result<Option<Barrier>, String> {
        let request = DeleteGcBarrierRequest {
            header: self.0.header(),
            keyspace_scope: None,
            barrier_id: id.to_owned(),
        };
        let answer = self.0.pd.clone().delete_gc_barrier(request).await.unwrap();
        let answer = answer.into_inner();
        refused(answer.header, answer.deleted_barrier_info).map(|info| info.map(barrier))
    }

    /// Old, new, and what is said of a blocker.
    async fn advance_txn(&self, target: u64) -> Result<(u64, u64, String), String> {
        let request = AdvanceTxnSafePointRequest {
            header: self.0.header(),
            keyspace_scope: None,
            target,
        };
        let answer = self.0.pd.clone().advance_txn_safe_point(request).await;
        let answer = answer.unwrap().into_inner();
        let points = (answer.old_txn_safe_point, answer.new_txn_safe_point);
        refused(
            answer.header,
            (points.0, points.1, answer.blocker_description),
        )
    }

    async fn advance_gc(&self, target: u64) -> Result<(u64, u64), String> {
        let request = AdvanceGcSafePointRequest {
            header: self.0.header(),
            keyspace_scope: None,
            target,
        };
        let answer = self.0.pd.clone().advance_gc_safe_point(request).await;
        let answer = answer.unwrap().into_inner();
        let points = (answer.old_gc_safe_point, answer.new_gc_safe_point);
        refused(answer.header, points)
    }

    /// Of the old call: service and minimum.
    async fn service(&self, id: &'static str, ttl: i64, ts: u64) -> Result<(String, u64), String> {
        let request = UpdateServiceGcSafePointRequest {
            header: self.0.header(),
            service_id: id.into(),
            ttl,
            safe_point: ts,
        };
        let answer = self
            .0
            .pd
            .clone()
            .update_service_gc_safe_point(request)
            .await;
        let answer = answer.map_err(unknown)?.into_inner();
        assert!(answer.ttl > i64::MAX / 2, "it never ends: {}", answer.ttl);
        let id = String::from_utf8(answer.service_id.to_vec()).unwrap();
        refused(answer.header, (id, answer.min_safe_point))
    }

    async fn update_gc(&self, ts: u64) -> Result<u64, String> {
        let request = UpdateGcSafePointRequest {
            header: self.0.header(),
            safe_point: ts,
        };
        let answer = self.0.pd.clone().update_gc_safe_point(request).await;
        answer
            .map_err(unknown)
            .map(|a| a.into_inner().new_safe_point)
    }
}

/// The old calls refuse by a status.
fn unknown(status: tonic::Status) -> String {
    assert_eq!(status.code(), Code::Unknown);
    status.message().to_owned()
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, String>, code: &str) {
    let error = answer.unwrap_err();
    assert!(error.starts_with(&format!("[PD:{code}]")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_holds_the_txn_safe_point_and_through_it_gc_also_after_a_restart() {
    let system = System::start_with_gc_states().await;
    let calls = Calls(&system);
    assert_eq!(calls.all().await, (0, 0, Vec::new()));
    assert_eq!(
        calls.advance_txn(100).await.unwrap(),
        (0, 100, String::new())
    );
    let held = named("log", 200, i64::MAX);
    assert_eq!(calls.set("log", 200, i64::MAX).await.unwrap(), held);
    let other = calls.set("br", 300, 600).await.unwrap();
    assert_eq!(other, named("br", 300, 600));
    let (old, new, why) = calls.advance_txn(250).await.unwrap();
    assert_eq!((old, new), (100, 200));
    assert!(why.contains("\"log\"") && why.contains("200"), "{why}");
    let passes = calls.advance_gc(201).await;
    assert_refused(passes, "gc:ErrGCSafePointExceedsTxnSafePoint");
    assert_eq!(calls.advance_gc(150).await.unwrap(), (0, 150));

    let system = system.restart(SELDOM).await;
    let calls = Calls(&system);
    let (txn, gc, barriers) = calls.all().await;
    assert_eq!((txn, gc, &barriers[1]), (200, 150, &held));
    assert_eq!((barriers.len(), barriers[0].0.as_str()), (2, "br"));
    assert_eq!(calls.delete("log").await.unwrap(), Some(held));
    assert_eq!(calls.delete("log").await.unwrap(), None);
    assert_eq!(
        calls.advance_txn(250).await.unwrap(),
        (200, 250, String::new())
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_in_the_header_with_the_code_that_clients_look_for() {
    let system = System::start_with_gc_states().await;
    let calls = Calls(&system);
    calls.advance_txn(100).await.unwrap();
    let behind = calls.set("a", 99, 60).await.unwrap_err();
    assert!(
        behind.contains("ErrGCBarrierTSBehindTxnSafePoint"),
        "{behind}"
    );
    assert!(
        behind.ends_with("already behind the txn safe point 100"),
        "{behind}"
    );
    assert_refused(calls.set("a", 100, 0).await, "common:ErrInvalidArgument");
    assert_refused(calls.set("", 100, 60).await, "common:ErrInvalidArgument");
    let reserved = calls.set("gc_worker", 100, 60).await;
    assert_refused(reserved, "gc:ErrReservedGCBarrierID");
    assert_refused(calls.delete("gc_worker").await, "gc:ErrReservedGCBarrierID");
    assert_refused(calls.advance_txn(99).await, "gc:ErrDecreasingTxnSafePoint");
    calls.advance_gc(50).await.unwrap();
    assert_refused(calls.advance_gc(49).await, "gc:ErrDecreasingGCSafePoint");
    let keyspace = calls.state(scope(1)).await;
    assert_refused(keyspace, "keyspace:ErrKeyspaceNotFound");
    assert_eq!(
        calls.state(scope(u32::MAX)).await.unwrap(),
        calls.state(None).await.unwrap()
    );
    assert_eq!(calls.all().await, (100, 50, Vec::new()));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_calls_move_the_same_numbers_and_barriers() {
    let system = System::start_with_gc_states().await;
    let calls = Calls(&system);
    let worker = |ts| ("gc_worker".to_owned(), ts);
    let moved = calls.service("gc_worker", i64::MAX, 100).await;
    assert_eq!(moved.unwrap(), worker(100));
    assert_eq!(calls.service("a", 600, 200).await.unwrap(), worker(100));
    assert_eq!(calls.service("a", 600, 99).await.unwrap(), worker(100));
    let (txn, _, barriers) = calls.all().await;
    assert_eq!((txn, barriers.len()), (100, 1));
    let (id, ts, ttl) = &barriers[0];
    assert_eq!((id.as_str(), *ts), ("a", 200));
    assert!((590..=600).contains(ttl), "{ttl}");
    let held = calls.service("gc_worker", i64::MAX, 300).await;
    assert_eq!(held.unwrap(), ("a".to_owned(), 200));
    let ends = calls.service("gc_worker", 600, 300).await.unwrap_err();
    assert!(ends.contains("must be infinity"), "{ends}");
    let falls = calls.service("gc_worker", i64::MAX, 199).await;
    assert_refused(falls, "gc:ErrDecreasingTxnSafePoint");
    assert_eq!(calls.service("a", 0, 0).await.unwrap(), worker(200));
    assert_eq!(calls.all().await, (200, 0, Vec::new()));

    assert_eq!(calls.update_gc(150).await.unwrap(), 150);
    assert_eq!(calls.update_gc(30).await.unwrap(), 150);
    let passes = calls.update_gc(201).await;
    assert_refused(passes, "gc:ErrGCSafePointExceedsTxnSafePoint");
    let header = system.header();
    let found = GetGcSafePointRequest { header };
    let found = system.pd.clone().get_gc_safe_point(found).await.unwrap();
    assert_eq!(found.into_inner().safe_point, 150);
    system.stop().await;
}

async fn version(system: &System) -> String {
    let mut pd = system.pd.clone();
    let members = pd.get_members(GetMembersRequest::default()).await;
    let members = members.unwrap().into_inner();
    members.leader.unwrap().binary_version
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_pd_is_a_classic_one() {
    let system = System::start(SELDOM).await;
    let request = GetGcStateRequest {
        header: system.header(),
        ..Default::default()
    };
    let status = system.pd.clone().get_gc_state(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(version(&system).await, "v8.5.6");
    system.stop().await;
    let system = System::start_with_gc_states().await;
    assert_eq!(version(&system).await, "v9.0.0-beta.2.pre");
    system.stop().await;
}

#[test]
fn gc_states_with_a_real_pd_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut config = PlaygroundConfig::new(&data);
    config.real_pd = vec!["http://127.0.0.1:1".to_owned()];
    config.gc_states = true;
    let error = Playground::start(config).err().unwrap();
    assert!(matches!(error, StartError::GcStates), "{error}");
    assert!(!data.exists());
}
