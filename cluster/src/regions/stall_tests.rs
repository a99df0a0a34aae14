//! A region that stands still: when its locks are looked at, what their answer means, and how
//! often a region may be registered anew.

use bytes::Bytes;

use super::super::Holder;
use super::tests::{OWN, Rig, key, led_by, region};
use super::*;
use crate::kv::{HeldLock, LockReport};

fn resolved(rig: &mut Rig, sub: u64, ts: u64) {
    rig.cdc(CdcEvent::Resolved {
        subs: vec![SubId(sub)],
        ts: Ts::new(ts),
    });
}

fn looks(rig: &mut Rig) -> Vec<String> {
    let steps = rig.step().into_iter();
    steps.filter(|step| step.starts_with("look")).collect()
}

fn lock(start_ts: u64) -> HeldLock {
    HeldLock {
        key: Bytes::from_static(b"k"),
        primary: Bytes::from_static(b"p"),
        start_ts: Ts::new(start_ts),
        age: Duration::from_secs(9),
    }
}

fn answer(rig: &mut Rig, sub: u64, asked: u64, report: LockReport) {
    let looked = Looked::Locks(report);
    rig.core
        .on_looked(SubId(sub), Ts::new(asked), looked, rig.now);
}

fn holders(rig: &Rig) -> Vec<(u64, Holder)> {
    let holds = rig.core.stalls.holds();
    holds.map(|(sub, holder)| (sub.0, holder.clone())).collect()
}

/// Regions 4 and 6 are live as 1 and 2.
fn two() -> Rig {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(OWN, region(6, 5, "m", "")),
    ]);
    rig.step();
    rig.initialized(1);
    rig.initialized(2);
    rig.step();
    rig.safe_point(50);
    rig.step();
    rig
}

#[test]
fn locks_are_looked_at_after_four_seconds_without_a_step_and_then_every_ten() {
    let mut rig = Rig::live();
    rig.step();
    rig.wait(3_900);
    assert!(looks(&mut rig).is_empty());
    resolved(&mut rig, 1, 150);
    rig.wait(3_900);
    resolved(&mut rig, 1, 150);
    assert!(looks(&mut rig).is_empty(), "the same ts is no step");
    rig.wait(1_100);
    assert_eq!(looks(&mut rig), ["look 1 at 150"]);
    rig.wait(30_000);
    assert!(looks(&mut rig).is_empty(), "one look at a time");
    let failed = Looked::Failed("away".to_owned());
    rig.core.on_looked(SubId(1), Ts::new(150), failed, rig.now);
    assert_eq!(holders(&rig), [(1, Holder::Unknown("away".to_owned()))]);
    rig.wait(1_100);
    assert_eq!(looks(&mut rig), ["look 1 at 150"]);
    rig.core
        .on_looked(SubId(1), Ts::new(150), Looked::NotBehind, rig.now);
    assert!(holders(&rig).is_empty());
    rig.wait(9_000);
    assert!(looks(&mut rig).is_empty());
}

#[test]
fn a_scan_that_runs_is_no_stall_and_a_subscription_that_ended_has_no_answer() {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    rig.step();
    rig.wait(60_000);
    assert!(looks(&mut rig).is_empty());
    let mut rig = Rig::live();
    rig.step();
    rig.wait(5_000);
    assert_eq!(looks(&mut rig), ["look 1 at 100"]);
    rig.ended(1, EndReason::new(EndKind::NotLeader, ""));
    rig.step();
    answer(&mut rig, 1, 100, LockReport::default());
    assert!(rig.step().is_empty() && holders(&rig).is_empty());
}

#[test]
fn a_live_lock_is_named_and_left_alone_until_the_region_moves() {
    let mut rig = Rig::live();
    rig.step();
    rig.wait(5_000);
    looks(&mut rig);
    let report = LockReport {
        found: 1,
        alive: 1,
        oldest: Some(lock(101)),
        ..LockReport::default()
    };
    answer(&mut rig, 1, 100, report);
    assert!(rig.step().is_empty());
    assert_eq!(holders(&rig), [(1, Holder::Lock(lock(101)))]);
    let text = holders(&rig)[0].1.to_string();
    assert!(
        text.contains("101") && text.contains("6B") && text.contains("9 s"),
        "{text}"
    );
    resolved(&mut rig, 1, 102);
    assert!(holders(&rig).is_empty());
}

