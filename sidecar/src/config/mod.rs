//! The configuration of `tikv-pitr serve`: one struct, defaults in one place, each key documented
//! in [`KEYS`]. Read once at start by `cli::serve`; nothing else reads files or the environment.

pub mod effective;
mod keys;
mod schema;
mod security;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::http::uri::Authority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use keys::{KEYS, KeyDoc, help};
pub use schema::schema;
pub use security::SecurityConfig;
pub use units::{ByteSize, Span};

/// What `serve` needs to know. Keys, units and defaults: [`KEYS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Client URLs of PD.
    pub pd_endpoints: Vec<String>,
    /// Who tails the stores.
    #[serde(default)]
    pub source: Source,
    /// The store to tail, by id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_id: Option<u64>,
    /// The store to tail, by the address that PD knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_address: Option<String>,
    /// Where the admin HTTP server listens.
    #[serde(default = "Config::default_status_addr")]
    #[schemars(with = "String")]
    pub status_addr: SocketAddr,
    /// Where others find the admin pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise_status_addr: Option<String>,
    /// Where the front of the store's status address listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub front_status_addr: Option<SocketAddr>,
    /// The store's own status address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_status_addr: Option<String>,
    /// Where the log backup service listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub log_backup_addr: Option<SocketAddr>,
    /// Where others find the log backup service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise_log_backup_addr: Option<String>,
    /// Whether this process stands for election as coordinator.
    #[serde(default = "Config::default_coordinator")]
    pub coordinator: bool,
    /// Lag at which the coordinator pauses a task.
    #[serde(default = "Config::default_pause_lag_limit")]
    pub pause_lag_limit: Span,
    /// How long a checkpoint stands still before the coordinator looks for locks.
    #[serde(default = "Config::default_lock_standstill")]
    pub lock_standstill: Span,
    /// Lag above which the sidecar is not healthy.
    #[serde(default = "Config::default_lag_limit")]
    pub lag_limit: Span,
    /// Memory for rows.
    #[serde(default = "Config::default_memory_budget")]
    pub memory_budget: ByteSize,
    /// Where temporary files go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_path: Option<PathBuf>,
    /// Disk for temporary files.
    #[serde(default = "Config::default_temp_file_quota")]
    pub temp_file_quota: ByteSize,
    /// How the log is written.
    #[serde(default)]
    pub log_backup: LogBackupConfig,
    /// Whether and how the coordinator moves GC.
    #[serde(default)]
    pub gc_driver: GcDriverConfig,
    /// Certificates of a cluster with TLS.
    #[serde(default)]
    pub security: SecurityConfig,
}

/// Who tails the stores and writes the log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A sidecar beside each store, through the change stream.
    #[default]
    Cdc,
    /// TiKV's own log backup; this process only coordinates.
    Builtin,
}

/// `[log-backup]`, with TiKV's item names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LogBackupConfig {
    /// Longest time between two flushes.
    pub max_flush_interval: Span,
    /// Buffered bytes that start a flush early.
    pub file_size_limit: ByteSize,
    /// Threads that sort changes into slices.
    pub num_threads: usize,
}

impl Default for LogBackupConfig {
    fn default() -> Self {
        LogBackupConfig {
            max_flush_interval: Span::from_secs(180),
            file_size_limit: ByteSize::mib(256),
            num_threads: 2,
        }
    }
}

/// `[gc-driver]`, with the words of TiDB's variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GcDriverConfig {
    /// Whether it does.
    pub enable: bool,
    /// What is older than this may go.
    pub life_time: Span,
    /// Time between two rounds.
    pub run_interval: Span,
}

impl Default for GcDriverConfig {
    fn default() -> Self {
        GcDriverConfig {
            enable: false,
            life_time: Span::from_secs(24 * 3600),
            run_interval: Span::from_secs(600),
        }
    }
}

