//! Puts an error into the field that an answer message has for it.

use pitr_proto::kvrpcpb::*;

use crate::store::error::{KvError, TxnError};

/// An answer that can say what went wrong.
pub(super) trait Answer: Default {
    fn set_region_error(&mut self, error: pitr_proto::errorpb::Error);
    fn set_key_error(&mut self, error: &TxnError);

    /// The answer of a command that failed.
    fn of_error(error: &KvError) -> Self {
        let mut out = Self::default();
        match error {
            KvError::Region(e) => out.set_region_error((**e).clone()),
            KvError::Txn(e) => out.set_key_error(e),
        }
        out
    }
}

/// The answer of a command.
pub(super) fn answer<T, A: Answer>(result: Result<T, KvError>, done: impl FnOnce(T) -> A) -> A {
    match result {
        Ok(value) => done(value),
        Err(error) => A::of_error(&error),
    }
}

macro_rules! answers {
    ($($name:ty => |$out:ident, $error:ident| $set:expr),* $(,)?) => {$(
        impl Answer for $name {
            fn set_region_error(&mut self, error: pitr_proto::errorpb::Error) {
                self.region_error = Some(error);
            }
            fn set_key_error(&mut self, $error: &TxnError) {
                let $out = self;
                $set
            }
        }
    )*};
}

answers! {
    GetResponse => |out, e| out.error = Some(e.to_key_error()),
    // Old clients look for the error in the first pair.
    BatchGetResponse => |out, e| {
        out.error = Some(e.to_key_error());
        out.pairs = vec![error_pair(e)];
    },
    ScanResponse => |out, e| {
        out.error = Some(e.to_key_error());
        out.pairs = vec![error_pair(e)];
    },
    PrewriteResponse => |out, e| out.errors = vec![e.to_key_error()],
    CommitResponse => |out, e| out.error = Some(e.to_key_error()),
    BatchRollbackResponse => |out, e| out.error = Some(e.to_key_error()),
    CleanupResponse => |out, e| out.error = Some(e.to_key_error()),
    CheckTxnStatusResponse => |out, e| out.error = Some(e.to_key_error()),
    CheckSecondaryLocksResponse => |out, e| out.error = Some(e.to_key_error()),
    TxnHeartBeatResponse => |out, e| out.error = Some(e.to_key_error()),
    ResolveLockResponse => |out, e| out.error = Some(e.to_key_error()),
    ScanLockResponse => |out, e| out.error = Some(e.to_key_error()),
    PessimisticLockResponse => |out, e| out.errors = vec![e.to_key_error()],
    PessimisticRollbackResponse => |out, e| out.errors = vec![e.to_key_error()],
    DeleteRangeResponse => |out, e| out.error = e.to_string(),
    MvccGetByKeyResponse => |out, e| out.error = e.to_string(),
}

/// An error as one of the pairs of an answer.
pub(super) fn error_pair(error: &TxnError) -> KvPair {
    KvPair {
        error: Some(error.to_key_error()),
        ..Default::default()
    }
}
