//! `serve`: runs the sidecar until a signal. The first SIGTERM or SIGINT makes a last flush, the
//! second ends the process at once.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Outcome;
use crate::codes::Code;
use crate::config::{self, Config};
use crate::failure::{Exit, Failure};
use crate::serve;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = config::help())]
pub struct Args {
    /// The configuration, TOML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the log as JSON, one object a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let config =
        Config::load(&args.config).map_err(|error| super::config::bad(&args.config, &error))?;
    let (stop, stopped) = watch::channel(false);
    let internal = |error: std::io::Error| Failure::from_error(Code::Internal, &error);
    let mut term = signal(SignalKind::terminate()).map_err(internal)?;
    let mut int = signal(SignalKind::interrupt()).map_err(internal)?;
    let serving = serve::serve(config, stopped);
    tokio::pin!(serving);
    let mut signals = 0;
    loop {
        tokio::select! {
            ended = &mut serving => return ended.map(|()| Exit::Ok),
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        signals += 1;
        if signals > 1 {
            return Err(Failure::new(Code::Interrupted, "ended by a second signal")
                .effect("what was not flushed is read again at the next start"));
        }
        tracing::info!("stopping after a last flush; a second signal ends at once");
        // The sidecar may have ended by itself at the same moment.
        let _ = stop.send(true);
    }
}
