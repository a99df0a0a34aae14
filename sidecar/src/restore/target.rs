//! A running cluster as the target of a restore: regions from PD, files to every peer of their
//! region, then one ingest through the leader.
//!
//! Each attempt uploads under new names, because a store refuses a file that it has; what an
//! attempt left behind is dropped by the store. Ingesting the same records twice is harmless.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use pitr_cluster::import::{ImportClient, ImportError};
use pitr_cluster::pd::{PdClient, Region};
use pitr_cluster::stores::StoreChannels;
use pitr_format::{Class, EncodedRange};
use pitr_proto::import_sstpb::{Range, SstMeta};
use pitr_restore_worker::sst::SstFile;
use pitr_restore_worker::target::{Target, TargetError, TargetRegion};
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::failure::chain;

/// Bytes read at a time for the checksum.
const BLOCK: usize = 1 << 20;

/// Restores into a cluster.
pub struct ClusterTarget {
    pd: Arc<PdClient>,
    import: ImportClient,
}

impl ClusterTarget {
    /// The cluster as a target.
    pub fn new(cluster: &Cluster) -> Self {
        ClusterTarget {
            pd: cluster.pd.clone(),
            import: ImportClient::new(StoreChannels::new(cluster.pd.clone())),
        }
    }

    async fn upload(&self, region: &Region, file: &SstFile) -> Result<SstMeta, TargetError> {
        let meta = describe(region, file).await?;
        for peer in &region.meta.peers {
            let content = File::open(&file.path)
                .await
                .map_err(|e| unreadable(&file.path, &e))?;
            let sent = self
                .import
                .upload(peer.store_id, meta.clone(), content)
                .await;
            sent.map_err(refused)?;
        }
        Ok(meta)
    }
}

#[async_trait]
impl Target for ClusterTarget {
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        let found = self.pd.regions_in(range).await;
        let (regions, missing) =
            found.map_err(|error| TargetError::new(error.class(), chain(&error)))?;
        if let Some(missing) = missing {
            let what = format!("PD has no region for {missing:?} at the moment");
            return Err(TargetError::new(Class::Retry, what));
        }
        let target = |region: Region| TargetRegion {
            range: region.range(),
            handle: Arc::new(region),
        };
        Ok(regions.into_iter().map(target).collect())
    }

    async fn ingest(&self, region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        let Some(region) = region.handle.downcast_ref::<Region>() else {
            return Err(TargetError::new(
                Class::Permanent,
                "a region of another target",
            ));
        };
        let mut metas = Vec::with_capacity(ssts.len());
        for file in ssts {
            metas.push(self.upload(region, file).await?);
        }
        self.import
            .multi_ingest(region, metas)
            .await
            .map_err(refused)
    }
}

/// The store's description of a file, under a new name.
async fn describe(region: &Region, file: &SstFile) -> Result<SstMeta, TargetError> {
    let crc32 = checksum(&file.path)
        .await
        .map_err(|e| unreadable(&file.path, &e))?;
    Ok(SstMeta {
        uuid: Bytes::copy_from_slice(Uuid::new_v4().as_bytes()),
        range: Some(Range {
            start: file.first.clone(),
            end: file.last.clone(),
        }),
        crc32,
        length: file.file_size,
        cf_name: file.cf.as_str().to_owned(),
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        total_kvs: file.entries,
        total_bytes: file.raw_bytes,
        ..SstMeta::default()
    })
}

async fn checksum(path: &Path) -> std::io::Result<u32> {
    let mut file = File::open(path).await?;
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block).await? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&block[..n]),
        }
    }
}

fn refused(error: ImportError) -> TargetError {
    TargetError::new(error.class(), chain(&error)).after(error.wait())
}

fn unreadable(path: &Path, error: &std::io::Error) -> TargetError {
    let what = format!("cannot read the SST file {}: {error}", path.display());
    TargetError::new(Class::Permanent, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_checksum_is_crc32_over_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sst");
        std::fs::write(&path, b"123456789").unwrap();
        assert_eq!(checksum(&path).await.unwrap(), 0xCBF4_3926);
        let large = vec![7u8; BLOCK + 1];
        std::fs::write(&path, &large).unwrap();
        assert_eq!(checksum(&path).await.unwrap(), crc32fast::hash(&large));
    }
}
