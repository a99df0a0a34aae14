//! The tracker's core, driven by hand: what it asks for and what it tells.

use bytes::Bytes;
use pitr_format::EncodedKey;

use super::*;

pub(super) const OWN: u64 = 1;

pub(super) fn key(raw: &str) -> Bytes {
    match raw.is_empty() {
        true => Bytes::new(),
        false => EncodedKey::encode(raw.as_bytes()).into_bytes(),
    }
}

pub(super) fn region(id: u64, version: u64, start: &str, end: &str) -> metapb::Region {
    metapb::Region {
        id,
        start_key: key(start),
        end_key: key(end),
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 1,
            version,
        }),
        peers: vec![metapb::Peer {
            id: id + 100,
            store_id: OWN,
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn led_by(store_id: u64, meta: metapb::Region) -> Region {
    let leader = metapb::Peer {
        id: 9,
        store_id,
        ..Default::default()
    };
    Region::new(meta, Some(leader))
}

/// A core with its clock.
pub(super) struct Rig {
    pub core: Core,
    pub now: Instant,
}

impl Rig {
    pub fn new(window: usize) -> Self {
        let frontier: FrontierFn = Arc::new(|_| Ts::new(100));
        let mut options = TrackerOptions::new(OWN, "s", vec![EncodedRange::ALL], frontier);
        options.scan_window = window;
        options.audit_per_region = options.audit_interval;
        let now = Instant::now();
        Rig {
            core: Core::new(&options, now),
            now,
        }
    }

    /// Ticks and shows actions and events, in this order.
    pub fn step(&mut self) -> Vec<String> {
        self.core.tick(self.now);
        let actions = self.core.actions.drain(..).map(|action| match action {
            Action::Load(range) if range == EncodedRange::ALL => "load all".to_owned(),
            Action::Load(_) => "load".to_owned(),
            Action::ReadSafePoint => "read".to_owned(),
            Action::Subscribe(s) => {
                let alone = if s.alone { " alone" } else { "" };
                format!(
                    "sub {} region {} from {}{alone}",
                    s.id.0, s.region.id, s.checkpoint_ts
                )
            }
            Action::Unsubscribe(sub) => format!("unsub {}", sub.0),
            Action::LookAtLocks { sub, resolved, .. } => format!("look {} at {resolved}", sub.0),
        });
        let events = self.core.events.drain(..).map(|event| match event {
            TrackerEvent::Started { sub, .. } => format!("started {}", sub.0),
            TrackerEvent::Records { sub, .. } => format!("rows {}", sub.0),
            TrackerEvent::Resolved { subs, .. } => format!("resolved {subs:?}"),
            TrackerEvent::Ended { sub, reason } => format!("ended {} {:?}", sub.0, reason.kind),
            TrackerEvent::Gap {
                checkpoint_ts,
                safe_point,
                ..
            } => {
                format!("gap {checkpoint_ts} {safe_point}")
            }
            TrackerEvent::Failed { .. } => "failed".to_owned(),
        });
        actions.chain(events).collect()
    }

    pub fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    pub fn loaded(&mut self, regions: Vec<Region>) {
        let loaded = Loaded {
            regions,
            rest: None,
            safe_point: Ts::new(50),
        };
        self.core.on_loaded(EncodedRange::ALL, Ok(loaded), self.now);
    }

    pub fn cdc(&mut self, event: CdcEvent) {
        self.core.on_cdc(event, self.now);
    }

    pub fn initialized(&mut self, sub: u64) {
        self.cdc(CdcEvent::Initialized { sub: SubId(sub) });
    }

    pub fn resolved(&mut self, subs: &[u64]) {
        let subs = subs.iter().map(|s| SubId(*s)).collect();
        self.cdc(CdcEvent::Resolved {
            subs,
            ts: Ts::new(200),
        });
    }

    pub fn ended(&mut self, sub: u64, reason: EndReason) {
        let sub = SubId(sub);
        self.cdc(CdcEvent::Ended { sub, reason });
    }

    pub fn safe_point(&mut self, ts: u64) {
        self.core.on_safe_point(Ok(Ts::new(ts)), self.now);
    }

    /// One region, subscribed as 1, live.
    pub fn live() -> Self {
        let mut rig = Rig::new(8);
        rig.step();
        rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
        rig.step();
        rig.initialized(1);
        rig.step();
        rig.safe_point(50);
        rig
    }
}

pub(super) fn epoch(regions: Vec<metapb::Region>) -> EndReason {
    EndReason {
        regions,
        ..EndReason::new(EndKind::EpochNotMatch, "")
    }
}

#[test]
fn only_the_regions_led_by_the_own_store_are_subscribed_from_their_frontier() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.step(), ["load all"]);
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(2, region(6, 5, "m", "")),
    ]);
    assert_eq!(rig.step(), ["sub 1 region 4 from 100", "started 1"]);
}

