//! Bytes of the archive, and the proof that they are the right ones.
//!
//! Called by restore, verify and the service.

use std::time::Duration;

use bytes::Bytes;
use pitr_env::Clock;
use pitr_format::Class;
use pitr_format::slice::verify_slice;
use pitr_storage::{Storage, StorageError};

use crate::damage::Damage;
use crate::plan::{Read, Slice};

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The archive is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The storage failed, repeatedly if a repetition could help.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl FetchError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            FetchError::Damage(e) => e.class(),
            FetchError::Storage(e) => e.class(),
        }
    }
}

/// Longest wait that another side can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Waits between attempts: doubling from 100 ms to at most 2 s.
pub(crate) async fn back_off(clock: &dyn Clock, attempt: u32) {
    back_off_as_asked(clock, attempt, None).await;
}

/// The same, but not shorter than the other side `asked` for (up to a minute).
pub(crate) async fn back_off_as_asked(clock: &dyn Clock, attempt: u32, asked: Option<Duration>) {
    let ms = 100u64.saturating_mul(1 << attempt.min(5)).min(2_000);
    let asked = asked.unwrap_or_default().min(LONGEST_WAIT);
    clock.sleep(Duration::from_millis(ms).max(asked)).await;
}

/// Reads a small object whole, up to `attempts` times.
pub async fn get(
    storage: &dyn Storage,
    clock: &dyn Clock,
    path: &str,
    attempts: u32,
) -> Result<Bytes, StorageError> {
    let mut attempt = 0;
    loop {
        match storage.get(path).await {
            Err(e) if e.class() == Class::Retry && attempt + 1 < attempts => {
                tracing::info!(object = path, attempt, error = %e, "read is repeated");
                back_off(clock, attempt).await;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

/// Reads the bytes of one request, up to `attempts` times.
pub async fn fetch(
    storage: &dyn Storage,
    clock: &dyn Clock,
    read: &Read,
    attempts: u32,
) -> Result<Bytes, FetchError> {
    let mut attempt = 0;
    loop {
        let result = match &read.range {
            Some(range) => storage.get_range(&read.object, range.clone()).await,
            None => storage.get(&read.object).await,
        };
        match result {
            Ok(bytes) => return complete(read, bytes).map_err(FetchError::Damage),
            Err(e) if e.class() == Class::Retry && attempt + 1 < attempts => {
                tracing::info!(object = %read.object, attempt, error = %e, "read is repeated");
                back_off(clock, attempt).await;
                attempt += 1;
            }
            Err(e) => return Err(Damage::from_read(&read.object, e)?.into()),
        }
    }
}

fn complete(read: &Read, bytes: Bytes) -> Result<Bytes, Damage> {
    match &read.range {
        Some(range) if bytes.len() as u64 != range.end - range.start => {
            let (got, want) = (bytes.len(), range.end - range.start);
            let what = format!("got {got} bytes instead of the {want} at {}", range.start);
            Err(Damage::new(&read.object, what))
        }
        _ => Ok(bytes),
    }
}

/// The plaintext of a slice out of the bytes of its request, after all checks.
pub fn open_slice(
    read: &Read,
    slice: &Slice,
    bytes: &[u8],
    max_plain: u64,
) -> Result<Vec<u8>, Damage> {
    let info = &slice.info;
    let at = format!("slice at offset {} ({} CF)", info.range_offset, slice.cf);
    let damage = |what: &dyn std::fmt::Display| Damage::new(&slice.object, format!("{at}: {what}"));
    let Some(range) = &read.range else {
        return verify_slice(info, bytes, max_plain).map_err(|e| damage(&e));
    };
    let from = (info.range_offset - range.start) as usize;
    let stored = bytes
        .get(from..from + info.range_length as usize)
        .ok_or_else(|| damage(&"the object ends inside it"))?;
    verify_slice(info, stored, max_plain).map_err(|e| damage(&e))
}
