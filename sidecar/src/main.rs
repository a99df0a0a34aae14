//! `tikv-pitr`: see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pitr_sidecar::cli::main()
}
