//! Epochs of merges by table, against a model of what PD keeps, and the two steps of a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::EncodedKey;
use pitr_proto::metapb::{Peer, Region, RegionEpoch};
use proptest::prelude::*;

use super::change::{ApplyObserver, Modify, RegionChange};
use super::fixture::{Fixture, open_store};
use super::merge::{MergeError, absorbed, prepared, rolled_back};
use super::region::{RegionIds, RegionMap, cut};

fn region(id: u64, keys: (&'static str, &'static str), epoch: (u64, u64)) -> Region {
    Region {
        id,
        start_key: keys.0.into(),
        end_key: keys.1.into(),
        region_epoch: Some(RegionEpoch {
            conf_ver: epoch.0,
            version: epoch.1,
        }),
        ..Default::default()
    }
}

fn epoch(region: &Region) -> (u64, u64) {
    let epoch = region.region_epoch.unwrap();
    (epoch.conf_ver, epoch.version)
}

#[test]
fn a_merge_raises_the_epochs_as_tikv_does() {
    for (source, target, at_prepare, at_rollback, at_commit) in [
        ((1, 1), (1, 1), (2, 2), (2, 3), (1, 3)),
        ((3, 5), (3, 9), (4, 6), (4, 7), (3, 10)),
        ((3, 9), (3, 2), (4, 10), (4, 11), (3, 11)),
        ((3, 8), (3, 9), (4, 9), (4, 10), (3, 10)),
    ] {
        let source = prepared(&region(1, ("a", "c"), source));
        assert_eq!(epoch(&source), at_prepare);
        assert_eq!(epoch(&rolled_back(&source)), at_rollback);
        let merged = absorbed(&region(2, ("c", "d"), target), &source).unwrap();
        assert_eq!((merged.id, epoch(&merged)), (2, at_commit));
    }
}

#[test]
fn only_neighbours_merge_and_the_two_ends_of_the_key_space_are_none() {
    let bounds = |target: (&'static str, &'static str), source: (&'static str, &'static str)| {
        let merged = absorbed(&region(2, target, (1, 1)), &region(1, source, (1, 1)));
        merged.map(|m| (m.start_key, m.end_key))
    };
    let keys = |start: &'static str, end: &'static str| Some((start.into(), end.into()));
    assert_eq!(bounds(("b", "d"), ("d", "f")), keys("b", "f"));
    assert_eq!(bounds(("b", "d"), ("a", "b")), keys("a", "d"));
    assert_eq!(bounds(("b", "d"), ("d", "")), keys("b", ""));
    assert_eq!(bounds(("b", ""), ("", "b")), keys("", ""));
    assert_eq!(bounds(("b", "d"), ("e", "f")), None);
    assert_eq!(bounds(("b", "d"), ("b", "d")), None);
    assert_eq!(bounds(("m", ""), ("", "a")), None);
    assert_eq!(bounds(("", "a"), ("m", "")), None);
}

/// What PD keeps: a heartbeat of a region replaces what overlaps it, unless any of that is newer.
#[derive(Default)]
struct Pd(BTreeMap<u64, Region>);

impl Pd {
    fn hear(&mut self, region: &Region) {
        let overlaps = |r: &&Region| {
            (r.end_key.is_empty() || region.start_key < r.end_key)
                && (region.end_key.is_empty() || r.start_key < region.end_key)
        };
        let newer = |r: &Region| epoch(r).1 > epoch(region).1;
        let same = self.0.get(&region.id);
        if self.0.values().filter(overlaps).any(newer) || same.is_some_and(newer) {
            return;
        }
        self.0.retain(|_, r| !overlaps(&&*r));
        self.0.insert(region.id, region.clone());
    }
}

/// One change of the regions.
#[derive(Clone, Debug)]
enum Step {
    Split(Vec<u8>),
    /// Of the region at a key into the one behind it, or before it.
    Merge(u8, bool),
    /// Begun and given up.
    GiveUp(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 1..4).prop_map(Step::Split),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(key, right)| Step::Merge(key, right)),
        1 => any::<u8>().prop_map(Step::GiveUp),
    ]
}