#[test]
fn a_lock_that_does_not_exist_costs_one_new_registration_an_hour() {
    let mut rig = two();
    rig.wait(5_000);
    resolved(&mut rig, 2, 300);
    assert_eq!(looks(&mut rig), ["look 1 at 100"]);
    answer(&mut rig, 1, 100, LockReport::default());
    assert_eq!(
        rig.step(),
        ["unsub 1", "load", "ended 1 PhantomLock"],
        "before anything else of the range"
    );
    rig.core.on_loaded(
        EncodedRange::new(key(""), key("m")),
        Ok(Loaded {
            regions: vec![led_by(OWN, region(4, 5, "", "m"))],
            rest: None,
            safe_point: Ts::new(50),
        }),
        rig.now,
    );
    assert_eq!(rig.step(), ["sub 3 region 4 from 100", "started 3"]);
    rig.initialized(3);
    rig.step();
    rig.safe_point(50);
    rig.wait(5_000);
    resolved(&mut rig, 2, 301);
    assert_eq!(looks(&mut rig), ["look 3 at 100"]);
    answer(&mut rig, 3, 100, LockReport::default());
    assert!(looks(&mut rig).is_empty());
    assert_eq!(holders(&rig), [(3, Holder::Phantom)], "told, not repeated");
    rig.wait(3_600_000);
    resolved(&mut rig, 2, 302);
    assert_eq!(looks(&mut rig), ["look 3 at 100"]);
    answer(&mut rig, 3, 100, LockReport::default());
    assert!(rig.step().contains(&"unsub 3".to_owned()));
}

#[test]
fn a_store_whose_regions_all_stand_still_has_no_phantoms() {
    let mut rig = two();
    rig.wait(5_000);
    assert_eq!(looks(&mut rig), ["look 1 at 100", "look 2 at 100"]);
    answer(&mut rig, 1, 100, LockReport::default());
    assert_eq!(holders(&rig), [(1, Holder::Store)]);
    let cleared = LockReport {
        found: 3,
        resolved: 3,
        ..LockReport::default()
    };
    answer(&mut rig, 2, 100, cleared);
    assert_eq!(holders(&rig).len(), 1, "locks that go hold nothing");
    assert!(rig.step().iter().all(|step| !step.starts_with("unsub")));
}

#[test]
fn an_answer_that_the_region_has_outrun_means_nothing() {
    let mut rig = two();
    rig.wait(5_000);
    looks(&mut rig);
    resolved(&mut rig, 1, 200);
    resolved(&mut rig, 2, 200);
    answer(&mut rig, 1, 100, LockReport::default());
    assert!(holders(&rig).is_empty());
    assert!(rig.step().iter().all(|step| !step.starts_with("unsub")));
}

#[test]
fn only_some_looks_run_at_a_time_and_the_others_have_their_turn() {
    let mut rig = Rig::new(100);
    rig.step();
    let bound = |at: usize| match at {
        0 | 20 => String::new(),
        at => format!("k{at:02}"),
    };
    let regions = (0..20usize).map(|at| {
        let region = region(at as u64 + 10, 5, &bound(at), &bound(at + 1));
        led_by(OWN, region)
    });
    rig.loaded(regions.collect());
    rig.step();
    for sub in 1..=20 {
        rig.initialized(sub);
    }
    rig.step();
    rig.safe_point(50);
    rig.step();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        rig.wait(5_000);
        let now = looks(&mut rig);
        assert!(now.len() <= 8, "{now:?}");
        for look in now {
            let sub = look.split(' ').nth(1).unwrap().parse().unwrap();
            seen.insert(sub);
            answer(&mut rig, sub, 100, LockReport::default());
        }
    }
    assert_eq!(seen.len(), 20);
}

#[test]
fn few_regions_are_compared_with_pd_every_second_and_many_every_ten_at_most() {
    let rig = |regions: usize| {
        let frontier: FrontierFn = Arc::new(|_| Ts::new(100));
        let options = TrackerOptions::new(OWN, "s", vec![EncodedRange::ALL], frontier);
        let mut core = Core::new(&options, Instant::now());
        core.told = regions;
        core.until_next_audit()
    };
    assert_eq!(rig(0), Duration::from_secs(1));
    assert_eq!(rig(400), Duration::from_secs(1));
    assert_eq!(rig(2_000), Duration::from_secs(4));
    assert_eq!(rig(1_000_000), Duration::from_secs(10));
    assert_eq!(rig(usize::MAX), Duration::from_secs(10));
}
