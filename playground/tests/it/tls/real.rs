//! A real PD with TLS: the playground's own treats its clients the same way, and stores register there.

use std::net::SocketAddr;
use std::time::Duration;

use pitr_cluster::pd::{PdClient, PdOptions};
use pitr_cluster::tls::{Security, TlsConfig};
use pitr_playground::certificates::{Authority, Subject};
use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::pdpb::GetMembersRequest;
use pitr_proto::pdpb::pd_client::PdClient as Grpc;
use rustls::ALL_VERSIONS;
use rustls::version::TLS12;
use serde_json::json;

use super::dial::{self, Speech, in_the_clear, knock};
use super::{Triple, World};
use crate::it::pd_servers::PdServers;

/// What a PD whose only allowed name is `server` makes of its clients.
async fn treats(triple: &Triple, pd: SocketAddr) -> Vec<(&'static str, bool)> {
    let foreign = Authority::new().unwrap();
    let foreign = foreign.issue(&Subject::local("server")).unwrap();
    let ended = Subject {
        days: -1,
        ..Subject::local("server")
    };
    let ended = triple.authority.issue(&ended).unwrap();
    let ours = triple.issue("server");
    let clients = [
        ("no certificate", triple.client(None, ALL_VERSIONS)),
        ("no certificate, TLS 1.2", triple.client(None, &[&TLS12])),
        (
            "another authority",
            triple.client(Some(&foreign), ALL_VERSIONS),
        ),
        ("ended", triple.client(Some(&ended), ALL_VERSIONS)),
        ("another name", triple.named("stranger")),
        ("the right one", triple.client(Some(&ours), ALL_VERSIONS)),
        (
            "the right one, TLS 1.2",
            triple.client(Some(&ours), &[&TLS12]),
        ),
    ];
    let mut found = Vec::new();
    for (what, client) in clients {
        let served = knock(&client, Speech::Grpc, pd).await.is_ok();
        let mut grpc = Grpc::new(dial::channel(&client, pd));
        let answer = grpc.get_members(GetMembersRequest::default()).await;
        assert_eq!(answer.is_ok(), served, "{what}: {answer:?}");
        if let Ok(answer) = answer {
            let members = answer.into_inner().members;
            let urls: Vec<_> = members.iter().flat_map(|m| &m.client_urls).collect();
            assert_eq!(urls, [&format!("https://{pd}")], "{what}");
        }
        found.push((what, served));
    }
    for (what, speech) in [("HTTP/2", Speech::Grpc), ("HTTP/1.1", Speech::Http)] {
        let heard = in_the_clear(speech, pd).await;
        // At most an alert.
        found.push((what, !heard.is_empty() && heard[0] != 21));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_playgrounds_pd_treats_clients_as_a_real_one_does() {
    let wanted = [
        ("no certificate", false),
        ("no certificate, TLS 1.2", false),
        ("another authority", false),
        ("ended", false),
        // PD lets its own members in by their name, not its clients.
        ("another name", true),
        ("the right one", true),
        ("the right one, TLS 1.2", true),
        ("HTTP/2", false),
        ("HTTP/1.1", false),
    ];
    let world = World::start(&["server"]);
    assert_eq!(
        treats(&world.triple, world.playground.pd_addr()).await,
        wanted
    );
    world.end().await;
    let triple = Triple::new(&["server"]);
    let Some(pd) = PdServers::with_tls(1, &triple.files) else {
        return;
    };
    let addr = pd.urls()[0]
        .strip_prefix("https://")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(treats(&triple, addr).await, wanted);
}

async fn ids(pd: &PdClient) -> Vec<u64> {
    let mut ids: Vec<_> = pd.stores().await.unwrap().iter().map(|s| s.id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_register_at_a_real_pd_and_a_client_sees_them_also_after_a_change_of_leader() {
    let triple = Triple::new(&["server"]);
    let Some(mut pd) = PdServers::with_tls(3, &triple.files) else {
        return;
    };
    assert!(pd.urls().iter().all(|url| url.starts_with("https://")));
    let mut config = PlaygroundConfig::new(triple.dir.path().join("data"));
    config.stores = 3;
    config.real_pd = pd.urls();
    config.tls = Some(triple.files.clone());
    let playground = Playground::start(config).unwrap();
    let mut wanted: Vec<_> = playground.addresses().iter().map(|a| a.id).collect();
    wanted.sort_unstable();

    let files = TlsConfig {
        cert_allowed_cn: Vec::new(),
        ..triple.files.clone()
    };
    let options = PdOptions {
        security: Security::load(files).unwrap(),
        // An election takes up to ten seconds.
        deadline: Duration::from_secs(30),
        ..PdOptions::default()
    };
    let client = PdClient::connect_with(&pd.urls(), options).await.unwrap();
    assert_eq!(client.cluster_id(), playground.cluster_id());
    assert_eq!(ids(&client).await, wanted);

    // What has no gRPC call was told to it, too.
    assert_eq!(pd.page("/pd/api/v1/stores")["count"], 3);
    assert_eq!(pd.page("/pd/api/v1/config/replicate")["max-replicas"], 3);
    pd.post(
        "/pd/api/v1/config",
        &json!({"schedule.max-merge-region-size": 7}),
    );
    assert_eq!(
        pd.page("/pd/api/v1/config/schedule")["max-merge-region-size"],
        7
    );

    let leader = pd.leader();
    pd.end(leader, "-TERM");
    assert_ne!(pd.leader(), leader);
    assert_eq!(ids(&client).await, wanted);
    assert!(client.tso().await.unwrap() < playground.timestamp().unwrap());
    pd.restart(leader);
    tokio::task::spawn_blocking(move || playground.shutdown())
        .await
        .unwrap();
}
