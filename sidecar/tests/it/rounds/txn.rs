//! One transaction of the load, in one of the ways that clients commit.

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::prewrite_request::PessimisticAction;
use pitr_proto::kvrpcpb::{self, Mutation, Op, PrewriteResponse};
use rand::Rng;
use rand::rngs::StdRng;

use super::client::{Client, Trouble};
use super::rows;

/// Others may end a transaction that left its locks behind, after this time.
const LOCK_TTL_MS: u64 = 1000;
/// How long a pessimistic lock is waited for.
const LOCK_WAIT_MS: i64 = 300;

/// How a transaction commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// One phase if the keys lie in one region, else async commit.
    OnePhase,
    /// Async commit.
    Async,
    /// Two phases.
    TwoPhase,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// Committed on all keys.
    Commit,
    /// Rolled back after its locks were written.
    Rollback,
    /// Its client is gone after the locks were written.
    Abandoned,
    /// Its client is gone after the primary was committed (two phases) or could have been.
    HalfCommitted,
}

/// What a transaction does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub way: Way,
    pub ending: Ending,
    /// It locks its keys before it writes.
    pub pessimistic: bool,
    pub writes: Vec<Mutation>,
}

/// What the client knows of a transaction in the end.
pub enum Outcome {
    /// It is committed, at this ts, and the store said so.
    Committed { start: Ts, commit: Ts },
    /// Rolled back, refused, left behind or not known.
    Other,
}

impl Plan {
    /// A random transaction over the keys.
    pub fn random(rng: &mut StdRng, keys: &[Bytes]) -> Self {
        // Half of the transactions are small.
        let most = if rng.random() { 3 } else { 20 };
        let mut chosen: Vec<usize> = (0..rng.random_range(1..=most))
            .map(|_| rng.random_range(0..keys.len()))
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        let writes = chosen.into_iter().map(|n| mutation(rng, &keys[n]));
        let writes = writes.collect();
        let ending = match rng.random_range(0..100) {
            0..=1 => Ending::Abandoned,
            2..=3 => Ending::HalfCommitted,
            4..=11 => Ending::Rollback,
            _ => Ending::Commit,
        };
        let ways = match ending {
            // The others are committed as soon as all their locks are written.
            Ending::Rollback => 2..3,
            _ => 0..3,
        };
        Plan {
            writes,
            ending,
            way: [Way::OnePhase, Way::Async, Way::TwoPhase][rng.random_range(ways)],
            pessimistic: rng.random_ratio(1, 3),
        }
    }

    fn keys(&self) -> Vec<Bytes> {
        self.writes.iter().map(|write| write.key.clone()).collect()
    }

    fn primary(&self) -> Bytes {
        self.writes[0].key.clone()
    }

    /// Runs it.
    pub async fn run(&self, client: &Client) -> Result<Outcome, Trouble> {
        let start = client.now().await?;
        match self.attempt(client, start).await {
            Err(Trouble::Refused(error)) => {
                self.roll_back(client, start).await?;
                Err(Trouble::Refused(error))
            }
            other => other,
        }
    }

    async fn attempt(&self, client: &Client, start: Ts) -> Result<Outcome, Trouble> {
        let keys = self.keys();
        let mut for_update = Ts::ZERO;
        if self.pessimistic {
            for_update = client.now().await?;
            self.lock(client, start, for_update).await?;
        }
        let one_phase = self.way == Way::OnePhase
            && self.ending == Ending::Commit
            && client.in_one_region(&keys).await?;
        let answers = self.prewrite(client, start, for_update, one_phase).await?;
        if one_phase && answers.len() == 1 && answers[0].one_pc_commit_ts > 0 {
            let commit = Ts::new(answers[0].one_pc_commit_ts);
            return Ok(Outcome::Committed { start, commit });
        }
        match self.ending {
            Ending::Abandoned => return Ok(Outcome::Other),
            Ending::Rollback => {
                self.roll_back(client, start).await?;
                return Ok(Outcome::Other);
            }
            Ending::Commit | Ending::HalfCommitted => {}
        }
        let decided = answers.iter().map(|answer| answer.min_commit_ts);
        let commit = match self.way {
            // A zero means that the store fell back to two phases.
            Way::OnePhase | Way::Async if decided.clone().all(|ts| ts > 0) => {
                Ts::new(decided.max().unwrap_or_default())
            }
            _ => client.now().await?,
        };
        self.commit(client, &keys[..1], start, commit).await?;
        if self.ending == Ending::Commit {
            self.commit(client, &keys[1..], start, commit).await?;
        }
        // The commit of the primary decides for all.
        Ok(Outcome::Committed { start, commit })
    }

