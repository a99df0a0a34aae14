//! Several stores of one cluster against a map that says what they have to hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::key::data_key;
use pitr_restore_worker::engine::{Engine, EngineCf};
use proptest::prelude::*;
use tempfile::TempDir;

use super::change::Modify;
use super::fixture::ids_from;
use super::{OpenError, RegionIds, Store, StoreOptions, TransferError};

const STORES: [u64; 3] = [1, 4, 6];

fn open(dirs: &[PathBuf], first_id: u64) -> Vec<Arc<Store>> {
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    Store::open(&dirs, options(&STORES, first_id)).unwrap()
}

fn options(stores: &[u64], first_id: u64) -> StoreOptions {
    StoreOptions {
        store_ids: stores.to_vec(),
        first_region: RegionIds {
            region: 2,
            peers: stores.iter().map(|id| id + 1).collect(),
        },
        ids: ids_from(first_id),
    }
}

struct Cluster {
    dir: TempDir,
    stores: Vec<Arc<Store>>,
    model: BTreeMap<Vec<u8>, u8>,
    opened: u64,
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteFrom(u8, u8),
    Split(u8),
    /// Of the region at a key into the one before it.
    Merge(u8),
    Transfer(u8, usize),
    Leave(usize),
    Rejoin(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..40u8;
    let store = 0..STORES.len();
    prop_oneof![
        8 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        3 => key.clone().prop_map(Step::Delete),
        1 => (key.clone(), 1..5u8).prop_map(|(k, n)| Step::DeleteFrom(k, n)),
        2 => key.clone().prop_map(Step::Split),
        1 => key.clone().prop_map(Step::Merge),
        3 => (key, store.clone()).prop_map(|(k, s)| Step::Transfer(k, s)),
        2 => store.clone().prop_map(Step::Leave),
        2 => store.prop_map(Step::Rejoin),
        1 => Just(Step::Reopen),
    ]
}

fn encoded(key: u8) -> Bytes {
    pitr_format::EncodedKey::encode(&[b'k', key]).into_bytes()
}

impl Cluster {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let stores = open(&dirs(&dir), 1000);
        Cluster {
            dir,
            stores,
            model: BTreeMap::new(),
            opened: 1,
        }
    }

    fn up(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.stores.iter().filter(|store| store.is_up())
    }

    /// The leader takes the command, as it would from a client.
    fn write(&mut self, key: u8, value: Option<u8>) {
        let key = encoded(key);
        let any = &self.stores[0];
        let regions = any.regions();
        let region = regions.find(&key).unwrap();
        let leader = any.leading(region.id);
        let (cf, value_of) = (EngineCf::Default, |v: u8| Bytes::from(vec![v]));
        let change = match value {
            Some(v) => Modify::Put {
                cf,
                key: key.clone(),
                value: value_of(v),
            },
            None => Modify::Delete {
                cf,
                key: key.clone(),
            },
        };
        leader
            .lock_writes()
            .apply(region.id, &[change], false)
            .unwrap();
        match value {
            Some(v) => self.model.insert(data_key(&key), v),
            None => self.model.remove(&data_key(&key)),
        };
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Put(key, value) if self.up().count() > 0 => self.write(key, Some(value)),
            Step::Delete(key) if self.up().count() > 0 => self.write(key, None),
            Step::DeleteFrom(key, count) if self.up().count() > 0 => {
                let (start, end) = (data_key(&encoded(key)), data_key(&encoded(key + count)));
                let mut guard = self.stores[0].lock_writes();
                let written = guard.write_everywhere(|engine, batch| {
                    batch.delete_range_cf(engine.cf(EngineCf::Default)?, &start, &end);
                    Ok(())
                });
                written.unwrap();
                self.model.retain(|key, _| *key < start || *key >= end);
            }
            Step::Split(key) if self.up().count() > 0 => {
                let key: &[u8] = &[b'k', key];
                self.stores[0].split_at_user_keys(&[key]).unwrap();
            }
            Step::Merge(key) if self.up().count() > 0 => {
                let regions = self.stores[0].regions();
                let source = regions.find(&encoded(key)).unwrap();
                if let Some(target) = regions.before(source) {
                    let merged = self.stores[0].merge(source.id, target.id).unwrap();
                    assert_eq!(merged.peers.len(), STORES.len());
                }
            }
            Step::Transfer(key, to) => {
                let region = self.stores[0].regions().find(&encoded(key)).unwrap().id;
                let done = self.stores[0].transfer_leader(region, STORES[to]);
                let down = !self.stores[to].is_up();
                assert_eq!(done.is_err(), down, "{done:?}");
            }
            Step::Leave(at) => {
                self.stores[at].leave();
                self.stores[at].elect();
            }
            Step::Rejoin(at) => {
                self.stores[at].rejoin().unwrap();
                self.stores[at].elect();
            }
            Step::Reopen => {
                self.stores.clear();
                self.opened += 1;
                self.stores = open(&dirs(&self.dir), 1000 * self.opened);
            }
            // Nobody serves.
            _ => {}
        }
    }

    /// Every running store holds the model and the regions; a running store leads every region.
    fn check(&self) {
        let wanted: Vec<(Vec<u8>, Vec<u8>)> = self
            .model
            .iter()
            .map(|(key, value)| (key.clone(), vec![*value]))
            .collect();
        let regions = self.stores[0].regions();
        let mut kept: Option<Vec<_>> = None;
        for store in self.up() {
            assert_eq!(
                pairs(store, EngineCf::Default),
                wanted,
                "{}",
                store.store_id()
            );
            let locks = pairs(store, EngineCf::Lock);
            assert_eq!(kept.get_or_insert(locks.clone()), &locks);
        }
        for region in regions.iter() {
            match regions.leader(region.id) {
                Some(leader) => assert!(self.up().any(|s| s.store_id() == leader.store_id)),
                None => assert_eq!(self.up().count(), 0),
            }
        }
    }
}

