//! Joining: an empty cluster is bootstrapped with the store and its first region, a cluster that
//! this very store has bootstrapped before is told its addresses again, any other is refused.

use pitr_cluster::pd::{PdClient, PdError};
use pitr_proto::metapb;

use super::calls;
use super::error::RealPdError;

/// `region` is the first one of the store.
pub(super) async fn join(
    client: &PdClient,
    store: metapb::Store,
    region: metapb::Region,
) -> Result<(), RealPdError> {
    if !calls::is_bootstrapped(client).await? {
        match calls::bootstrap(client, store.clone(), region).await {
            // Our own attempt, whose answer was lost, or another store: the next check tells.
            Ok(()) | Err(PdError::Rejected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let stores = client.stores().await?;
    if let [only] = &stores[..]
        && only.id == store.id
    {
        return Ok(calls::put_store(client, store).await?);
    }
    let addresses: Vec<_> = stores.into_iter().map(|s| s.address).collect();
    Err(RealPdError::Occupied {
        cluster_id: client.cluster_id(),
        addresses: addresses.join(", "),
    })
}
