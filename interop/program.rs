//! Where the program of a real peer lies, as `make interop-build` made it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Without the program a test says so and is left out, but in CI that is a failure.
pub fn program(peer: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/interop");
    let asked = Command::new(&script).args(["path", peer]).output().unwrap();
    if asked.status.success() {
        let path = String::from_utf8(asked.stdout).unwrap();
        return Some(PathBuf::from(path.trim()));
    }
    let reason = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci.is_empty()),
        "CI needs the real {peer}: {reason}"
    );
    eprintln!("skipped, no real {peer}: {reason}");
    None
}
