//! What the store's own configuration says that matters to us: whether its TiKV backs up the same
//! tasks itself. A stock TiKV does so unless it is told not to. Asked before a session begins.

use serde_json::Value;

use super::Context;
use crate::admin::client;
use crate::codes::Code;
use crate::failure::Failure;

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
    let security = context.cluster.pd.security();
    let answer = match client::get(security, &address, "/config").await {
        Ok(answer) => answer,
        Err(why) => {
            tracing::warn!(
                address,
                why,
                "cannot read whether the TiKV backs up by itself"
            );
            return Ok(());
        }
    };
    if observes(&answer) {
        let what = format!(
            "the TiKV of store {} backs up this task itself (`log-backup.enable` is true)",
            context.store_id
        );
        return Err(Failure::new(Code::TwoObservers, what).at(format!("{address}/config")));
    }
    Ok(())
}

/// Where PD says that the store's status is; empty if it says nothing.
async fn status_address(context: &Context) -> Result<String, Failure> {
    let stores = context.cluster.tikv_stores().await?;
    let store = stores
        .into_iter()
        .find(|store| store.id == context.store_id);
    Ok(store.map(|store| store.status_address).unwrap_or_default())
}

/// Whether this is a configuration with its own log backup switched on.
fn observes(page: &[u8]) -> bool {
    let config = serde_json::from_slice::<Value>(page);
    config.is_ok_and(|config| config["log-backup"]["enable"] == Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_that_says_so_is_a_second_observer() {
        assert!(observes(
            br#"{"log-backup":{"enable":true,"num-threads":4}}"#
        ));
        for body in [
            r#"{"log-backup":{"enable":false}}"#,
            r#"{"log-backup":{}}"#,
            r#"{"backup":{"enable":true}}"#,
            r#"{"log-backup":{"enable":"true"}}"#,
            "{",
            "",
        ] {
            assert!(!observes(body.as_bytes()), "{body}");
        }
        assert!(!observes(b"\xFF"));
    }
}
