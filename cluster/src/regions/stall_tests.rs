//! A region that stands still: when its locks are looked at, what their answer means, and how
//! often a region may be registered anew.

use bytes::Bytes;

use super::super::Holder;
use super::tests::{OWN, Rig, led_by, region};
use super::*;
use crate::kv::{HeldLock, LockReport};

fn resolved(rig: &mut Rig, subs: &[u64], ts: u64) {
    rig.cdc(CdcEvent::Resolved {
        subs: subs.iter().map(|sub| SubId(*sub)).collect(),
        ts: Ts::new(ts),
    });
}

/// Seconds go by in which the store tells a ts of regions each second; what was done after each.
fn told_for(rig: &mut Rig, seconds: u64, subs: &[u64], ts: u64) -> Vec<String> {
    let mut steps = Vec::new();
    for _ in 0..seconds {
        rig.wait(1_000);
        resolved(rig, subs, ts);
        steps.extend(rig.step());
    }
    steps.retain(|step| !step.starts_with("resolved") && !step.starts_with("load all"));
    steps
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
    let looked = Looked::Locks(report, Ts::ZERO);
    rig.core
        .on_looked(SubId(sub), Ts::new(asked), looked, rig.now);
}

fn holders(rig: &Rig) -> Vec<(u64, Holder)> {
    let holds = rig.core.stalls.holds();
    holds.map(|(sub, holder)| (sub.0, holder.clone())).collect()
}

/// Regions 4 and 6 are registered as 1 and 2.
fn two_scanning() -> Rig {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(OWN, region(6, 5, "m", "")),
    ]);
    rig.step();
    rig
}

/// Regions 4 and 6 are live as 1 and 2.
fn two() -> Rig {
    let mut rig = two_scanning();
    rig.initialized(1);
    rig.initialized(2);
    rig.step();
    rig.safe_point(50);
    rig.step();
    rig
}

/// So many regions, live as 1 and so on.
fn many(count: u64) -> Rig {
    let mut rig = Rig::new(100);
    rig.step();
    let bound = |at: u64| match at {
        0 => String::new(),
        at if at == count => String::new(),
        at => format!("k{at:02}"),
    };
    let regions = (0..count).map(|at| {
        let region = region(at + 10, 5, &bound(at), &bound(at + 1));
        led_by(OWN, region)
    });
    rig.loaded(regions.collect());
    rig.step();
    for sub in 1..=count {
        rig.initialized(sub);
    }
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
    resolved(&mut rig, &[1], 150);
    rig.wait(3_900);
    resolved(&mut rig, &[1], 150);
    assert!(looks(&mut rig).is_empty(), "the same ts is no step");
    rig.wait(1_100);
    assert_eq!(looks(&mut rig), ["look 1 at 150"]);
    rig.wait(30_000);
    assert!(looks(&mut rig).is_empty(), "one look at a time");
    let failed = Looked::Failed("away".to_owned());
    rig.core.on_looked(SubId(1), Ts::new(150), failed, rig.now);
    rig.wait(1_100);
    assert_eq!(looks(&mut rig), ["look 1 at 150"]);
    assert_eq!(holders(&rig), [(1, Holder::Unknown("away".to_owned()))]);
    rig.core
        .on_looked(SubId(1), Ts::new(150), Looked::NotBehind, rig.now);
    rig.wait(9_000);
    assert!(looks(&mut rig).is_empty());
    assert!(holders(&rig).is_empty());
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
    rig.wait(1_000);
    assert!(rig.step().is_empty());
    assert_eq!(holders(&rig), [(1, Holder::Lock(lock(101)))]);
    let text = holders(&rig)[0].1.to_string();
    assert!(
        text.contains("101") && text.contains("6B") && text.contains("9 s"),
        "{text}"
    );
    resolved(&mut rig, &[1], 102);
    assert!(holders(&rig).is_empty());
}

#[test]
fn a_lock_that_does_not_exist_costs_one_new_registration_an_hour() {
    let mut rig = Rig::live();
    rig.step();
    assert_eq!(told_for(&mut rig, 4, &[1], 100), ["look 1 at 100"]);
    answer(&mut rig, 1, 100, LockReport::default());
    assert!(rig.step().is_empty(), "the store may not have seen it yet");
    let steps = told_for(&mut rig, 2, &[1], 100);
    assert_eq!(steps, ["unsub 1", "ended 1 PhantomLock"]);
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    let again = ["sub 2 region 4 from 100 alone", "started 2"];
    assert_eq!(told_for(&mut rig, 1, &[], 0), again);
    rig.initialized(2);
    rig.step();
    rig.safe_point(50);
    for _ in 0..2 {
        let steps = told_for(&mut rig, 10, &[2], 100);
        assert_eq!(steps, ["look 2 at 100"], "not repeated");
        answer(&mut rig, 2, 100, LockReport::default());
    }
    assert!(told_for(&mut rig, 3, &[2], 100).is_empty());
    assert_eq!(holders(&rig), [(2, Holder::Phantom)], "but told");
    // At another ts it is another lock.
    assert_eq!(told_for(&mut rig, 5, &[2], 200), ["look 2 at 200"]);
    answer(&mut rig, 2, 200, LockReport::default());
    let steps = told_for(&mut rig, 2, &[2], 200);
    assert_eq!(steps, ["unsub 2", "ended 2 PhantomLock"]);
}