fn dirs(dir: &TempDir) -> Vec<PathBuf> {
    STORES
        .iter()
        .map(|id| dir.path().join(id.to_string()))
        .collect()
}

fn pairs(store: &Store, cf: EngineCf) -> Vec<(Vec<u8>, Vec<u8>)> {
    let scan = store.engine().scan(cf, &[], &[]);
    scan.map(|pair| pair.unwrap())
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn after_any_order_of_commands_transfers_and_outages_all_stores_hold_the_same(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.run(step);
            cluster.check();
        }
        for at in 0..STORES.len() {
            cluster.run(Step::Rejoin(at));
        }
        prop_assert_eq!(cluster.up().count(), STORES.len());
        cluster.check();
    }
}

#[test]
fn a_store_whose_last_batch_was_cut_off_is_made_equal_at_the_next_start() {
    let mut cluster = Cluster::new();
    for key in 0..20 {
        cluster.write(key, Some(key));
    }
    // As if the process had died between the first store and the others.
    cluster.stores[1].leave();
    cluster.stores[2].leave();
    cluster.write(7, Some(99));
    cluster.write(3, None);
    cluster.run(Step::Reopen);
    assert_eq!(cluster.up().count(), 3);
    cluster.check();
}

#[test]
fn leaders_are_spread_at_the_start_and_stay_with_the_parts_of_a_split() {
    let mut cluster = Cluster::new();
    for key in [10, 20, 30, 35, 37] {
        cluster.run(Step::Split(key));
    }
    let leaders = |cluster: &Cluster| -> Vec<u64> {
        let regions = cluster.stores[0].regions();
        let ids = regions.iter().map(|r| r.id);
        ids.map(|id| regions.leader(id).unwrap().store_id).collect()
    };
    assert_eq!(leaders(&cluster), [1; 6]);
    cluster.run(Step::Reopen);
    assert_eq!(leaders(&cluster), [1, 4, 6, 1, 4, 6]);
}

#[test]
fn a_transfer_keeps_the_epoch_and_names_what_cannot_lead() {
    let cluster = Cluster::new();
    let store = &cluster.stores[0];
    let before = store.regions().get(2).unwrap().region_epoch.unwrap();
    assert_eq!((before.conf_ver, before.version), (3, 1));
    store.transfer_leader(2, 6).unwrap();
    let regions = store.regions();
    assert_eq!(regions.get(2).unwrap().region_epoch, Some(before));
    assert_eq!(regions.leader(2).map(|p| (p.id, p.store_id)), Some((7, 6)));
    assert_eq!(store.transfer_leader(9, 1), Err(TransferError::Region(9)));
    assert_eq!(store.transfer_leader(2, 5), Err(TransferError::Store(5)));
    cluster.stores[1].leave();
    assert_eq!(store.transfer_leader(2, 4), Err(TransferError::Down(4)));
}

#[test]
fn another_number_of_stores_than_that_of_the_data_is_refused() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path().join("1");
    let Cluster {
        dir: _kept, stores, ..
    } = cluster;
    drop(stores);
    let refused = Store::open(&[&dir], options(&[1], 1000));
    let Err(OpenError::Stores { found, wanted }) = refused.map(|_| ()) else {
        panic!("opened");
    };
    assert_eq!((found, wanted), (3, 1));
}
