//! Where the log backup service of each store is: what a sidecar says in the leased key of its
//! store, else the store's own service, which a stock TiKV has at its peer address.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::pd::PdClient;
use pitr_cluster::seat;
use pitr_proto::metapb;
use serde::Deserialize;

use crate::CoordinatorError;

/// A store's log backup service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The store.
    pub store_id: u64,
    /// `host:port`.
    pub address: String,
    /// When the store's process started, as PD has it: another one is dialled anew.
    pub started: i64,
}

/// What is read of a sidecar's leased key.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Advertised {
    log_backup_address: String,
}

/// Asks PD and its etcd.
pub async fn endpoints(
    pd: &PdClient,
    etcd: &EtcdClient,
) -> Result<Vec<Endpoint>, CoordinatorError> {
    let stores = pd.stores().await?;
    Ok(choose(stores, &seat::holders(etcd).await?))
}

/// One end point for each store that holds data.
fn choose(stores: Vec<metapb::Store>, sidecars: &[(u64, Bytes)]) -> Vec<Endpoint> {
    let advertised = |(id, value): &(u64, Bytes)| {
        let said: Advertised = serde_json::from_slice(value).ok()?;
        (!said.log_backup_address.is_empty()).then_some((*id, said))
    };
    let mut sidecars: BTreeMap<u64, Advertised> = sidecars.iter().filter_map(advertised).collect();
    let stores = stores.into_iter().filter(holds_data);
    stores
        .map(|store| {
            let own = match store.peer_address.is_empty() {
                true => store.address,
                false => store.peer_address,
            };
            let sidecar = sidecars.remove(&store.id);
            Endpoint {
                store_id: store.id,
                address: sidecar.map_or(own, |said| said.log_backup_address),
                started: store.start_timestamp,
            }
        })
        .collect()
}

/// Neither removed nor a TiFlash.
pub fn holds_data(store: &metapb::Store) -> bool {
    let tombstone = store.state == metapb::StoreState::Tombstone as i32;
    let is_flash =
        |label: &metapb::StoreLabel| label.key == "engine" && label.value.starts_with("tiflash");
    !tombstone && !store.labels.iter().any(is_flash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: u64, peer_address: &str) -> metapb::Store {
        metapb::Store {
            id,
            address: format!("store{id}:20160"),
            peer_address: peer_address.to_owned(),
            start_timestamp: 7,
            ..metapb::Store::default()
        }
    }

    fn addresses(
        stores: Vec<metapb::Store>,
        sidecars: &[(u64, &'static str)],
    ) -> Vec<(u64, String)> {
        let sidecars: Vec<_> = sidecars
            .iter()
            .map(|(id, text)| (*id, Bytes::from_static(text.as_bytes())))
            .collect();
        let found = choose(stores, &sidecars).into_iter();
        found.map(|end| (end.store_id, end.address)).collect()
    }

    #[test]
    fn a_sidecar_is_asked_before_the_peer_address_and_that_before_the_address() {
        let stores = vec![store(1, "peer1:1"), store(2, "peer2:1"), store(3, "")];
        let said = [(1, r#"{"daemon":"d","log_backup_address":"sidecar1:9"}"#)];
        let expect = [(1, "sidecar1:9"), (2, "peer2:1"), (3, "store3:20160")];
        assert_eq!(
            addresses(stores, &said),
            expect.map(|(id, at)| (id, at.to_owned()))
        );
    }

    #[test]
    fn a_key_that_says_nothing_of_the_service_or_is_not_understood_is_no_sidecar() {
        for said in ["{}", r#"{"log_backup_address":""}"#, "no json", "[1]"] {
            let found = addresses(vec![store(1, "peer:1")], &[(1, said)]);
            assert_eq!(found, [(1, "peer:1".to_owned())], "{said}");
        }
    }

    #[test]
    fn stores_without_data_of_tikv_are_left_out() {
        let mut gone = store(1, "a:1");
        gone.state = metapb::StoreState::Tombstone as i32;
        let mut flash = store(2, "b:1");
        flash.labels = vec![metapb::StoreLabel {
            key: "engine".to_owned(),
            value: "tiflash_compute".to_owned(),
        }];
        assert_eq!(addresses(vec![gone, flash, store(3, "c:1")], &[]).len(), 1);
    }

    #[test]
    fn a_store_that_started_anew_is_another_end_point() {
        let before = choose(vec![store(1, "a:1")], &[]);
        let mut again = store(1, "a:1");
        again.start_timestamp = 8;
        assert_ne!(before, choose(vec![again], &[]));
    }
}
