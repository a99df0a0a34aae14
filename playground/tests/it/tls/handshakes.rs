//! Who gets through: TLS is mutual, at PD, at the store and at its status address.

use std::time::Duration;

use pitr_cluster::tls::TlsError;
use pitr_format::Class;
use pitr_playground::certificates::{Authority, Issued, Subject};
use pitr_playground::{Playground, PlaygroundConfig, StartError};
use pitr_proto::kvrpcpb::GetRequest;
use pitr_proto::pdpb::{GetAllStoresRequest, GetMembersRequest};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use rustls::version::{TLS12, TLS13};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::dial::{self, in_the_clear, knock};
use super::{Triple, World};
use crate::it::system::{context, regions};

/// Nobody who shows this gets in anywhere, in any version of TLS; somebody with a good one does.
async fn assert_cut_off(world: &World, shown: Option<&Issued>) {
    let good = world.triple.issue("client");
    for version in [&TLS13, &TLS12] {
        let refused = world.triple.client(shown, &[version]);
        let served = world.triple.client(Some(&good), &[version]);
        for (door, addr, speech) in world.doors() {
            let outcome = knock(&refused, speech, addr).await;
            assert!(outcome.is_err(), "{door}, {version:?}: {outcome:?}");
            let outcome = knock(&served, speech, addr).await;
            assert!(outcome.is_ok(), "{door}, {version:?}: {outcome:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_cut_off() {
    let world = World::start(&[]);
    assert_cut_off(&world, None).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_of_the_same_name_is_cut_off() {
    let world = World::start(&[]);
    let foreign = Authority::new().unwrap();
    let issued = foreign.issue(&Subject::local("client")).unwrap();
    assert_cut_off(&world, Some(&issued)).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_is_cut_off() {
    let world = World::start(&[]);
    let subject = Subject {
        days: -1,
        ..Subject::local("client")
    };
    let ended = world.triple.authority.issue(&subject).unwrap();
    assert_cut_off(&world, Some(&ended)).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_in_the_clear_end_the_connection_without_an_answer() {
    let world = World::start(&[]);
    for (door, addr, speech) in world.doors() {
        let heard = in_the_clear(speech, addr).await;
        // An alert is a record of type 21, with two bytes inside.
        let silent = heard.is_empty() || (heard[0] == 21 && heard.len() == 7);
        assert!(silent, "{door} says {heard:02x?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_does_not_keep_others_waiting() {
    let world = World::start(&[]);
    let client = world.triple.named("client");
    for (door, addr, speech) in world.doors() {
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let begun = Instant::now();
        let served = timeout(Duration::from_secs(5), knock(&client, speech, addr)).await;
        let outcome = served.unwrap_or_else(|_| panic!("{door} waits for the silent ones"));
        assert!(outcome.is_ok(), "{door}: {outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{door}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_good_certificate_calls_and_pages_are_answered() {
    let world = World::start(&[]);
    let client = world.triple.named("anybody");
    let pd = world.pd(&client);
    let members = pd.clone().get_members(GetMembersRequest::default()).await;
    let members = members.unwrap().into_inner();
    let url = format!("https://{}", world.playground.pd_addr());
    for member in [members.leader.as_ref(), members.members.first()] {
        assert_eq!(member.unwrap().client_urls, [&url[..]]);
    }

    let request = GetAllStoresRequest {
        header: world.header(),
        ..GetAllStoresRequest::default()
    };
    let stores = pd.clone().get_all_stores(request).await.unwrap();
    let stores = stores.into_inner().stores;
    // Without a scheme, as TiKV tells them.
    assert_eq!(stores[0].address, world.playground.store_addr().to_string());
    assert_eq!(stores[0].status_address, world.status().to_string());

    let region = regions(&pd, world.header()).await.remove(0);
    let request = GetRequest {
        context: Some(context(&region)),
        key: "k".into(),
        version: world.playground.timestamp().unwrap().get(),
        ..GetRequest::default()
    };
    let mut kv = TikvClient::new(world.store(&client));
    let answer = kv.kv_get(request).await.unwrap().into_inner();
    assert!(answer.not_found && answer.region_error.is_none());

    for path in ["/status", "/config"] {
        let page = dial::page(&client, world.status(), path).await;
        let (head, body) = page.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        let json: Value = serde_json::from_str(body).unwrap();
        assert!(json.is_object(), "{path}: {json}");
    }
    let metrics = dial::page(&client, world.status(), "/metrics").await;
    assert!(metrics.contains("\ntikv_"), "{metrics}");
    world.end().await;
}

#[test]
fn a_triple_that_does_not_fit_together_keeps_it_from_starting() {
    let triple = Triple::new(&[]);
    let start = || {
        let mut config = PlaygroundConfig::new(triple.dir.path().join("data"));
        config.tls = Some(triple.files.clone());
        match Playground::start(config).err() {
            Some(StartError::Tls(error)) => {
                assert_eq!(error.class(), Class::Permanent);
                error
            }
            other => panic!("{other:?}"),
        }
    };
    let key = triple.files.key_path.display().to_string();
    let strange = triple.issue("server");
    std::fs::write(&triple.files.key_path, &strange.key).unwrap();
    let refused = start();
    assert!(
        matches!(&refused, TlsError::Mismatch { key: named, .. } if *named == key),
        "{refused}"
    );
    std::fs::write(&triple.files.key_path, &strange.cert).unwrap();
    let refused = start();
    assert!(
        matches!(&refused, TlsError::Unusable { path, .. } if *path == key),
        "{refused}"
    );
    std::fs::remove_file(&triple.files.key_path).unwrap();
    let refused = start().to_string();
    assert!(refused.contains(&key), "{refused}");
}
