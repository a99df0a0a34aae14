//! Who serves which store: what each sidecar says of itself in the leased key of its store, and
//! the stores of the cluster beside it, so that one without a sidecar is named too.

use std::collections::BTreeMap;
use std::fmt;

use pitr_cluster::seat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::{HeldBy, SidecarStatus, TaskState};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::process::ProcessName;

/// A running sidecar, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Member {
    /// Id of the process, made anew at each start.
    pub daemon: String,
    /// Where its admin pages are.
    pub address: String,
    /// Where its log backup service is.
    pub log_backup_address: String,
    /// Name of its machine.
    pub host: String,
    /// Version of the binary.
    pub version: String,
    /// When it started (RFC 3339, UTC).
    pub started_at: String,
    /// Its process, for a successor on the same machine.
    pub process: Option<ProcessName>,
    /// The tasks that it has seen.
    pub tasks: Vec<MemberTask>,
}

/// A task at one sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemberTask {
    /// Name of the task.
    pub name: String,
    /// Where it stands there.
    #[serde(flatten)]
    pub state: TaskState,
    /// What holds its checkpoint, as this sidecar sees it.
    #[serde(default)]
    pub held_by: Option<HeldBy>,
}

/// A store of the cluster and who serves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreStatus {
    /// Its id.
    pub store_id: u64,
    /// Its address; empty if PD no longer has the store.
    pub store_address: String,
    /// Its sidecar; null if none runs.
    pub sidecar: Option<Member>,
}

/// One task on one store.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct TaskOnStore {
    /// Id of the store.
    pub store_id: u64,
    /// Its address.
    pub store_address: String,
    /// Admin address of its sidecar; null if none runs.
    pub sidecar: Option<String>,
    /// Where the task stands there.
    #[serde(flatten)]
    pub state: StateOnStore,
    /// What holds the checkpoint of the task, as the sidecar of this store sees it.
    pub held_by: Option<HeldBy>,
}

/// Where a task stands on a store.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StateOnStore {
    /// The sidecar has not seen the task.
    NotLoaded,
    /// No sidecar runs: nothing of this store is captured.
    NoSidecar,
    /// As its sidecar says.
    #[serde(untagged)]
    Known(TaskState),
}

impl fmt::Display for StateOnStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateOnStore::NotLoaded => f.write_str("not loaded"),
            StateOnStore::NoSidecar => f.write_str("nothing is captured here"),
            StateOnStore::Known(state) => state.fmt(f),
        }
    }
}

impl Member {
    /// As it stands in PD's etcd.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A value that is not understood is that of a sidecar all the same.
    pub fn decode(value: &[u8]) -> Self {
        let mut member: Member = serde_json::from_slice(value).unwrap_or_default();
        if member.version.is_empty() {
            member.version = "unknown".to_owned();
        }
        member
    }

