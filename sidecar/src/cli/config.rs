//! `config check`, `config show`, `config schema`: what a configuration file means, without
//! starting anything.

use std::path::{Path, PathBuf};

use pitr_cluster::tls::{Security, Standing};
use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::OutputArgs;
use crate::codes::Code;
use crate::config::effective::{self, Setting, Source};
use crate::config::{self, Config, ConfigError};
use crate::failure::{Exit, Failure};
use crate::time;

/// Arguments of `config check` and `config show`.
#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// The configuration, TOML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `config schema`.
#[derive(Debug, clap::Args)]
pub struct SchemaArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// A configuration that can be used; one that cannot is a failure.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checked {
    /// The file.
    file: String,
    /// What works but may not be meant.
    warnings: Vec<String>,
}

/// The configuration in effect.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Shown {
    /// The file.
    file: String,
    /// Every key there is.
    settings: Vec<Setting>,
}

/// Runs `config check`.
pub fn check(args: FileArgs) -> Outcome {
    let config = Config::load(&args.config).map_err(|error| bad(&args.config, &error))?;
    let security = config.security.load()?;
    let report = Checked {
        file: args.config.display().to_string(),
        warnings: warnings(&config, &security),
    };
    args.output.show(&report, || {
        let mut lines = vec![format!("{}: good", report.file)];
        lines.extend(
            report
                .warnings
                .iter()
                .map(|text| format!("warning: {text}")),
        );
        lines.join("\n")
    })?;
    Ok(Exit::Ok)
}

/// Runs `config show`.
pub fn show(args: FileArgs) -> Outcome {
    let refused = |error: ConfigError| bad(&args.config, &error);
    let text = config::read(&args.config).map_err(refused)?;
    let report = Shown {
        file: args.config.display().to_string(),
        settings: effective::of_file(&text).map_err(refused)?,
    };
    args.output.show(&report, || table(&report))?;
    Ok(Exit::Ok)
}

/// Runs `config schema`.
pub fn schema(args: SchemaArgs) -> Outcome {
    let schema = config::schema();
    args.output.show(&schema, || format!("{schema:#}"))?;
    Ok(Exit::Ok)
}

/// The failure of a file that cannot be used.
pub(super) fn bad(file: &Path, error: &ConfigError) -> Failure {
    Failure::from_error(Code::BadConfig, error).at(file.display().to_string())
}

fn warnings(config: &Config, security: &Security) -> Vec<String> {
    let mut found = Vec::new();
    if !security.is_on() && !config.status_addr.ip().is_loopback() {
        found.push(format!(
            "`status-addr` = {}: everybody who reaches it can read the status and change the log \
             level",
            config.status_addr
        ));
    }
    if let Some(standing) = security.standing().filter(Standing::ends_soon) {
        found.push(format!(
            "`security.cert-path`: the certificate ends {}",
            time::utc_second(standing.not_after)
        ));
    }
    if config.pd_endpoints.len() == 1 {
        let text = "`pd-endpoints` names one member: the sidecar cannot start while it is away";
        found.push(text.to_owned());
    }
    found
}

fn table(report: &Shown) -> String {
    let width = |text: fn(&Setting) -> usize| report.settings.iter().map(text).max();
    let key = width(|setting| setting.key.len()).unwrap_or_default();
    let value = width(|setting| setting.value.as_ref().map_or(1, String::len)).unwrap_or_default();
    let line = |setting: &Setting| {
        let source = match (setting.source, setting.line) {
            (Source::File, Some(line)) => format!("{}:{line}", report.file),
            (Source::File, None) => report.file.clone(),
            (Source::Default, _) => "default".to_owned(),
            (Source::Unset, _) => "not set".to_owned(),
        };
        let shown = setting.value.as_deref().unwrap_or("-");
        format!("{:key$}  {shown:value$}  {source}", setting.key)
    };
    report
        .settings
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}
