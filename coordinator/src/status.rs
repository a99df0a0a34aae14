//! What a coordinator shows of itself: who leads, and for each task what holds it back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The coordinator as one candidate sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoordinatorStatus {
    /// What the leader says of itself (a sidecar: its daemon id); empty while nobody is known.
    pub leader: String,
    /// Whether that is this process.
    pub leads: bool,
    /// Tasks, while it leads.
    pub tasks: BTreeMap<String, TaskProgress>,
    /// The last round of GC, while it leads and drives GC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc: Option<GcRound>,
}

/// A round of GC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcRound {
    /// Where the GC safepoint stands after it; 0 if that is not known.
    pub safe_point: u64,
    /// Where it was to go: the life time before now, or the smallest checkpoint of a task where that is
    /// less. Service safepoints and barriers of others may end it earlier.
    pub target: u64,
    /// Why GC was not moved, if it was not; empty otherwise.
    pub trouble: String,
}

/// A task as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskProgress {
    /// The checkpoint that PD holds; 0 before the first.
    pub global: u64,
    /// The ts of the part that is furthest behind, and so the next checkpoint; 0 while some part
    /// was never spoken for.
    pub lowest: u64,
    /// That part: encoded bounds, hex.
    pub lowest_range: String,
    /// The region there and the store that leads it, when it lags and PD knew it.
    pub lowest_region: Option<u64>,
    /// Store of that region.
    pub lowest_store: Option<u64>,
    /// Why, as far as the store told.
    pub reason: String,
    /// Stores by id.
    pub stores: BTreeMap<u64, StoreProgress>,
    /// Why the checkpoint could not be written, if it could not.
    pub trouble: String,
}

/// A store as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreProgress {
    /// Where its log backup service is dialled.
    pub address: String,
    /// Whether it tells of its flushes.
    #[serde(flatten)]
    pub health: StoreHealth,
}

/// Whether a store tells of its flushes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "flush_events", rename_all = "snake_case")]
pub enum StoreHealth {
    /// It is being dialled.
    Connecting,
    /// It does.
    Subscribed,
    /// It has no such service: it is asked for its regions, in vain unless it answers that.
    Unsupported,
    /// It cannot be reached.
    Failing {
        /// Why.
        reason: String,
    },
}

impl StoreHealth {
    /// Whether flushes of the store are heard of without asking.
    pub fn tells(&self) -> bool {
        *self == StoreHealth::Subscribed
    }
}