impl GcDriverConfig {
    fn check(&self, log: &LogBackupConfig, coordinator: bool) -> Result<(), ConfigError> {
        let refuse = |key, value: String, rule| Err(ConfigError::Value { key, value, rule });
        if self.life_time < Span::from_secs(600) {
            let value = self.life_time.to_string();
            return refuse("gc-driver.life-time", value, "at least 10m");
        }
        if self.run_interval < Span::from_secs(1) {
            let value = self.run_interval.to_string();
            return refuse("gc-driver.run-interval", value, "at least 1s");
        }
        if self.enable && !coordinator {
            let rule = "needs `coordinator = true`: the elected coordinator moves GC";
            return refuse("gc-driver.enable", "true".to_owned(), rule);
        }
        // What is flushed too late is collected before it is in the archive.
        if self.enable && log.max_flush_interval.get() > self.life_time.get() / 4 {
            let value = log.max_flush_interval.to_string();
            let rule = "at most a quarter of `gc-driver.life-time`";
            return refuse("log-backup.max-flush-interval", value, rule);
        }
        Ok(())
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {message}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}`{}", .nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// As written, with its table.
        key: String,
        /// The most similar key that exists.
        nearest: Option<String>,
    },
    /// Not TOML, a wrong type, or a key that is needed is missing.
    #[error("{0}")]
    Syntax(String),
    /// A value outside of what the key allows.
    #[error("`{key}` = {value}: {rule}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
}

/// The text of a configuration file.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
        path: path.display().to_string(),
        message: error.to_string(),
    })
}

impl Config {
    fn default_status_addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 20190))
    }

    fn default_coordinator() -> bool {
        true
    }

    fn default_pause_lag_limit() -> Span {
        Span::from_secs(48 * 3600)
    }

    fn default_lock_standstill() -> Span {
        Span::from_secs(180)
    }

    fn default_lag_limit() -> Span {
        Span::from_secs(600)
    }

    fn default_memory_budget() -> ByteSize {
        ByteSize::mib(512)
    }

    fn default_temp_file_quota() -> ByteSize {
        ByteSize::mib(8 << 10)
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Config::parse(&read(path)?)
    }

    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax(error.to_string());
        let table: toml::Table = text.parse().map_err(syntax)?;
        keys::check(&table)?;
        let config: Config = toml::from_str(text).map_err(syntax)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: String, rule| Err(ConfigError::Value { key, value, rule });
        if self.pd_endpoints.is_empty() || self.pd_endpoints.iter().any(String::is_empty) {
            let value = format!("{:?}", self.pd_endpoints);
            return refuse(
                "pd-endpoints",
                value,
                "at least one client URL of PD is needed",
            );
        }
        match (self.source, self.store_id, &self.store_address) {
            (_, Some(0), _) => {
                return refuse("store-id", "0".to_owned(), "store ids begin with 1");
            }
            (Source::Cdc, Some(_), None) | (Source::Cdc, None, Some(_)) => {}
            (Source::Builtin, None, None) if self.coordinator => {}
            (Source::Builtin, None, None) => {
                let rule = "with `source = \"builtin\"` there is nothing else to do";
                return refuse("coordinator", "false".to_owned(), rule);
            }
            (Source::Builtin, ..) => {
                let rule = "with `source = \"builtin\"` no store is tailed: leave out `store-id` and `store-address`";
                return refuse("source", "\"builtin\"".to_owned(), rule);
            }
            (Source::Cdc, ..) => {
                return refuse(
                    "store-id",
                    format!(
                        "{:?}, store-address = {:?}",
                        self.store_id, self.store_address
                    ),
                    "exactly one of `store-id` and `store-address` must be given",
                );
            }
        }
        if let Some(address) = &self.store_status_addr
            && !address
                .parse::<Authority>()
                .is_ok_and(|a| a.port().is_some())
        {
            return refuse("store-status-addr", address.clone(), "host:port");
        }
        if self.front_status_addr.is_some() && self.store_status_addr.is_none() {
            let rule = "`front-status-addr` needs it: PD knows the front's address only";
            return refuse("store-status-addr", "none".to_owned(), rule);
        }
        if self.pause_lag_limit < Span::from_secs(60) {
            let value = self.pause_lag_limit.to_string();
            return refuse("pause-lag-limit", value, "at least 1m");
        }
        self.gc_driver.check(&self.log_backup, self.coordinator)?;
        self.security.check()?;
        if self.memory_budget < ByteSize::mib(32) {
            let value = self.memory_budget.to_string();
            return refuse("memory-budget", value, "at least 32MiB");
        }
        let log = &self.log_backup;
        if log.max_flush_interval < Span::from_secs(1) {
            let value = log.max_flush_interval.to_string();
            return refuse("log-backup.max-flush-interval", value, "at least 1s");
        }
        if log.file_size_limit < ByteSize::kib(64) {
            let value = log.file_size_limit.to_string();
            return refuse("log-backup.file-size-limit", value, "at least 64KiB");
        }
        if !(1..=64).contains(&log.num_threads) {
            let value = log.num_threads.to_string();
            return refuse("log-backup.num-threads", value, "1 to 64");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "pd-endpoints = [\"127.0.0.1:2379\"]\nstore-address = \"127.0.0.1:20160\"\n";

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn two_keys_are_enough_and_the_rest_has_defaults() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.log_backup, LogBackupConfig::default());
        assert_eq!(config.status_addr.port(), 20190);
        assert_eq!(config.store_id, None);
        assert_eq!(config.memory_budget, ByteSize::mib(512));
        assert_eq!(config.temp_path, None);
    }

    #[test]
    fn human_units_are_read() {
        let text = format!(
            "{SMALLEST}[log-backup]\nmax-flush-interval = \"1m 30s\"\nfile-size-limit = \"8MiB\"\n"
        );
        let log = Config::parse(&text).unwrap().log_backup;
        assert_eq!(log.max_flush_interval, Span::from_secs(90));
        assert_eq!(log.file_size_limit, ByteSize::mib(8));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert_eq!(
            error(&format!(
                "{SMALLEST}[log-backup]\nmax-flush-intervall = \"3m\"\n"
            )),
            "unknown key `log-backup.max-flush-intervall`, did you mean `log-backup.max-flush-interval`?"
        );
        assert_eq!(
            error(&format!("{SMALLEST}status-adr = \"x\"\n")),
            "unknown key `status-adr`, did you mean `status-addr`?"
        );
        assert_eq!(
            error(&format!("{SMALLEST}[logbackup]\nnum-threads = 1\n")),
            "unknown key `logbackup`, did you mean `log-backup`?"
        );
        assert_eq!(
            error(&format!("{SMALLEST}xyzzy = 1\n")),
            "unknown key `xyzzy`"
        );
    }

    #[test]
    fn values_outside_of_their_limits_are_refused_with_the_rule() {
        let with = |line: &str| format!("{SMALLEST}[log-backup]\n{line}\n");
        assert!(error(&with("max-flush-interval = \"500ms\"")).contains("at least 1s"));
        assert!(error(&with("file-size-limit = \"1KiB\"")).contains("at least 64KiB"));
        assert!(error(&with("num-threads = 0")).contains("1 to 64"));
        assert!(error(&with("max-flush-interval = \"soon\"")).contains("soon"));
        assert!(error("pd-endpoints = []\nstore-id = 1\n").contains("client URL of PD"));
        assert!(error("pd-endpoints = [\"a\"]\n").contains("exactly one of"));
        assert!(
            error("pd-endpoints = [\"a\"]\nstore-id = 1\nstore-address = \"b\"\n")
                .contains("exactly one")
        );
        assert!(error("store-id = 1\n").contains("pd"));
        let front = |lines: &str| error(&format!("{SMALLEST}{lines}"));
        assert!(front("front-status-addr = \"127.0.0.1:1\"").contains("needs it"));
        assert!(front("store-status-addr = \"tikv\"").contains("host:port"));
        let small = error(&format!("memory-budget = \"31MiB\"\n{SMALLEST}"));
        assert!(small.contains("at least 32MiB"), "{small}");
        let builtin = "pd-endpoints = [\"a\"]\nsource = \"builtin\"\n";
        assert!(Config::parse(builtin).is_ok());
        assert!(error(&format!("{builtin}store-id = 1\n")).contains("leave out"));
        assert!(error(&format!("{builtin}coordinator = false\n")).contains("nothing else"));
        let small = error(&format!("pause-lag-limit = \"59s\"\n{SMALLEST}"));
        assert!(small.contains("at least 1m"), "{small}");
    }

    #[test]
    fn gc_is_driven_by_a_coordinator_only_and_leaves_time_for_flushes() {
        let with = |lines: &str| format!("{SMALLEST}{lines}");
        assert!(!Config::parse(SMALLEST).unwrap().gc_driver.enable);
        let enabled = "[gc-driver]\nenable = true\nlife-time = \"1h\"\n";
        assert!(Config::parse(&with(enabled)).is_ok());
        assert!(error(&with("[gc-driver]\nlife-time = \"9m\"\n")).contains("at least 10m"));
        assert!(error(&with("[gc-driver]\nrun-interval = \"0s\"\n")).contains("at least 1s"));
        let alone = with(&format!("coordinator = false\n{enabled}"));
        assert!(error(&alone).contains("elected coordinator"));
        let flush = |interval: &str| {
            let log = format!("[log-backup]\nmax-flush-interval = \"{interval}\"\n");
            with(&format!("{enabled}{log}"))
        };
        assert!(Config::parse(&flush("15m")).is_ok());
        assert!(error(&flush("16m")).contains("a quarter"));
    }

    #[test]
    fn the_table_of_keys_and_the_struct_agree() {
        let mut config = Config::parse(SMALLEST).unwrap();
        config.store_id = Some(1);
        config.temp_path = Some("/tmp/x".into());
        config.advertise_status_addr = Some("a:1".to_owned());
        config.front_status_addr = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        config.store_status_addr = Some("a:1".to_owned());
        config.log_backup_addr = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        config.advertise_log_backup_addr = Some("a:2".to_owned());
        config.security = SecurityConfig {
            ca_path: Some("/ca".into()),
            cert_path: Some("/cert".into()),
            key_path: Some("/key".into()),
            domain_name: Some("tikv".to_owned()),
            ..SecurityConfig::default()
        };
        let written = toml::Table::try_from(&config).unwrap();
        let mut found = Vec::new();
        keys::walk(&written, "", &mut |key, _| found.push(key.to_owned()));
        let mut documented: Vec<String> = KEYS.iter().map(|k| k.key.to_owned()).collect();
        found.sort();
        documented.sort();
        assert_eq!(found, documented);
        for doc in KEYS {
            if let Some(default) = doc.default {
                let value = lookup(&written, doc.key);
                assert_eq!(value, default, "default of {}", doc.key);
            }
        }
    }

    fn lookup(table: &toml::Table, key: &str) -> String {
        let mut found = String::new();
        keys::walk(table, "", &mut |k, value| {
            if k == key {
                found = match value {
                    toml::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
            }
        });
        found
    }
}
