//! The ids that the data directory has at its cluster: one JSON file, written once, before PD is
//! told of them. So a crash at any point of the bootstrap leaves ids with which it is repeated.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::RealPdError;
use crate::durable;
use crate::store::RegionIds;

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    cluster_id: u64,
    /// The first one bootstraps the cluster.
    stores: Vec<StoreIdentity>,
    /// The first region.
    region_id: u64,
}

/// The ids of one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoreIdentity {
    store_id: u64,
    /// The store's peer of the first region.
    peer_id: u64,
}

impl Identity {
    /// How many ids a new directory needs.
    pub(super) fn ids_for(stores: usize) -> usize {
        2 * stores + 1
    }

    /// Reads `dir/real-pd.json`, if there is one.
    pub(super) fn find(dir: &Path, cluster_id: u64) -> Result<Option<Self>, RealPdError> {
        let own = dir.join("pd.json");
        if own.exists() {
            return Err(RealPdError::OwnPd { path: own });
        }
        let path = file(dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RealPdError::Identity { path, source }),
        };
        let found: Identity = match serde_json::from_slice(&bytes) {
            Ok(found) => found,
            Err(e) => {
                let source = e.into();
                return Err(RealPdError::Identity { path, source });
            }
        };
        if found.cluster_id != cluster_id {
            return Err(RealPdError::OtherCluster {
                path,
                found: found.cluster_id,
                wanted: cluster_id,
            });
        }
        Ok(Some(found))
    }

    /// Writes the file of a new directory from fresh ids: store, region and peer, then store and peer of
    /// each further store. On a new PD these are the ids that the playground's own PD gives.
    pub(super) fn create(dir: &Path, cluster_id: u64, fresh: &[u64]) -> Result<Self, RealPdError> {
        let path = file(dir);
        let failed = |source| RealPdError::Identity {
            path: path.clone(),
            source,
        };
        let [first, region_id, peer, more @ ..] = fresh else {
            return Err(failed(io::Error::other("PD gave too few ids")));
        };
        let pairs = [[*first, *peer]];
        let pairs = pairs.iter().chain(more.as_chunks::<2>().0);
        let new = Identity {
            cluster_id,
            stores: pairs
                .map(|[store_id, peer_id]| StoreIdentity {
                    store_id: *store_id,
                    peer_id: *peer_id,
                })
                .collect(),
            region_id: *region_id,
        };
        let bytes = serde_json::to_vec_pretty(&new).map_err(|e| failed(e.into()))?;
        durable::replace(&path, &bytes).map_err(failed)?;
        Ok(new)
    }

    /// Ids of the stores.
    pub(crate) fn store_ids(&self) -> Vec<u64> {
        self.stores.iter().map(|store| store.store_id).collect()
    }

    /// Ids of the first region.
    pub(crate) fn first_region(&self) -> RegionIds {
        RegionIds {
            region: self.region_id,
            peers: self.stores.iter().map(|store| store.peer_id).collect(),
        }
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("real-pd.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_directory_stay_and_belong_to_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::find(dir.path(), 7).unwrap(), None);
        let fresh = [1, 2, 3, 4, 5];
        assert_eq!(fresh.len(), Identity::ids_for(2));
        let first = Identity::create(dir.path(), 7, &fresh).unwrap();
        let ids = RegionIds {
            region: 2,
            peers: vec![3, 5],
        };
        assert_eq!((first.store_ids(), first.first_region()), (vec![1, 4], ids));
        assert_eq!(Identity::find(dir.path(), 7).unwrap(), Some(first));
        let error = Identity::find(dir.path(), 8).unwrap_err();
        assert!(
            matches!(
                error,
                RealPdError::OtherCluster {
                    found: 7,
                    wanted: 8,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_directory_of_the_own_pd_and_a_damaged_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("real-pd.json"), "{\"cluster_id\": 7}").unwrap();
        let error = Identity::find(dir.path(), 7).unwrap_err();
        assert!(matches!(error, RealPdError::Identity { .. }), "{error}");
        std::fs::write(dir.path().join("pd.json"), "{}").unwrap();
        let error = Identity::find(dir.path(), 7).unwrap_err();
        assert!(matches!(error, RealPdError::OwnPd { .. }), "{error}");
    }
}
