//! `cert-allowed-cn`: a store answers each call of a client with another name by UNAUTHENTICATED; PD and
//! the pages of the status address are for everyone with a certificate.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use pitr_proto::kvrpcpb::GetRequest;
use pitr_proto::pdpb::GetMembersRequest;
use pitr_proto::tikvpb::batch_commands_request::{Request as Part, request::Cmd};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use pitr_proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest};
use rustls::ClientConfig;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::World;
use super::dial;
use crate::it::feed::{Feed, MULTIPLEXED, Protocol, register};
use crate::it::raw::unary;
use crate::it::system::regions;

/// One call of each service, and of each kind; what came of it.
async fn calls(world: &World, client: &ClientConfig) -> Vec<(&'static str, Result<(), Status>)> {
    let channel = world.store(client);
    let pd = world.pd(&world.triple.named("allowed"));
    let region = regions(&pd, world.header()).await.remove(0);
    let registered = register(world.playground.cluster_id(), &region, 1, 1);
    let mut kv = TikvClient::new(channel.clone());
    let check = HealthCheckRequest {
        service: String::new(),
    };
    let health = HealthClient::new(channel.clone()).check(check).await;
    let get = kv.kv_get(GetRequest::default()).await;
    // A method of TiKV that the playground does not have.
    let raw = unary(&channel, "/tikvpb.Tikv/RawGet", Bytes::new()).await;
    let mode = unary(&channel, "/import_sstpb.ImportSST/SwitchMode", Bytes::new()).await;
    let batch = BatchCommandsRequest {
        request_ids: vec![1],
        requests: vec![Part {
            cmd: Some(Cmd::Empty(BatchCommandsEmptyRequest::default())),
        }],
        ..BatchCommandsRequest::default()
    };
    // The half of the client stays open, as that of a real one.
    let asked = stream::iter([batch]).chain(stream::pending());
    let batch = match kv.batch_commands(asked).await {
        Ok(answers) => answers.into_inner().next().await.unwrap().map(|_| ()),
        Err(status) => Err(status),
    };
    let feed = async |protocol| {
        let mut feed = Feed::open(&channel, protocol, vec![registered.clone()]).await?;
        let first = feed.next_within(Duration::from_secs(5)).await;
        first.expect("an event").expect("the stream goes on");
        Ok(())
    };
    vec![
        ("health", health.map(|_| ())),
        ("KvGet", get.map(|_| ())),
        ("RawGet", raw.map(|_| ())),
        ("BatchCommands", batch),
        ("EventFeed", feed(Protocol::V1).await),
        ("EventFeedV2", feed(MULTIPLEXED).await),
        ("SwitchMode", mode.map(|_| ())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_refuses_each_call_of_another_name_and_says_which_it_wants() {
    let world = World::start(&["allowed"]);
    for (call, answer) in calls(&world, &world.triple.named("stranger")).await {
        let refused = answer.expect_err(call);
        assert_eq!(refused.code(), Code::Unauthenticated, "{call}: {refused}");
        assert_eq!(
            refused.message(),
            "Common name check fail, reason: x509_common_name from peer is stranger, \
             cert_allowed_cn: {\"allowed\"}",
            "{call}"
        );
    }
    for (call, answer) in calls(&world, &world.triple.named("allowed")).await {
        match call {
            "RawGet" => assert_eq!(answer.unwrap_err().code(), Code::Unimplemented),
            _ => assert!(answer.is_ok(), "{call}: {answer:?}"),
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_compared_whole_and_by_case() {
    let world = World::start(&["allowed"]);
    for name in ["allowed ", "Allowed", "allowed.host", "allow", ""] {
        let client = world.triple.named(name);
        let channel = world.store(&client);
        let mut kv = TikvClient::new(channel);
        let refused = kv.kv_get(GetRequest::default()).await.expect_err(name);
        assert_eq!(refused.code(), Code::Unauthenticated, "{name:?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_names_is_served_and_pd_serves_every_name() {
    let world = World::start(&["one", "two"]);
    for (name, allowed) in [("one", true), ("two", true), ("three", false)] {
        let client = world.triple.named(name);
        let mut kv = TikvClient::new(world.store(&client));
        let answer = kv.kv_get(GetRequest::default()).await;
        assert_eq!(answer.is_ok(), allowed, "{name}: {answer:?}");
        // PD's own setting of that name is for its members alone: see `real`.
        let mut pd = world.pd(&client);
        let answer = pd.get_members(GetMembersRequest::default()).await;
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_status_address_do_not_ask_for_the_name() {
    let world = World::start(&["allowed"]);
    let stranger = world.triple.named("stranger");
    for path in ["/status", "/config", "/metrics"] {
        let page = dial::page(&stranger, world.status(), path).await;
        assert!(page.starts_with("HTTP/1.1 200"), "{path}: {page}");
    }
    world.end().await;
}