#[test]
fn of_regions_that_are_told_together_only_the_one_with_the_lock_holds() {
    let mut rig = two();
    let looked = told_for(&mut rig, 4, &[1, 2], 100);
    assert_eq!(looked, ["look 1 at 100", "look 2 at 100"]);
    answer(&mut rig, 2, 100, LockReport::default());
    assert!(
        told_for(&mut rig, 3, &[1, 2], 100).is_empty(),
        "one is not known"
    );
    assert!(holders(&rig).is_empty());
    let report = LockReport {
        found: 1,
        alive: 1,
        oldest: Some(lock(100)),
        ..LockReport::default()
    };
    answer(&mut rig, 1, 100, report);
    assert!(told_for(&mut rig, 3, &[1, 2], 100).is_empty());
    let expect = [
        (1, Holder::Lock(lock(100))),
        (2, Holder::Neighbour(SubId(1))),
    ];
    assert_eq!(holders(&rig), expect);
}

#[test]
fn a_region_that_was_told_more_before_stands_beside_another_one() {
    for with_lock in [true, false] {
        let mut rig = two();
        resolved(&mut rig, &[2], 200);
        told_for(&mut rig, 4, &[1, 2], 100);
        answer(&mut rig, 2, 200, LockReport::default());
        let report = LockReport {
            oldest: with_lock.then(|| lock(100)),
            ..LockReport::default()
        };
        answer(&mut rig, 1, 100, report);
        let steps = told_for(&mut rig, 3, &[1, 2], 100);
        if with_lock {
            let beside = (2, Holder::Neighbour(SubId(1)));
            assert_eq!(holders(&rig), [(1, Holder::Lock(lock(100))), beside]);
            assert!(steps.is_empty(), "{steps:?}");
        } else {
            assert_eq!(steps, ["unsub 1", "ended 1 PhantomLock", "load"]);
        }
    }
}

#[test]
fn a_lock_that_began_later_than_the_ts_that_is_told_hides_no_phantom() {
    let younger = || LockReport {
        found: 1,
        alive: 1,
        oldest: Some(lock(3_000)),
        ..LockReport::default()
    };
    for (first, second) in [
        (LockReport::default(), younger()),
        (younger(), LockReport::default()),
        (younger(), younger()),
    ] {
        let mut rig = two();
        told_for(&mut rig, 4, &[1, 2], 100);
        answer(&mut rig, 1, 100, first);
        answer(&mut rig, 2, 100, second);
        let steps = told_for(&mut rig, 3, &[1, 2], 100);
        let ended = |sub: &str| steps.contains(&format!("ended {sub} PhantomLock"));
        assert!(ended("1") && ended("2"), "{steps:?}");
    }
}

#[test]
fn regions_that_move_hide_no_phantom_although_the_store_tells_its_ts_of_them_too() {
    let mut rig = two();
    let mut steps = Vec::new();
    for second in 1..10 {
        rig.wait(1_000);
        resolved(&mut rig, &[2], 1_000 + second);
        resolved(&mut rig, &[1, 2], 100);
        for step in rig.step() {
            if step == "look 1 at 100" {
                answer(&mut rig, 1, 100, LockReport::default());
            }
            steps.push(step);
        }
    }
    assert!(
        steps.contains(&"ended 1 PhantomLock".to_owned()),
        "{steps:?}"
    );
    assert!(
        !steps.iter().any(|step| step.contains("look 2")),
        "{steps:?}"
    );
}

#[test]
fn a_region_that_is_not_live_yet_may_have_the_lock() {
    let mut rig = two_scanning();
    rig.initialized(1);
    rig.step();
    rig.safe_point(50);
    let looked = told_for(&mut rig, 5, &[1, 2], 100);
    assert!(looked.contains(&"look 1 at 100".to_owned()), "{looked:?}");
    answer(&mut rig, 1, 100, LockReport::default());
    let steps = told_for(&mut rig, 3, &[1, 2], 100);
    assert!(steps.is_empty(), "{steps:?}");
    let steps = told_for(&mut rig, 5, &[1], 100);
    assert!(
        steps.contains(&"ended 1 PhantomLock".to_owned()),
        "{steps:?}"
    );
}

