//! The playground's PD and etcd beside a real PD: the same calls, the same answers.
//!
//! `tests/golden/real-pd/answers.json` is what a real PD answered to the calls of [`calls`] and
//! [`etcd`]. The playground's own PD must answer the same; so must a real PD, where one is built.
//! With `PITR_RECORD` set the second test writes the file instead.

pub mod answer;
mod calls;
mod etcd;
mod several;

use std::path::{Path, PathBuf};

use pitr_playground::{Playground, PlaygroundConfig};
use serde_json::Value;

use crate::it::pd_servers::PdServers;
use answer::Asked;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/real-pd/answers.json")
}

fn recorded() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap()
}

/// Asks everything of the PD at `url`, whose cluster has one new store.
async fn ask(url: String, cluster_id: u64, own: bool) -> Vec<Value> {
    let mut asked = Asked::connect(url, cluster_id).await;
    calls::settle(&asked, own).await;
    calls::ask(&mut asked).await;
    etcd::ask(&mut asked).await;
    asked.answers
}

/// Step by step, so that a failure names the call.
pub fn assert_same(recorded: &[Value], found: &[Value]) {
    let differences: Vec<String> = recorded
        .iter()
        .zip(found)
        .filter(|(recorded, found)| recorded != found)
        .map(|(recorded, found)| format!("recorded {recorded}\n   found {found}"))
        .collect();
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
    assert_eq!(recorded.len(), found.len());
}

async fn end(playground: Playground) {
    tokio::task::spawn_blocking(move || playground.shutdown())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_playgrounds_pd_answers_as_a_real_one_did() {
    let dir = tempfile::tempdir().unwrap();
    let playground = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    let url = format!("http://{}", playground.pd_addr());
    assert_same(&recorded(), &ask(url, playground.cluster_id(), true).await);
    end(playground).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_pd_answers_as_it_was_recorded() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut config = PlaygroundConfig::new(dir.path());
    config.real_pd = pd.urls();
    let playground = Playground::start(config).unwrap();
    let found = ask(pd.urls().remove(0), playground.cluster_id(), false).await;
    match std::env::var_os("PITR_RECORD") {
        Some(_) => {
            let lines: Vec<String> = found.iter().map(|v| format!("  {v}")).collect();
            std::fs::create_dir_all(file().parent().unwrap()).unwrap();
            std::fs::write(file(), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        }
        None => assert_same(&recorded(), &found),
    }
    end(playground).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_does_not_join_a_cluster_that_has_another() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |dir: &tempfile::TempDir| {
        let mut config = PlaygroundConfig::new(dir.path());
        config.real_pd = pd.urls();
        Playground::start(config)
    };
    let playground = at(&first).unwrap();
    let region = playground.store().regions().find(b"").unwrap().id;
    let refused = at(&second).err().unwrap().to_string();
    assert!(refused.contains("has stores already"), "{refused}");
    end(playground).await;
    // The same directory comes back, at another address.
    let again = at(&first).unwrap();
    assert_eq!(again.store().regions().find(b"").unwrap().id, region);
    end(again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playground_is_no_second_store_of_another_playground() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let playground = Playground::start(PlaygroundConfig::new(first.path())).unwrap();
    let mut config = PlaygroundConfig::new(second.path());
    config.real_pd = vec![format!("http://{}", playground.pd_addr())];
    let refused = Playground::start(config).err().unwrap().to_string();
    let store = playground.store_addr().to_string();
    assert!(refused.contains(&store), "{refused}");
    end(playground).await;
}
