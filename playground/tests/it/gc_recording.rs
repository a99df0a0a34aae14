//! The calls of PD's GC states, beside a real PD that has them: the same calls, the same answers.
//!
//! `playground/tests/data/gc-states.json` is what a real PD answered, with its version; the
//! playground's own with `--gc-states` must answer the same. Where `PITR_RECORD_GC_STATES` names the program
//! of such a PD, the test starts it first and writes the file anew. Each rule of the old and the new calls is met once; later calls see the safe points and
//! barriers of earlier ones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::metapb;
use pitr_proto::pdpb::keyspace_scope::Keyspace;
use pitr_proto::pdpb::*;
use serde_json::{Value, json};
use tonic::{Code, Response, Status};

use crate::it::pd_servers::PdServers;
use crate::it::real_pd::answer::Asked;
use crate::it::real_pd::assert_same;

/// The keyspace of a cluster that has none.
const NULL_KEYSPACE: u32 = u32::MAX;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gc-states.json")
}

/// Seconds left may have begun to run, and the old calls tell "for ever" less the clock.
fn time_to_live(seconds: i64) -> Value {
    match seconds {
        550..=600 => json!("about 600"),
        i64::MAX => json!("for ever"),
        ttl if ttl > i64::MAX / 2 => json!("for ever, less the clock"),
        ttl => json!(ttl),
    }
}

fn barrier(info: Option<&GcBarrierInfo>) -> Value {
    info.map_or(
        Value::Null,
        |b| json!({"id": b.barrier_id, "ts": b.barrier_ts, "ttl": time_to_live(b.ttl_seconds)}),
    )
}

fn scope(keyspace_id: u32) -> Option<KeyspaceScope> {
    let keyspace = Some(Keyspace::KeyspaceId(keyspace_id));
    Some(KeyspaceScope { keyspace })
}

/// Calls by what they are given; each keeps its answer.
struct Script(Asked);

