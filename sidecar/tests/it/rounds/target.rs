//! An empty cluster that an archive is restored into.

use std::time::Duration;

use pitr_playground::{Playground, PlaygroundConfig};
use tempfile::TempDir;

use crate::command::{Ran, tikv_pitr};

/// A cluster in this process.
pub struct Target {
    playground: Playground,
    _dir: TempDir,
}

impl Target {
    /// An empty cluster.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = PlaygroundConfig {
            resolved_ts_interval: Duration::from_millis(500),
            ..PlaygroundConfig::new(dir.path().join("data"))
        };
        Target {
            playground: Playground::start(config).unwrap(),
            _dir: dir,
        }
    }

    /// Address of PD.
    pub fn pd(&self) -> String {
        self.playground.pd_addr().to_string()
    }

    /// `restore point --restored-ts latest`.
    pub fn restore(&self, archive: &str) -> Ran {
        let pd = self.pd();
        let to = ["--restored-ts", "latest", "--json"];
        let mut args = vec!["restore", "point", "-u", &pd, "-s", archive];
        args.extend(to);
        tokio::task::block_in_place(|| tikv_pitr(&args))
    }

    /// Keys that a reader sees now.
    pub fn keys(&self) -> u64 {
        let pd = self.pd();
        let seen =
            tokio::task::block_in_place(|| tikv_pitr(&["verify", "scan", "-u", &pd, "--json"]));
        seen.json()["keys"].as_u64().unwrap()
    }
}
