//! Reading a whole cluster at one ts: is it empty, and what is the digest of what it shows.

use pitr_cluster::kv::{KvClient, KvError};
use pitr_cluster::stores::StoreError;
use pitr_format::Ts;
use pitr_format::digest::ScanDigest;

use crate::cluster::{Cluster, code_of_cluster};
use crate::codes::Code;
use crate::failure::Failure;
use crate::ranges::RawRange;

/// Whether no key is visible in any of the ranges at `ts`.
pub async fn is_empty(cluster: &Cluster, ranges: &[RawRange], ts: Ts) -> Result<bool, Failure> {
    let client = KvClient::new(cluster.pd.clone());
    for (start, end) in ranges {
        if !client.is_empty(start.clone(), end.clone(), ts).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Digest over (user key, value) of everything that is visible in the ranges at `ts`. `seen` is
/// told the number of keys so far.
pub async fn digest(
    cluster: &Cluster,
    ranges: &[RawRange],
    ts: Ts,
    seen: impl Fn(u64),
) -> Result<ScanDigest, Failure> {
    let client = KvClient::new(cluster.pd.clone());
    let mut digest = ScanDigest::default();
    for (start, end) in ranges {
        let mut scan = client.scan(start.clone(), end.clone(), ts);
        while let Some(page) = scan.next_page().await? {
            for (key, value) in &page {
                digest.add(key, value);
            }
            seen(digest.count());
        }
    }
    Ok(digest)
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        let code = match &error {
            KvError::Locked { .. } => Code::KeyLocked,
            KvError::Pd(error) | KvError::Store(StoreError::Pd(error)) => {
                return error.clone().into();
            }
            other => code_of_cluster(other.class()),
        };
        Failure::from_error(code, &error)
    }
}
