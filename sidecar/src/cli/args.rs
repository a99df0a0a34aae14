//! Flags that several verbs share, in BR's words.

use std::path::PathBuf;

use clap::Args;
use pitr_cluster::tls::{Security, TlsConfig};
use serde::Serialize;

use super::output;
use crate::cluster::Cluster;
use crate::failure::Failure;

/// How to reach the cluster.
#[derive(Clone, Debug, Args)]
pub struct PdArgs {
    /// Client URLs of PD, separated by commas.
    #[arg(
        short = 'u',
        long = "pd",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    pub pd: Vec<String>,
    /// The CA of a cluster with TLS (PEM): its servers' certificates are checked against it.
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// Our certificate for a cluster with TLS (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// The key of our certificate (PEM, not encrypted).
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
    /// The name that servers' certificates have, where it is not the host that is dialled.
    #[arg(long, value_name = "NAME", requires_all = ["ca", "cert", "key"])]
    tls_domain_name: Option<String>,
}

impl PdArgs {
    /// How connections are made.
    pub fn security(&self) -> Result<Security, Failure> {
        let (Some(ca), Some(cert), Some(key)) = (&self.ca, &self.cert, &self.key) else {
            return Ok(Security::default());
        };
        Ok(Security::load(TlsConfig {
            ca_path: ca.clone(),
            cert_path: cert.clone(),
            key_path: key.clone(),
            domain_name: self.tls_domain_name.clone(),
            ..TlsConfig::default()
        })?)
    }

    /// Connects to the cluster.
    pub async fn connect(&self) -> Result<Cluster, Failure> {
        Cluster::connect(&self.pd, &self.security()?).await
    }
}

/// A task of the cluster.
#[derive(Clone, Debug, Args)]
pub struct TaskArgs {
    /// The cluster.
    #[command(flatten)]
    pub pd: PdArgs,
    /// Name of the task.
    #[arg(long, value_name = "NAME")]
    pub task_name: String,
}

/// Where the archive is.
#[derive(Clone, Debug, Args)]
pub struct StorageArgs {
    /// The archive, for example `local:///backup/log`.
    #[arg(short = 's', long = "storage", value_name = "URL")]
    pub storage: String,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Prints a result to stdout: as one JSON document, or as the text that `text` makes of it.
    pub fn show(
        self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.json {
            true => output::json(document)?,
            false => output::data(&text()),
        }
        Ok(())
    }
}
