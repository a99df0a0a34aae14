//! A storage that fails on purpose, in a way that is the same in every run.
//!
//! A [`FaultPlan`] is a list of [`Rule`]s. A rule says which calls it looks at (kind of call, and a
//! predicate over the name), at which of those it strikes (every n-th), and how: an error *before*
//! the effect, an error *after* it (the object is there, the caller is told it is not: the case
//! that most tests forget), a delay, or a short read. Rules count for themselves; for each call all
//! delays that strike are waited for and the first fault that strikes is the one that happens.
//! [`FaultyStorage::set_plan`] changes the plan while writers run: "fail until told otherwise".
//!
//! Used by the tests of all crates and by the simulation.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Context, StorageErrorKind};
use crate::{ObjectInfo, Payload, Result, SharedStorage, Storage, StorageError};

/// The kinds of calls that a rule can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `put` and `put_new`.
    Write,
    /// `get`, `get_range` and `head`.
    Read,
    /// `list`.
    List,
    /// `delete`.
    Delete,
}

/// When an injected error comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing was done.
    Before,
    /// It was done, and the caller is told that it failed.
    After,
    /// Before, after, before, …
    Alternate,
}

/// What a rule does when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with [`StorageErrorKind::Transient`] or another kind.
    Error(When, StorageErrorKind),
    /// The call waits first, on tokio's clock.
    Delay(Duration),
    /// `get` and `get_range` answer with the first half of the bytes, and no error.
    ShortRead,
}

type NamePredicate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// One way to fail.
#[derive(Clone)]
pub struct Rule {
    call: Call,
    every: u64,
    fault: Fault,
    applies: NamePredicate,
}

impl Rule {
    /// Strikes at every `n`-th call of this kind (`n` = 0 is never, 1 is always).
    pub fn every_nth(call: Call, n: u64, fault: Fault) -> Self {
        Self {
            call,
            every: n,
            fault,
            applies: Arc::new(|_| true),
        }
    }

    /// Strikes at each call of this kind.
    pub fn always(call: Call, fault: Fault) -> Self {
        Self::every_nth(call, 1, fault)
    }

    /// Looks only at calls whose object name (or listing prefix) satisfies the predicate.
    pub fn on_names(self, applies: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            applies: Arc::new(applies),
            ..self
        }
    }
}

/// What is to fail. The default plan is a storage without faults.
#[derive(Clone, Default)]
pub struct FaultPlan {
    rules: Vec<Rule>,
}

impl FaultPlan {
    /// No fault at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every `n`-th write fails.
    pub fn every_nth_write(n: u64, when: When) -> Self {
        let fault = Fault::Error(when, StorageErrorKind::Transient);
        Self::none().with(Rule::every_nth(Call::Write, n, fault))
    }

    /// Each write of a name that satisfies the predicate fails.
    pub fn failing_writes(
        when: When,
        applies: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let fault = Fault::Error(when, StorageErrorKind::Transient);
        Self::none().with(Rule::always(Call::Write, fault).on_names(applies))
    }

    /// Adds a rule behind the others.
    pub fn with(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Calls of each kind, failed ones included.
    pub writes: u64,
    /// See [`Call::Read`].
    pub reads: u64,
    /// See [`Call::List`].
    pub lists: u64,
    /// See [`Call::Delete`].
    pub deletes: u64,
    /// Errors before the effect.
    pub errors_before: u64,
    /// Errors after the effect.
    pub errors_after: u64,
    /// Delayed calls.
    pub delays: u64,
    /// Shortened answers.
    pub short_reads: u64,
}

/// What strikes one call.
#[derive(Default)]
struct Strike {
    delay: Duration,
    before: Option<StorageErrorKind>,
    after: Option<StorageErrorKind>,
    short_read: bool,
}

#[derive(Default)]
struct State {
    plan: FaultPlan,
    /// For each rule of the plan: calls it looked at.
    looked_at: Vec<u64>,
    counters: FaultCounters,
}

impl State {
    fn judge(&mut self, call: Call, name: &str) -> Strike {
        let counted = match call {
            Call::Write => &mut self.counters.writes,
            Call::Read => &mut self.counters.reads,
            Call::List => &mut self.counters.lists,
            Call::Delete => &mut self.counters.deletes,
        };
        *counted += 1;
        let mut strike = Strike::default();
        let mut faulted = false;
        for (rule, looked_at) in self.plan.rules.iter().zip(&mut self.looked_at) {
            if rule.call != call || !(rule.applies)(name) {
                continue;
            }
            *looked_at += 1;
            if rule.every == 0 || *looked_at % rule.every != 0 {
                continue;
            }
            match rule.fault {
                Fault::Delay(time) => {
                    strike.delay += time;
                    self.counters.delays += 1;
                }
                _ if faulted => {}
                Fault::Error(when, kind) => {
                    faulted = true;
                    let strikes_before = match when {
                        When::Before => true,
                        When::After => false,
                        When::Alternate => *looked_at / rule.every % 2 == 1,
                    };
                    if strikes_before {
                        strike.before = Some(kind);
                        self.counters.errors_before += 1;
                    } else {
                        strike.after = Some(kind);
                        self.counters.errors_after += 1;
                    }
                }
                Fault::ShortRead => {
                    faulted = true;
                    strike.short_read = true;
                    self.counters.short_reads += 1;
                }
            }
        }
        strike
    }
}

/// Wraps a storage and fails according to a plan.
pub struct FaultyStorage {
    inner: SharedStorage,
    state: Mutex<State>,
}

impl FaultyStorage {
    /// Wraps `inner`. Shared, so that the test keeps a handle to the plan and the counters.
    pub fn new(inner: SharedStorage, plan: FaultPlan) -> Arc<Self> {
        let faulty = Self {
            inner,
            state: Mutex::default(),
        };
        faulty.set_plan(plan);
        Arc::new(faulty)
    }

