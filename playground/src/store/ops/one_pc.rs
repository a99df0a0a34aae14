//! The last step of a prewrite: two-phase, async or one-phase commit, and the timestamps.
//!
//! An async commit may commit at any ts that no reader has used, so its smallest commit ts is
//! one above `max_ts`; a one-phase commit takes that ts at once. Both are safe because the write
//! lock is held (see `kernel`). A request that cannot have what it asks for (it was done before
//! in another way, or the ts is above its `max_commit_ts`) becomes a two-phase commit, which the
//! client sees by zeros in the answer; that decision is made for all keys together.

use pitr_format::Ts;
use pitr_proto::kvrpcpb::{PrewriteRequest, PrewriteResponse};

use super::commit::commit_record;
use super::prewrite_check::{NewLock, Prewrite};
use crate::store::command::Command;
use crate::store::lock::LockRecord;
use crate::store::view::raw_key;

impl Command<'_> {
    /// Writes the locks of a prewrite, or commits it at once.
    pub(super) fn write_locks(
        &mut self,
        txn: &Prewrite<'_>,
        mut new: Vec<NewLock>,
        repeated: &[Ts],
    ) -> PrewriteResponse {
        let req = txn.req;
        for item in &mut new {
            if let Some(value) = item.long_value.take() {
                self.put_value(&item.key, txn.start_ts, value);
            }
        }
        let floor = self.max_ts().max(txn.start_ts).next();
        let ts = calculated_ts(req, floor, &new, repeated);
        match ts {
            Some(commit_ts) if req.try_one_pc => self.commit_at_once(&new, commit_ts),
            Some(_) => self.lock_async(req, floor, &mut new),
            None => new.iter().for_each(|n| self.put_lock(&n.key, &n.lock)),
        }
        let ts = ts.unwrap_or_default().get();
        PrewriteResponse {
            min_commit_ts: if req.use_async_commit { ts } else { 0 },
            one_pc_commit_ts: if req.try_one_pc { ts } else { 0 },
            ..Default::default()
        }
    }

    fn commit_at_once(&mut self, new: &[NewLock], commit_ts: Ts) {
        for item in new {
            if let Some(record) = commit_record(&item.lock, commit_ts) {
                self.put_write(&item.key, commit_ts, &record);
            }
            if item.had_pessimistic {
                self.unlock(&item.key);
            }
        }
        self.mark_one_pc();
    }

    fn lock_async(&mut self, req: &PrewriteRequest, floor: Ts, new: &mut [NewLock]) {
        for NewLock { key, lock, .. } in new {
            lock.use_async_commit = true;
            lock.min_commit_ts = smallest_commit_ts(lock, floor);
            if raw_key(key).is_ok_and(|raw| raw == lock.primary) {
                lock.secondaries = req.secondaries.clone();
            }
            self.put_lock(key, lock);
        }
    }
}

/// The ts to answer with an async or one-phase commit; none if it is, or becomes, a two-phase
/// commit.
fn calculated_ts(req: &PrewriteRequest, floor: Ts, new: &[NewLock], repeated: &[Ts]) -> Option<Ts> {
    let asked = req.use_async_commit || req.try_one_pc;
    // Locks that exist already: those of a two-phase commit decide for all; and what is locked
    // cannot be committed in one phase.
    let fits = match req.try_one_pc {
        true => repeated.is_empty(),
        false => !repeated.contains(&Ts::ZERO),
    };
    if !asked || !fits {
        return None;
    }
    let of_new = new.iter().map(|n| smallest_commit_ts(&n.lock, floor));
    let ts = of_new.chain(repeated.iter().copied()).max()?;
    let limit = Ts::new(req.max_commit_ts);
    (limit.is_zero() || ts <= limit).then_some(ts)
}

/// Above every read so far, above what the transaction itself has seen, and not below a push.
fn smallest_commit_ts(lock: &LockRecord, floor: Ts) -> Ts {
    floor.max(lock.for_update_ts.next()).max(lock.min_commit_ts)
}
