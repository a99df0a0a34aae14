//! TiKV's own log backup, as the configuration of the stores tells of it (`/config` at the status
//! address). A sidecar must not tail a store that has it on; a task with `source = "builtin"` needs
//! it on at every store. Source: tikv/tikv `src/config/mod.rs` (`BackupStreamConfig`).

use std::time::Duration;

use futures::stream::{StreamExt, iter};
use pitr_cluster::tls::Security;
use pitr_format::Ts;
use pitr_proto::metapb::Store;
use serde_json::Value;

use crate::admin::client;
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::Failure;
use crate::front::status::BY_SIDECAR;
use crate::juicefs;
use crate::ranges::RawRange;

/// Stores that are asked at a time.
const AT_A_TIME: usize = 16;

/// What a store says of its own log backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnLogBackup {
    /// Whether it is on; what a sidecar's status front says to BR is not.
    pub enable: bool,
    /// Longest time between two flushes, if it says so in a way that can be read.
    pub max_flush_interval: Option<Duration>,
}

/// Asks the store whose status address this is; else why nothing is known.
pub(crate) async fn read(
    security: &Security,
    status_address: &str,
) -> Result<OwnLogBackup, String> {
    if status_address.is_empty() {
        return Err("it tells no status address".to_owned());
    }
    parse(&client::get(security, status_address, "/config").await?)
}

fn parse(page: &[u8]) -> Result<OwnLogBackup, String> {
    let config: Value = serde_json::from_slice(page)
        .map_err(|error| format!("what answers is no configuration: {error}"))?;
    let log_backup = &config["log-backup"];
    let interval = log_backup["max-flush-interval"].as_str();
    let by_sidecar = log_backup[BY_SIDECAR] == Value::Bool(true);
    Ok(OwnLogBackup {
        enable: log_backup["enable"] == Value::Bool(true) && !by_sidecar,
        max_flush_interval: interval.and_then(|text| humantime::parse_duration(text).ok()),
    })
}

/// Refuses stores that would not write the log of a task, and flushes too rare for what GC leaves.
/// A store that cannot be asked is taken, with a note.
pub(crate) async fn check(
    cluster: &Cluster,
    stores: &[Store],
    ranges: &[RawRange],
    now: Ts,
) -> Result<Vec<String>, Failure> {
    let security = cluster.pd.security();
    let ask = |store: &Store| {
        let (name, address) = (shown(store), store.status_address.clone());
        async move { (name, read(security, &address).await) }
    };
    let asked: Vec<_> = stores.iter().map(ask).collect();
    let answers: Vec<_> = iter(asked).buffered(AT_A_TIME).collect().await;
    let off: Vec<_> = answers
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|own| !own.enable))
        .map(|(store, _)| store.as_str())
        .collect();
    if !off.is_empty() {
        let what = "TiKV's own log backup is off there (`log-backup.enable` is not true, or a sidecar's \
                    status front says so instead of TiKV)";
        return Err(Failure::new(Code::NoOwnLogBackup, what).at(off.join(", ")));
    }
    let known = answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok());
    if let Some(longest) = known.filter_map(|own| own.max_flush_interval).max() {
        juicefs::refuse_rare_flushes(cluster, ranges, now, longest).await?;
    }
    let unknown = answers.iter().filter_map(|(store, answer)| {
        let why = answer.as_ref().err()?;
        Some(format!(
            "whether the log backup of {store} is on could not be read ({why}): without it the \
             checkpoint will stand still"
        ))
    });
    Ok(unknown.collect())
}

fn shown(store: &Store) -> String {
    format!("store {} at {}", store.id, store.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(page: &str) -> Option<(bool, Option<u64>)> {
        let own = parse(page.as_bytes()).ok()?;
        Some((
            own.enable,
            own.max_flush_interval.map(|span| span.as_secs()),
        ))
    }

    #[test]
    fn only_a_configuration_that_says_so_has_a_log_backup() {
        let page = r#"{"log-backup":{"enable":true,"num-threads":4,"max-flush-interval":"2m30s"}}"#;
        assert_eq!(told(page), Some((true, Some(150))));
        for (page, expect) in [
            (r#"{"log-backup":{"enable":false}}"#, Some((false, None))),
            (r#"{"log-backup":{}}"#, Some((false, None))),
            (r#"{"backup":{"enable":true}}"#, Some((false, None))),
            (r#"{"log-backup":{"enable":"true"}}"#, Some((false, None))),
            (
                r#"{"log-backup":{"enable":true,"max-flush-interval":"soon"}}"#,
                Some((true, None)),
            ),
            (
                r#"{"log-backup":{"enable":true,"by-sidecar":true}}"#,
                Some((false, None)),
            ),
            ("[]", Some((false, None))),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(told(page), expect, "{page}");
        }
        assert!(parse(b"\xFF").is_err());
    }
}
