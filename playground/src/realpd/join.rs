//! Joining: an empty cluster is bootstrapped with the first store and the first region, a cluster that
//! these very stores have bootstrapped before is told their addresses again, any other is refused.

use pitr_cluster::pd::{PdClient, PdError};
use pitr_proto::metapb;

use super::calls;
use super::error::RealPdError;

/// `region` is the first one, with the peer on the first of the stores only: PD bootstraps no other.
/// The peers on the others come with the first heartbeats, as if they had been added one by one.
pub(super) async fn join(
    client: &PdClient,
    stores: Vec<metapb::Store>,
    region: metapb::Region,
) -> Result<(), RealPdError> {
    if let Some(first) = stores.first()
        && !calls::is_bootstrapped(client).await?
    {
        match calls::bootstrap(client, first.clone(), region).await {
            // Our own attempt, whose answer was lost, or another store: the next check tells.
            Ok(()) | Err(PdError::Rejected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let known = client.stores().await?;
    let ours = |id: u64| stores.iter().any(|store| store.id == id);
    if known.iter().any(|store| !ours(store.id)) {
        let addresses: Vec<_> = known.into_iter().map(|s| s.address).collect();
        return Err(RealPdError::Occupied {
            cluster_id: client.cluster_id(),
            addresses: addresses.join(", "),
        });
    }
    for store in stores {
        calls::put_store(client, store).await?;
    }
    Ok(())
}
