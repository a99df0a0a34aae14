//! Where output goes: data to stdout, everything else to stderr.

use std::fmt::Display;
use std::io::{BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

use crate::codes::Code;
use crate::failure::Failure;

/// Prints one line (or block) of data to stdout. A closed pipe is the reader's choice, not an
/// error.
pub fn data(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints something that is not data to stderr.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints one JSON document to stdout.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::from_error(Code::Internal, &error))?;
    data(&text);
    Ok(())
}

/// Prints one JSON document to stdout as one line, for streams of them.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::from_error(Code::Internal, &error))?;
    data(&text);
    Ok(())
}

/// Data line by line, for verbs that print more than fits into memory.
pub struct Lines {
    out: BufWriter<Stdout>,
    json: bool,
    closed: bool,
}

impl Lines {
    /// Prints documents as JSON, or as the text they have.
    pub fn new(json: bool) -> Self {
        Lines {
            out: BufWriter::new(std::io::stdout()),
            json,
            closed: false,
        }
    }

    /// Prints one document as one line. A closed pipe is the reader's choice: see [`Lines::closed`].
    pub fn print(&mut self, document: &(impl Serialize + Display)) -> Result<(), Failure> {
        let written = match self.json {
            true => {
                let text = serde_json::to_string(document)
                    .map_err(|error| Failure::from_error(Code::Internal, &error))?;
                writeln!(self.out, "{text}")
            }
            false => writeln!(self.out, "{document}"),
        };
        self.closed |= written.is_err();
        Ok(())
    }

    /// Whether nobody reads any more, so that the verb may end.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Gives everything to the reader, for example before something is said on stderr.
    pub fn flush(&mut self) {
        self.closed |= self.out.flush().is_err();
    }
}

/// Begins a new screen if stdout is a terminal, else a new paragraph.
pub fn new_screen() {
    match std::io::stdout().is_terminal() {
        true => data("\x1b[2J\x1b[H"),
        false => data(""),
    }
}

/// Prints a failure to stderr: four lines for people, or one line of JSON, always the last.
pub fn failure(failure: &Failure, as_json: bool) {
    match as_json {
        // A struct of texts and numbers always has a JSON form.
        true => say(&serde_json::to_string(&failure.document()).unwrap_or_default()),
        false => say(&failure.to_string()),
    }
}

/// Whether stderr is a terminal that may be drawn and coloured on (`NO_COLOR` says no).
pub fn lively_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `1.5 MiB`, `2.0 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// MB a second of `n` bytes in `elapsed`.
pub fn mb_per_second(n: u64, elapsed: std::time::Duration) -> f64 {
    n as f64 / 1e6 / elapsed.as_secs_f64().max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_with_one_decimal_in_the_fitting_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(bytes(5000 << 40), "5000.0 TiB");
    }

    #[test]
    fn speed_survives_a_zero_duration() {
        assert!(mb_per_second(1_000_000, std::time::Duration::ZERO).is_finite());
    }
}
