//! What change data need of the store.

use pitr_format::Ts;
use pitr_proto::metapb;
use pitr_restore_worker::engine::rocks::RocksEngine;

/// The store, seen from change data. Implemented by the process assembly.
pub trait Host: Send + Sync + 'static {
    /// The cluster's id.
    fn cluster_id(&self) -> u64;
    /// The data.
    fn engine(&self) -> &RocksEngine;
    /// A region by its id, as it is now.
    fn region(&self, id: u64) -> Option<metapb::Region>;
    /// Whether the store leads a region; if not, who does.
    fn leads(&self, id: u64) -> Result<(), Option<metapb::Peer>>;
    /// A fresh timestamp of the oracle.
    fn timestamp(&self) -> Result<Ts, String>;
    /// Runs `work` while no write and no change of a region is under way. Before, no later
    /// one-phase or async commit can get a commit ts at or below `floor` any more.
    fn while_quiet(&self, floor: Ts, work: &mut dyn FnMut());
}