/// Regions and every shape that they ever had.
struct History {
    map: RegionMap,
    shapes: Vec<Region>,
    next_id: u64,
}

impl History {
    fn new() -> Self {
        let first = Region {
            peers: vec![Peer::default()],
            ..region(2, ("", ""), (1, 1))
        };
        History {
            map: RegionMap::new([first.clone()]).unwrap(),
            shapes: vec![first],
            next_id: 100,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Split(keys) => self.split(keys),
            Step::GiveUp(key) => {
                let source = prepared(self.map.find(&[key]).unwrap());
                let back = rolled_back(&source);
                self.map = self.map.with_epoch(&source).with_epoch(&back);
                self.shapes.extend([source, back]);
            }
            Step::Merge(key, right) => {
                let source = self.map.find(&[key]).unwrap().clone();
                let target = match right {
                    true => self.map.find(&source.end_key),
                    false => self.map.before(&source),
                };
                let Some(target) = target.filter(|t| t.id != source.id).cloned() else {
                    return;
                };
                let source = prepared(&source);
                self.shapes.push(source.clone());
                // Behind the last region the search begins at the first one.
                let Some(merged) = absorbed(&target, &source) else {
                    self.map = self.map.with_epoch(&source);
                    return;
                };
                self.map = self.map.with_epoch(&source).with_merged(&source, &merged);
                self.shapes.push(merged);
            }
        }
    }

