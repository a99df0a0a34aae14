//! What the change stream tells its user.
//!
//! Source of the error kinds: pingcap/kvproto `cdcpb.proto`, tikv/tikv
//! `components/cdc/src/errors.rs`.

use std::time::Duration;

use pitr_format::{Class, RecordBatch, Ts};
use pitr_proto::{cdcpb, metapb};

use super::matcher::MatchError;

/// One subscription of one region, from register to end. Chosen by the user, rising: the newest
/// one is the first to be given back when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubId(pub u64);

/// An event of the stream, in the order the store sent it.
#[derive(Clone, Debug)]
pub enum CdcEvent {
    /// Committed changes; may repeat what came before.
    Records {
        /// Whose.
        sub: SubId,
        /// In no particular order.
        records: RecordBatch,
    },
    /// The initial scan is complete: everything after the subscription's checkpoint_ts that the
    /// scan could see was delivered before.
    Initialized {
        /// Whose.
        sub: SubId,
    },
    /// No commit at or below `ts` will come for these any more. Comes only after `Initialized`;
    /// a lower bound, may repeat.
    Resolved {
        /// Whose.
        subs: Vec<SubId>,
        /// Resolved ts.
        ts: Ts,
    },
    /// Nothing more will come for this one.
    Ended {
        /// Whose.
        sub: SubId,
        /// Why.
        reason: EndReason,
    },
    /// The stream broke, all these ended. The next `subscribe` opens a new stream.
    Disconnected {
        /// All that were alive, and those whose register was not sent yet.
        subs: Vec<SubId>,
        /// Why.
        reason: EndReason,
    },
}

/// Kind of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndKind {
    /// The peer does not lead the region (any more).
    NotLeader,
    /// Split, merge, or a stale epoch at register.
    EpochNotMatch,
    /// Region gone, answered deregister, and everything that TiKV has no other answer for.
    RegionNotFound,
    /// Too many pending scans.
    ServerIsBusy,
    /// A memory quota of the store is full.
    Congested,
    /// Our own mistake: the pair of request and region is in use.
    DuplicateRequest,
    /// The store does not serve what was asked for.
    Incompatible,
    /// The store belongs to another cluster.
    ClusterIdMismatch,
    /// An error of a kind this client does not know.
    Unknown,
    /// The rows do not fit together.
    Mismatch,
    /// Given back because the reader of the events does not keep up: memory and disk for them are
    /// full.
    Overrun,
    /// Given back because the rows of unfinished transactions fit neither into memory nor onto
    /// disk.
    LargeTransaction,
    /// The stream broke.
    Stream,
    /// Given back because the store waits for a lock that does not exist.
    PhantomLock,
}

impl EndKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [EndKind; 14] = [
        EndKind::NotLeader,
        EndKind::EpochNotMatch,
        EndKind::RegionNotFound,
        EndKind::ServerIsBusy,
        EndKind::Congested,
        EndKind::DuplicateRequest,
        EndKind::Incompatible,
        EndKind::ClusterIdMismatch,
        EndKind::Unknown,
        EndKind::Mismatch,
        EndKind::Overrun,
        EndKind::LargeTransaction,
        EndKind::Stream,
        EndKind::PhantomLock,
    ];

    /// Name in metrics and status pages.
    pub fn as_str(self) -> &'static str {
        match self {
            EndKind::NotLeader => "not_leader",
            EndKind::EpochNotMatch => "epoch_not_match",
            EndKind::RegionNotFound => "region_not_found",
            EndKind::ServerIsBusy => "server_is_busy",
            EndKind::Congested => "congested",
            EndKind::DuplicateRequest => "duplicate_request",
            EndKind::Incompatible => "incompatible",
            EndKind::ClusterIdMismatch => "cluster_id_mismatch",
            EndKind::Unknown => "unknown",
            EndKind::Mismatch => "mismatch",
            EndKind::Overrun => "overrun",
            EndKind::LargeTransaction => "large_transaction",
            EndKind::Stream => "stream",
            EndKind::PhantomLock => "phantom_lock",
        }
    }
}

/// Why a subscription ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind:?}: {text}")]
pub struct EndReason {
    /// Kind.
    pub kind: EndKind,
    /// The store's or our words.
    pub text: String,
    /// The regions that an `EpochNotMatch` names, newest epoch; may be empty.
    pub regions: Vec<metapb::Region>,
    /// The leader that a `NotLeader` names.
    pub leader: Option<metapb::Peer>,
    /// The wait that the store asks for.
    pub retry_after: Option<Duration>,
}

impl EndReason {
    /// A reason without hints.
    pub fn new(kind: EndKind, text: impl Into<String>) -> Self {
        EndReason {
            kind,
            text: text.into(),
            regions: Vec::new(),
            leader: None,
            retry_after: None,
        }
    }