#[test]
fn nothing_resolves_before_the_scan_is_complete_and_gc_was_checked_after_it() {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    rig.step();
    rig.resolved(&[1]);
    assert!(rig.step().is_empty());
    rig.initialized(1);
    rig.resolved(&[1]);
    assert_eq!(rig.step(), ["read"]);
    rig.safe_point(100);
    rig.resolved(&[1, 77]);
    assert_eq!(rig.step(), ["resolved [SubId(1)]"]);
}

#[test]
fn a_scan_that_ends_while_the_safe_point_is_being_read_waits_for_the_next_read() {
    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![
        led_by(OWN, region(4, 5, "", "m")),
        led_by(OWN, region(6, 5, "m", "")),
    ]);
    rig.step();
    rig.initialized(1);
    assert_eq!(rig.step(), ["read"]);
    rig.initialized(2);
    assert!(rig.step().is_empty());
    rig.safe_point(50);
    rig.resolved(&[1, 2]);
    assert_eq!(rig.step(), ["read", "resolved [SubId(1)]"]);
    let failed = LoadFailed {
        permanent: false,
        text: String::new(),
    };
    rig.core.on_safe_point(Err(failed), rig.now);
    assert!(rig.step().is_empty());
    rig.wait(1000);
    assert_eq!(rig.step(), ["read"]);
    rig.safe_point(50);
    rig.resolved(&[2]);
    assert_eq!(rig.step(), ["resolved [SubId(2)]"]);
}

#[test]
fn gc_behind_the_checkpoint_is_a_gap_before_the_register_and_after_the_scan() {
    let mut rig = Rig::new(8);
    rig.step();
    let answer = Loaded {
        regions: vec![led_by(OWN, region(4, 5, "", ""))],
        rest: None,
        safe_point: Ts::new(101),
    };
    rig.core.on_loaded(EncodedRange::ALL, Ok(answer), rig.now);
    assert_eq!(rig.step(), ["gap 100 101"]);

    let mut rig = Rig::new(8);
    rig.step();
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    rig.step();
    rig.initialized(1);
    rig.step();
    rig.safe_point(101);
    assert_eq!(rig.step(), ["unsub 1", "ended 1 Unknown", "gap 100 101"]);
    rig.wait(10_000);
    assert_eq!(rig.step(), ["load all"]);
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    assert!(rig.step().is_empty(), "a lost range is not continued");
}

#[test]
fn the_regions_that_a_split_names_are_subscribed_at_once() {
    let mut rig = Rig::live();
    rig.ended(
        1,
        epoch(vec![region(12, 6, "", "m"), region(4, 6, "m", "")]),
    );
    assert_eq!(
        rig.step(),
        [
            "sub 2 region 12 from 100",
            "sub 3 region 4 from 100",
            "ended 1 EpochNotMatch",
            "started 2",
            "started 3",
        ]
    );
    // PD is asked all the same; its older view changes nothing.
    rig.wait(60);
    assert_eq!(rig.step(), ["load all"]);
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    assert!(rig.step().is_empty());
}

