//! Which store this sidecar tails: its id comes from PD, never from us, because safepoints and
//! object names carry it.

use pitr_proto::metapb;

use crate::cluster::Cluster;
use crate::codes::Code;
use crate::config::Config;
use crate::failure::Failure;
use crate::fitness;

/// Finds the store of the configuration among PD's.
pub async fn resolve(cluster: &Cluster, config: &Config) -> Result<metapb::Store, Failure> {
    let stores = cluster.tikv_stores().await?;
    let store = choose(&stores, config.store_id, config.store_address.as_deref())?;
    fitness::new_enough(std::slice::from_ref(&store))?;
    if let Err(failure) = fitness::safe_version(&stores) {
        tracing::warn!(reason = failure.one_line(), "tailing all the same");
    }
    Ok(store)
}

fn choose(
    stores: &[metapb::Store],
    id: Option<u64>,
    address: Option<&str>,
) -> Result<metapb::Store, Failure> {
    let fits = |store: &&metapb::Store| match (id, address) {
        (Some(id), _) => store.id == id,
        (None, Some(address)) => store.address == address || store.peer_address == address,
        (None, None) => false,
    };
    if let Some(store) = stores.iter().find(fits) {
        return Ok(store.clone());
    }
    let wanted = match (id, address) {
        (Some(id), _) => format!("store {id}"),
        (None, address) => format!("a store at {}", address.unwrap_or_default()),
    };
    let known: Vec<String> = stores
        .iter()
        .map(|store| format!("{} at {}", store.id, store.address))
        .collect();
    Err(
        Failure::new(Code::StoreNotFound, format!("PD does not know {wanted}"))
            .at(format!("stores of PD: {}", known.join(", ")))
            .effect("nothing is tailed")
            .action("set `store-address` to the address as PD has it, or `store-id`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores() -> Vec<metapb::Store> {
        [(1, "a:20160"), (4, "b:20160")]
            .map(|(id, address)| metapb::Store {
                id,
                address: address.to_owned(),
                ..metapb::Store::default()
            })
            .to_vec()
    }

    #[test]
    fn a_store_is_found_by_id_or_by_the_address_that_pd_has() {
        assert_eq!(choose(&stores(), Some(4), None).unwrap().address, "b:20160");
        assert_eq!(choose(&stores(), None, Some("a:20160")).unwrap().id, 1);
    }

    #[test]
    fn an_unknown_store_is_not_found_and_the_known_ones_are_named() {
        let failure = choose(&stores(), None, Some("c:1")).unwrap_err();
        assert_eq!(failure.code, Code::StoreNotFound);
        assert!(failure.place.contains("4 at b:20160"), "{failure}");
        assert_eq!(
            choose(&stores(), Some(9), None).unwrap_err().code,
            Code::StoreNotFound
        );
    }
}
