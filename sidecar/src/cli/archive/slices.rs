//! Reads slices one by one and proves each before anything of it is shown. At most one slice, as
//! stored and in plaintext, is in memory.

use std::ops::ControlFlow;

use pitr_env::SystemClock;
use pitr_format::record::RecordIter;
use pitr_proto::backup::FileType;
use pitr_restore_worker::Damage;
use pitr_restore_worker::fetch::{FetchError, fetch, open_slice};
use pitr_restore_worker::plan::{Read, Slice};
use pitr_storage::SharedStorage;

use super::record::Op;
use crate::codes::Code;
use crate::failure::Failure;

/// Largest slice that is read, stored or in plaintext.
const MAX_SLICE: u64 = 1 << 30;
/// Attempts of one read.
const ATTEMPTS: u32 = 5;

/// Whether the slice holds puts or deletes of its column family.
pub(super) fn op(slice: &Slice) -> Op {
    match slice.info.r#type == FileType::Delete as i32 {
        true => Op::Delete,
        false => Op::Put,
    }
}

/// The plaintext of a slice after all checks, or what is wrong with it.
pub(super) async fn open(
    storage: &SharedStorage,
    slice: &Slice,
) -> Result<Result<Vec<u8>, Damage>, Failure> {
    let read = match request(storage, slice).await? {
        Ok(read) => read,
        Err(damage) => return Ok(Err(damage)),
    };
    let bytes = match fetch(storage.as_ref(), &SystemClock::new(), &read, ATTEMPTS).await {
        Ok(bytes) => bytes,
        Err(FetchError::Damage(damage)) => return Ok(Err(damage)),
        Err(FetchError::Storage(error)) => return Err(error.into()),
    };
    let slice = slice.clone();
    let check = tokio::task::spawn_blocking(move || open_slice(&read, &slice, &bytes, MAX_SLICE));
    check
        .await
        .map_err(|error| Failure::from_error(Code::Internal, &error))
}

/// The bytes to ask for; a length from outside is checked before it is believed.
async fn request(storage: &SharedStorage, slice: &Slice) -> Result<Result<Read, Damage>, Failure> {
    let damage = |what: &str| Ok(Err(Damage::new(&slice.object, what)));
    let (from, mut len) = (slice.info.range_offset, slice.info.range_length);
    let whole = len == 0;
    if whole {
        // The first layout: an object is one slice and its stored length is not recorded.
        match storage.head(&slice.object).await? {
            Some(found) => len = found.size,
            None => return damage("the object is missing"),
        }
    }
    let Some(end) = from.checked_add(len) else {
        return damage("a slice ends beyond 2^64 bytes");
    };
    if len > MAX_SLICE {
        return damage("a slice is larger than 1 GiB");
    }
    Ok(Ok(Read {
        object: slice.object.clone(),
        range: (!whole).then_some(from..end),
        slices: vec![slice.clone()],
    }))
}

/// Shows the offset, key and value of every record of a proved slice, until told to stop.
pub(super) fn each_record(
    slice: &Slice,
    plain: &[u8],
    mut show: impl FnMut(usize, &[u8], &[u8]) -> Result<ControlFlow<()>, String>,
) -> Result<(), Damage> {
    let damage = |what: String| Damage::new(&slice.object, what);
    let mut records = RecordIter::new(plain);
    loop {
        let offset = records.offset();
        let Some(record) = records.next() else {
            return Ok(());
        };
        let (key, value) = record.map_err(|error| damage(error.to_string()))?;
        if show(offset, key, value).map_err(damage)?.is_break() {
            return Ok(());
        }
    }
}
