//! What a target must be before a byte is written: another cluster than the source (its own log
//! would mix), empty, and ahead of the restored ts (a commit ts ahead of PD's clock can abort a
//! TiKV and hides behind every read).

use pitr_format::{EncodedRange, Ts};

use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::Failure;
use crate::ranges::{self, RawRange};
use crate::{scan, time};

/// Refuses a target that must not be written to.
pub async fn target(
    cluster: &Cluster,
    source_cluster: Option<u64>,
    restored: Ts,
    ranges: &[EncodedRange],
) -> Result<(), Failure> {
    let own = cluster.pd.cluster_id();
    if source_cluster == Some(own) {
        return Err(refused(
            Code::TargetIsSource,
            "the target is the cluster that the archive was taken from",
        )
        .at(format!("cluster {own}"))
        .action("restore into a new cluster"));
    }
    let now = cluster.now().await?;
    if now <= restored {
        return Err(refused(Code::TargetClockBehind, "the target's clock is behind the restored time")
            .at(format!(
                "PD's now is {}, restored-ts {}",
                time::line(now),
                time::line(restored)
            ))
            .action("correct the clock of the target's PD, or raise its TSO; timestamps ahead of it can abort TiKV"));
    }
    let raw: Vec<RawRange> = ranges.iter().map(decode).collect::<Result<_, _>>()?;
    if !scan::is_empty(cluster, &raw, now).await? {
        return Err(refused(Code::TargetNotEmpty, "the target is not empty")
            .at(raw.iter().map(ranges::show).collect::<Vec<_>>().join(" "))
            .action("restore into a new, empty cluster"));
    }
    Ok(())
}

fn refused(code: Code, what: &str) -> Failure {
    Failure::new(code, what).effect("nothing was written")
}

fn decode(range: &EncodedRange) -> Result<RawRange, Failure> {
    let bound = |encoded: &bytes::Bytes| match encoded.is_empty() {
        true => Ok(bytes::Bytes::new()),
        false => pitr_format::EncodedKey::from_encoded(encoded.clone())
            .decode()
            .map(bytes::Bytes::from)
            .map_err(|error| Failure::from_error(Code::Internal, &error)),
    };
    Ok((bound(&range.start)?, bound(&range.end)?))
}
