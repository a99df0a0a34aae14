//! What the tracker does about each error of the change stream (the table of error events), about
//! answers of PD that are late, partial or wrong, and about more of both than it may keep.

use bytes::Bytes;

use super::tests::{OWN, Rig, epoch, key, led_by, region};
use super::*;

fn reason(kind: EndKind) -> EndReason {
    EndReason::new(kind, "")
}

/// How long it takes until PD is asked about the failed range.
fn wait_for_load(rig: &mut Rig) -> Duration {
    let from = rig.now;
    while !rig.step().iter().any(|step| step.starts_with("load")) {
        rig.wait(1);
        assert!(rig.now - from < Duration::from_secs(60), "never asked");
    }
    rig.now - from
}

fn rig_with(wanted: Vec<EncodedRange>, frontier: FrontierFn) -> Rig {
    let mut options = TrackerOptions::new(OWN, "s", wanted, frontier);
    options.audit_per_region = options.audit_interval;
    let now = Instant::now();
    Rig {
        core: Core::new(&options, now),
        now,
    }
}

fn at(ts: u64) -> FrontierFn {
    Arc::new(move |_| Ts::new(ts))
}

/// Milliseconds after which a first failure of a kind is looked at again.
const WAITS: [(EndKind, u64, u64); 9] = [
    (EndKind::NotLeader, 25, 50),
    (EndKind::EpochNotMatch, 25, 50),
    (EndKind::RegionNotFound, 25, 50),
    (EndKind::DuplicateRequest, 25, 50),
    (EndKind::Unknown, 25, 50),
    (EndKind::Mismatch, 25, 50),
    (EndKind::Congested, 500, 1000),
    (EndKind::Overrun, 500, 1000),
    (EndKind::LargeTransaction, 500, 1000),
];

#[test]
fn each_error_that_can_pass_has_its_first_wait_and_then_the_range_comes_back_under_a_new_name() {
    for (kind, least, most) in WAITS {
        let mut rig = Rig::live();
        rig.ended(1, reason(kind));
        assert_eq!(
            rig.step(),
            [format!("ended 1 {kind:?}")],
            "and nothing at once"
        );
        let wait = wait_for_load(&mut rig).as_millis() as u64;
        assert!(
            (least..=most + 1).contains(&wait),
            "{kind:?} waited {wait} ms"
        );
        rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
        assert_eq!(
            rig.step(),
            ["sub 2 region 4 from 100", "started 2"],
            "{kind:?}"
        );
    }
}

/// What the table of error events asks for, of each kind that there is.
fn reaction(kind: EndKind) -> (&'static str, bool) {
    use EndKind::*;
    match kind {
        NotLeader | EpochNotMatch | RegionNotFound => ("asks PD", false),
        // A new name, and so a new request id, is all that these need.
        DuplicateRequest | Mismatch | Unknown | Stream | PhantomLock => ("asks PD", false),
        ServerIsBusy => ("asks PD", true),
        Congested | Overrun | LargeTransaction => ("asks PD after half a second or more", true),
        Incompatible | ClusterIdMismatch => ("ends the tracker", false),
    }
}

#[test]
fn every_kind_of_error_has_the_reaction_of_the_table() {
    for kind in EndKind::ALL {
        let mut rig = Rig::live();
        rig.ended(1, reason(kind));
        let steps = rig.step();
        let does = if steps.contains(&"failed".to_owned()) {
            "ends the tracker"
        } else if wait_for_load(&mut rig) < Duration::from_millis(200) {
            "asks PD"
        } else {
            "asks PD after half a second or more"
        };
        assert_eq!((does, rig.core.window < 8), reaction(kind), "{kind:?}");
    }
}

#[test]
fn a_live_region_that_moves_to_and_fro_does_not_wait_longer_each_time() {
    let mut rig = Rig::live();
    for sub in 1..20 {
        rig.ended(sub, reason(EndKind::NotLeader));
        rig.step();
        let wait = wait_for_load(&mut rig);
        assert!(wait <= Duration::from_millis(51), "{sub}: {wait:?}");
        rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
        rig.step();
        rig.initialized(sub + 1);
        rig.step();
        rig.safe_point(50);
        rig.step();
        rig.wait(400);
    }
}

#[test]
fn what_pd_says_while_a_range_waits_does_not_shorten_the_wait() {
    for (kind, least, _) in WAITS {
        let mut rig = Rig::live();
        rig.ended(1, reason(kind));
        rig.step();
        rig.wait(least - 1);
        rig.core.load_at(EncodedRange::ALL, rig.now);
        assert_eq!(rig.step(), ["load all"]);
        rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
        assert!(rig.step().is_empty(), "{kind:?} came back too early");
    }
}

