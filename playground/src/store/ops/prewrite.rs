//! Prewrite: checks all keys, then writes all locks or none.

use pitr_format::Ts;
use pitr_format::write_cf::WriteType;
use pitr_proto::kvrpcpb::{Mutation, PrewriteRequest, PrewriteResponse};

use super::answer::answer;
use super::prewrite_check::{Checked, Prewrite};
use crate::store::command::Command;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::view::TxnRecord;

impl Store {
    /// `KvPrewrite`: optimistic, pessimistic, async commit and one-phase commit.
    pub(crate) fn prewrite(&self, req: PrewriteRequest) -> PrewriteResponse {
        let result = self.write_command(req.context.as_ref(), |command| command.prewrite(&req));
        answer(result, |response| response)
    }
}

impl Command<'_> {
    fn prewrite(&mut self, req: &PrewriteRequest) -> Result<PrewriteResponse, KvError> {
        let txn = Prewrite::new(req);
        let (mut locked, mut repeated, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for (index, mutation) in req.mutations.iter().enumerate() {
            match self.check_mutation(&txn, index, mutation) {
                Ok(Checked::Nothing) => {}
                Ok(Checked::Repeated(min_commit_ts)) => repeated.push(min_commit_ts),
                Ok(Checked::Write(lock)) => new.push(*lock),
                // All locks are reported at once, so that the client resolves them together.
                Err(error @ TxnError::KeyIsLocked(_)) => locked.push(error.to_key_error()),
                Err(error) => {
                    return match self.committed_before(&txn, mutation, &error)? {
                        Some(commit_ts) => Ok(committed(req, commit_ts)),
                        None => Err(error.into()),
                    };
                }
            }
        }
        if locked.is_empty() {
            return Ok(self.write_locks(&txn, new, &repeated));
        }
        Ok(PrewriteResponse {
            errors: locked,
            ..Default::default()
        })
    }

    /// A repeated request can meet its own commit, made by an async or one-phase commit whose
    /// answer was lost: the ts of that.
    fn committed_before(
        &self,
        txn: &Prewrite<'_>,
        mutation: &Mutation,
        error: &TxnError,
    ) -> Result<Option<Ts>, KvError> {
        let possible = match error {
            TxnError::WriteConflict(c) => c.conflict_commit_ts > c.start_ts,
            TxnError::PessimisticLockNotFound { .. } => true,
            _ => false,
        };
        if !possible {
            return Ok(None);
        }
        let key = self.view.key(&mutation.key)?;
        match self.view.txn_record(&key, txn.start_ts)? {
            TxnRecord::Own { commit_ts, write } if write.kind != WriteType::Rollback => {
                Ok(Some(commit_ts))
            }
            _ => Ok(None),
        }
    }
}

/// The answer for a transaction that is committed already.
fn committed(req: &PrewriteRequest, commit_ts: Ts) -> PrewriteResponse {
    let if_asked = |asked: bool| if asked { commit_ts.get() } else { 0 };
    PrewriteResponse {
        min_commit_ts: if_asked(req.use_async_commit),
        one_pc_commit_ts: if_asked(req.try_one_pc),
        ..Default::default()
    }
}
