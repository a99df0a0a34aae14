//! A fault of the archive itself: named by object, never repaired in silence.

use pitr_format::Class;
use pitr_storage::{StorageError, StorageErrorKind};

/// An object of the archive is missing, cut, or does not hold what its metadata says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error(
    "damaged archive: {object}: {what}; restore this object from a copy of the archive, or restore \
     to a time before it was written"
)]
pub struct Damage {
    /// Name of the object, relative to the archive.
    pub object: String,
    /// What is wrong.
    pub what: String,
}

impl Damage {
    /// Damage of `object`.
    pub fn new(object: impl Into<String>, what: impl ToString) -> Self {
        Damage {
            object: object.into(),
            what: what.to_string(),
        }
    }

    /// Damage does not go away.
    pub fn class(&self) -> Class {
        Class::Permanent
    }

    /// The damage behind a failed read of an object that metadata refers to; other failures are
    /// the storage's.
    pub fn from_read(object: &str, error: StorageError) -> Result<Damage, StorageError> {
        match error.kind {
            StorageErrorKind::NotFound => Ok(Damage::new(object, "the object is missing")),
            StorageErrorKind::OutOfRange => {
                let what = format!("the object is truncated: {}", error.detail);
                Ok(Damage::new(object, what))
            }
            _ => Err(error),
        }
    }
}