    async fn lock(&self, client: &Client, start: Ts, for_update: Ts) -> Result<(), Trouble> {
        let (keys, primary) = (self.keys(), self.primary());
        let step = client.step(&keys, |mut stub, context, keys| {
            let mutation = |key| Mutation {
                op: Op::PessimisticLock as i32,
                key,
                ..Mutation::default()
            };
            let request = kvrpcpb::PessimisticLockRequest {
                context: Some(context),
                mutations: keys.into_iter().map(mutation).collect(),
                primary_lock: primary.clone(),
                start_version: start.get(),
                for_update_ts: for_update.get(),
                lock_ttl: LOCK_TTL_MS,
                wait_timeout: LOCK_WAIT_MS,
                ..Default::default()
            };
            async move { stub.kv_pessimistic_lock(request).await }
        });
        step.await.map(drop)
    }

    async fn prewrite(
        &self,
        client: &Client,
        start: Ts,
        for_update: Ts,
        one_phase: bool,
    ) -> Result<Vec<PrewriteResponse>, Trouble> {
        let all = self.keys();
        let use_async_commit = self.way != Way::TwoPhase;
        let check = match self.pessimistic {
            true => vec![PessimisticAction::DoPessimisticCheck as i32],
            false => Vec::new(),
        };
        let step = client.step(&all, |mut stub, context, keys| {
            let writes = self.writes.iter().filter(|write| keys.contains(&write.key));
            let mut request = kvrpcpb::PrewriteRequest {
                context: Some(context),
                mutations: writes.cloned().collect(),
                primary_lock: self.primary(),
                start_version: start.get(),
                for_update_ts: for_update.get(),
                pessimistic_actions: check.repeat(keys.len()),
                lock_ttl: LOCK_TTL_MS,
                txn_size: all.len() as u64,
                min_commit_ts: start.max(for_update).next().get(),
                use_async_commit,
                // All keys may not lie in one region any more.
                try_one_pc: one_phase && keys.len() == all.len(),
                ..Default::default()
            };
            if use_async_commit && keys.contains(&all[0]) {
                request.secondaries = all[1..].to_vec();
            }
            async move { stub.kv_prewrite(request).await }
        });
        step.await
    }

    async fn commit(
        &self,
        client: &Client,
        keys: &[Bytes],
        start: Ts,
        commit: Ts,
    ) -> Result<(), Trouble> {
        let step = client.step(keys, |mut stub, context, keys| {
            let request = kvrpcpb::CommitRequest {
                context: Some(context),
                keys,
                start_version: start.get(),
                commit_version: commit.get(),
                ..Default::default()
            };
            async move { stub.kv_commit(request).await }
        });
        step.await.map(drop)
    }

    async fn roll_back(&self, client: &Client, start: Ts) -> Result<(), Trouble> {
        let keys = self.keys();
        if self.pessimistic {
            let step = client.step(&keys, |mut stub, context, keys| {
                let request = kvrpcpb::PessimisticRollbackRequest {
                    context: Some(context),
                    start_version: start.get(),
                    for_update_ts: u64::MAX,
                    keys,
                };
                async move { stub.kv_pessimistic_rollback(request).await }
            });
            step.await?;
        }
        let step = client.step(&keys, |mut stub, context, keys| {
            let request = kvrpcpb::BatchRollbackRequest {
                context: Some(context),
                start_version: start.get(),
                keys,
                ..Default::default()
            };
            async move { stub.kv_batch_rollback(request).await }
        });
        step.await.map(drop)
    }
}

fn mutation(rng: &mut StdRng, key: &Bytes) -> Mutation {
    let (op, value) = match rng.random_range(0..100) {
        0..=14 => (Op::Del, Bytes::new()),
        // Locks the key for the others and changes nothing.
        15..=19 => (Op::Lock, Bytes::new()),
        _ => (Op::Put, rows::value(rng)),
    };
    Mutation {
        op: op as i32,
        key: key.clone(),
        value,
        ..Mutation::default()
    }
}