    /// What to do: reload the range, subscribe again later, or give up.
    pub fn class(&self) -> Class {
        match self.kind {
            EndKind::NotLeader | EndKind::EpochNotMatch | EndKind::RegionNotFound => Class::Refresh,
            EndKind::Mismatch | EndKind::DuplicateRequest | EndKind::PhantomLock => Class::Refresh,
            EndKind::ServerIsBusy | EndKind::Congested | EndKind::Unknown => Class::Retry,
            EndKind::Overrun | EndKind::LargeTransaction | EndKind::Stream => Class::Retry,
            EndKind::Incompatible | EndKind::ClusterIdMismatch => Class::Permanent,
        }
    }
}

impl From<MatchError> for EndReason {
    fn from(error: MatchError) -> Self {
        let kind = match error {
            MatchError::NoRoom(_) => EndKind::LargeTransaction,
            _ => EndKind::Mismatch,
        };
        EndReason::new(kind, error.to_string())
    }
}

/// Longest wait that a store may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

impl From<cdcpb::Error> for EndReason {
    fn from(error: cdcpb::Error) -> Self {
        let new = |kind, text: String| EndReason::new(kind, text);
        if let Some(e) = error.cluster_id_mismatch {
            let text = format!(
                "the store belongs to cluster {}, asked {}",
                e.current, e.request
            );
            return new(EndKind::ClusterIdMismatch, text);
        }
        if let Some(e) = error.compatibility {
            let text = format!("the store requires version {}", e.required_version);
            return new(EndKind::Incompatible, text);
        }
        if let Some(e) = error.not_leader {
            let leader = e.leader.filter(|peer| peer.id != 0);
            let store = leader.as_ref().map_or(0, |peer| peer.store_id);
            return EndReason {
                leader,
                ..new(
                    EndKind::NotLeader,
                    format!("leader is on store {store} (0 = unknown)"),
                )
            };
        }
        if let Some(e) = error.epoch_not_match {
            let text = format!("{} current regions named", e.current_regions.len());
            return EndReason {
                regions: e.current_regions,
                ..new(EndKind::EpochNotMatch, text)
            };
        }
        if let Some(e) = error.region_not_found {
            return new(EndKind::RegionNotFound, format!("region {}", e.region_id));
        }
        if let Some(e) = error.server_is_busy {
            let wait = Duration::from_millis(e.backoff_ms).min(MAX_RETRY_AFTER);
            return EndReason {
                retry_after: (!wait.is_zero()).then_some(wait),
                ..new(EndKind::ServerIsBusy, e.reason)
            };
        }
        if let Some(e) = error.congested {
            return new(EndKind::Congested, format!("region {}", e.region_id));
        }
        if let Some(e) = error.duplicate_request {
            return new(EndKind::DuplicateRequest, format!("region {}", e.region_id));
        }
        EndReason::new(
            EndKind::Unknown,
            "an error of a kind this client does not know",
        )
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::errorpb;

    use super::*;

    #[test]
    fn every_error_of_the_store_has_a_kind_and_a_class() {
        use cdcpb::Error;
        let cases = [
            (
                Error {
                    not_leader: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::NotLeader,
                Class::Refresh,
            ),
            (
                Error {
                    region_not_found: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::RegionNotFound,
                Class::Refresh,
            ),
            (
                Error {
                    epoch_not_match: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::EpochNotMatch,
                Class::Refresh,
            ),
            (
                Error {
                    duplicate_request: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::DuplicateRequest,
                Class::Refresh,
            ),
            (
                Error {
                    compatibility: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::Incompatible,
                Class::Permanent,
            ),
            (
                Error {
                    cluster_id_mismatch: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::ClusterIdMismatch,
                Class::Permanent,
            ),
            (
                Error {
                    congested: Some(Default::default()),
                    ..Default::default()
                },
                EndKind::Congested,
                Class::Retry,
            ),
            (Error::default(), EndKind::Unknown, Class::Retry),
        ];
        for (error, kind, class) in cases {
            let reason = EndReason::from(error);
            assert_eq!((reason.kind, reason.class()), (kind, class));
        }
    }

    #[test]
    fn every_kind_has_its_own_name() {
        let names: std::collections::BTreeSet<_> =
            EndKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), EndKind::ALL.len());
        for (at, kind) in EndKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "counters are kept by position");
        }
    }

    #[test]
    fn a_busy_store_names_the_wait_and_an_absurd_one_is_capped() {
        let busy = |backoff_ms| {
            EndReason::from(cdcpb::Error {
                server_is_busy: Some(errorpb::ServerIsBusy {
                    backoff_ms,
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        assert_eq!(busy(0).retry_after, None);
        assert_eq!(busy(40).retry_after, Some(Duration::from_millis(40)));
        assert_eq!(busy(u64::MAX).retry_after, Some(MAX_RETRY_AFTER));
    }
}
