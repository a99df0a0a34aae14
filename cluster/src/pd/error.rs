//! What can go wrong at PD, and what each answer means for the next attempt.
//!
//! Source: tikv/pd `server/grpc_service.go`, `pkg/errs/errno.go`; pingcap/kvproto `pdpb.proto`.

use pitr_format::Class;
use pitr_proto::pdpb;
use tonic::Code;

use crate::net::{AddressError, describe};

/// Failure of a call to PD.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PdError {
    /// An end point is not an address.
    #[error("PD end point: {0}")]
    Address(#[from] AddressError),
    /// No member answered as a leader within the deadline.
    #[error(
        "PD is unreachable at {}: {call} failed for {seconds} s, last: {last}; check the addresses and that PD has a leader",
        endpoints.join(", ")
    )]
    Unreachable {
        /// Every URL that was tried.
        endpoints: Vec<String>,
        /// The call that failed.
        call: &'static str,
        /// How long it was tried.
        seconds: u64,
        /// The last failure.
        last: String,
    },
    /// The members belong to another cluster.
    #[error(
        "PD at {endpoint} belongs to cluster {found}, expected cluster {expected}; check the PD addresses"
    )]
    WrongCluster {
        /// Who answered.
        endpoint: String,
        /// The id this client was made for.
        expected: u64,
        /// The id of the answer, 0 if only the refusal is known.
        found: u64,
    },
    /// PD has no such call.
    #[error("PD does not serve {call} ({text}); a newer PD is needed")]
    Unsupported {
        /// The call.
        call: &'static str,
        /// PD's words.
        text: String,
    },
    /// PD refuses the call; repeating it cannot help.
    #[error("PD refused {call}: {kind}: {text}")]
    Rejected {
        /// The call.
        call: &'static str,
        /// Status code or `pdpb.ErrorType`.
        kind: String,
        /// PD's words.
        text: String,
    },
    /// GC has passed what it is asked to keep.
    #[error("PD cannot hold GC any more: {text}")]
    BehindGc {
        /// PD's words.
        text: String,
    },
    /// PD knows no region for the key.
    #[error("PD knows no region for {what}; reload and try again")]
    RegionNotFound {
        /// Key or id, as asked.
        what: String,
    },
    /// The answer lacks what it must have.
    #[error("PD's answer to {call} is unusable: {what}")]
    Malformed {
        /// The call.
        call: &'static str,
        /// What is missing.
        what: &'static str,
    },
}

impl PdError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            PdError::Unreachable { .. } | PdError::Malformed { .. } => Class::Retry,
            PdError::RegionNotFound { .. } => Class::Refresh,
            PdError::Address(_)
            | PdError::WrongCluster { .. }
            | PdError::Unsupported { .. }
            | PdError::BehindGc { .. }
            | PdError::Rejected { .. } => Class::Permanent,
        }
    }
}

/// What one failed attempt means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Look for the leader, then repeat.
    Rediscover(String),
    /// Repeat at the same member.
    Wait(String),
    /// Repeating cannot help.
    Fail(PdError),
}

/// Every refusal of PD's GC states has the type UNKNOWN; the code in the text tells them apart
/// (tikv/pd `pkg/errs/errno.go`).
const GC_ERROR: &str = "PD:gc:Err";
const BEHIND_GC: &str = "ErrGCBarrierTSBehindTxnSafePoint";

/// Where an attempt went, for messages.
pub(super) struct Attempt<'a> {
    pub call: &'static str,
    pub endpoint: &'a str,
    pub cluster_id: u64,
}

/// Judges a gRPC status.
pub(super) fn judge_status(attempt: &Attempt<'_>, status: &tonic::Status) -> Verdict {
    let text = status.message();
    match status.code() {
        Code::ResourceExhausted => Verdict::Wait(describe(status)),
        Code::Unimplemented => Verdict::Fail(PdError::Unsupported {
            call: attempt.call,
            text: text.to_owned(),
        }),
        Code::FailedPrecondition if text.contains("cluster") => {
            Verdict::Fail(PdError::WrongCluster {
                endpoint: attempt.endpoint.to_owned(),
                expected: attempt.cluster_id,
                found: cluster_in_text(text),
            })
        }
        // A stale forwarding target answers InvalidArgument "not leader" on new PD.
        _ if text.contains("not leader") => Verdict::Rediscover(describe(status)),
        code @ (Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::OutOfRange) => Verdict::Fail(PdError::Rejected {
            call: attempt.call,
            kind: format!("{code:?}"),
            text: text.to_owned(),
        }),
        _ => Verdict::Rediscover(describe(status)),
    }
}