    /// Replaces the plan; its rules count from zero. The counters go on.
    pub fn set_plan(&self, plan: FaultPlan) {
        let mut state = self.state();
        state.looked_at = vec![0; plan.rules.len()];
        state.plan = plan;
    }

    /// What happened so far.
    pub fn counters(&self) -> FaultCounters {
        self.state().counters
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, and fails if an error before the effect strikes.
    async fn enter(&self, call: Call, action: &'static str, path: &str) -> Result<Strike> {
        let strike = self.state().judge(call, path);
        if !strike.delay.is_zero() {
            tokio::time::sleep(strike.delay).await;
        }
        match strike.before {
            Some(kind) => Err(self.injected(action, path, kind, "injected before the effect")),
            None => Ok(strike),
        }
    }

    /// Passes the answer on, unless an error after the effect strikes.
    fn leave<T>(
        &self,
        strike: &Strike,
        action: &'static str,
        path: &str,
        answer: Result<T>,
    ) -> Result<T> {
        match strike.after {
            Some(kind) if answer.is_ok() => {
                Err(self.injected(action, path, kind, "injected after the effect"))
            }
            _ => answer,
        }
    }

    fn injected(
        &self,
        action: &'static str,
        path: &str,
        kind: StorageErrorKind,
        detail: &str,
    ) -> StorageError {
        Context {
            action,
            path,
            uri: &self.inner.uri(),
        }
        .fail(kind, detail)
    }
}

fn shorten(strike: &Strike, data: Bytes) -> Bytes {
    if strike.short_read {
        data.slice(..data.len() / 2)
    } else {
        data
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn put(&self, path: &str, data: Payload) -> Result<()> {
        let strike = self.enter(Call::Write, "write", path).await?;
        self.leave(&strike, "write", path, self.inner.put(path, data).await)
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<()> {
        let strike = self.enter(Call::Write, "write", path).await?;
        self.leave(&strike, "write", path, self.inner.put_new(path, data).await)
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        let strike = self.enter(Call::Read, "read", path).await?;
        let answer = self
            .inner
            .get(path)
            .await
            .map(|data| shorten(&strike, data));
        self.leave(&strike, "read", path, answer)
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let strike = self.enter(Call::Read, "read", path).await?;
        let answer = self
            .inner
            .get_range(path, range)
            .await
            .map(|data| shorten(&strike, data));
        self.leave(&strike, "read", path, answer)
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        let strike = self.enter(Call::Read, "read", path).await?;
        self.leave(&strike, "read", path, self.inner.head(path).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let strike = self.enter(Call::List, "list", prefix).await?;
        self.leave(&strike, "list", prefix, self.inner.list(prefix).await)
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let strike = self.enter(Call::Delete, "delete", path).await?;
        self.leave(&strike, "delete", path, self.inner.delete(path).await)
    }

    fn uri(&self) -> String {
        self.inner.uri()
    }

    async fn remove_leftovers(&self, older_than: Duration) -> Result<u64> {
        self.inner.remove_leftovers(older_than).await
    }
}
