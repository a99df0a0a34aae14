//! The change data streams of a real TiKV, replayed with the writes that ran beside them. Equal
//! means: the same rows (those of one command in any order), the same errors, resolved
//! timestamps of the same form that obey their rules. How events are cut into messages and how
//! often resolved timestamps come is the server's choice.

use std::time::Duration;

use pitr_proto::cdcpb::event::{LogType, Row};
use pitr_proto::cdcpb::{ChangeDataEvent, ChangeDataRequest};
use pitr_proto::kvrpcpb::MvccGetByKeyRequest;
use prost::Message;
use serde::Deserialize;

use super::feed::{Feed, Item, MULTIPLEXED, Protocol};
use super::kv_transcript::Replay;
use super::system::{OFTEN, System, context};
use super::transcript::{load, message, parse};

/// How long a stream must stay silent for "nothing more comes".
const SILENCE: Duration = Duration::from_millis(350);
/// The region all steps are about.
const REGION: u64 = 4;

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    requests: Vec<String>,
    answers: Vec<String>,
}

/// What a step must bring.
#[derive(Debug, Default)]
struct Expectation {
    /// Rows by command, each command's rows ordered by key.
    commands: Vec<(u64, Vec<Row>)>,
    errors: Vec<Item>,
    /// (request id, old form) of the resolved timestamps.
    resolved: Vec<(u64, bool)>,
}

fn protocol(step: &str) -> Protocol {
    match step {
        "V1" | "old version, V1" => Protocol::V1,
        "V2 without features" => Protocol::V2,
        "unknown feature" => Protocol::Features("x-unknown"),
        _ => MULTIPLEXED,
    }
}

/// Rows of one event; the order inside one command has no meaning.
fn ordered(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| (&a.key, b.commit_ts).cmp(&(&b.key, a.commit_ts)));
    rows
}

struct Scene {
    system: System,
    replay: Replay,
}

impl Scene {
    async fn new() -> Scene {
        let system = System::start(OFTEN).await;
        let mut replay = Replay::new(&system).await;
        for call in replay.dense() {
            // What it answers is another test's business; a resolved timestamp sent meanwhile
            // may move the commit timestamp of the 1PC call, and the later steps know how.
            let _ = replay.step(&system, &call).await;
        }
        let mut scene = Scene { system, replay };
        let committed = scene.commit_of(b"kv/one").await;
        scene
            .replay
            .translation
            .set_time(470_631_121_577_836_558, committed);
        scene
    }

    /// Commit timestamp of the only version of a key.
    async fn commit_of(&self, key: &'static [u8]) -> u64 {
        let request = MvccGetByKeyRequest {
            context: Some(context(self.replay.translation.region(REGION))),
            key: key.into(),
        };
        let answer = self
            .system
            .kv
            .clone()
            .mvcc_get_by_key(request)
            .await
            .expect("mvcc");
        let info = answer.into_inner().info.expect("versions");
        assert_eq!(info.writes.len(), 1, "{info:?}");
        info.writes[0].commit_ts
    }

    async fn requests(&mut self, texts: &[String]) -> Vec<ChangeDataRequest> {
        let descriptor = message("cdcpb.ChangeDataRequest");
        let mut requests = Vec::new();
        for text in texts {
            let mut request = parse(&descriptor, text);
            for recorded in self.replay.translation.new_times(&request) {
                let now = self.system.now().await;
                self.replay.translation.set_time(recorded, now);
            }
            self.replay.translation.apply(&mut request);
            let bytes = request.encode_to_vec();
            requests.push(ChangeDataRequest::decode(bytes.as_slice()).expect("decodes"));
        }
        requests
    }

    fn expectation(&self, texts: &[String]) -> Expectation {
        let descriptor = message("cdcpb.ChangeDataEvent");
        let mut expected = Expectation::default();
        for text in texts {
            let mut event = parse(&descriptor, text);
            self.replay.translation.apply(&mut event);
            let event = ChangeDataEvent::decode(event.encode_to_vec().as_slice()).expect("decodes");
            if let Some(resolved) = event.resolved_ts {
                expected.resolved.push((resolved.request_id, false));
            }
            for event in event.events {
                expected.add(event);
            }
        }
        expected
    }
}

impl Expectation {
    fn add(&mut self, event: pitr_proto::cdcpb::Event) {
        use pitr_proto::cdcpb::event::Event as Body;
        let (request_id, region_id) = (event.request_id, event.region_id);
        match event.event.expect("recorded events say something") {
            Body::Entries(entries) => self.commands.push((request_id, ordered(entries.entries))),
            Body::Error(error) => self.errors.push(Item::Error {
                request_id,
                region_id,
                error,
            }),
            Body::ResolvedTs(_) => self.resolved.push((request_id, true)),
            other => panic!("recorded {other:?}"),
        }
    }