/// The id in "mismatch cluster id, need X but got Y": X is the cluster that answered.
fn cluster_in_text(text: &str) -> u64 {
    text.split_once("need ")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// Judges the header of an answer whose status was OK; `None` = the answer is good.
pub(super) fn judge_header(
    attempt: &Attempt<'_>,
    header: Option<&pdpb::ResponseHeader>,
) -> Option<Verdict> {
    let header = header?;
    if let Some(error) = &header.error
        && error.r#type != pdpb::ErrorType::Ok as i32
    {
        return Some(judge_header_error(attempt, error));
    }
    let (found, expected) = (header.cluster_id, attempt.cluster_id);
    (found != 0 && expected != 0 && found != expected).then(|| {
        Verdict::Fail(PdError::WrongCluster {
            endpoint: attempt.endpoint.to_owned(),
            expected,
            found,
        })
    })
}

fn judge_header_error(attempt: &Attempt<'_>, error: &pdpb::Error) -> Verdict {
    use pdpb::ErrorType as T;
    let kind = T::try_from(error.r#type);
    let text = match kind {
        Ok(kind) => format!("{}: {}", kind.as_str_name(), error.message),
        Err(_) => format!("error type {}: {}", error.r#type, error.message),
    };
    match kind {
        _ if error.message.contains("not leader") => Verdict::Rediscover(text),
        _ if error.message.contains(BEHIND_GC) => Verdict::Fail(PdError::BehindGc { text }),
        _ if error.message.contains(GC_ERROR) => Verdict::Fail(PdError::Rejected {
            call: attempt.call,
            kind: "GC states".to_owned(),
            text: error.message.clone(),
        }),
        Ok(T::RegionNotFound) => Verdict::Fail(PdError::RegionNotFound { what: text }),
        Ok(T::NotBootstrapped | T::RegionsNotContainAllKeyRange | T::DataCompacted) => {
            Verdict::Wait(text)
        }
        Ok(
            kind @ (T::StoreTombstone
            | T::AlreadyBootstrapped
            | T::IncompatibleVersion
            | T::GlobalConfigNotFound
            | T::DuplicatedEntry
            | T::EntryNotFound
            | T::InvalidValue),
        ) => Verdict::Fail(PdError::Rejected {
            call: attempt.call,
            kind: kind.as_str_name().to_owned(),
            text: error.message.clone(),
        }),
        Ok(T::Ok | T::Unknown) | Err(_) => Verdict::Wait(text),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    const ATTEMPT: Attempt<'static> = Attempt {
        call: "ScanRegions",
        endpoint: "http://pd:2379",
        cluster_id: 7,
    };

    #[test]
    fn a_follower_and_a_starting_server_make_the_client_look_for_the_leader() {
        for status in [
            Status::unavailable("not leader"),
            Status::unavailable("server not started"),
            Status::invalid_argument("not leader"),
            Status::deadline_exceeded("slow"),
            Status::unknown("transport error"),
        ] {
            let verdict = judge_status(&ATTEMPT, &status);
            assert!(matches!(verdict, Verdict::Rediscover(_)), "{verdict:?}");
        }
        let limited = judge_status(&ATTEMPT, &Status::resource_exhausted("rate"));
        assert!(matches!(limited, Verdict::Wait(_)));
    }

    #[test]
    fn a_wrong_cluster_id_is_permanent_in_both_layers() {
        let status = Status::failed_precondition("mismatch cluster id, need 9 but got 7");
        let Verdict::Fail(error) = judge_status(&ATTEMPT, &status) else {
            panic!("must fail")
        };
        assert_eq!(error.class(), Class::Permanent);
        assert!(
            error
                .to_string()
                .contains("belongs to cluster 9, expected cluster 7")
        );
        let header = pdpb::ResponseHeader {
            cluster_id: 8,
            error: None,
        };
        let verdict = judge_header(&ATTEMPT, Some(&header));
        assert!(matches!(
            verdict,
            Some(Verdict::Fail(PdError::WrongCluster { found: 8, .. }))
        ));
    }

    #[test]
    fn a_header_error_is_seen_although_the_status_is_ok() {
        let with = |kind: pdpb::ErrorType| pdpb::ResponseHeader {
            cluster_id: 7,
            error: Some(pdpb::Error {
                r#type: kind as i32,
                message: "why".into(),
            }),
        };
        let judge = |kind| judge_header(&ATTEMPT, Some(&with(kind)));
        use pdpb::ErrorType as T;
        assert!(judge(T::Ok).is_none());
        assert!(matches!(judge(T::NotBootstrapped), Some(Verdict::Wait(_))));
        assert!(matches!(judge(T::Unknown), Some(Verdict::Wait(_))));
        let class = |kind| match judge(kind) {
            Some(Verdict::Fail(error)) => error.class(),
            other => panic!("{other:?}"),
        };
        assert_eq!(class(T::RegionNotFound), Class::Refresh);
        assert_eq!(class(T::IncompatibleVersion), Class::Permanent);
        assert_eq!(class(T::StoreTombstone), Class::Permanent);
    }

    #[test]
    fn refusals_of_gc_states_are_final_although_their_type_is_unknown() {
        let judge = |text: &str| {
            let error = pdpb::Error {
                r#type: pdpb::ErrorType::Unknown as i32,
                message: text.to_owned(),
            };
            match judge_header_error(&ATTEMPT, &error) {
                Verdict::Fail(error) => error,
                other => panic!("{other:?}"),
            }
        };
        let behind = judge("[PD:gc:ErrGCBarrierTSBehindTxnSafePoint]trying to set a GC barrier");
        assert!(matches!(behind, PdError::BehindGc { .. }), "{behind}");
        let refused = judge("[PD:gc:ErrDecreasingTxnSafePoint]trying to update");
        assert!(matches!(refused, PdError::Rejected { .. }), "{refused}");
        assert_eq!(refused.class(), Class::Permanent);
    }
}
