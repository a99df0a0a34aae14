//! Holding GC back, as PD with the GC states API does it, in the null keyspace.
//!
//! Two numbers and barriers. Nobody reads below the *txn safe point*; data below the *GC safe point*
//! may be gone. Neither falls, and the second does not pass the first by a call. A *barrier* keeps the
//! txn safe point from passing it and cannot be set behind it. Barriers are the entries of the service
//! safe points; "gc_worker" among them is no barrier, but what a PD without GC states left there. The
//! old calls are mapped: "gc_worker" is the txn safe point, "native_br" a barrier of all keyspaces, any
//! other service a barrier. Of old TiDBs' `/tidb/server/minstartts/…` in etcd nothing is known here.
//! A change that is refused changes nothing.
//! Source: tikv/pd `pkg/gc/gc_state_manager.go`, `pkg/storage/endpoint/gc_states.go`,
//! `pkg/errs/errno.go`. Called by `service`.

use super::safepoint::{GC_WORKER, Minimum};
use super::state::{Record, ServiceEntry};

/// Keyspace of a cluster without keyspaces; so is every number that no keyspace can have.
pub const NULL_KEYSPACE: u32 = u32::MAX;
/// Largest id of a keyspace: they have 24 bits.
const MAX_KEYSPACE: u32 = 0xFF_FFFF;
/// The service whose entry holds for all keyspaces.
const NATIVE_BR: &str = "native_br";
/// Longer ones, in seconds, never end: PD counts in signed nanoseconds.
const LONGEST_TTL: i64 = i64::MAX / 1_000_000_000;

/// A barrier as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Whose it is.
    pub id: String,
    /// The txn safe point may become equal to it.
    pub ts: u64,
    /// Whole seconds left; `i64::MAX` if it never ends.
    pub ttl: i64,
}

/// What an advance did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advanced {
    /// Before.
    pub old: u64,
    /// Now.
    pub new: u64,
    /// The barrier below the target that is the smallest.
    pub blocker: Option<Barrier>,
}

/// A request that PD refuses, in its words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GcStateError {
    /// Only the null keyspace exists; a real PD also has keyspace 0 from the start.
    #[error("[PD:keyspace:ErrKeyspaceNotFound]keyspace does not exist")]
    Keyspace,
    /// A barrier that ends at once.
    #[error("[PD:common:ErrInvalidArgument]invalid argument for ttl: 0s")]
    Ttl,
    /// A barrier without a name.
    #[error("[PD:common:ErrInvalidArgument]invalid argument for barrierID: ")]
    NoId,
    /// A barrier with the name of what is none.
    #[error(
        "[PD:gc:ErrReservedGCBarrierID]trying to set a GC barrier with a barrier ID that is reserved: {GC_WORKER}"
    )]
    Reserved,
    /// A barrier that would hold nothing any more.
    #[error(
        "[PD:gc:ErrGCBarrierTSBehindTxnSafePoint]trying to set a GC barrier on ts {ts} which is already behind the txn safe point {txn}"
    )]
    Behind {
        /// Where the barrier was wanted.
        ts: u64,
        /// The txn safe point.
        txn: u64,
    },
    /// The txn safe point never falls.
    #[error(
        "[PD:gc:ErrDecreasingTxnSafePoint]trying to update txn safe point to a smaller value, current value: {current}, given: {given}"
    )]
    TxnFalls {
        /// Where it is.
        current: u64,
        /// Where it was wanted.
        given: u64,
    },
    /// The GC safe point never falls.
    #[error(
        "[PD:gc:ErrDecreasingGCSafePoint]trying to update GC safe point to a smaller value, current value: {current}, given: {given}"
    )]
    GcFalls {
        /// Where it is.
        current: u64,
        /// Where it was wanted.
        given: u64,
    },
    /// The GC safe point follows the txn safe point.
    #[error(
        "[PD:gc:ErrGCSafePointExceedsTxnSafePoint]trying to update GC safe point to a too large value that exceeds the txn safe point, current value: {current}, given: {given}, current txn safe point: {txn}"
    )]
    GcPassesTxn {
        /// Where it is.
        current: u64,
        /// Where it was wanted.
        given: u64,
        /// The txn safe point.
        txn: u64,
    },
    /// The txn safe point, as a service, with an end.
    #[error("TTL of gc_worker's service safe point must be infinity")]
    GcWorkerTtl,
}