#[test]
fn a_newer_epoch_in_pd_replaces_what_is_tracked_in_its_range() {
    let mut rig = Rig::live();
    rig.wait(10_000);
    assert_eq!(rig.step(), ["load all", "look 1 at 100"]);
    rig.loaded(vec![
        led_by(OWN, region(12, 6, "", "m")),
        led_by(2, region(4, 6, "m", "")),
    ]);
    assert_eq!(
        rig.step(),
        [
            "unsub 1",
            "sub 2 region 12 from 100",
            "ended 1 EpochNotMatch",
            "started 2"
        ]
    );
}

#[test]
fn a_range_that_fails_again_and_again_waits_longer_each_time() {
    let mut rig = Rig::live();
    let mut waits = Vec::new();
    for sub in 1..8 {
        rig.ended(sub, EndReason::new(EndKind::RegionNotFound, ""));
        rig.step();
        let from = rig.now;
        loop {
            rig.wait(5);
            if rig.step().iter().any(|s| s.starts_with("load")) {
                break;
            }
        }
        waits.push(rig.now - from);
        rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
        assert!(rig.step()[0].starts_with("sub"));
    }
    assert!(waits[0] <= Duration::from_millis(60), "{waits:?}");
    assert!(waits[6] >= Duration::from_millis(900), "{waits:?}");
}

#[test]
fn the_window_bounds_the_scans_and_a_busy_store_halves_it() {
    let mut rig = Rig::new(2);
    rig.step();
    let regions = [("", "c"), ("c", "f"), ("f", "k"), ("k", "")];
    let region_of = |(i, (start, end)): (usize, &(&str, &str))| {
        led_by(OWN, region(i as u64 + 10, 5, start, end))
    };
    rig.loaded(regions.iter().enumerate().map(region_of).collect());
    assert_eq!(rig.step().len(), 4, "two subscribed, two started");
    assert_eq!(rig.core.stats().waiting, 2);
    rig.ended(1, EndReason::new(EndKind::ServerIsBusy, ""));
    assert_eq!(
        rig.step(),
        ["ended 1 ServerIsBusy"],
        "the window is one now"
    );
    rig.initialized(2);
    assert_eq!(
        rig.step().iter().filter(|s| s.starts_with("sub")).count(),
        2
    );
}

#[test]
fn a_broken_stream_ends_all_and_everything_is_loaded_again() {
    let mut rig = Rig::live();
    rig.cdc(CdcEvent::Disconnected {
        subs: vec![SubId(1)],
        reason: EndReason::new(EndKind::Stream, ""),
    });
    assert_eq!(rig.step(), ["ended 1 Stream"]);
    rig.wait(200);
    assert_eq!(rig.step(), ["load all"]);
    rig.loaded(vec![led_by(OWN, region(4, 5, "", ""))]);
    assert_eq!(rig.step(), ["sub 2 region 4 from 100", "started 2"]);
}

#[test]
fn the_wrong_cluster_is_final() {
    let mut rig = Rig::live();
    rig.ended(1, EndReason::new(EndKind::ClusterIdMismatch, ""));
    assert_eq!(rig.step(), ["ended 1 ClusterIdMismatch", "failed"]);
    rig.wait(60_000);
    assert!(rig.step().is_empty());
}

#[test]
fn a_region_without_a_leader_and_a_hole_are_asked_for_again_without_haste() {
    let mut rig = Rig::new(8);
    rig.step();
    let answer = Loaded {
        regions: vec![Region::new(region(4, 5, "", "m"), None)],
        rest: Some(EncodedRange::new(key("m"), Bytes::new())),
        safe_point: Ts::ZERO,
    };
    rig.core.on_loaded(EncodedRange::ALL, Ok(answer), rig.now);
    assert!(rig.step().is_empty());
    rig.wait(1000);
    assert_eq!(rig.step(), ["load", "load"]);
}
