//! What the heartbeats of one store have to tell, noted under the write lock: bytes and keys written per
//! region, regions that changed or that the store leads now, and splits. Bounded: one entry per region,
//! and [`MAX_SPLITS`] splits, above which they are dropped, since the heartbeats of the regions say the
//! same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pitr_proto::metapb::Region;
use tokio::sync::Notify;

use crate::store::change::{ApplyObserver, Modify, RegionChange};

const MAX_SPLITS: usize = 1024;

/// Written since the last heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) keys: u64,
}

impl Written {
    pub(super) fn add(&mut self, more: Written) {
        self.bytes += more.bytes;
        self.keys += more.keys;
    }
}

#[derive(Default)]
struct Notes {
    by_region: BTreeMap<u64, Written>,
    of_store: Written,
    changed: BTreeSet<u64>,
    splits: Vec<Vec<Region>>,
}

/// The term that heartbeats carry. PD forgets a region's leader only for one of a larger term, so it rises
/// with each change of a leader; it begins with PD's clock in milliseconds, which no change of the
/// process before has reached. One for all regions and stores.
pub(super) struct Term(AtomicU64);

impl Term {
    pub(super) fn from(physical_ms: u64) -> Arc<Self> {
        Arc::new(Term(AtomicU64::new(physical_ms)))
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// See the module.
pub(crate) struct Report {
    store_id: u64,
    pub(super) term: Arc<Term>,
    notes: Mutex<Notes>,
    pub(super) region_changed: Notify,
    pub(super) split_happened: Notify,
}

impl Report {
    pub(super) fn new(store_id: u64, term: Arc<Term>) -> Arc<Self> {
        Arc::new(Report {
            store_id,
            term,
            notes: Mutex::default(),
            region_changed: Notify::new(),
            split_happened: Notify::new(),
        })
    }

    /// Takes what was written to a region.
    pub(super) fn take_written(&self, region_id: u64) -> Written {
        let mut notes = self.notes.lock();
        notes.by_region.remove(&region_id).unwrap_or_default()
    }

    /// Takes what was written to the store.
    pub(super) fn take_store(&self) -> Written {
        std::mem::take(&mut self.notes.lock().of_store)
    }

    /// Takes the ids of the regions that changed.
    pub(super) fn take_changed(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.notes.lock().changed)
    }

    /// Takes the splits.
    pub(super) fn take_splits(&self) -> Vec<Vec<Region>> {
        std::mem::take(&mut self.notes.lock().splits)
    }
}

impl ApplyObserver for Report {
    fn on_apply(&self, region_id: u64, mods: &[Modify], _: bool) {
        let mut written = Written::default();
        for modify in mods {
            let bytes = match modify {
                Modify::Put { key, value, .. } => key.len() + value.len(),
                Modify::Delete { key, .. } => key.len(),
            };
            written.add(Written {
                bytes: bytes as u64,
                keys: 1,
            });
        }
        let mut notes = self.notes.lock();
        notes.of_store.add(written);
        notes.by_region.entry(region_id).or_default().add(written);
    }

    fn on_region_change(&self, change: &RegionChange) {
        let mut notes = self.notes.lock();
        match change {
            RegionChange::Split { new, .. } => {
                notes.changed.extend(new.iter().map(|part| part.id));
                if notes.splits.len() < MAX_SPLITS {
                    notes.splits.push(new.clone());
                }
                self.split_happened.notify_one();
            }
            // A source in the middle of a merge waits for its next turn, as TiKV's does: PD calls off a
            // merge whose source shows another epoch.
            RegionChange::Merging { .. } => return,
            RegionChange::Merged { source, target } => {
                notes.by_region.remove(&source.id);
                notes.changed.remove(&source.id);
                notes.changed.insert(target.id);
            }
            RegionChange::Leader { region, leader } => {
                self.term.0.fetch_add(1, Ordering::AcqRel);
                if leader.is_none_or(|leader| leader.store_id != self.store_id) {
                    return;
                }
                notes.changed.insert(region.id);
            }
        }
        drop(notes);
        self.region_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_restore_worker::engine::EngineCf;

    use super::*;

    fn region(id: u64) -> Region {
        Region {
            id,
            ..Default::default()
        }
    }

    fn report() -> Arc<Report> {
        Report::new(4, Term::from(100))
    }

    fn split(id: u64) -> RegionChange {
        RegionChange::Split {
            old: region(id),
            new: vec![region(id + 1), region(id)],
        }
    }

    #[test]
    fn what_was_written_is_told_once_per_region_and_once_for_the_store() {
        let report = report();
        let put = Modify::Put {
            cf: EngineCf::Write,
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
        };
        let delete = Modify::Delete {
            cf: EngineCf::Lock,
            key: Bytes::from_static(b"key"),
        };
        report.on_apply(7, &[put.clone(), delete], false);
        report.on_apply(8, &[put], true);
        let written = |bytes, keys| Written { bytes, keys };
        assert_eq!(report.take_written(7), written(11, 2));
        assert_eq!(report.take_written(7), written(0, 0));
        assert_eq!(report.take_written(8), written(8, 1));
        assert_eq!(report.take_store(), written(19, 3));
        assert_eq!(report.take_store(), written(0, 0));
    }

    #[test]
    fn splits_that_nobody_takes_do_not_pile_up() {
        let report = report();
        for id in 0..MAX_SPLITS as u64 + 10 {
            report.on_region_change(&split(id * 2));
        }
        assert_eq!(report.take_changed().len(), 2 * (MAX_SPLITS + 10));
        let splits = report.take_splits();
        assert_eq!(splits.len(), MAX_SPLITS);
        assert_eq!(splits[3].iter().map(|r| r.id).collect::<Vec<_>>(), [7, 6]);
        report.on_region_change(&split(4));
        assert_eq!(
            (report.take_changed().len(), report.take_splits().len()),
            (2, 1)
        );
    }
    #[test]
    fn a_store_tells_of_the_regions_that_it_leads_now_and_of_the_target_of_a_merge() {
        let report = report();
        let lead = |id, store_id| RegionChange::Leader {
            region: region(id),
            leader: Some(pitr_proto::metapb::Peer {
                store_id,
                ..Default::default()
            }),
        };
        report.on_region_change(&lead(1, 4));
        report.on_region_change(&lead(2, 1));
        report.on_region_change(&RegionChange::Leader {
            region: region(3),
            leader: None,
        });
        report.on_region_change(&RegionChange::Merging { region: region(5) });
        assert_eq!(
            report.term.get(),
            103,
            "each change of a leader is a new term"
        );
        assert_eq!(report.take_changed(), [1].into());
        report.on_region_change(&lead(5, 4));
        report.on_region_change(&RegionChange::Merged {
            source: region(5),
            target: region(6),
        });
        assert_eq!(report.take_changed(), [6].into());
    }
}
