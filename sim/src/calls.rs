//! Calls of the node to the world outside, each waiting until the world lets it go on.
//!
//! A call has two moments: its *effect* and its *answer*. The world chooses both, so an error may
//! come before the effect, after it, or never, and a crash may fall between them.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::Ts;
use tokio::sync::oneshot;

use crate::coordinator::Lines;

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Request {
    /// Write an object; `new`: only if there is none of that name.
    Put {
        /// Name.
        path: String,
        /// Content.
        data: Bytes,
        /// Create only.
        new: bool,
    },
    /// Read an object or a range of it.
    Get {
        /// Name.
        path: String,
        /// Part.
        range: Option<Range<u64>>,
    },
    /// Names that begin with a prefix.
    List(String),
    /// Remove an object.
    Delete(String),
    /// A timestamp from PD.
    Tso,
    /// The global checkpoint that PD holds.
    LoadGlobal,
    /// Raise it, if the key of this candidate still exists.
    RaiseGlobal {
        /// The value.
        ts: Ts,
        /// When the key was created.
        revision: u64,
    },
    /// Note the checkpoint that a store's object holds.
    SetStorage {
        /// The value.
        ts: Ts,
        /// The store.
        store: u64,
    },
    /// Stand for election.
    Stand,
    /// Renew the lease of a candidate.
    Beat(u64),
    /// Who is first in the queue.
    Leader,
    /// Ask a store what is durable in the regions that it leads.
    Poll(u64),
}

impl Request {
    /// Whether PD is asked, not the storage.
    pub fn is_pd(&self) -> bool {
        use Request::{Beat, Leader, LoadGlobal, RaiseGlobal, SetStorage, Stand, Tso};
        matches!(
            self,
            Tso | LoadGlobal | RaiseGlobal { .. } | SetStorage { .. } | Stand | Beat(_) | Leader
        )
    }
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Done.
    Done,
    /// The bytes.
    Data(Bytes),
    /// Names and sizes.
    Listed(Vec<(String, u64)>),
    /// There is no such object.
    NotFound,
    /// There is one already.
    Exists,
    /// A timestamp.
    Ts(Ts),
    /// The global checkpoint.
    Global(Option<Ts>),
    /// When a candidate's key was created.
    Revision(u64),
    /// The first of the candidates.
    Leader(Option<u64>),
    /// What a store has durable.
    Lines(Lines),
    /// An error that may go away.
    Failed,
}

struct Pending {
    request: Request,
    effect: Option<Reply>,
    answer: oneshot::Sender<Reply>,
}

#[derive(Default)]
struct State {
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

/// All calls that wait.
#[derive(Default)]
pub struct Calls(Mutex<State>);

impl Calls {
    /// Asks and waits for the answer.
    pub async fn call(&self, request: Request) -> Reply {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.0.lock();
            let id = state.next;
            state.next += 1;
            let pending = Pending {
                request,
                effect: None,
                answer,
            };
            state.pending.insert(id, pending);
        }
        answered.await.unwrap_or(Reply::Failed)
    }

    /// Numbers of the calls that wait, oldest first.
    pub fn waiting(&self) -> Vec<u64> {
        self.0.lock().pending.keys().copied().collect()
    }

    /// What a call asks for, if it had no effect yet.
    pub fn without_effect(&self, id: u64) -> Option<Request> {
        let state = self.0.lock();
        let call = state.pending.get(&id)?;
        call.effect.is_none().then(|| call.request.clone())
    }

    /// What a call asks for.
    pub fn request(&self, id: u64) -> Option<Request> {
        Some(self.0.lock().pending.get(&id)?.request.clone())
    }

    /// Notes the effect of a call.
    pub fn had_effect(&self, id: u64, reply: Reply) {
        if let Some(call) = self.0.lock().pending.get_mut(&id) {
            call.effect = Some(reply);
        }
    }

    /// Answers a call: with its effect's reply, or with `instead`.
    pub fn answer(&self, id: u64, instead: Option<Reply>) {
        let Some(call) = self.0.lock().pending.remove(&id) else {
            return;
        };
        let reply = instead.or(call.effect).unwrap_or(Reply::Failed);
        // Nobody waits for it any more: a future was dropped.
        let _ = call.answer.send(reply);
    }

    /// Forgets everything that waits: who asked is dead.
    pub fn clear(&self) {
        self.0.lock().pending.clear();
    }
}
