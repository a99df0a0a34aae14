//! The store, seen from the import service: regions are checked and files taken over under the
//! write lock, so that no split comes in between. What is ingested at the leader is ingested by every
//! running store, each from the files that were uploaded to it.
//!
//! Ingested files bypass change data, as in TiKV. Records of `Apply` are told to it like any
//! write; they carry the mark of a restore, so no client gets to see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::key::DATA_PREFIX;
use pitr_proto::{kvrpcpb::Context, metapb};
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{EngineError, EngineOp};
use pitr_restore_worker::service::{ImportDir, ImportHost, RegionError, Replica, WriteFailure};
use pitr_restore_worker::sst::Tables;

use crate::store::Store;
use crate::store::change::Modify;
use crate::store::context::message_only;

/// See the module.
pub(crate) struct StoreImport {
    store: Arc<Store>,
    engine: Arc<RocksEngine>,
    uploads: Arc<Uploads>,
}

/// Where the uploads of each store lie. Complete before the first store serves.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<BTreeMap<u64, Place>>);

type Place = (Arc<Store>, Arc<ImportDir>);

impl Uploads {
    pub(crate) fn set(&self, store: Arc<Store>, dir: Arc<ImportDir>) {
        self.0.lock().insert(store.store_id(), (store, dir));
    }
}

impl StoreImport {
    pub(crate) fn new(store: Arc<Store>, uploads: Arc<Uploads>) -> Self {
        let engine = Arc::new(store.engine().clone());
        StoreImport {
            store,
            engine,
            uploads,
        }
    }
}

impl ImportHost for StoreImport {
    type Engine = RocksEngine;

    fn store_id(&self) -> u64 {
        self.store.store_id()
    }

    fn engine(&self) -> Arc<RocksEngine> {
        self.engine.clone()
    }

    fn replicas(&self) -> Vec<Replica<RocksEngine>> {
        let uploads = self.uploads.0.lock();
        let others = uploads
            .iter()
            .filter(|(id, (store, _))| **id != self.store.store_id() && store.is_up());
        others
            .map(|(id, (store, dir))| Replica {
                store_id: *id,
                engine: Arc::new(store.engine().clone()),
                dir: dir.clone(),
            })
            .collect()
    }

    fn region(&self, context: &Context) -> Result<metapb::Region, RegionError> {
        let region = self.store.check_context(Some(context))?;
        Ok(metapb::Region::clone(&region))
    }

    fn region_epoch(&self, region_id: u64) -> Option<metapb::RegionEpoch> {
        let regions = self.store.regions();
        regions
            .get(region_id)
            .and_then(|region| region.region_epoch)
    }

    fn tables(&self) -> Tables {
        Tables::rocks()
    }

    fn import_mode(&self, import: bool) {
        self.store.note_import_mode(import);
    }

    fn change<R>(
        &self,
        context: &Context,
        change: impl FnOnce(&metapb::Region) -> R,
    ) -> Result<R, RegionError> {
        let mut writes = self.store.lock_writes();
        let region = self.store.check_context(Some(context))?;
        let done = writes.around(|| change(&region));
        done.map_err(|e| message_only(e.to_string()))
    }

    fn write(&self, context: &Context, ops: &[EngineOp]) -> Result<(), WriteFailure> {
        let mods = ops
            .iter()
            .map(|op| to_modify(&self.engine, op))
            .collect::<Result<Vec<_>, _>>()
            .map_err(WriteFailure::Engine)?;
        let mut writes = self.store.lock_writes();
        let region = self
            .store
            .check_context(Some(context))
            .map_err(WriteFailure::Region)?;
        writes
            .apply(region.id, &mods, false)
            .map_err(WriteFailure::Engine)
    }
}

/// The same change without the `z` of a data key.
fn to_modify(engine: &RocksEngine, op: &EngineOp) -> Result<Modify, EngineError> {
    let strip = |key: &[u8]| match key.split_first() {
        Some((&DATA_PREFIX, key)) => Ok(Bytes::copy_from_slice(key)),
        _ => Err(engine.error("write an applied record", "its key is not a data key")),
    };
    Ok(match op {
        EngineOp::Put { cf, key, value } => Modify::Put {
            cf: *cf,
            key: strip(key)?,
            value: Bytes::copy_from_slice(value),
        },
        EngineOp::Delete { cf, key } => Modify::Delete {
            cf: *cf,
            key: strip(key)?,
        },
    })
}