/// Refuses keyspaces that do not exist.
pub fn null_keyspace(keyspace: u32) -> Result<(), GcStateError> {
    match keyspace {
        0..=MAX_KEYSPACE => Err(GcStateError::Keyspace),
        _ => Ok(()),
    }
}

/// `SetGCBarrier` at `now_ms`; also moves one that exists.
pub fn set_barrier(
    record: &mut Record,
    keyspace: u32,
    wanted: Barrier,
    now_ms: u64,
) -> Result<Barrier, GcStateError> {
    if wanted.ttl <= 0 {
        return Err(GcStateError::Ttl);
    }
    null_keyspace(keyspace)?;
    check_id(&wanted.id)?;
    let entry = entry_ahead(record, &wanted, now_ms)?;
    record.services.insert(wanted.id.clone(), entry);
    Ok(told(&wanted.id, entry, now_ms))
}

/// `DeleteGCBarrier`: what was there, if anything.
pub fn delete_barrier(
    record: &mut Record,
    keyspace: u32,
    id: &str,
    now_ms: u64,
) -> Result<Option<Barrier>, GcStateError> {
    null_keyspace(keyspace)?;
    check_id(id)?;
    let gone = record.services.remove(id);
    Ok(gone.map(|entry| told(id, entry, now_ms)))
}

/// The barriers in the order of their ids, those too that ended since the last advance.
pub fn barriers(record: &Record, now_ms: u64) -> Vec<Barrier> {
    let own = record.services.iter().filter(|(id, _)| *id != GC_WORKER);
    own.map(|(id, entry)| told(id, *entry, now_ms)).collect()
}

/// `AdvanceTxnSafePoint`: as far as the barriers let it; drops those that ended.
pub fn advance_txn(
    record: &mut Record,
    keyspace: u32,
    target: u64,
    now_ms: u64,
) -> Result<Advanced, GcStateError> {
    null_keyspace(keyspace)?;
    let old = record.txn_safe_point;
    if target < old {
        return Err(GcStateError::TxnFalls {
            current: old,
            given: target,
        });
    }
    let now = seconds_above(now_ms);
    let lasts = |id: &String, entry: &mut ServiceEntry| id == GC_WORKER || now <= entry.expires_at;
    record.services.retain(lasts);
    record.global_barriers.retain(lasts);
    let own = record.services.iter().filter(|(id, _)| *id != GC_WORKER);
    let below = own
        .chain(&record.global_barriers)
        .filter(|(_, entry)| entry.safe_point < target)
        .min_by_key(|(_, entry)| entry.safe_point);
    let blocker = below.map(|(id, entry)| told(id, *entry, now_ms));
    // A barrier may be behind: one that a PD without GC states let in.
    let new = blocker
        .as_ref()
        .map_or(target, |barrier| barrier.ts)
        .max(old);
    record.txn_safe_point = new;
    // What a PD without GC states, should it come back, takes for the worker's own.
    if let Some(worker) = record.services.get_mut(GC_WORKER) {
        *worker = ServiceEntry {
            safe_point: new,
            expires_at: i64::MAX,
        };
    }
    Ok(Advanced { old, new, blocker })
}

/// `AdvanceGCSafePoint`: all or nothing; gives the old and the new one.
pub fn advance_gc(
    record: &mut Record,
    keyspace: u32,
    target: u64,
) -> Result<(u64, u64), GcStateError> {
    null_keyspace(keyspace)?;
    let current = record.gc_safe_point;
    let txn = record.txn_safe_point;
    if target < current {
        let given = target;
        return Err(GcStateError::GcFalls { current, given });
    }
    if target > txn {
        return Err(GcStateError::GcPassesTxn {
            current,
            given: target,
            txn,
        });
    }
    record.gc_safe_point = target;
    Ok((current, target))
}

/// The old `UpdateGCSafePoint`: a lower value is ignored; gives the one that holds now.
pub fn update_gc(record: &mut Record, target: u64) -> Result<u64, GcStateError> {
    if target < record.gc_safe_point {
        return Ok(record.gc_safe_point);
    }
    advance_gc(record, NULL_KEYSPACE, target).map(|(_, new)| new)
}

