//! The transactional calls of a real TiKV, one after another: same kind of answer, same error
//! variant, same values.

use bytes::Bytes;
use prost::Message;

use super::raw;
use super::system::{SELDOM, System};
use super::transcript::{Call, Translation, comparable, expected, load, method, parse};

/// From here on the recording ran beside change data streams and paused for seconds.
const LIVE_FROM: &str = "live prewrite";
/// First timestamp of the recording; the dense part keeps its distances to it.
const DENSE_FROM: u64 = 470_631_121_564_729_344;
const DENSE_TO: u64 = 470_631_121_860_000_000;

/// Sends recorded calls to one system and compares.
pub struct Replay {
    pub translation: Translation,
    base: u64,
    calls: Vec<Call>,
}

impl Replay {
    pub async fn new(system: &System) -> Replay {
        let translation = Translation::prepare(system).await;
        let base = system.now().await;
        Replay {
            translation,
            base,
            calls: load("kv-transcript.json"),
        }
    }

    /// Calls before the first live one.
    pub fn dense(&self) -> Vec<Call> {
        self.calls
            .iter()
            .take_while(|c| c.step != LIVE_FROM)
            .cloned()
            .collect()
    }

    /// Calls from the first live one on.
    pub fn live(&self) -> Vec<Call> {
        self.calls
            .iter()
            .skip_while(|c| c.step != LIVE_FROM)
            .cloned()
            .collect()
    }

    /// A call by the name of its step.
    pub fn call(&self, step: &str) -> Call {
        self.calls
            .iter()
            .find(|c| c.step == step)
            .expect(step)
            .clone()
    }

    /// Sends one call; `Err` describes how the answer differs.
    pub async fn step(&mut self, system: &System, call: &Call) -> Result<(), String> {
        let (expected, actual) = self.answers(system, call).await?;
        if expected == actual {
            return Ok(());
        }
        Err(format!(
            "{} ({}):\n  expected {expected}\n  actual   {actual}",
            call.step, call.rpc
        ))
    }

    async fn answers(&mut self, system: &System, call: &Call) -> Result<(String, String), String> {
        let method = method("tikvpb.Tikv", &call.rpc).ok_or("no such method")?;
        let mut request = parse(&method.input(), &call.request);
        self.assign_times(system, &request).await;
        self.translation.apply(&mut request);
        let path = format!("/tikvpb.Tikv/{}", call.rpc);
        let bytes: Bytes = request.encode_to_vec().into();
        let answer = raw::unary(&system.store_channel, &path, bytes)
            .await
            .map_err(|status| format!("{} ({}): {status}", call.step, call.rpc))?;
        let expected = expected(&self.translation, &method.output(), &call.answer);
        Ok((expected, comparable(&method.output(), answer)))
    }

    /// The dense part keeps its distances (some calls ask for a timestamp before or between those
    /// of others); later timestamps are fresh ones. Nothing is sent before PD's clock is there.
    async fn assign_times(&mut self, system: &System, request: &prost_reflect::DynamicMessage) {
        let new = self.translation.new_times(request);
        let (dense, live): (Vec<u64>, Vec<u64>) = new.into_iter().partition(|t| *t < DENSE_TO);
        for recorded in dense {
            let ours = self.base + (recorded - DENSE_FROM);
            self.translation.set_time(recorded, ours);
            while system.now().await <= ours {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        if !live.is_empty() {
            let count = u64::try_from(live.len()).expect("few");
            let last = system.timestamps(u32::try_from(count).expect("few")).await;
            for (recorded, ours) in live.into_iter().zip(last + 1 - count..) {
                self.translation.set_time(recorded, ours);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_as_tikv_answered_it() {
    let system = System::start(SELDOM).await;
    let mut replay = Replay::new(&system).await;
    let mut differences = Vec::new();
    for call in replay.dense().into_iter().chain(replay.live()) {
        if let Err(difference) = replay.step(&system, &call).await {
            differences.push(difference);
        }
    }
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
    system.stop().await;
}
