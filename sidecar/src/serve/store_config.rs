//! Whether the store's TiKV backs up the same tasks itself, as its configuration says. A stock TiKV
//! does so unless it is told not to. Asked before a session begins.

use super::Context;
use crate::codes::Code;
use crate::failure::Failure;
use crate::own_log_backup;

/// Refuses a store whose TiKV writes the same log. A store that does not tell is taken: its status
/// port may be closed to us.
pub(super) async fn refuse_second_observer(context: &Context) -> Result<(), Failure> {
    let address = match &context.store_status_addr {
        Some(address) => address.clone(),
        None => status_address(context).await?,
    };
    if address.is_empty() {
        return Ok(());
    }
    match own_log_backup::read(context.cluster.pd.security(), &address).await {
        Ok(own) if own.enable => {
            let what = format!(
                "the TiKV of store {} backs up this task itself (`log-backup.enable` is true)",
                context.store_id
            );
            Err(Failure::new(Code::TwoObservers, what).at(format!("{address}/config")))
        }
        Ok(_) => Ok(()),
        Err(why) => {
            tracing::warn!(
                address,
                why,
                "cannot read whether the TiKV backs up by itself"
            );
            Ok(())
        }
    }
}

/// Where PD says that the store's status is; empty if it says nothing.
async fn status_address(context: &Context) -> Result<String, Failure> {
    let stores = context.cluster.tikv_stores().await?;
    let store = stores
        .into_iter()
        .find(|store| store.id == context.store_id);
    Ok(store.map(|store| store.status_address).unwrap_or_default())
}