/// The old `UpdateServiceGCSafePoint`: the txn safe point is the minimum, unless the worker asks for
/// more than a barrier lets it have.
pub fn update_service(
    record: &mut Record,
    wanted: Barrier,
    now_ms: u64,
) -> Result<Minimum, GcStateError> {
    let minimum = |service_id: &str, safe_point| Minimum {
        service_id: service_id.to_owned(),
        ttl: i64::MAX - i64::try_from(now_ms / 1000).unwrap_or(i64::MAX),
        safe_point,
    };
    if wanted.id == GC_WORKER {
        if wanted.ttl != i64::MAX {
            return Err(GcStateError::GcWorkerTtl);
        }
        let moved = advance_txn(record, NULL_KEYSPACE, wanted.ts, now_ms)?;
        let holder = moved.blocker.filter(|_| moved.new != wanted.ts);
        let holder = holder.as_ref().map_or(GC_WORKER, |barrier| &barrier.id);
        return Ok(minimum(holder, moved.new));
    }
    check_id(&wanted.id)?;
    let entry = match wanted.ttl {
        1.. => entry_ahead(record, &wanted, now_ms).map(Some),
        _ => Ok(None),
    };
    let kept = match wanted.id.as_str() {
        NATIVE_BR => &mut record.global_barriers,
        _ => &mut record.services,
    };
    match entry {
        Ok(Some(entry)) => {
            kept.insert(wanted.id, entry);
        }
        Ok(None) => {
            kept.remove(&wanted.id);
        }
        // Ignored; the answer tells.
        Err(_) => {}
    }
    Ok(minimum(GC_WORKER, record.txn_safe_point))
}

fn check_id(id: &str) -> Result<(), GcStateError> {
    match id {
        GC_WORKER => Err(GcStateError::Reserved),
        "" => Err(GcStateError::NoId),
        _ => Ok(()),
    }
}

/// What is kept of a barrier, unless it is behind the txn safe point.
fn entry_ahead(
    record: &Record,
    wanted: &Barrier,
    now_ms: u64,
) -> Result<ServiceEntry, GcStateError> {
    let (ts, txn) = (wanted.ts, record.txn_safe_point);
    if ts < txn {
        return Err(GcStateError::Behind { ts, txn });
    }
    let expires_at = match wanted.ttl {
        ..=LONGEST_TTL => seconds_above(now_ms).saturating_add(wanted.ttl),
        _ => i64::MAX,
    };
    Ok(ServiceEntry {
        safe_point: ts,
        expires_at,
    })
}

fn told(id: &str, entry: ServiceEntry, now_ms: u64) -> Barrier {
    let ttl = match entry.expires_at {
        i64::MAX => i64::MAX,
        // Whole seconds to a whole second: those below the difference.
        at => at.saturating_sub(seconds_above(now_ms)).max(0),
    };
    Barrier {
        id: id.to_owned(),
        ts: entry.safe_point,
        ttl,
    }
}

