//! What the heartbeats have to tell, noted under the store's write lock: bytes and keys written per
//! region, and splits. Bounded: one entry per region, and [`MAX_SPLITS`] splits, above which they
//! are dropped, since the heartbeats of the regions say the same.

use std::collections::BTreeMap;

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
    changed: Vec<Region>,
    splits: Vec<Vec<Region>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Report {
    notes: Mutex<Notes>,
    pub(super) region_changed: Notify,
    pub(super) split_happened: Notify,
}

impl Report {
    /// Takes what was written to a region.
    pub(super) fn take_written(&self, region_id: u64) -> Written {
        let mut notes = self.notes.lock();
        notes.by_region.remove(&region_id).unwrap_or_default()
    }

    /// Takes what was written to the store.
    pub(super) fn take_store(&self) -> Written {
        std::mem::take(&mut self.notes.lock().of_store)
    }

    /// Takes the regions that changed.
    pub(super) fn take_changed(&self) -> Vec<Region> {
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
        let RegionChange::Split { new, .. } = change else {
            return;
        };
        let mut notes = self.notes.lock();
        if notes.splits.len() < MAX_SPLITS {
            notes.splits.push(new.clone());
            notes.changed.extend_from_slice(new);
        }
        drop(notes);
        self.region_changed.notify_one();
        self.split_happened.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_restore_worker::engine::EngineCf;

    use super::*;

    fn split(id: u64) -> RegionChange {
        let region = |id| Region {
            id,
            ..Default::default()
        };
        RegionChange::Split {
            old: region(id),
            new: vec![region(id + 1), region(id)],
        }
    }

    #[test]
    fn what_was_written_is_told_once_per_region_and_once_for_the_store() {
        let report = Report::default();
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
        let report = Report::default();
        for id in 0..MAX_SPLITS as u64 + 10 {
            report.on_region_change(&split(id * 2));
        }
        assert_eq!(report.take_changed().len(), 2 * MAX_SPLITS);
        let splits = report.take_splits();
        assert_eq!(splits.len(), MAX_SPLITS);
        assert_eq!(splits[3].iter().map(|r| r.id).collect::<Vec<_>>(), [7, 6]);
        report.on_region_change(&split(4));
        assert_eq!(
            (report.take_changed().len(), report.take_splits().len()),
            (2, 1)
        );
    }
}
