//! What happened, as lines: kept for a replay, and always part of the fingerprint.

use std::fmt;

use sha2::{Digest, Sha256};

/// The lines of a run.
#[derive(Default)]
pub struct Trace {
    hash: Sha256,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// A trace that keeps its lines, or only their hash.
    pub fn new(keep: bool) -> Self {
        Trace {
            hash: Sha256::new(),
            lines: keep.then(Vec::new),
        }
    }

    /// Adds a line.
    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    /// The lines; none if they were not kept.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }

    /// A hash over all lines and then over `objects`: name and bytes of each.
    pub fn fingerprint<'a>(&self, objects: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
        let mut hash = self.hash.clone();
        for (name, bytes) in objects {
            for part in [name.as_bytes(), bytes] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        hex::encode(hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_and_an_object_both_change_the_fingerprint() {
        let of = |line: &str, name: &str, bytes: &[u8]| {
            let mut trace = Trace::new(false);
            trace.note(format_args!("{line}"));
            trace.fingerprint([(name, bytes)].into_iter())
        };
        assert_eq!(of("a", "n", b"1"), of("a", "n", b"1"));
        assert_ne!(of("a", "n", b"1"), of("b", "n", b"1"));
        assert_ne!(of("a", "n", b"1"), of("a", "n", b"2"));
        assert_ne!(of("a", "n", b"1"), of("a", "n1", b""));
    }

    #[test]
    fn lines_are_kept_only_when_asked_for() {
        for (keep, count) in [(true, 1), (false, 0)] {
            let mut trace = Trace::new(keep);
            trace.note(format_args!("x"));
            assert_eq!(trace.take_lines().len(), count);
        }
    }
}
