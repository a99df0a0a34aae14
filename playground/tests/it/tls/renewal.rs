//! Changed files: new connections have the new certificates, those that stand go on, and what cannot be
//! used changes nothing.

use std::fs;
use std::time::Duration;

use pitr_playground::certificates::{Authority, Issued};
use pitr_proto::etcdserverpb::PutRequest;
use pitr_proto::etcdserverpb::kv_client::KvClient;
use rustls::pki_types::CertificateDer;
use rustls::{ALL_VERSIONS, ClientConfig};
use tokio::time::{Instant, sleep};

use super::World;
use super::dial::{self, knock, shown};
use crate::it::etcd_rules::Watching;
use crate::it::feed::{Feed, MULTIPLEXED, register};
use crate::it::pd_servers::tls_client;
use crate::it::system::regions;

/// Changed files are in use by then.
const SOON: Duration = Duration::from_secs(5);
/// Longer than it takes until files are looked at again.
const A_LOOK: Duration = Duration::from_millis(1300);

fn der(issued: &Issued) -> CertificateDer<'static> {
    tls_client::certificates(&issued.cert).remove(0)
}

/// What each door shows a new connection.
async fn all_shown(world: &World, client: &ClientConfig) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    for (_, addr, speech) in world.doors() {
        found.push(shown(client, speech, addr).await);
    }
    found
}

/// Every door shows this one, at last.
async fn wait_shown(world: &World, client: &ClientConfig, wanted: &Issued) {
    let end = Instant::now() + SOON;
    while all_shown(world, client).await != vec![der(wanted); 3] {
        assert!(Instant::now() < end, "the new files are not used");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn put(channel: tonic::transport::Channel, key: &'static str) {
    let request = PutRequest {
        key: key.into(),
        ..PutRequest::default()
    };
    KvClient::new(channel).put(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_have_the_new_certificate_while_open_streams_go_on() {
    let world = World::start(&[]);
    let first = world.triple.issue("server");
    world.triple.write(&first);
    let client = world.triple.named("client");
    wait_shown(&world, &client, &first).await;

    let pd_channel = dial::channel(&client, world.playground.pd_addr());
    let pd = world.pd(&client);
    let region = regions(&pd, world.header()).await.remove(0);
    let now = world.playground.timestamp().unwrap().get();
    let subscribed = register(world.playground.cluster_id(), &region, 7, now);
    let opened = Feed::open(&world.store(&client), MULTIPLEXED, vec![subscribed]).await;
    let mut feed = opened.unwrap();
    feed.wait_initialized(7).await;
    let (_, before) = feed.wait_resolved(7).await;
    let mut watching = Watching::start(&pd_channel, "/tls/", "/tls0", 0).await;

    let second = world.triple.issue("server");
    world.triple.write(&second);
    wait_shown(&world, &client, &second).await;
    assert_ne!(der(&first), der(&second));

    let later = world.playground.timestamp().unwrap().get();
    loop {
        let (_, resolved) = feed.wait_resolved(7).await;
        assert!(resolved >= before);
        if resolved >= later {
            break;
        }
    }
    put(
        dial::channel(&client, world.playground.pd_addr()),
        "/tls/new",
    )
    .await;
    put(pd_channel, "/tls/old").await;
    let events = watching.events(2).await;
    let keys: Vec<_> = events
        .iter()
        .map(|event| event.kv.as_ref().unwrap().key.clone())
        .collect();
    assert_eq!(keys, ["/tls/new", "/tls/old"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_lets_its_clients_in_and_those_of_the_old_one_out() {
    let mut world = World::start(&[]);
    let old = world.triple.issue("client");
    let new_authority = Authority::new().unwrap();
    let old_authority = std::mem::replace(&mut world.triple.authority, new_authority);
    let new = world.triple.issue("client");
    let server = world.triple.issue("server");
    // Who trusts both, so that only the server's opinion counts.
    let both = [old_authority.pem(), world.triple.authority.pem()].concat();
    let client =
        |shown: &Issued| tls_client::config(&both, Some((&shown.cert, &shown.key)), ALL_VERSIONS);
    for (door, addr, speech) in world.doors() {
        assert!(knock(&client(&old), speech, addr).await.is_ok(), "{door}");
        assert!(knock(&client(&new), speech, addr).await.is_err(), "{door}");
    }
    world.triple.write(&server);
    wait_shown(&world, &client(&new), &server).await;
    for (door, addr, speech) in world.doors() {
        assert!(knock(&client(&old), speech, addr).await.is_err(), "{door}");
        assert!(knock(&client(&new), speech, addr).await.is_ok(), "{door}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_leave_the_old_ones_in_use() {
    let world = World::start(&[]);
    let first = world.triple.issue("server");
    world.triple.write(&first);
    let client = world.triple.named("client");
    wait_shown(&world, &client, &first).await;
    let files = &world.triple.files;
    let second = world.triple.issue("server");
    let half = |text: &str| text[..text.len() / 2].to_owned();

    let unusable: [(&str, &dyn Fn()); 5] = [
        ("the certificate is new and the key is old", &|| {
            fs::write(&files.cert_path, &second.cert).unwrap();
        }),
        ("half of the certificate", &|| {
            fs::write(&files.cert_path, half(&second.cert)).unwrap();
        }),
        ("no key", &|| {
            fs::write(&files.cert_path, &second.cert).unwrap();
            fs::remove_file(&files.key_path).unwrap();
        }),
        ("half of the key", &|| {
            fs::write(&files.key_path, half(&second.key)).unwrap();
        }),
        ("an empty authority", &|| {
            fs::write(&files.key_path, &second.key).unwrap();
            fs::write(&files.ca_path, "").unwrap();
        }),
    ];
    for (what, write) in unusable {
        write();
        sleep(A_LOOK).await;
        assert_eq!(
            all_shown(&world, &client).await,
            vec![der(&first); 3],
            "{what}"
        );
        for (door, addr, speech) in world.doors() {
            let outcome = knock(&client, speech, addr).await;
            assert!(outcome.is_ok(), "{what}, {door}: {outcome:?}");
        }
    }
    fs::write(&files.ca_path, world.triple.authority.pem()).unwrap();
    wait_shown(&world, &client, &second).await;
    world.end().await;
}
