//! Every key of the configuration with its unit, default and meaning; and the check that names
//! the nearest key when one is misspelt.

use super::ConfigError;

/// What a user wants to know about one key.
#[derive(Clone, Copy, Debug)]
pub struct KeyDoc {
    /// Path of the key, tables joined with dots.
    pub key: &'static str,
    /// Type and unit.
    pub unit: &'static str,
    /// Default as it would be written; `None` = must be given, or has none.
    pub default: Option<&'static str>,
    /// Meaning, limits and cost.
    pub doc: &'static str,
}

/// All keys.
pub const KEYS: &[KeyDoc] = &[
    KeyDoc {
        key: "pd-endpoints",
        unit: "list of URLs",
        default: None,
        doc: "Client URLs of PD, `host:port`, with or without `http://` or `https://`: whether TLS is spoken is a matter of `security`. One is enough; more survive the loss of one.",
    },
    KeyDoc {
        key: "source",
        unit: "cdc or builtin",
        default: Some("cdc"),
        doc: "Who tails the stores and writes the log: `cdc`, a process like this beside each store; `builtin`, TiKV's own log backup (`log-backup.enable = true` there), for which one process like this coordinates, without a store of its own. `log-backup.max-flush-interval` is then that of TiKV.",
    },
    KeyDoc {
        key: "store-id",
        unit: "integer",
        default: None,
        doc: "The store to tail, by id. Give this or `store-address`.",
    },
    KeyDoc {
        key: "store-address",
        unit: "host:port",
        default: None,
        doc: "The store to tail, by the address that PD knows; its id is asked from PD.",
    },
    KeyDoc {
        key: "status-addr",
        unit: "ip:port",
        default: Some("127.0.0.1:20190"),
        doc: "Where the admin pages are served: /, /status.json, /metrics, /healthz, /readyz, /config, /loglevel.",
    },
    KeyDoc {
        key: "advertise-status-addr",
        unit: "host:port",
        default: None,
        doc: "Where others find the admin pages, told in PD's etcd. Without it: `status-addr`, with the host of the store's address if that listens on every address.",
    },
    KeyDoc {
        key: "front-status-addr",
        unit: "ip:port",
        default: None,
        doc: "Where a reverse proxy before the store's status address listens: it passes everything to `store-status-addr`, says `log-backup.enable = true` in /config and adds the log backup metrics of this process to /metrics. Stock `br log start` and `br log status` need it where TiKV's own log backup is off; make it the store's `advertise-status-addr`. Without it there is none.",
    },
    KeyDoc {
        key: "store-status-addr",
        unit: "host:port",
        default: None,
        doc: "The store's own status address, behind `front-status-addr`. Needed with `front-status-addr`.",
    },
    KeyDoc {
        key: "log-backup-addr",
        unit: "ip:port",
        default: None,
        doc: "Where the log backup service (gRPC) is served, which tells the coordinator, TiDB or `br log advancer` what is durable here. Without it: the address of `status-addr` and a free port, which is told in PD's etcd.",
    },
    KeyDoc {
        key: "advertise-log-backup-addr",
        unit: "host:port",
        default: None,
        doc: "Where others find the log backup service. Without it: where it listens, with the host of the store's address if that is every address.",
    },
    KeyDoc {
        key: "coordinator",
        unit: "boolean",
        default: Some("true"),
        doc: "Whether this process stands for election as coordinator of the checkpoints. One of all candidates leads, a TiDB or `br log advancer` among them.",
    },
    KeyDoc {
        key: "pause-lag-limit",
        unit: "duration",
        default: Some("2days"),
        doc: "Lag at which the coordinator pauses a task, so that GC is not held for ever; at least 1m. It warns from a quarter of it on, and asks every store to flush from half of it on. A task that is resumed with a larger lag has a quarter of the limit to catch up.",
    },
    KeyDoc {
        key: "lock-standstill",
        unit: "duration",
        default: Some("3m"),
        doc: "With `source = \"builtin\"`: how long a checkpoint stands still before the coordinator resolves the locks that hold it, those whose transactions are dead.",
    },
    KeyDoc {
        key: "lag-limit",
        unit: "duration",
        default: Some("10m"),
        doc: "Lag above which /healthz says no.",
    },
    KeyDoc {
        key: "memory-budget",
        unit: "bytes",
        default: Some("512MiB"),
        doc: "Memory for rows on their way from the store into the archive: queues, slices, compression, uploads; at least 32MiB. The process needs up to 64MiB more. What has no room goes to temporary files, then subscriptions are given back and scanned again.",
    },
    KeyDoc {
        key: "temp-path",
        unit: "path",
        default: None,
        doc: "Directory for temporary files, of this sidecar alone; what a dead one left there is removed at start. Without it: `tikv-pitr-store-ID.N` in the system's temporary directory. A file system in memory defeats its purpose.",
    },
    KeyDoc {
        key: "temp-file-quota",
        unit: "bytes",
        default: Some("8GiB"),
        doc: "Disk for temporary files, used while the storage is slower than the store or away.",
    },
    KeyDoc {
        key: "log-backup.max-flush-interval",
        unit: "duration",
        default: Some("3m"),
        doc: "Longest time between two flushes; at least 1s. Shorter = smaller loss window, more objects: each flush writes at least one.",
    },
    KeyDoc {
        key: "log-backup.file-size-limit",
        unit: "bytes",
        default: Some("256MiB"),
        doc: "Buffered plaintext that starts a flush before its time, and the size at which merged objects are cut; at least 64KiB. Memory grows with it.",
    },
    KeyDoc {
        key: "log-backup.num-threads",
        unit: "integer",
        default: Some("2"),
        doc: "Threads that sort changes into slices; 1 to 64.",
    },
    KeyDoc {
        key: "gc-driver.enable",
        unit: "boolean",
        default: Some("false"),
        doc: "Whether the elected coordinator moves GC. Only for clusters in which nobody else may: no TiDB (refused while one is registered), and every JuiceFS mount with `gc-interval=0`. It never passes a checkpoint, a service safepoint or a barrier. Locks older than `gc-driver.life-time` are rolled back, alive or not. The same on every sidecar: any of them may be elected.",
    },
    KeyDoc {
        key: "gc-driver.life-time",
        unit: "duration",
        default: Some("1day"),
        doc: "Versions that were replaced longer ago than this may be removed; at least 10m, and four times `log-backup.max-flush-interval`. A sidecar that is away for longer breaks its task, unless its safepoint still holds.",
    },
    KeyDoc {
        key: "gc-driver.run-interval",
        unit: "duration",
        default: Some("10m"),
        doc: "Time between two rounds of GC; at least 1s.",
    },
    KeyDoc {
        key: "security.ca-path",
        unit: "path",
        default: None,
        doc: "The CA of a cluster with TLS (PEM). With it everything is encrypted: PD, the stores, and what this process serves, which then asks for a certificate of the same CA. Changed files are used for new connections, without a restart. Needed with `security.cert-path` and `security.key-path`; without the three nothing is encrypted.",
    },
    KeyDoc {
        key: "security.cert-path",
        unit: "path",
        default: None,
        doc: "Our certificate (PEM), shown to servers and clients. It must name the hosts under which this process is dialled, and its common name must be among the `cert-allowed-cn` of TiKV, where that is set.",
    },
    KeyDoc {
        key: "security.key-path",
        unit: "path",
        default: None,
        doc: "The key of our certificate (PEM, not encrypted).",
    },
    KeyDoc {
        key: "security.cert-allowed-cn",
        unit: "list of names",
        default: Some("[]"),
        doc: "Common names of the clients that this process serves; empty = everyone with a certificate of the CA.",
    },
    KeyDoc {
        key: "security.domain-name",
        unit: "host name",
        default: None,
        doc: "The name that the certificates of PD and the stores have, where it is not the host that is dialled. Certificates are always checked.",
    },
];

