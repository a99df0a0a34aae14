//! One sidecar process of the world: the node beside a store, and the coordinator candidate in it.
//! Both die together.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use pitr_format::Ts;
use pitr_observer::FrontierMap;

use crate::SimError;
use crate::bug::Bug;
use crate::calls::Calls;
use crate::coordinator::Heard;
use crate::env::SimSpawner;
use crate::node::Board;
use crate::source::Source;

pub(crate) type Life = Pin<Box<dyn Future<Output = SimError>>>;

/// A process and what the world keeps of it.
pub(crate) struct Process {
    /// The store beside it.
    pub store: u64,
    /// Calls of the node.
    pub calls: Arc<Calls>,
    pub spawner: Arc<SimSpawner>,
    pub board: Arc<Mutex<Board>>,
    pub life: Option<Life>,
    /// The change stream of its store.
    pub source: Source,
    /// What the store told as resolved, delivered or not.
    pub told: FrontierMap,
    /// Writes that the planted mistake holds back.
    pub held_back: Vec<(String, bytes::Bytes)>,
    /// Calls of the candidate.
    pub candidate_calls: Arc<Calls>,
    pub heard: Arc<Mutex<Heard>>,
    pub candidate: Option<Pin<Box<dyn Future<Output = Infallible>>>>,
}

impl Process {
    /// A process that does not run.
    pub fn new(store: u64, bug: Option<Bug>) -> Self {
        Process {
            store,
            calls: Arc::default(),
            spawner: Arc::default(),
            board: Arc::default(),
            life: None,
            source: Source::new(bug),
            told: FrontierMap::new(Ts::ZERO),
            held_back: Vec::new(),
            candidate_calls: Arc::default(),
            heard: Arc::default(),
            candidate: None,
        }
    }

    /// The calls of the node, or of the candidate.
    pub fn calls(&self, of_candidate: bool) -> &Arc<Calls> {
        match of_candidate {
            true => &self.candidate_calls,
            false => &self.calls,
        }
    }
}