#[test]
fn beside_a_lock_nobody_takes_the_store_for_the_reason_however_many_they_are() {
    let (mut rig, subs) = (many(41), (1..=41).collect::<Vec<_>>());
    for _ in 0..12 {
        for step in told_for(&mut rig, 1, &subs, 100) {
            let sub = step.split(' ').nth(1).unwrap().parse().unwrap();
            let report = LockReport {
                oldest: (sub == 20).then(|| lock(100)),
                ..LockReport::default()
            };
            answer(&mut rig, sub, 100, report);
        }
    }
    told_for(&mut rig, 1, &subs, 100);
    let holders = holders(&rig);
    let beside = |sub: u64| match sub {
        20 => Holder::Lock(lock(100)),
        _ => Holder::Neighbour(SubId(20)),
    };
    assert_eq!(holders.len(), 41);
    assert!(
        holders.iter().all(|(sub, held)| *held == beside(*sub)),
        "{holders:?}"
    );
}

#[test]
fn a_look_counts_when_the_store_has_told_something_later_than_it() {
    let mut rig = many(9);
    let all: Vec<_> = (1..=9).collect();
    // What is read now was told long ago: the lock that it speaks of is gone.
    resolved(&mut rig, &[9], 300);
    told_for(&mut rig, 4, &all[..8], 200);
    for sub in &all[..8] {
        let looked = Looked::Locks(LockReport::default(), Ts::new(900));
        rig.core
            .on_looked(SubId(*sub), Ts::new(200), looked, rig.now);
    }
    let ended = |steps: &[String]| steps.iter().any(|step| step.contains("PhantomLock"));
    resolved(&mut rig, &[9], 899);
    assert!(!ended(&told_for(&mut rig, 3, &all[..8], 200)));
    resolved(&mut rig, &[9], 901);
    assert!(ended(&told_for(&mut rig, 1, &all[..8], 200)));
}

#[test]
fn regions_that_are_told_together_and_have_no_lock_are_all_registered_anew() {
    let mut rig = two();
    told_for(&mut rig, 4, &[1, 2], 100);
    answer(&mut rig, 1, 100, LockReport::default());
    answer(&mut rig, 2, 100, LockReport::default());
    let steps = told_for(&mut rig, 2, &[1, 2], 100);
    let ended = |sub: &str| steps.contains(&format!("ended {sub} PhantomLock"));
    assert!(ended("1") && ended("2"), "{steps:?}");
}

#[test]
fn nothing_is_registered_anew_while_the_locks_of_one_cannot_be_looked_at_or_go() {
    let cleared = LockReport {
        found: 3,
        resolved: 3,
        ..LockReport::default()
    };
    let answers = [
        Looked::Failed("away".to_owned()),
        Looked::Locks(cleared, Ts::ZERO),
        Looked::NotBehind,
    ];
    for other in answers {
        let mut rig = two();
        told_for(&mut rig, 4, &[1, 2], 100);
        answer(&mut rig, 1, 100, LockReport::default());
        rig.core.on_looked(SubId(2), Ts::new(100), other, rig.now);
        assert!(told_for(&mut rig, 5, &[1, 2], 100).is_empty());
        assert!(!holders(&rig).iter().any(|(sub, _)| *sub == 1));
    }
}

#[test]
fn a_store_that_tells_nothing_and_one_that_tells_all_of_its_regions_the_same_have_no_phantoms() {
    let mut rig = two();
    rig.wait(5_000);
    assert_eq!(looks(&mut rig), ["look 1 at 100", "look 2 at 100"]);
    answer(&mut rig, 1, 100, LockReport::default());
    answer(&mut rig, 2, 100, LockReport::default());
    rig.wait(5_000);
    assert!(told_for(&mut rig, 1, &[], 0).is_empty());
    assert_eq!(holders(&rig), [(1, Holder::Store), (2, Holder::Store)]);

    let (mut rig, subs) = (many(41), (1..=41).collect::<Vec<_>>());
    for _ in 0..12 {
        for step in told_for(&mut rig, 1, &subs, 100) {
            let look: Vec<_> = step.split(' ').collect();
            assert_eq!(look[0], "look", "{step}");
            answer(
                &mut rig,
                look[1].parse().unwrap(),
                100,
                LockReport::default(),
            );
        }
    }
    told_for(&mut rig, 3, &subs, 100);
    assert_eq!(holders(&rig).len(), 41);
    assert!(holders(&rig).iter().all(|(_, held)| *held == Holder::Store));
}

#[test]
fn an_answer_that_the_region_has_outrun_means_nothing() {
    let mut rig = two();
    rig.wait(5_000);
    looks(&mut rig);
    resolved(&mut rig, &[1], 200);
    resolved(&mut rig, &[2], 200);
    answer(&mut rig, 1, 100, LockReport::default());
    assert!(holders(&rig).is_empty());
    assert!(rig.step().iter().all(|step| !step.starts_with("unsub")));
}

#[test]
fn only_some_looks_run_at_a_time_and_the_others_have_their_turn() {
    let mut rig = many(20);
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
