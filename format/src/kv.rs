//! One change of a column family: what the log stores and what restore writes.

use std::fmt;

use bytes::Bytes;

/// The column families that the log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// Values longer than 255 bytes, keyed by start ts.
    Default,
    /// Write records, keyed by commit ts.
    Write,
}

impl Cf {
    /// The name in files and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cf::Default => "default",
            Cf::Write => "write",
        }
    }

    /// The reverse of [`Cf::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "default" => Some(Cf::Default),
            "write" => Some(Cf::Write),
            _ => None,
        }
    }
}

impl fmt::Display for Cf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the change puts or deletes the key of the column family. (Deleting a *user* key is a
/// put of a write record of type `D`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// Set the value.
    Put,
    /// Remove the key; the value is empty.
    Delete,
}

/// One record of the log, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvRecord {
    /// Column family.
    pub cf: Cf,
    /// Put or delete.
    pub op: OpKind,
    /// Versioned key: encoded user key + `!ts`, no `z`.
    pub key: Bytes,
    /// Value of the column family; empty for a delete.
    pub value: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_family_names_read_back_and_others_are_refused() {
        for cf in [Cf::Default, Cf::Write] {
            assert_eq!(Cf::parse(cf.as_str()), Some(cf));
        }
        for other in ["", "lock", "raft", "Write"] {
            assert_eq!(Cf::parse(other), None);
        }
    }
}