/// All keys with unit, default and meaning, for `--help`.
pub fn help() -> String {
    let mut out = String::from("Keys of the configuration:\n");
    for KeyDoc {
        key,
        unit,
        default,
        doc,
    } in KEYS
    {
        let default = default
            .map(|d| format!(", default {d}"))
            .unwrap_or_default();
        out.push_str(&format!("\n  {key} ({unit}{default})\n      {doc}\n"));
    }
    out
}

/// How different a key may be and still be suggested: edits per length.
const SIMILAR_ENOUGH: f64 = 0.6;

/// Refuses the first key that does not exist.
pub(super) fn check(table: &toml::Table) -> Result<(), ConfigError> {
    let mut unknown = None;
    walk(table, "", &mut |key, _| {
        if unknown.is_none() && !KEYS.iter().any(|doc| doc.key == key) {
            unknown = Some(first_unknown_part(key));
        }
    });
    match unknown {
        None => Ok(()),
        Some(key) => Err(ConfigError::UnknownKey {
            nearest: nearest(&key),
            key,
        }),
    }
}

/// Calls `visit` with the path and the value of every leaf; an empty table counts as a leaf.
pub(super) fn walk(table: &toml::Table, prefix: &str, visit: &mut dyn FnMut(&str, &toml::Value)) {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => {
                walk(inner, &format!("{path}."), visit);
            }
            toml::Value::Table(_) if is_table(&path) => {}
            _ => visit(&path, value),
        }
    }
}

/// The table's name when the table itself is unknown, else the whole path.
fn first_unknown_part(key: &str) -> String {
    match key.split_once('.') {
        Some((table, _)) if !is_table(table) => table.to_owned(),
        _ => key.to_owned(),
    }
}

fn is_table(name: &str) -> bool {
    KEYS.iter().any(|doc| {
        doc.key
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn nearest(key: &str) -> Option<String> {
    let tables = KEYS
        .iter()
        .filter_map(|doc| doc.key.split_once('.').map(|(table, _)| table));
    KEYS.iter()
        .map(|doc| doc.key)
        .chain(tables)
        .map(|known| (strsim::normalized_damerau_levenshtein(key, known), known))
        .filter(|(similar, _)| *similar >= SIMILAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_the_readme_has_every_key_as_it_is_here_and_no_other() {
        let readme = include_str!("../../../README.md");
        let row = |doc: &KeyDoc| {
            let default = doc.default.map_or("–".to_owned(), |d| format!("`{d}`"));
            format!("| `{}` | {} | {default} | {} |", doc.key, doc.unit, doc.doc)
        };
        let section = readme.split("## Configuration").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows: Vec<_> = section.lines().filter(|l| l.starts_with("| `")).collect();
        assert_eq!(rows, KEYS.iter().map(row).collect::<Vec<_>>());
    }
}