    /// The tasks as they stand on the page of a sidecar.
    pub fn with_tasks(&self, page: &SidecarStatus) -> Self {
        let tasks = page.tasks.values().map(|task| MemberTask {
            name: task.name.clone(),
            state: task.state.clone(),
            held_by: task.held_by.clone(),
        });
        Member {
            tasks: tasks.collect(),
            ..self.clone()
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |text: &str| match text {
            "" => "unknown".to_owned(),
            text => text.to_owned(),
        };
        write!(
            f,
            "the sidecar at {} on host {} (daemon {}, started {})",
            known(&self.address),
            known(&self.host),
            known(&self.daemon),
            known(&self.started_at)
        )
    }
}

impl StoreStatus {
    /// Where a task stands here.
    pub fn task(&self, name: &str) -> TaskOnStore {
        let at = |member: &Member| member.tasks.iter().find(|task| task.name == name).cloned();
        let task = self.sidecar.as_ref().and_then(at);
        let state = match (&self.sidecar, &task) {
            (None, _) => StateOnStore::NoSidecar,
            (Some(_), None) => StateOnStore::NotLoaded,
            (Some(_), Some(task)) => StateOnStore::Known(task.state.clone()),
        };
        TaskOnStore {
            store_id: self.store_id,
            store_address: self.store_address.clone(),
            sidecar: self.sidecar.as_ref().map(|member| member.address.clone()),
            state,
            held_by: task.and_then(|task| task.held_by),
        }
    }
}

/// Every store that PD or a sidecar knows, by id.
pub async fn stores(cluster: &Cluster) -> Result<Vec<StoreStatus>, Failure> {
    let known = cluster.tikv_stores().await?;
    let holders = seat::holders(&cluster.etcd).await?;
    let stores = known.into_iter().map(|store| (store.id, store.address));
    let members = holders.into_iter();
    let members = members.map(|(id, value)| (id, Member::decode(&value)));
    Ok(join(stores.collect(), members.collect()))
}

fn join(stores: BTreeMap<u64, String>, mut members: BTreeMap<u64, Member>) -> Vec<StoreStatus> {
    let mut all = stores;
    for id in members.keys() {
        all.entry(*id).or_default();
    }
    let status = |(store_id, store_address)| StoreStatus {
        store_id,
        store_address,
        sidecar: members.remove(&store_id),
    };
    all.into_iter().map(status).collect()
}

/// One line for each store with the state of a task, in columns.
pub fn table(stores: &[TaskOnStore]) -> Vec<String> {
    let rows = stores.iter().map(|store| {
        [
            store.store_id.to_string(),
            store.store_address.clone(),
            store.sidecar.clone().unwrap_or_else(|| "none".to_owned()),
            store.state.to_string(),
        ]
    });
    let head = ["store", "address", "sidecar", "state"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (id, address, sidecar) = (width(0), width(1), width(2));
    let line =
        |[a, b, c, state]: &[String; 4]| format!("{a:<id$}  {b:<address$}  {c:<sidecar$}  {state}");
    rows.iter().map(line).collect()
}

/// What holds the checkpoint of a task: one line, of the sidecar that knows most. That is the one
/// whose own store leads the region; each one else only sees that it gets no further.
pub fn holds(stores: &[TaskOnStore]) -> Option<String> {
    let held = stores
        .iter()
        .filter_map(|store| Some((store, store.held_by.as_ref()?)));
    let lowest = held.min_by_key(|(store, held)| {
        let elsewhere = held.store_id != Some(store.store_id);
        (held.ts.tso, elsewhere, store.store_id)
    });
    lowest.map(|(_, held)| format!("held by: {held}"))
}

impl StateOnStore {
    /// As metrics call it.
    pub fn name(&self) -> &'static str {
        match self {
            StateOnStore::NotLoaded => "not_loaded",
            StateOnStore::NoSidecar => "no_sidecar",
            StateOnStore::Known(state) => state.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_that_wait_the_store_that_leads_the_region_says_why() {
        let on = |store_id, held_at: Option<u64>, ts, reason: &str| TaskOnStore {
            store_id,
            store_address: String::new(),
            sidecar: None,
            state: StateOnStore::Known(TaskState::Running),
            held_by: Some(HeldBy {
                store_id: held_at,
                region_id: None,
                range: String::new(),
                ts: crate::time::show(pitr_format::Ts::new(ts)),
                reason: reason.to_owned(),
                lock: None,
            }),
        };
        let free = TaskOnStore {
            held_by: None,
            ..on(9, None, 1, "")
        };
        let stores = [
            on(1, Some(4), 10, "store 4 leads it"),
            on(4, Some(4), 10, "a lock"),
            on(5, Some(5), 11, "another one"),
            free.clone(),
        ];
        assert!(holds(&stores).unwrap().ends_with("a lock"));
        assert_eq!(holds(&[free]), None);
    }

    fn member(address: &str, tasks: Vec<MemberTask>) -> Member {
        Member {
            address: address.to_owned(),
            tasks,
            ..Member::default()
        }
    }

    #[test]
    fn stores_without_a_sidecar_and_sidecars_without_a_store_are_both_named() {
        let stores = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let members = BTreeMap::from([(2, member("b:9", vec![])), (7, member("c:9", vec![]))]);
        let all = join(stores, members);
        let seen: Vec<_> = all
            .iter()
            .map(|s| (s.store_id, &*s.store_address, s.sidecar.is_some()))
            .collect();
        assert_eq!(seen, [(1, "a:1", false), (2, "b:1", true), (7, "", true)]);
        let lines = table(&all.iter().map(|s| s.task("t")).collect::<Vec<_>>());
        assert!(lines[1].contains("none") && lines[1].contains("nothing is captured"));
        assert!(lines[2].contains("b:9") && lines[2].contains("not loaded"));
    }

    #[test]
    fn a_value_of_another_version_is_a_sidecar_all_the_same() {
        let odd = br#"{"address":"a:9","version":"7","colour":"red"}"#;
        assert_eq!(Member::decode(odd).address, "a:9");
        for bad in [
            &b""[..],
            b"\xFF",
            b"[]",
            b"{\"tasks\":[{\"state\":\"flying\"}]}",
        ] {
            assert_eq!(Member::decode(bad).version, "unknown");
        }
    }
}
