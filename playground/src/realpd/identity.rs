//! The ids that the data directory has at its cluster: one JSON file, written once, before PD is
//! told of them. So a crash at any point of the bootstrap leaves ids with which it is repeated.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RealPdError;
use crate::durable;
use crate::store::RegionIds;

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    cluster_id: u64,
    store_id: u64,
    region_id: u64,
    peer_id: u64,
}

impl Identity {
    /// Reads `dir/real-pd.json`, or creates it with three fresh ids.
    pub(super) fn open(dir: &Path, cluster_id: u64, fresh: [u64; 3]) -> Result<Self, RealPdError> {
        let own = dir.join("pd.json");
        if own.exists() {
            return Err(RealPdError::OwnPd { path: own });
        }
        let path = dir.join("real-pd.json");
        let failed = |source| RealPdError::Identity {
            path: path.clone(),
            source,
        };
        let found: Identity = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let [store_id, region_id, peer_id] = fresh;
                let new = Identity {
                    cluster_id,
                    store_id,
                    region_id,
                    peer_id,
                };
                let bytes = serde_json::to_vec_pretty(&new).map_err(|e| failed(e.into()))?;
                durable::replace(&path, &bytes).map_err(failed)?;
                new
            }
            Err(e) => return Err(failed(e)),
        };
        match found.cluster_id == cluster_id {
            true => Ok(found),
            false => Err(RealPdError::OtherCluster {
                path,
                found: found.cluster_id,
                wanted: cluster_id,
            }),
        }
    }

    /// Id of the store.
    pub(crate) fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Ids of the first region.
    pub(crate) fn first_region(&self) -> RegionIds {
        RegionIds {
            region: self.region_id,
            peers: vec![self.peer_id],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_directory_stay_and_belong_to_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), 7, [1, 2, 3]).unwrap();
        let ids = RegionIds {
            region: 2,
            peers: vec![3],
        };
        assert_eq!((first.store_id(), first.first_region()), (1, ids));
        assert_eq!(Identity::open(dir.path(), 7, [4, 5, 6]).unwrap(), first);
        let error = Identity::open(dir.path(), 8, [4, 5, 6]).unwrap_err();
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
    fn a_directory_of_the_own_pd_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pd.json"), "{}").unwrap();
        let error = Identity::open(dir.path(), 7, [1, 2, 3]).unwrap_err();
        assert!(matches!(error, RealPdError::OwnPd { .. }), "{error}");
        assert!(!dir.path().join("real-pd.json").exists());
    }
}
