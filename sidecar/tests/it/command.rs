//! Runs the binary and looks at what it said.

use std::process::{Command, Output};

/// What a run of `tikv-pitr` gave.
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Ran {
    /// Checks the code and that stderr contains each text.
    #[track_caller]
    pub fn fails_with(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in {}", self.stderr);
        }
    }

    /// Checks that it went well and gives its JSON document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }
}

/// Runs the binary with these arguments to its end.
pub fn tikv_pitr(args: &[&str]) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(args)
        .env("TIKV_PITR_LOG", "warn")
        .output()
        .expect("the binary starts");
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}