impl Script {
    async fn state_with(&mut self, call: &str, request: GetGcStateRequest) {
        let answer = self.0.pd.clone().get_gc_state(request).await;
        let show = |a: &GetGcStateResponse| {
            let state = a.gc_state.clone().unwrap_or_default();
            let mut barriers = state.gc_barriers;
            barriers.sort_by(|a, b| a.barrier_id.cmp(&b.barrier_id));
            let barriers: Vec<_> = barriers.iter().map(|b| barrier(Some(b))).collect();
            json!({
                "scope": format!("{:?}", state.keyspace_scope.and_then(|scope| scope.keyspace)),
                "is_keyspace_level_gc": state.is_keyspace_level_gc,
                "txn_safe_point": state.txn_safe_point,
                "gc_safe_point": state.gc_safe_point,
                "barriers": barriers,
            })
        };
        let call = format!("GetGCState {call}");
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn state(&mut self, call: &str) {
        let header = self.0.header();
        let request = GetGcStateRequest {
            header,
            ..Default::default()
        };
        self.state_with(call, request).await;
    }

    async fn set(&mut self, id: &str, ts: u64, ttl: i64) {
        let request = SetGcBarrierRequest {
            header: self.0.header(),
            keyspace_scope: None,
            barrier_id: id.to_owned(),
            barrier_ts: ts,
            ttl_seconds: ttl,
        };
        let answer = self.0.pd.clone().set_gc_barrier(request).await;
        let call = format!("SetGCBarrier {id:?} at {ts} for {}", time_to_live(ttl));
        let show = |a: &SetGcBarrierResponse| barrier(a.new_barrier_info.as_ref());
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn delete(&mut self, id: &str) {
        let request = DeleteGcBarrierRequest {
            header: self.0.header(),
            keyspace_scope: None,
            barrier_id: id.to_owned(),
        };
        let answer = self.0.pd.clone().delete_gc_barrier(request).await;
        let call = format!("DeleteGCBarrier {id:?}");
        let show = |a: &DeleteGcBarrierResponse| barrier(a.deleted_barrier_info.as_ref());
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn advance_txn(&mut self, target: u64) {
        let request = AdvanceTxnSafePointRequest {
            header: self.0.header(),
            keyspace_scope: None,
            target,
        };
        let answer = self.0.pd.clone().advance_txn_safe_point(request).await;
        let call = format!("AdvanceTxnSafePoint to {target}");
        let show = |a: &AdvanceTxnSafePointResponse| {
            json!({
                "old": a.old_txn_safe_point,
                "new": a.new_txn_safe_point,
                "blocker": blocker(&a.blocker_description),
            })
        };
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn advance_gc(&mut self, target: u64) {
        let request = AdvanceGcSafePointRequest {
            header: self.0.header(),
            keyspace_scope: None,
            target,
        };
        let answer = self.0.pd.clone().advance_gc_safe_point(request).await;
        let call = format!("AdvanceGCSafePoint to {target}");
        let show = |a: &AdvanceGcSafePointResponse| json!({"old": a.old_gc_safe_point, "new": a.new_gc_safe_point});
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn service(&mut self, id: &'static str, ttl: i64, safe_point: u64) {
        let request = UpdateServiceGcSafePointRequest {
            header: self.0.header(),
            service_id: id.into(),
            ttl,
            safe_point,
        };
        let answer = self
            .0
            .pd
            .clone()
            .update_service_gc_safe_point(request)
            .await;
        let ttl = time_to_live(ttl);
        let call = format!("UpdateServiceGCSafePoint {id:?} at {safe_point} for {ttl}");
        let show = |a: &UpdateServiceGcSafePointResponse| {
            json!({
                "service": String::from_utf8_lossy(&a.service_id),
                "ttl": time_to_live(a.ttl),
                "minimum": a.min_safe_point,
            })
        };
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }

    async fn gc_safe_point(&mut self) {
        let header = self.0.header();
        let request = GetGcSafePointRequest { header };
        let answer = self.0.pd.clone().get_gc_safe_point(request).await;
        let show = |a: &GetGcSafePointResponse| json!(a.safe_point);
        self.0
            .pd("GetGCSafePoint", answer, |a| a.header.as_ref(), show);
    }

    async fn update_gc(&mut self, safe_point: u64) {
        let header = self.0.header();
        let request = UpdateGcSafePointRequest { header, safe_point };
        let answer = self.0.pd.clone().update_gc_safe_point(request).await;
        let call = format!("UpdateGCSafePoint to {safe_point}");
        let show = |a: &UpdateGcSafePointResponse| json!(a.new_safe_point);
        self.0.pd(&call, answer, |a| a.header.as_ref(), show);
    }
}

/// A blocker is described in words for people and with the second at which it ends; who and where
/// is what counts.
fn blocker(text: &str) -> Value {
    let Some((_, named)) = text.split_once('"') else {
        return json!(text);
    };
    let (id, rest) = named.split_once('"').unwrap();
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    let ts = numbers.find(|number| !number.is_empty()).unwrap();
    json!({"id": id, "ts": ts})
}

/// Asks everything of the PD at `url`, whose GC never ran.
async fn ask(url: String, cluster_id: u64) -> Vec<Value> {
    let mut script = Script(Asked::connect(url, cluster_id).await);
    reads(&mut script).await;
    barriers(&mut script).await;
    gc_safe_points(&mut script).await;
    ends_of_barriers(&mut script).await;
    old_services(&mut script).await;
    old_barriers_of_br(&mut script).await;
    old_gc_safe_points(&mut script).await;
    script.0.answers
}

async fn reads(script: &mut Script) {
    script.state("of a new cluster").await;
    let header = script.0.header();
    let null = GetGcStateRequest {
        header: header.clone(),
        keyspace_scope: scope(NULL_KEYSPACE),
        ..Default::default()
    };
    script
        .state_with("of the null keyspace by its id", null)
        .await;
    let stranger = Some(RequestHeader {
        cluster_id: 7,
        ..Default::default()
    });
    let wrong = GetGcStateRequest {
        header: stranger,
        ..Default::default()
    };
    script.state_with("of another cluster", wrong).await;
}

async fn barriers(script: &mut Script) {
    script.set("a", 100, 600).await;
    script.set("", 100, 600).await;
    script.set("gc_worker", 100, 600).await;
    script.set("b", 100, 0).await;
    script.set("b", 100, -1).await;
    script.set("b", 0, 600).await;
    script.advance_txn(50).await;
    script.delete("b").await;
    script.advance_txn(50).await;
    script.advance_txn(200).await;
    script.advance_txn(200).await;
    script.advance_txn(60).await;
    script.advance_txn(100).await;
    // Forward, back down to the txn safe point, and no further.
    for ts in [150, 120, 100, 99] {
        script.set("a", ts, 600).await;
    }
    script.set("late", 99, 600).await;
    script.set("b", 300, i64::MAX).await;
    script.state("with two barriers").await;
    let without = GetGcStateRequest {
        header: script.0.header(),
        exclude_gc_barriers: true,
        ..Default::default()
    };
    script.state_with("without barriers", without).await;
}

async fn gc_safe_points(script: &mut Script) {
    for target in [90, 90, 101, 80, 95] {
        script.advance_gc(target).await;
    }
}

async fn ends_of_barriers(script: &mut Script) {
    script.delete("a").await;
    script.delete("a").await;
    script.delete("").await;
    script.delete("gc_worker").await;
    script.advance_txn(200).await;
    script.advance_txn(400).await;
    script.delete("b").await;
    script.set("short", 320, 1).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    script.state("after the end of a barrier").await;
    script.advance_txn(350).await;
    // The lowest of several holds.
    script.set("c", 360, 600).await;
    script.set("d", 355, 600).await;
    script.advance_txn(400).await;
    script.delete("c").await;
    script.delete("d").await;
}

async fn old_services(script: &mut Script) {
    script.service("s", 600, 380).await;
    script.service("t", 600, 370).await;
    script.state("with barriers of the old call").await;
    script.service("late", 600, 100).await;
    script.service("s", 600, 100).await;
    script.service("s", 600, 355).await;
    script
        .state("after a service went back to the txn safe point")
        .await;
    script.service("", 600, 400).await;
    script.service("gc_worker", 600, 400).await;
    script.service("gc_worker", 0, 400).await;
    script.service("gc_worker", i64::MAX, 400).await;
    script.service("s", 0, 0).await;
    script.service("s", 0, 0).await;
    script.service("gc_worker", i64::MAX, 400).await;
    script.service("t", -1, 0).await;
    script.service("gc_worker", i64::MAX, 500).await;
    script.service("gc_worker", i64::MAX, 450).await;
    script.service("forever", i64::MAX, 550).await;
    script.state("with a service that never ends").await;
    script.delete("forever").await;
    script.state("after the new call removed it").await;
}

async fn old_barriers_of_br(script: &mut Script) {
    script.service("native_br", 600, 600).await;
    script.state("with the old call of BR's full backup").await;
    script.advance_txn(700).await;
    script.service("native_br", 0, 0).await;
    script.advance_txn(700).await;
}

async fn old_gc_safe_points(script: &mut Script) {
    script.gc_safe_point().await;
    for safe_point in [200, 150, 701, 700] {
        script.update_gc(safe_point).await;
    }
    script.gc_safe_point().await;
    script.state("at the end").await;
}

/// Puts a store that exists in PD only, so that PD counts as bootstrapped; the cluster's id.
async fn bootstrap(url: String) -> u64 {
    let mut asked = Asked::connect(url, 0).await;
    // A member is healthy a moment before it serves.
    let members = loop {
        match asked.pd.get_members(GetMembersRequest::default()).await {
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer => break answer.unwrap().into_inner(),
        }
    };
    asked.cluster_id = members.header.unwrap().cluster_id;
    let request = BootstrapRequest {
        header: asked.header(),
        store: Some(metapb::Store {
            id: 4,
            address: "127.0.0.1:1".to_owned(),
            version: "8.5.6".to_owned(),
            ..Default::default()
        }),
        region: Some(metapb::Region {
            id: 5,
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version: 1,
            }),
            peers: vec![metapb::Peer {
                id: 6,
                store_id: 4,
                ..Default::default()
            }],
            ..Default::default()
        }),
    };
    asked.pd.bootstrap(request).await.unwrap();
    asked.cluster_id
}

async fn record(program: PathBuf) {
    let said = Command::new(&program).arg("-V").output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("Release Version: "));
    let pd = PdServers::of(program, 1);
    let url = pd.urls().remove(0);
    let cluster_id = bootstrap(url.clone()).await;
    let found = ask(url, cluster_id).await;
    let lines: Vec<String> = found.iter().map(|v| format!("    {v}")).collect();
    let text = format!(
        "{{\n  \"server\": {},\n  \"answers\": [\n{}\n  ]\n}}\n",
        json!(version.unwrap()),
        lines.join(",\n")
    );
    std::fs::create_dir_all(file().parent().unwrap()).unwrap();
    std::fs::write(file(), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playground_with_gc_states_answers_as_a_real_pd_did() {
    if let Some(program) = std::env::var_os("PITR_RECORD_GC_STATES") {
        record(program.into()).await;
    }
    let recorded: Value = serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = PlaygroundConfig::new(dir.path());
    config.gc_states = true;
    let playground = Playground::start(config).unwrap();
    let url = format!("http://{}", playground.pd_addr());
    let found = ask(url, playground.cluster_id()).await;
    assert_same(recorded["answers"].as_array().unwrap(), &found);
    end(playground).await;
}

async fn end(playground: Playground) {
    tokio::task::spawn_blocking(move || playground.shutdown())
        .await
        .unwrap();
}

async fn classic(url: String, cluster_id: u64) {
    let asked = Asked::connect(url, cluster_id).await;
    let (header, mut pd) = (asked.header(), asked.pd);
    fn refused<T: std::fmt::Debug>(name: &str, answer: Result<Response<T>, Status>) {
        let status = answer.unwrap_err();
        let expected = format!("unknown method {name} for service pdpb.PD");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, &expected[..])
        );
    }
    macro_rules! refuses {
        ($($call:ident($request:ident) = $name:literal),*) => {
            $(refused($name, pd.$call($request { header: header.clone(), ..Default::default() }).await);)*
        };
    }
    refuses!(
        get_gc_state(GetGcStateRequest) = "GetGCState",
        set_gc_barrier(SetGcBarrierRequest) = "SetGCBarrier",
        delete_gc_barrier(DeleteGcBarrierRequest) = "DeleteGCBarrier",
        advance_txn_safe_point(AdvanceTxnSafePointRequest) = "AdvanceTxnSafePoint",
        advance_gc_safe_point(AdvanceGcSafePointRequest) = "AdvanceGCSafePoint"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pd_without_gc_states_refuses_each_of_their_calls() {
    let dir = tempfile::tempdir().unwrap();
    let playground = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    let url = format!("http://{}", playground.pd_addr());
    classic(url, playground.cluster_id()).await;
    end(playground).await;
    if let Some(pd) = PdServers::start(1) {
        let url = pd.urls().remove(0);
        let cluster_id = bootstrap(url.clone()).await;
        classic(url, cluster_id).await;
    }
}
