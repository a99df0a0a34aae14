//! What failing ranges have to wait, for any order of failures, splits and quiet times: the
//! delays of a change stream's client, 50 ms to 2 s for a region and 1 s to 30 s for a store that
//! has too much to do.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn range(from: u8, to: u8) -> EncodedRange {
    EncodedRange::new(Bytes::from(vec![from]), Bytes::from(vec![to]))
}

fn any_kind() -> impl Strategy<Value = EndKind> {
    prop::sample::select(vec![
        EndKind::NotLeader,
        EndKind::EpochNotMatch,
        EndKind::RegionNotFound,
        EndKind::ServerIsBusy,
        EndKind::Congested,
        EndKind::Overrun,
        EndKind::LargeTransaction,
        EndKind::Unknown,
    ])
}

fn is_load(kind: EndKind) -> bool {
    matches!(
        kind,
        EndKind::Congested | EndKind::Overrun | EndKind::LargeTransaction
    )
}

proptest! {
    #[test]
    fn no_wait_is_shorter_than_half_the_first_nor_longer_than_the_cap(
        failures in proptest::collection::vec((any_kind(), 0..20u8, 1..10u8, 0..40_000u64), 1..60),
        seed in any::<u64>(),
    ) {
        let mut penalties = Penalties::default();
        let mut now = Instant::now();
        for (kind, from, len, quiet) in failures {
            now += Duration::from_millis(quiet);
            let failing = range(from, from + len);
            let (until, _) = penalties.note(&failing, &EndReason::new(kind, ""), seed, now);
            let (least, most) = if is_load(kind) { (500, 30_000) } else { (25, 2_000) };
            let wait = until - now;
            prop_assert!(wait >= Duration::from_millis(least), "{kind:?} {wait:?}");
            prop_assert!(wait <= Duration::from_millis(most), "{kind:?} {wait:?}");
            prop_assert!(penalties.blocks(&failing, now), "it waits from now on");
            prop_assert!(penalties.blocks(&failing, until - Duration::from_millis(1)));
        }
    }

    #[test]
    fn a_range_that_never_failed_never_waits_and_every_wait_ends(
        failures in proptest::collection::vec((any_kind(), 0..20u8, 1..10u8), 1..40),
    ) {
        let mut penalties = Penalties::default();
        let now = Instant::now();
        for (kind, from, len) in &failures {
            let reason = EndReason::new(*kind, "");
            penalties.note(&range(*from, from + len), &reason, 3, now);
        }
        prop_assert!(penalties.len() <= failures.len());
        for cell in 0..40u8 {
            let failed = failures.iter().any(|(_, from, len)| (*from..from + len).contains(&cell));
            let here = range(cell, cell + 1);
            prop_assert_eq!(penalties.blocks(&here, now), failed, "cell {}", cell);
            prop_assert!(!penalties.blocks(&here, now + Duration::from_secs(30)));
        }
    }

    #[test]
    fn every_part_of_a_split_range_remembers_how_often_the_whole_failed(
        times in 1..12u32,
        cuts in proptest::collection::vec(1..50u8, 1..6),
    ) {
        let mut penalties = Penalties::default();
        let mut now = Instant::now();
        let reason = EndReason::new(EndKind::RegionNotFound, "");
        for before in 0..times {
            let (until, attempts) = penalties.note(&range(0, 50), &reason, 9, now);
            prop_assert_eq!(attempts, before);
            now = until;
        }
        let mut bounds: Vec<u8> = cuts.into_iter().chain([0, 50]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        for part in bounds.windows(2) {
            let (_, attempts) = penalties.note(&range(part[0], part[1]), &reason, 9, now);
            prop_assert!(attempts >= times, "{part:?} starts over at {attempts}");
        }
    }
}

#[test]
fn a_region_that_waits_for_load_and_one_that_moved_are_counted_apart() {
    let mut penalties = Penalties::default();
    let mut now = Instant::now();
    for _ in 0..6 {
        let moved = EndReason::new(EndKind::NotLeader, "");
        now = penalties.note(&range(0, 9), &moved, 1, now).0;
    }
    // The first congestion waits for its own first delay, not for the sixth of the moves.
    let congested = EndReason::new(EndKind::Congested, "");
    let (until, before) = penalties.note(&range(0, 9), &congested, 1, now);
    assert_eq!(before, 6);
    assert!(until - now <= Duration::from_secs(1));
}

#[test]
fn failures_of_ever_new_ranges_are_forgotten_in_the_end() {
    let mut penalties = Penalties::default();
    let mut now = Instant::now();
    let reason = EndReason::new(EndKind::RegionNotFound, "");
    for n in 0..5_000u32 {
        now += Duration::from_secs(1);
        let key = |n: u32| Bytes::copy_from_slice(&n.to_be_bytes());
        let failing = EncodedRange::new(key(n), key(n + 1));
        penalties.note(&failing, &reason, 1, now);
        assert!(penalties.len() <= 300, "five minutes of them");
    }
}
