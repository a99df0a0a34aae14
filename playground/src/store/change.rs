//! What the write path tells those who watch it (the `ChangeData` service).

use bytes::Bytes;
use pitr_restore_worker::engine::EngineCf;

/// One change of a column family, as a raft command of a real TiKV would carry it. Keys have no
/// `z`: encoded key for `lock`, versioned key for `default` and `write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modify {
    /// Set a value.
    Put {
        /// Column family.
        cf: EngineCf,
        /// Key without `z`.
        key: Bytes,
        /// Value of the column family.
        value: Bytes,
    },
    /// Remove a key.
    Delete {
        /// Column family.
        cf: EngineCf,
        /// Key without `z`.
        key: Bytes,
    },
}

/// A region changed its shape.
#[derive(Clone, Debug)]
pub enum RegionChange {
    /// `old` (with its epoch before the split) became `new`; the lists cover the same range.
    Split {
        /// The region as it was.
        old: pitr_proto::metapb::Region,
        /// What it became, in key order; the old id is among them.
        new: Vec<pitr_proto::metapb::Region>,
    },
    /// The epoch of `region` rose and its range stayed: a merge into a neighbour has begun, or was
    /// given up.
    Merging {
        /// The region as it is now.
        region: pitr_proto::metapb::Region,
    },
    /// `source` is gone, and `target` has its range.
    Merged {
        /// The region as it was.
        source: pitr_proto::metapb::Region,
        /// The region that has grown, as it is now.
        target: pitr_proto::metapb::Region,
    },
    /// Another store leads `region` now, or none.
    Leader {
        /// The region, unchanged.
        region: pitr_proto::metapb::Region,
        /// Who leads it.
        leader: Option<pitr_proto::metapb::Peer>,
    },
}

/// Receives every applied write. Called inside the store's write lock, in apply order: it must
/// not block and must not call back into the store.
pub trait ApplyObserver: Send + Sync + 'static {
    /// `mods` were applied to `region_id` as one command. `one_pc` tells a one-phase commit.
    fn on_apply(&self, region_id: u64, mods: &[Modify], one_pc: bool);
    /// A region changed.
    fn on_region_change(&self, change: &RegionChange);
}