    fn rows(&self) -> usize {
        self.commands.iter().map(|(_, rows)| rows.len()).sum()
    }
}

/// What a stream brought.
#[derive(Debug, Default)]
struct Brought {
    rows: Vec<(u64, Row)>,
    errors: Vec<Item>,
    resolved: Vec<(u64, bool, u64)>,
}

impl Brought {
    fn add(&mut self, item: Item, region: u64) {
        match item {
            Item::Rows {
                request_id,
                region_id,
                rows,
            } => {
                assert_eq!(region_id, region);
                self.rows
                    .extend(rows.into_iter().map(|row| (request_id, row)));
            }
            Item::Resolved {
                request_id,
                regions,
                ts,
            } => {
                assert_eq!(regions, [region]);
                self.resolved.push((request_id, false, ts));
            }
            Item::OldResolved {
                request_id,
                region_id,
                ts,
            } => {
                assert_eq!(region_id, region);
                self.resolved.push((request_id, true, ts));
            }
            error @ Item::Error { .. } => self.errors.push(error),
        }
    }

    /// Reads until `enough`, then for as long as something new besides resolved timestamps comes.
    async fn read(&mut self, feed: &mut Feed, region: u64, enough: impl Fn(&Brought) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(8);
        while !enough(self) && tokio::time::Instant::now() < deadline {
            match feed.next_within(Duration::from_secs(2)).await {
                Some(Ok(item)) => self.add(item, region),
                Some(Err(end)) => panic!("stream ended: {end}"),
                None => {}
            }
        }
    }

    async fn read_silence(&mut self, feed: &mut Feed, region: u64) {
        let deadline = tokio::time::Instant::now() + SILENCE;
        while tokio::time::Instant::now() < deadline {
            if let Some(Ok(item)) = feed.next_within(Duration::from_millis(50)).await {
                self.add(item, region);
            }
        }
    }

    /// Compares rows per request id, command by command, then errors and resolved timestamps.
    fn compare(&self, expected: &Expectation, step: &str) {
        assert_eq!(self.errors, expected.errors, "{step}: errors");
        let mut ids: Vec<u64> = expected.commands.iter().map(|(id, _)| *id).collect();
        ids.extend(self.rows.iter().map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let mut rows = self
                .rows
                .iter()
                .filter(|(i, _)| *i == id)
                .map(|(_, r)| r.clone());
            for (_, command) in expected.commands.iter().filter(|(i, _)| *i == id) {
                let brought: Vec<Row> = rows.by_ref().take(command.len()).collect();
                assert_eq!(&ordered(brought), command, "{step}: rows of request {id}");
            }
            let more: Vec<Row> = rows.collect();
            assert!(
                more.is_empty(),
                "{step}: more rows than TiKV sent: {more:?}"
            );
        }
        for id_and_form in &expected.resolved {
            let found = self
                .resolved
                .iter()
                .any(|(id, old, _)| (*id, *old) == *id_and_form);
            assert!(found, "{step}: no resolved ts {id_and_form:?}");
        }
        for (id, old, ts) in &self.resolved {
            assert!(
                expected.resolved.contains(&(*id, *old)),
                "{step}: resolved {id} {old} {ts}"
            );
            assert!(*ts > 0);
        }
    }
}