/// Ends are whole seconds; a barrier lasts no shorter than asked for.
fn seconds_above(ms: u64) -> i64 {
    i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a whole second.
    const NOW: u64 = 1_000_250;

    fn barrier(id: &str, ts: u64, ttl: i64) -> Barrier {
        Barrier {
            id: id.to_owned(),
            ts,
            ttl,
        }
    }

    fn set(record: &mut Record, id: &str, ts: u64, ttl: i64) -> Result<Barrier, GcStateError> {
        set_barrier(record, NULL_KEYSPACE, barrier(id, ts, ttl), NOW)
    }

    /// Old, new, id of the blocker.
    fn advance(record: &mut Record, target: u64, now_ms: u64) -> (u64, u64, Option<String>) {
        let moved = advance_txn(record, NULL_KEYSPACE, target, now_ms).unwrap();
        (moved.old, moved.new, moved.blocker.map(|b| b.id))
    }

    /// Service id and minimum.
    fn update(
        record: &mut Record,
        id: &str,
        ts: u64,
        ttl: i64,
    ) -> Result<(String, u64), GcStateError> {
        let minimum = update_service(record, barrier(id, ts, ttl), NOW)?;
        assert_eq!(minimum.ttl, i64::MAX - 1000);
        Ok((minimum.service_id, minimum.safe_point))
    }

    fn worker(at: u64) -> Result<(String, u64), GcStateError> {
        Ok((GC_WORKER.to_owned(), at))
    }

    #[test]
    fn the_txn_safe_point_comes_to_the_smallest_barrier_and_not_past_it() {
        let mut r = Record::new(1);
        assert_eq!(advance(&mut r, 100, NOW), (0, 100, None));
        set(&mut r, "b", 300, 60).unwrap();
        set(&mut r, "a", 200, i64::MAX).unwrap();
        assert_eq!(advance(&mut r, 200, NOW), (100, 200, None), "inclusive");
        assert_eq!(advance(&mut r, 250, NOW), (200, 200, Some("a".to_owned())));
        delete_barrier(&mut r, NULL_KEYSPACE, "a", NOW).unwrap();
        assert_eq!(advance(&mut r, 400, NOW), (200, 300, Some("b".to_owned())));
    }

    #[test]
    fn a_barrier_may_move_down_to_the_txn_safe_point_and_not_behind_it() {
        let mut r = Record::new(1);
        advance(&mut r, 100, NOW);
        set(&mut r, "a", 500, 60).unwrap();
        assert_eq!(set(&mut r, "a", 100, 60), Ok(barrier("a", 100, 60)));
        let behind = GcStateError::Behind { ts: 99, txn: 100 };
        assert_eq!(set(&mut r, "a", 99, 60), Err(behind));
        assert_eq!(barriers(&r, NOW), [barrier("a", 100, 60)]);
    }

    #[test]
    fn neither_number_falls_and_gc_follows_the_txn_safe_point() {
        let mut r = Record::new(1);
        advance(&mut r, 100, NOW);
        let lower = advance_txn(&mut r, NULL_KEYSPACE, 99, NOW);
        let (current, given, txn) = (100, 99, 100);
        assert_eq!(lower, Err(GcStateError::TxnFalls { current, given }));
        assert_eq!(advance_gc(&mut r, NULL_KEYSPACE, 80), Ok((0, 80)));
        assert_eq!(advance_gc(&mut r, NULL_KEYSPACE, 80), Ok((80, 80)));
        let (current, given) = (80, 79);
        let lower = advance_gc(&mut r, NULL_KEYSPACE, 79);
        assert_eq!(lower, Err(GcStateError::GcFalls { current, given }));
        let given = 101;
        let passes = GcStateError::GcPassesTxn {
            current,
            given,
            txn,
        };
        assert_eq!(
            advance_gc(&mut r, NULL_KEYSPACE, 101),
            Err(passes.clone()),
            "{r:?}"
        );
        assert_eq!(update_gc(&mut r, 101), Err(passes));
        assert_eq!(update_gc(&mut r, 0), Ok(80), "a lower one is ignored");
        assert_eq!(update_gc(&mut r, 100), Ok(100));
    }

    #[test]
    fn a_barrier_lasts_to_the_end_of_the_second_that_its_ttl_reaches() {
        let mut r = Record::new(1);
        assert_eq!(set(&mut r, "a", 5, 10), Ok(barrier("a", 5, 10)));
        assert_eq!(barriers(&r, 1_000_999), [barrier("a", 5, 10)]);
        assert_eq!(barriers(&r, 1_001_001), [barrier("a", 5, 9)]);
        assert_eq!(advance(&mut r, 9, 1_011_000), (0, 5, Some("a".to_owned())));
        assert_eq!(barriers(&r, 1_011_001), [barrier("a", 5, 0)]);
        assert_eq!(advance(&mut r, 9, 1_011_001), (5, 9, None));
        assert_eq!(barriers(&r, NOW), [], "an advance drops what ended");
    }

    #[test]
    fn a_ttl_beyond_nanoseconds_of_64_bits_never_ends() {
        let mut r = Record::new(1);
        assert_eq!(set(&mut r, "a", 5, LONGEST_TTL).unwrap().ttl, LONGEST_TTL);
        assert_eq!(set(&mut r, "a", 5, LONGEST_TTL + 1).unwrap().ttl, i64::MAX);
        assert_eq!(barriers(&r, u64::MAX), [barrier("a", 5, i64::MAX)]);
    }

    #[test]
    fn bad_names_times_and_keyspaces_are_refused() {
        let mut r = Record::new(1);
        assert_eq!(set(&mut r, "a", 5, 0), Err(GcStateError::Ttl));
        assert_eq!(set(&mut r, "a", 5, -1), Err(GcStateError::Ttl));
        assert_eq!(set(&mut r, "", 5, 60), Err(GcStateError::NoId));
        assert_eq!(set(&mut r, GC_WORKER, 5, 60), Err(GcStateError::Reserved));
        let delete = |r: &mut Record, keyspace, id| delete_barrier(r, keyspace, id, NOW);
        let reserved = delete(&mut r, NULL_KEYSPACE, GC_WORKER);
        assert_eq!(reserved, Err(GcStateError::Reserved));
        assert_eq!(delete(&mut r, NULL_KEYSPACE, ""), Err(GcStateError::NoId));
        assert_eq!(delete(&mut r, NULL_KEYSPACE, "a"), Ok(None), "no error");
        for keyspace in [0, 1, MAX_KEYSPACE] {
            assert_eq!(delete(&mut r, keyspace, "a"), Err(GcStateError::Keyspace));
            let moved = advance_txn(&mut r, keyspace, 9, NOW);
            assert_eq!(moved, Err(GcStateError::Keyspace));
            let moved = advance_gc(&mut r, keyspace, 0);
            assert_eq!(moved, Err(GcStateError::Keyspace));
            let set = set_barrier(&mut r, keyspace, barrier("a", 5, 60), NOW);
            assert_eq!(set, Err(GcStateError::Keyspace));
        }
        assert_eq!(null_keyspace(MAX_KEYSPACE + 1), Ok(()));
        assert_eq!((r.txn_safe_point, barriers(&r, NOW)), (0, Vec::new()));
    }

    #[test]
    fn a_service_of_the_old_call_is_the_barrier_of_its_id() {
        let mut r = Record::new(1);
        advance(&mut r, 100, NOW);
        assert_eq!(update(&mut r, "a", 200, 60), worker(100));
        assert_eq!(barriers(&r, NOW), [barrier("a", 200, 60)]);
        assert_eq!(update(&mut r, "a", 99, 60), worker(100), "in silence");
        assert_eq!(barriers(&r, NOW), [barrier("a", 200, 60)]);
        assert_eq!(update(&mut r, "a", 0, 0), worker(100));
        assert_eq!(barriers(&r, NOW), []);
        assert_eq!(update(&mut r, "", 200, 60), Err(GcStateError::NoId));
        assert_eq!(update(&mut r, "", 0, 0), Err(GcStateError::NoId));
    }

    #[test]
    fn gc_worker_of_the_old_call_is_the_txn_safe_point() {
        let mut r = Record::new(1);
        assert_eq!(update(&mut r, GC_WORKER, 100, i64::MAX), worker(100));
        set(&mut r, "a", 150, 60).unwrap();
        let held = update(&mut r, GC_WORKER, 180, i64::MAX);
        assert_eq!(held, Ok(("a".to_owned(), 150)));
        assert_eq!(update(&mut r, GC_WORKER, 150, i64::MAX), worker(150));
        let (current, given) = (150, 149);
        let lower = update(&mut r, GC_WORKER, 149, i64::MAX);
        assert_eq!(lower, Err(GcStateError::TxnFalls { current, given }));
        for ttl in [60, 0, -1] {
            let ends = update(&mut r, GC_WORKER, 200, ttl);
            assert_eq!(ends, Err(GcStateError::GcWorkerTtl));
        }
        assert_eq!(r.txn_safe_point, 150);
    }

    #[test]
    fn native_br_of_the_old_call_holds_and_is_no_barrier_of_the_keyspace() {
        let mut r = Record::new(1);
        assert_eq!(update(&mut r, NATIVE_BR, 100, 60), worker(0));
        assert_eq!(barriers(&r, NOW), []);
        let blocker = Some(NATIVE_BR.to_owned());
        assert_eq!(advance(&mut r, 150, NOW), (0, 100, blocker));
        assert_eq!(update(&mut r, NATIVE_BR, 99, 60), worker(100), "in silence");
        assert_eq!(update(&mut r, NATIVE_BR, 0, 0), worker(100));
        assert_eq!(advance(&mut r, 150, NOW), (100, 150, None));
    }

    #[test]
    fn entries_of_a_pd_without_gc_states_hold_and_its_worker_follows() {
        use crate::pd::safepoint;
        let mut r = Record::new(1);
        safepoint::update_service(&mut r, "old", 600, 50, 1000).unwrap();
        assert_eq!(barriers(&r, NOW), [barrier("old", 50, 599)]);
        let blocker = Some("old".to_owned());
        assert_eq!(advance(&mut r, 80, NOW), (0, 50, blocker));
        assert_eq!(r.services[GC_WORKER].safe_point, 50);
        let minimum = safepoint::update_service(&mut r, "late", 600, 49, 1000).unwrap();
        assert_eq!(minimum.safe_point, 50);
    }

    #[test]
    fn a_barrier_behind_the_txn_safe_point_stops_it_where_it_is() {
        let mut r = Record::new(1);
        advance(&mut r, 100, NOW);
        let behind = ServiceEntry {
            safe_point: 50,
            expires_at: i64::MAX,
        };
        r.services.insert("old".to_owned(), behind);
        let blocker = Some("old".to_owned());
        assert_eq!(advance(&mut r, 200, NOW), (100, 100, blocker));
    }
}
