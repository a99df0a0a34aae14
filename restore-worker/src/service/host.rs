//! What the import service needs of the store it serves.

use std::sync::Arc;

use pitr_proto::{errorpb, kvrpcpb::Context, metapb};

use super::import_dir::ImportDir;
use crate::engine::{Engine, EngineError, EngineOp};
use crate::sst::Tables;

/// A region error, boxed because it is large.
pub type RegionError = Box<errorpb::Error>;

/// Another store of the same process that has to take every file that this one takes.
pub struct Replica<E> {
    /// Id of the store.
    pub store_id: u64,
    /// Its engine.
    pub engine: Arc<E>,
    /// Where its uploads lie.
    pub dir: Arc<ImportDir>,
}

/// The owner of regions and engine. All methods may block shortly; they are called on blocking
/// threads.
pub trait ImportHost: Send + Sync + 'static {
    /// Its engine.
    type Engine: Engine;

    /// Id of the store.
    fn store_id(&self) -> u64;

    /// The engine that files are ingested into.
    fn engine(&self) -> Arc<Self::Engine>;

    /// The stores that files are ingested into together with this one, for a host that replicates by
    /// itself. A file that one of them lacks is ingested nowhere.
    fn replicas(&self) -> Vec<Replica<Self::Engine>> {
        Vec::new()
    }

    /// The region a context means, after the checks of TiKV in its order: region present, leader,
    /// peer, epoch. The store id was checked before.
    fn region(&self, context: &Context) -> Result<metapb::Region, RegionError>;

    /// The epoch of a region that has a peer on this store.
    fn region_epoch(&self, region_id: u64) -> Option<metapb::RegionEpoch>;

    /// How the engine's SST files are read and written.
    fn tables(&self) -> Tables;

    /// A driver asked for import mode or ended it, or it ended by itself. A host that tunes its
    /// engine for many ingests does it here.
    fn import_mode(&self, import: bool) {
        let _ = import;
    }

    /// Runs `change` while the checks of [`ImportHost::region`] hold and no other write and no
    /// split can happen: under the store's write lock.
    fn change<R>(
        &self,
        context: &Context,
        change: impl FnOnce(&metapb::Region) -> R,
    ) -> Result<R, RegionError>;

    /// Writes changes of one `Apply` call. A host that tells observers about writes does it here.
    fn write(&self, context: &Context, ops: &[EngineOp]) -> Result<(), WriteFailure> {
        let written = self.change(context, |_| self.engine().write(ops));
        written
            .map_err(WriteFailure::Region)?
            .map_err(WriteFailure::Engine)
    }

    /// Files were ingested into this region; they bypass observers.
    fn ingested(&self, region_id: u64) {
        let _ = region_id;
    }
}

/// Why [`ImportHost::write`] failed.
#[derive(Debug)]
pub enum WriteFailure {
    /// The region is not (or no longer) here.
    Region(RegionError),
    /// The engine failed.
    Engine(EngineError),
}