/// A step without writes beside it.
async fn quiet_step(scene: &mut Scene, step: &Step) {
    let requests = scene.requests(&step.requests).await;
    let deregisters = step.step == "deregister";
    let opened = Feed::open(&scene.system.store_channel, protocol(&step.step), requests).await;
    if step.answers[0].starts_with("gRPC UNIMPLEMENTED") {
        let status = opened.err().expect("an unknown feature ends the call");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert!(status.message().contains("x-unknown"), "{status}");
        return;
    }
    let mut feed = opened.expect("stream opens");
    let expected = scene.expectation(&step.answers);
    let region = region_of(scene, step);
    let mut brought = Brought::default();
    let wanted_resolved = expected.resolved.len().min(4);
    brought
        .read(&mut feed, region, |b| {
            b.rows.len() >= expected.rows()
                && b.errors.len() >= expected.errors.len()
                && b.resolved.len() >= wanted_resolved
        })
        .await;
    brought.read_silence(&mut feed, region).await;
    if deregisters {
        // The scan may be over before the second request is read.
        brought
            .rows
            .retain(|(_, row)| row.r#type() != LogType::Initialized);
        brought.resolved.clear();
    }
    brought.compare(&expected, &step.step);
    let now = scene.system.now().await;
    assert!(
        brought.resolved.iter().all(|(_, _, ts)| *ts < now),
        "resolved ts of the future"
    );
}

fn region_of(scene: &Scene, step: &Step) -> u64 {
    if step.step == "unknown region" {
        99_999
    } else {
        scene.replay.translation.region(REGION).id
    }
}

impl Scene {
    async fn call(&mut self, step: &str) -> Result<(), String> {
        let call = self.replay.call(step);
        self.replay.step(&self.system, &call).await
    }

    fn time(&self, recorded: u64) -> u64 {
        self.replay.translation.time(recorded).expect("used before")
    }
}

/// The step during which rows of every kind were written.
async fn live_step(scene: &mut Scene, step: &Step) {
    let requests = scene.requests(&step.requests).await;
    let channel = scene.system.store_channel.clone();
    let mut feed = Feed::open(&channel, MULTIPLEXED, requests)
        .await
        .expect("stream opens");
    let region = region_of(scene, step);
    let mut brought = Brought::default();
    brought
        .read(&mut feed, region, |b| !b.resolved.is_empty())
        .await;
    scene.call("live prewrite").await.expect("as recorded");
    let start = scene.time(470_631_124_749_778_945);
    let held = |b: &Brought| b.resolved.iter().filter(|r| r.2 == start).count() >= 2;
    brought.read(&mut feed, region, held).await;
    assert_eq!(
        brought.resolved.last().expect("some").2,
        start,
        "the lock holds it there"
    );
    for call in ["live commit", "live prewrite, rolled back", "live rollback"] {
        scene.call(call).await.expect("as recorded");
    }
    // A resolved timestamp raises the store's largest timestamp, so that the commit timestamp
    // can be above the asked one, as on a real TiKV.
    let _ = scene.call("live 1pc").await;
    for call in [
        "live pessimistic lock",
        "live lock-only",
        "live lock commit",
    ] {
        scene.call(call).await.expect("as recorded");
    }
    let end = scene.system.now().await;
    let asked = scene.time(470_631_125_142_994_948);
    let committed = scene.commit_of(b"kv/live1").await;
    assert!(
        committed >= asked && committed < end,
        "asked {asked}, committed at {committed}"
    );
    scene
        .replay
        .translation
        .set_time(470_631_125_142_994_948, committed);
    let expected = scene.expectation(&step.answers);
    brought
        .read(&mut feed, region, |b| {
            b.rows.len() >= expected.rows() && b.resolved.last().is_some_and(|r| r.2 > end)
        })
        .await;
    brought.read_silence(&mut feed, region).await;
    brought.compare(&expected, &step.step);
}

/// The step during which a lock held the resolved timestamp.
async fn held_step(scene: &mut Scene, step: &Step) {
    let requests = scene.requests(&step.requests).await;
    let channel = scene.system.store_channel.clone();
    let mut feed = Feed::open(&channel, MULTIPLEXED, requests)
        .await
        .expect("stream opens");
    let region = region_of(scene, step);
    let mut brought = Brought::default();
    brought
        .read(&mut feed, region, |b| !b.resolved.is_empty())
        .await;
    scene
        .call("a lock holds resolved ts")
        .await
        .expect("as recorded");
    let start = scene.time(470_631_145_092_153_345);
    let held = |b: &Brought| b.resolved.iter().filter(|r| r.2 == start).count() >= 4;
    brought.read(&mut feed, region, held).await;
    assert!(held(&brought), "{:?}", brought.resolved);
    assert_eq!(
        brought.resolved.last().expect("some").2,
        start,
        "it stays at the lock"
    );
    let expected = scene.expectation(&step.answers);
    brought.compare(&expected, &step.step);
    scene.call("resolve held").await.expect("as recorded");
    let mut after = Brought::default();
    after
        .read(&mut feed, region, |b| {
            b.resolved.last().is_some_and(|r| r.2 > start)
        })
        .await;
    assert!(
        after.resolved.last().expect("some").2 > start,
        "it goes on without the lock"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_brings_what_tikv_brought() {
    let mut scene = Scene::new().await;
    for step in load::<Step>("change-data-transcript.json") {
        match step.step.as_str() {
            "live writes" => live_step(&mut scene, &step).await,
            "lock holds the resolved ts" => held_step(&mut scene, &step).await,
            _ => quiet_step(&mut scene, &step).await,
        }
    }
    scene.system.stop().await;
}
