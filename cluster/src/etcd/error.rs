//! What can go wrong at etcd and what it means for the next attempt.
//!
//! Source: etcd-io/etcd `api/v3rpc/rpctypes/error.go`.

use pitr_format::Class;
use tonic::Code;

use crate::net::{AddressError, describe};

/// Failure of an etcd call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// An end point is not an address.
    #[error("etcd end point: {0}")]
    Address(#[from] AddressError),
    /// No end point answered within the deadline.
    #[error(
        "PD's etcd is unreachable at {}: {call} failed for {seconds} s, last: {last}; check the PD addresses",
        endpoints.join(", ")
    )]
    Unreachable {
        /// Every URL that was tried.
        endpoints: Vec<String>,
        /// The call.
        call: &'static str,
        /// How long it was tried.
        seconds: u64,
        /// The last failure.
        last: String,
    },
    /// The revision asked for is gone; list again.
    #[error("etcd compacted the history up to revision {revision}; list again")]
    Compacted {
        /// The oldest revision that still exists, 0 if unknown.
        revision: i64,
    },
    /// A watch was cut; list again and watch from there.
    #[error("etcd watch of {prefix:?} ended: {reason}")]
    WatchLost {
        /// The watched prefix.
        prefix: String,
        /// Why.
        reason: String,
    },
    /// The lease ended, and its keys with it.
    #[error("the lease ended before {call}")]
    LeaseEnded {
        /// The call.
        call: &'static str,
    },
    /// etcd refuses the call; repeating it cannot help.
    #[error("etcd refused {call}: {text}")]
    Rejected {
        /// The call.
        call: &'static str,
        /// Status.
        text: String,
    },
}

impl EtcdError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            EtcdError::Unreachable { .. } => Class::Retry,
            EtcdError::Compacted { .. }
            | EtcdError::WatchLost { .. }
            | EtcdError::LeaseEnded { .. } => Class::Refresh,
            EtcdError::Address(_) | EtcdError::Rejected { .. } => Class::Permanent,
        }
    }
}

/// `Err` = repeating cannot help, `Ok` = why this attempt failed; the next end point may do.
pub(super) fn judge(call: &'static str, status: &tonic::Status) -> Result<String, EtcdError> {
    match status.code() {
        Code::OutOfRange if status.message().contains("compacted") => {
            Err(EtcdError::Compacted { revision: 0 })
        }
        Code::NotFound if status.message().contains("lease not found") => {
            Err(EtcdError::LeaseEnded { call })
        }
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::OutOfRange
        | Code::NotFound
        | Code::Unimplemented => Err(EtcdError::Rejected {
            call,
            text: describe(status),
        }),
        _ => Ok(describe(status)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_member_without_a_leader_is_left_for_the_next_one() {
        for status in [
            Status::unavailable("etcdserver: no leader"),
            Status::unavailable("etcdserver: request timed out"),
            Status::unknown("transport error"),
            Status::resource_exhausted("etcdserver: too many requests"),
        ] {
            assert!(judge("Range", &status).is_ok());
        }
    }

    #[test]
    fn compaction_and_an_ended_lease_ask_to_begin_anew_and_a_bad_request_is_permanent() {
        let text = "etcdserver: mvcc: required revision has been compacted";
        let error = judge("Range", &Status::out_of_range(text)).unwrap_err();
        assert_eq!(error.class(), Class::Refresh);
        let text = "etcdserver: requested lease not found";
        let error = judge("Txn", &Status::not_found(text)).unwrap_err();
        assert_eq!(error.class(), Class::Refresh);
        let error = judge("Txn", &Status::invalid_argument("duplicate key")).unwrap_err();
        assert_eq!(error.class(), Class::Permanent);
    }
}