#[test]
fn a_store_that_names_a_wait_is_left_alone_for_it() {
    let mut rig = Rig::live();
    let busy = EndReason {
        retry_after: Some(Duration::from_secs(7)),
        ..reason(EndKind::ServerIsBusy)
    };
    rig.ended(1, busy);
    rig.step();
    assert!(wait_for_load(&mut rig) >= Duration::from_secs(7));
}

#[test]
fn only_what_means_too_much_load_narrows_the_window() {
    let narrows = [
        EndKind::ServerIsBusy,
        EndKind::Congested,
        EndKind::Overrun,
        EndKind::LargeTransaction,
    ];
    for kind in EndKind::ALL {
        let mut rig = Rig::live();
        rig.ended(1, reason(kind));
        if reason(kind).class() == Class::Permanent {
            continue;
        }
        let expected = if narrows.contains(&kind) { 4 } else { 8 };
        assert_eq!(rig.core.window, expected, "{kind:?}");
    }
}

#[test]
fn the_window_never_closes_and_each_scan_that_succeeds_widens_it_by_one_up_to_its_size() {
    let mut rig = Rig::new(4);
    rig.step();
    for round in 0..8u64 {
        rig.core.load_at(EncodedRange::ALL, rig.now);
        rig.step();
        rig.loaded(vec![led_by(OWN, region(4, 5 + round, "", ""))]);
        rig.step();
        rig.ended(round + 1, reason(EndKind::Congested));
        rig.step();
        rig.wait(120_000);
        rig.step();
    }
    assert_eq!(rig.core.window, 1);
    let mut seen = Vec::new();
    for sub in 9..15 {
        rig.core.load_at(EncodedRange::ALL, rig.now);
        rig.step();
        rig.loaded(vec![led_by(OWN, region(4, sub + 100, "", ""))]);
        rig.step();
        rig.initialized(sub);
        seen.push(rig.core.window);
    }
    assert_eq!(seen, [2, 3, 4, 4, 4, 4]);
}

#[test]
fn what_no_retry_can_mend_ends_everything_once_and_nothing_starts_again() {
    for kind in [EndKind::ClusterIdMismatch, EndKind::Incompatible] {
        let mut rig = Rig::new(8);
        rig.step();
        rig.loaded(vec![
            led_by(OWN, region(4, 5, "", "m")),
            led_by(OWN, region(6, 5, "m", "")),
        ]);
        rig.step();
        rig.core.load_at(EncodedRange::ALL, rig.now);
        rig.step();
        rig.ended(1, reason(kind));
        let steps = rig.step();
        assert_eq!(
            steps[..2],
            ["unsub 2".to_owned(), format!("ended 1 {kind:?}")],
            "the other subscription is taken back at the store"
        );
        assert_eq!(steps.len(), 4, "{steps:?}");
        assert_eq!(steps[3], "failed");
        rig.loaded(vec![led_by(OWN, region(4, 9, "", ""))]);
        rig.wait(60_000);
        assert!(rig.step().is_empty(), "{kind:?}");
    }
}

#[test]
fn a_stream_of_a_store_without_the_service_is_final_and_a_broken_one_is_not() {
    let gone = |kind| CdcEvent::Disconnected {
        subs: vec![SubId(1)],
        reason: reason(kind),
    };
    let mut rig = Rig::live();
    rig.cdc(gone(EndKind::Incompatible));
    assert_eq!(rig.step(), ["ended 1 Incompatible", "failed"]);
    let mut rig = Rig::live();
    rig.cdc(gone(EndKind::Stream));
    assert_eq!(rig.step(), ["ended 1 Stream"]);
    assert!(wait_for_load(&mut rig) <= Duration::from_millis(200));
}

#[test]
fn events_of_a_subscription_that_is_over_or_never_was_are_dropped_in_silence() {
    let mut rig = Rig::live();
    rig.ended(1, reason(EndKind::NotLeader));
    rig.step();
    for sub in [1, 99] {
        rig.ended(sub, reason(EndKind::RegionNotFound));
        rig.initialized(sub);
        rig.resolved(&[sub]);
        rig.cdc(CdcEvent::Records {
            sub: SubId(sub),
            records: pitr_format::RecordBatch::default(),
        });
        assert!(rig.step().is_empty(), "{sub}");
    }
    let stats = rig.core.stats();
    assert_eq!((stats.scanning, stats.live, stats.verifying), (0, 0, 0));
    assert_eq!(stats.ended.iter().sum::<u64>(), 1, "counted once");
}

