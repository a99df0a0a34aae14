//! Replays seeds of the simulation: the same seed gives the same run, byte for byte.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pitr_sim::{Outcome, play};

#[derive(Parser)]
#[command(
    name = "pitr-sim",
    about = "Deterministic simulation of the write side"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Play one seed again
    Replay {
        /// The seed that a test printed
        seed: u64,
        /// Show every step
        #[arg(long)]
        trace: bool,
    },
    /// Play many seeds, until one fails
    Run {
        /// How many
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first one
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
}

fn main() -> ExitCode {
    match Args::parse().verb {
        Verb::Replay { seed, trace } => one(seed, trace),
        Verb::Run { seeds, from } => {
            for seed in from..from.saturating_add(seeds) {
                if let (_, Err(error)) = play(seed, None, false) {
                    println!("seed {seed}: {error}");
                    return ExitCode::FAILURE;
                }
            }
            println!("{seeds} seeds from {from} hold");
            ExitCode::SUCCESS
        }
    }
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let (outcome, result) = play(seed, None, trace);
    for line in &outcome.trace {
        println!("{line}");
    }
    let Outcome {
        fingerprint,
        checkpoints,
        metas,
        crashes,
        failed_flushes,
        refused,
        faults,
        restored,
        ..
    } = outcome;
    println!(
        "seed {seed}: {metas} metas, {checkpoints} checkpoints, {crashes} crashes, {faults} faults, \
         {failed_flushes} failed flushes, {refused} refused events, {restored} records restored"
    );
    println!("fingerprint {fingerprint}");
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}