    /// At those of the keys that lie in the region of the first one.
    fn split(&mut self, keys: Vec<u8>) {
        let old = self.map.find(&keys[..1]).unwrap().clone();
        let mut keys: Vec<Bytes> = keys.into_iter().map(|k| vec![k].into()).collect();
        keys.retain(|k| self.map.find(k).is_some_and(|r| r.id == old.id) && *k != old.start_key);
        keys.sort();
        keys.dedup();
        let ids: Vec<RegionIds> = keys
            .iter()
            .map(|_| {
                self.next_id += 2;
                RegionIds {
                    region: self.next_id,
                    peers: vec![self.next_id + 1],
                }
            })
            .collect();
        if !keys.is_empty() {
            let parts = cut(&old, &keys, &ids);
            self.map = self.map.with_split(&parts);
            self.shapes.extend(parts);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn regions_stay_a_partition_and_pd_ends_with_them_in_whatever_order_it_hears_of_their_shapes(
        steps in prop::collection::vec(step(), 1..40),
        order in prop::collection::vec(any::<u16>(), 200),
    ) {
        let mut history = History::new();
        for step in steps {
            history.run(step);
            let all: Vec<Region> = history.map.iter().map(|r| Region::clone(r)).collect();
            for region in &all {
                prop_assert_eq!(&**history.map.get(region.id).unwrap(), region);
            }
            prop_assert!(RegionMap::new(all).is_ok());
        }
        let mut heard: Vec<_> = history.shapes.iter().zip(order.iter().cycle()).collect();
        heard.sort_by_key(|(_, place)| **place);
        let mut pd = Pd::default();
        for (region, _) in heard {
            pd.hear(region);
        }
        let mut kept: Vec<Region> = pd.0.into_values().collect();
        kept.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        let wanted: Vec<Region> = history.map.iter().map(|r| Region::clone(r)).collect();
        prop_assert_eq!(kept, wanted);
    }
}

/// Notes the changes of regions: id and version, and the id of a source that went.
#[derive(Default)]
struct Seen(Mutex<Vec<(u64, u64, Option<u64>)>>);

impl ApplyObserver for Seen {
    fn on_apply(&self, _: u64, _: &[Modify], _: bool) {}
    fn on_region_change(&self, change: &RegionChange) {
        let seen = match change {
            RegionChange::Merging { region } => (region.id, epoch(region).1, None),
            RegionChange::Merged { source, target } => {
                (target.id, epoch(target).1, Some(source.id))
            }
            _ => return,
        };
        self.0.lock().push(seen);
    }
}

fn ids(fixture: &Fixture) -> Vec<u64> {
    fixture.store.regions().iter().map(|r| r.id).collect()
}

#[test]
fn the_two_steps_of_a_merge_are_told_in_order_and_survive_a_restart() {
    let fixture = Fixture::new();
    fixture.store.split_at_user_keys(&[b"d", b"m"]).unwrap();
    let seen = Arc::new(Seen::default());
    fixture.store.observe(seen.clone());
    let [first, second, last] = ids(&fixture)[..] else {
        panic!()
    };
    let version = |id: u64| epoch(fixture.store.regions().get(id).unwrap()).1;
    let before = (version(first), version(second));
    let merged = fixture.store.merge(first, second).unwrap();
    let after = (before.0 + 1).max(before.1) + 1;
    assert_eq!(
        *seen.0.lock(),
        [(first, before.0 + 1, None), (second, after, Some(first))]
    );
    assert_eq!((merged.id, epoch(&merged).1), (second, after));
    assert_eq!(ids(&fixture), [second, last]);
    assert!(fixture.store.leads(second).is_ok() && fixture.store.leads(first).is_err());
    // The other way round: a source behind its target.
    fixture.store.merge(last, second).unwrap();
    let all: Vec<Region> = fixture
        .store
        .regions()
        .iter()
        .map(|r| Region::clone(r))
        .collect();
    assert_eq!((all.len(), all[0].end_key.len()), (1, 0));
    let dir = fixture.close();
    let again = open_store(dir.path()).regions();
    assert_eq!(
        again.iter().map(|r| Region::clone(r)).collect::<Vec<_>>(),
        all
    );
}

#[test]
fn a_merge_whose_target_moved_away_meanwhile_is_given_up_and_leaves_the_source() {
    let fixture = Fixture::new();
    fixture.store.split_at_user_keys(&[b"d"]).unwrap();
    let [source, target] = ids(&fixture)[..] else {
        panic!()
    };
    let seen = Arc::new(Seen::default());
    fixture.store.observe(seen.clone());
    let version = fixture.store.prepare_merge(source, target).unwrap();
    // The last part keeps the id: the target begins at m now.
    fixture.store.split_region_at(target, b"m").unwrap();
    let refused = fixture.store.commit_merge(source, version, target);
    assert!(matches!(refused, Err(MergeError::Changed(id)) if id == target));
    assert_eq!(
        *seen.0.lock(),
        [(source, version, None), (source, version + 1, None)]
    );
    assert_eq!(ids(&fixture).len(), 3);
    // A source that changed is nobody's to give up.
    let version = fixture
        .store
        .prepare_merge(source, ids(&fixture)[1])
        .unwrap();
    fixture.store.split_region_at(source, b"b").unwrap();
    let refused = fixture
        .store
        .commit_merge(source, version, ids(&fixture)[2]);
    assert!(matches!(refused, Err(MergeError::Changed(id)) if id == source));
    assert_eq!(ids(&fixture).len(), 4);
}

#[test]
fn what_cannot_be_merged_is_named_and_stays_as_it_is() {
    let fixture = Fixture::new();
    fixture.store.split_at_user_keys(&[b"d", b"m"]).unwrap();
    let before = ids(&fixture);
    let refused = |source, target| fixture.store.merge(source, target).unwrap_err().to_string();
    assert!(refused(before[0], 99).contains("region 99 does not exist"));
    assert!(refused(99, before[0]).contains("region 99 does not exist"));
    assert!(refused(before[0], before[2]).contains("no neighbours"));
    assert!(refused(before[1], before[1]).contains("no neighbours"));
    fixture.store.leave();
    assert!(refused(before[0], before[1]).contains("has no leader"));
    assert_eq!(ids(&fixture), before);
    let context = |key: &[u8]| {
        let key = EncodedKey::encode(key);
        let regions = fixture.store.regions();
        epoch(regions.find(key.as_bytes()).unwrap())
    };
    assert_eq!(context(b"a"), (1, 2), "no epoch was raised in vain");
}