#[test]
fn a_hint_is_taken_only_for_a_region_that_has_a_peer_here_and_belongs_to_the_task() {
    let wanted = EncodedRange::new(key("c"), key("m"));
    let mut rig = rig_with(vec![wanted], at(100));
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    rig.step();
    let mut elsewhere = region(7, 6, "f", "k");
    elsewhere.peers[0].store_id = 9;
    rig.ended(
        1,
        epoch(vec![
            region(12, 6, "", "c"),
            region(4, 6, "c", "f"),
            elsewhere,
            region(13, 6, "m", ""),
        ]),
    );
    assert_eq!(
        rig.step(),
        [
            "sub 2 region 4 from 100",
            "ended 1 EpochNotMatch",
            "started 2"
        ]
    );
}

#[test]
fn a_range_whose_hints_keep_failing_waits_for_pd_instead_of_looping_at_the_streams_pace() {
    let mut rig = Rig::live();
    let mut sub = 1;
    for version in 6..9 {
        rig.ended(sub, epoch(vec![region(4, version, "", "")]));
        sub += 1;
        let started = format!("started {sub}");
        assert!(rig.step().contains(&started), "version {version}");
    }
    rig.ended(sub, epoch(vec![region(4, 9, "", "")]));
    let steps = rig.step();
    assert!(
        !steps.iter().any(|step| step.starts_with("sub")),
        "{steps:?}"
    );
}

#[test]
fn an_epoch_error_without_regions_as_merges_give_it_asks_pd_before_anything_starts() {
    let mut rig = Rig::live();
    rig.ended(1, epoch(Vec::new()));
    assert_eq!(rig.step(), ["ended 1 EpochNotMatch"]);
    wait_for_load(&mut rig);
    rig.loaded(vec![led_by(2, region(4, 7, "", ""))]);
    assert!(rig.step().is_empty(), "merged away to another store");
}

#[test]
fn a_merged_region_begins_where_the_slower_of_its_parts_was() {
    let slow = key("m");
    let frontier: FrontierFn = Arc::new(move |range| {
        // Durable up to 300 below `m`, up to 200 from there on.
        let slower = range.end.is_empty() || range.end > slow;
        Ts::new(if slower { 200 } else { 300 })
    });
    let mut rig = rig_with(vec![EncodedRange::ALL], frontier);
    rig.step();
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(OWN, region(6, 5, "m", "")),
    ]);
    assert_eq!(
        rig.step(),
        [
            "sub 1 region 4 from 300",
            "sub 2 region 6 from 200",
            "started 1",
            "started 2"
        ]
    );
    rig.wait(10_000);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(6, 7, "", ""))]);
    let steps = rig.step();
    assert_eq!(steps[2], "sub 3 region 6 from 200", "{steps:?}");
    let mut over: Vec<_> = steps[..2].to_vec();
    over.sort();
    assert_eq!(over, ["unsub 1", "unsub 2"], "both parts end");
}

#[test]
fn parts_of_a_region_that_no_task_wants_do_not_hold_its_scan_back() {
    let low = key("c");
    let frontier: FrontierFn = Arc::new(move |range| {
        let unwanted = range.start < low;
        Ts::new(if unwanted { 1 } else { 500 })
    });
    let wanted = vec![
        EncodedRange::new(key("c"), key("e")),
        EncodedRange::new(key("x"), Bytes::new()),
    ];
    let mut rig = rig_with(wanted, frontier);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", "m"))]);
    assert_eq!(rig.step(), ["sub 1 region 4 from 500", "started 1"]);
}

#[test]
fn a_stale_answer_of_pd_never_replaces_what_a_newer_epoch_gave() {
    let mut rig = Rig::live();
    rig.ended(
        1,
        epoch(vec![region(12, 6, "", "m"), region(4, 6, "m", "")]),
    );
    rig.step();
    for stale in [
        region(4, 5, "", ""),
        region(12, 6, "", "m"),
        region(3, 4, "g", "p"),
    ] {
        rig.core.load_at(EncodedRange::ALL, rig.now);
        assert_eq!(rig.step(), ["load all"]);
        rig.loaded(vec![led_by(OWN, stale)]);
        assert!(rig.step().is_empty());
    }
}

