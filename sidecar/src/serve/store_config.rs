//! What the store's own configuration says that matters to us: whether its TiKV backs up the same
//! tasks itself. A stock TiKV does so unless it is told not to. Asked before a session begins.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::Context;
use crate::admin::client;
use crate::codes::Code;
use crate::failure::Failure;

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Refuses a store whose TiKV writes the same log. A store that does not tell is taken: its status
/// port may be closed to us.
pub(super) async fn refuse_second_observer(context: &Context) -> Result<(), Failure> {
    let address = match &context.store_status_addr {
        Some(address) => address.clone(),
        None => status_address(context).await?,
    };
    let address = address.trim_start_matches("http://");
    if address.is_empty() {
        return Ok(());
    }
    let answer = match timeout(PATIENCE, client::get(address, "/config")).await {
        Ok(Ok(answer)) => answer,
        silent => {
            let why = match silent {
                Ok(Err(error)) => error.to_string(),
                _ => "no answer".to_owned(),
            };
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
        return Err(Failure::new(Code::TwoObservers, what).at(format!("http://{address}/config")));
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

/// Whether an HTTP answer is a configuration with its own log backup switched on.
fn observes(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
    let config = body.and_then(|body| serde_json::from_str::<Value>(body).ok());
    config.is_some_and(|config| config["log-backup"]["enable"] == Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_that_says_so_is_a_second_observer() {
        let says = |body: &str| observes(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes());
        assert!(says(r#"{"log-backup":{"enable":true,"num-threads":4}}"#));
        for body in [
            r#"{"log-backup":{"enable":false}}"#,
            r#"{"log-backup":{}}"#,
            r#"{"backup":{"enable":true}}"#,
            r#"{"log-backup":{"enable":"true"}}"#,
            "{",
            "",
        ] {
            assert!(!says(body), "{body}");
        }
        assert!(!observes(b"{\"log-backup\":{\"enable\":true}}"), "no HTTP");
        assert!(!observes(b"\xFF\r\n\r\n\xFF"));
    }
}
