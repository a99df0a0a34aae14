//! Holding GC back, as PD without the GC-state API does it.
//!
//! A service safe point is a floor for the next GC round. `gc_worker` exists from the first call
//! on, at 0 and for ever. A value below the current minimum is ignored in silence: the answer's
//! minimum tells. `UpdateGCSafePoint` looks at no service safe point.
//! Source: tikv/pd `server/gc_service.go`, `pkg/gc/gc_state_manager.go` (classic line).

use super::state::{Record, ServiceEntry};

/// The service that always exists.
pub const GC_WORKER: &str = "gc_worker";

/// The service with the smallest safe point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minimum {
    /// Its id.
    pub service_id: String,
    /// Seconds left; without end it is `i64::MAX` less the clock's seconds, as PD computes it.
    pub ttl: i64,
    /// The floor.
    pub safe_point: u64,
}

/// A request that PD refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SafePointError {
    /// A service without a name.
    #[error("service id of service safepoint cannot be empty")]
    NoId,
    /// Removal of the permanent entry.
    #[error("cannot remove service safe point of gc_worker")]
    RemoveGcWorker,
    /// The permanent entry with an end.
    #[error("TTL of gc_worker's service safe point must be infinity")]
    GcWorkerTtl,
}

/// `UpdateServiceGCSafePoint` at `now` (unix seconds).
pub fn update_service(
    record: &mut Record,
    service_id: &str,
    ttl: i64,
    safe_point: u64,
    now: i64,
) -> Result<Minimum, SafePointError> {
    let permanent = service_id == GC_WORKER;
    if service_id.is_empty() {
        return Err(SafePointError::NoId);
    }
    if permanent && ttl <= 0 {
        return Err(SafePointError::RemoveGcWorker);
    }
    if permanent && ttl != i64::MAX {
        return Err(SafePointError::GcWorkerTtl);
    }
    if ttl <= 0 {
        record.services.remove(service_id);
    }
    let minimum = minimum(record, now);
    if ttl <= 0 || safe_point < minimum.safe_point {
        return Ok(minimum);
    }
    let entry = ServiceEntry {
        safe_point,
        expires_at: now.saturating_add(ttl),
    };
    record.services.insert(service_id.to_owned(), entry);
    // PD looks again only when the owner of the minimum moved it.
    match service_id == minimum.service_id {
        true => Ok(self::minimum(record, now)),
        false => Ok(minimum),
    }
}

/// Drops what expired, makes sure of `gc_worker`, and finds the smallest.
fn minimum(record: &mut Record, now: i64) -> Minimum {
    record.services.retain(|_, entry| entry.expires_at > now);
    let permanent = ServiceEntry {
        safe_point: 0,
        expires_at: i64::MAX,
    };
    record
        .services
        .entry(GC_WORKER.to_owned())
        .or_insert(permanent);
    let (service_id, entry) = record
        .services
        .iter()
        .min_by_key(|(_, entry)| entry.safe_point)
        .map_or((GC_WORKER.to_owned(), permanent), |(id, e)| {
            (id.clone(), *e)
        });
    Minimum {
        service_id,
        ttl: entry.expires_at.saturating_sub(now),
        safe_point: entry.safe_point,
    }
}

/// `UpdateGCSafePoint`: never goes back; returns the value that holds now.
pub fn advance_gc(record: &mut Record, safe_point: u64) -> u64 {
    record.gc_safe_point = record.gc_safe_point.max(safe_point);
    record.gc_safe_point
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gc_worker_stands_at_zero_for_ever_until_it_moves() {
        let mut r = Record::new(1);
        let min = update_service(&mut r, "a", 60, 500, 1000).unwrap();
        assert_eq!(
            (min.service_id.as_str(), min.ttl, min.safe_point),
            (GC_WORKER, i64::MAX - 1000, 0)
        );
        let min = update_service(&mut r, GC_WORKER, i64::MAX, 700, 1000).unwrap();
        assert_eq!((min.service_id.as_str(), min.safe_point), ("a", 500));
        assert_eq!(min.ttl, 60);
    }

    #[test]
    fn a_value_below_the_minimum_is_ignored_and_the_answer_shows_it() {
        let mut r = Record::new(1);
        update_service(&mut r, GC_WORKER, i64::MAX, 900, 0).unwrap();
        let min = update_service(&mut r, "late", 60, 899, 0).unwrap();
        assert_eq!(min.safe_point, 900);
        assert!(!r.services.contains_key("late"));
        let min = update_service(&mut r, "in-time", 60, 900, 0).unwrap();
        assert_eq!(min.safe_point, 900);
        assert!(r.services.contains_key("in-time"));
    }

    #[test]
    fn entries_end_with_their_ttl_or_by_removal() {
        let mut r = Record::new(1);
        update_service(&mut r, "short", 10, 5, 100).unwrap();
        update_service(&mut r, "long", 1000, 6, 100).unwrap();
        let worker = update_service(&mut r, GC_WORKER, i64::MAX, 50, 109).unwrap();
        assert_eq!(worker.service_id, "short");
        let after = update_service(&mut r, GC_WORKER, i64::MAX, 50, 110).unwrap();
        assert_eq!(after.service_id, "long");
        let removed = update_service(&mut r, "long", 0, 0, 110).unwrap();
        assert_eq!(removed.service_id, GC_WORKER);
    }

    #[test]
    fn gc_worker_cannot_be_removed_or_limited() {
        let mut r = Record::new(1);
        let remove = update_service(&mut r, GC_WORKER, 0, 1, 0);
        assert_eq!(remove, Err(SafePointError::RemoveGcWorker));
        let limit = update_service(&mut r, GC_WORKER, 60, 1, 0);
        assert_eq!(limit, Err(SafePointError::GcWorkerTtl));
    }

    #[test]
    fn the_gc_safe_point_passes_every_service_but_never_goes_back() {
        let mut r = Record::new(1);
        update_service(&mut r, "holder", 60, 5, 0).unwrap();
        assert_eq!(advance_gc(&mut r, 80), 80);
        assert_eq!(advance_gc(&mut r, 70), 80);
    }
}