#[test]
fn of_two_epochs_that_wait_for_the_window_only_the_newer_one_starts() {
    let mut rig = Rig::new(1);
    rig.step();
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(OWN, region(6, 5, "m", "")),
    ]);
    assert_eq!(rig.step(), ["sub 1 region 4 from 100", "started 1"]);
    for (id, version) in [(6, 7), (6, 6), (8, 7)] {
        rig.core.load_at(EncodedRange::ALL, rig.now);
        rig.step();
        rig.loaded(vec![led_by(OWN, region(id, version, "p", ""))]);
        rig.step();
    }
    assert_eq!(rig.core.stats().waiting, 1);
    rig.initialized(1);
    let steps = rig.step();
    assert!(steps[0].starts_with("sub 2 region 6"), "{steps:?}");
}

#[test]
fn many_ranges_of_a_task_are_audited_as_one_hull_and_few_one_by_one() {
    let letters: Vec<String> = ('a'..='s').map(String::from).collect();
    let ranges = |count: usize| -> Vec<EncodedRange> {
        let pairs = letters.chunks(2).take(count);
        pairs
            .map(|pair| EncodedRange::new(key(&pair[0]), key(&pair[1])))
            .collect()
    };
    let loads = |wanted: Vec<EncodedRange>| -> Vec<EncodedRange> {
        let mut rig = rig_with(wanted, at(1));
        let mut found = Vec::new();
        rig.core.tick(rig.now);
        while let Some(Action::Load(range)) = rig.core.actions.pop_front() {
            found.push(range.clone());
            let nothing = Loaded {
                regions: Vec::new(),
                rest: None,
                safe_point: Ts::ZERO,
            };
            rig.core.on_loaded(range, Ok(nothing), rig.now);
            rig.core.tick(rig.now);
        }
        found.sort_by(|a, b| a.start.cmp(&b.start));
        found
    };
    assert_eq!(loads(ranges(8)), ranges(8));
    let hull = EncodedRange::new(key("a"), key("r"));
    assert_eq!(loads(ranges(9)), [hull]);
}

#[test]
fn failures_of_any_number_of_ranges_wait_in_bounded_memory_and_none_is_forgotten() {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(Vec::new());
    rig.step();
    let name = |n: usize| format!("k{n:05}");
    for n in 0..2_000 {
        let range = EncodedRange::new(key(&name(n)), key(&name(n + 1)));
        rig.core
            .load_at(range, rig.now + Duration::from_millis(500));
        assert!(rig.core.pending.len() <= PENDING);
    }
    // What was dropped from the list is covered by an audit of everything.
    rig.wait(500);
    let mut asked = rig.step();
    while !asked.iter().any(|step| step == "load all") {
        assert!(!asked.is_empty(), "ranges were forgotten");
        for _ in 0..asked.len() {
            rig.loaded(Vec::new());
        }
        asked = rig.step();
    }
}

#[test]
fn pd_that_fails_is_asked_again_each_second_and_never_more_than_four_times_at_once() {
    let mut rig = Rig::new(8);
    rig.step();
    let failed = || LoadFailed {
        permanent: false,
        text: "no leader".to_owned(),
    };
    for _ in 0..5 {
        rig.core
            .on_loaded(EncodedRange::ALL, Err(failed()), rig.now);
        assert!(rig.step().is_empty());
        rig.wait(999);
        assert!(rig.step().is_empty());
        rig.wait(1);
        assert_eq!(rig.step(), ["load all"]);
    }
    for n in 0..20 {
        let range = EncodedRange::new(key(&format!("a{n:02}")), key(&format!("a{:02}", n + 1)));
        rig.core.load_at(range, rig.now);
    }
    assert_eq!(rig.step().len(), 3, "one is running");
    let failed = LoadFailed {
        permanent: true,
        text: "the cluster id differs".to_owned(),
    };
    rig.core.on_loaded(EncodedRange::ALL, Err(failed), rig.now);
    assert_eq!(rig.step(), ["failed"]);
}

#[test]
fn a_command_that_the_stream_refuses_counts_as_a_failure_of_the_range() {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    rig.step();
    rig.core.on_refused(SubId(1), "busy".to_owned(), rig.now);
    assert_eq!(rig.step(), ["ended 1 Stream"]);
    assert!(wait_for_load(&mut rig) >= Duration::from_millis(25));
}

#[test]
fn the_core_sleeps_no_longer_than_until_the_next_thing_is_due() {
    let mut rig = Rig::live();
    rig.step();
    rig.ended(1, reason(EndKind::NotLeader));
    rig.step();
    let due = rig.core.next_wake();
    assert!(due > rig.now && due <= rig.now + Duration::from_millis(50));
    rig.now = due;
    assert_eq!(rig.step(), ["load all"]);
    rig.loaded(Vec::new());
    let audit = rig.core.next_wake();
    assert!(audit <= rig.now + Duration::from_secs(10), "then the audit");
}
