//! The value of the lock column family.
//!
//! Own encoding (nothing outside this process reads locks): a version byte, then the fields in
//! order, integers as LEB128, byte strings with their length in front. The decoder is
//! bounds-checked and never allocates more than it was given, because the directory may have
//! been damaged. Called by every transactional command and by the initial scan of change data.

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::{self, Op};

const VERSION: u8 = 1;
const FLAG_ASYNC_COMMIT: u8 = 1;
const FLAG_SHORT_VALUE: u8 = 2;
const FLAG_LAST_CHANGE: u8 = 4;
const FLAGS_KNOWN: u8 = FLAG_ASYNC_COMMIT | FLAG_SHORT_VALUE | FLAG_LAST_CHANGE;

/// What a lock will do to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Sets a value at commit.
    Put,
    /// Removes the key at commit.
    Delete,
    /// Changes nothing at commit (a lock-only key).
    Lock,
    /// Held by a running pessimistic transaction, not yet prewritten.
    Pessimistic,
}

impl LockKind {
    const fn code(self) -> u8 {
        match self {
            LockKind::Put => b'P',
            LockKind::Delete => b'D',
            LockKind::Lock => b'L',
            LockKind::Pessimistic => b'S',
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            b'P' => LockKind::Put,
            b'D' => LockKind::Delete,
            b'L' => LockKind::Lock,
            b'S' => LockKind::Pessimistic,
            _ => return None,
        })
    }

    /// The kind as the protocol names it.
    pub const fn op(self) -> Op {
        match self {
            LockKind::Put => Op::Put,
            LockKind::Delete => Op::Del,
            LockKind::Lock => Op::Lock,
            LockKind::Pessimistic => Op::PessimisticLock,
        }
    }
}

/// A lock, as the lock column family holds it under the encoded key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// What it does at commit.
    pub kind: LockKind,
    /// User key of the transaction's primary lock.
    pub primary: Bytes,
    /// Start ts of the transaction that holds it.
    pub start_ts: Ts,
    /// Time to live in milliseconds, counted from the physical part of `start_ts`.
    pub ttl: u64,
    /// The value if it has at most 255 bytes; a longer one is in the default column family.
    pub short_value: Option<Bytes>,
    /// Not zero for a pessimistic transaction.
    pub for_update_ts: Ts,
    /// Number of keys of the transaction in this region, as its client told.
    pub txn_size: u64,
    /// The transaction cannot commit below this.
    pub min_commit_ts: Ts,
    /// The transaction is committed as soon as all of its locks exist.
    pub use_async_commit: bool,
    /// User keys of all other locks; only in the primary lock of an async commit.
    pub secondaries: Vec<Bytes>,
    /// Start ts of other transactions that were rolled back on this key while the lock was held;
    /// a commit at one of them has to carry the mark "overlapped rollback".
    pub rollback_ts: Vec<Ts>,
    /// For [`LockKind::Lock`]: commit ts of the newest change below and how many records away.
    pub last_change: Option<(Ts, u64)>,
    /// Origin of the transaction, see `kvrpcpb.Context.txn_source`.
    pub txn_source: u64,
}

/// Why bytes are not a lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lock: {reason}, {left} bytes before the end; the data directory is damaged")]
pub struct LockError {
    /// What is wrong.
    pub reason: &'static str,
    /// Where, counted from the end.
    pub left: usize,
}

impl LockRecord {
    /// A lock without a value and without any of the optional parts.
    pub fn new(kind: LockKind, primary: Bytes, start_ts: Ts, ttl: u64) -> Self {
        LockRecord {
            kind,
            primary,
            start_ts,
            ttl,
            short_value: None,
            for_update_ts: Ts::ZERO,
            txn_size: 0,
            min_commit_ts: Ts::ZERO,
            use_async_commit: false,
            secondaries: Vec::new(),
            rollback_ts: Vec::new(),
            last_change: None,
            txn_source: 0,
        }
    }

    /// Whether the lock is held by a transaction that has not prewritten this key.
    pub fn is_pessimistic(&self) -> bool {
        self.kind == LockKind::Pessimistic
    }

    /// The lock as answers carry it. Source: tikv/tikv `components/txn_types/src/lock.rs`.
    pub fn to_info(&self, raw_key: impl Into<Bytes>) -> kvrpcpb::LockInfo {
        kvrpcpb::LockInfo {
            primary_lock: self.primary.clone(),
            lock_version: self.start_ts.get(),
            key: raw_key.into(),
            lock_ttl: self.ttl,
            txn_size: self.txn_size,
            lock_type: self.kind.op().into(),
            lock_for_update_ts: self.for_update_ts.get(),
            use_async_commit: self.use_async_commit,
            min_commit_ts: self.min_commit_ts.get(),
            secondaries: self.secondaries.clone(),
            ..Default::default()
        }
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(64 + self.primary.len());
        out.push(VERSION);
        out.push(self.kind.code());
        let mut flags = 0;
        flags |= if self.use_async_commit {
            FLAG_ASYNC_COMMIT
        } else {
            0
        };
        flags |= self.short_value.as_ref().map_or(0, |_| FLAG_SHORT_VALUE);
        flags |= self.last_change.map_or(0, |_| FLAG_LAST_CHANGE);
        out.push(flags);
        put_bytes(&mut out, &self.primary);
        for number in [
            self.start_ts.get(),
            self.ttl,
            self.for_update_ts.get(),
            self.txn_size,
            self.min_commit_ts.get(),
            self.txn_source,
        ] {
            put_varint(&mut out, number);
        }
        if let Some(value) = &self.short_value {
            put_bytes(&mut out, value);
        }
        if let Some((ts, versions)) = self.last_change {
            put_varint(&mut out, ts.get());
            put_varint(&mut out, versions);
        }
        put_varint(&mut out, self.secondaries.len() as u64);
        for key in &self.secondaries {
            put_bytes(&mut out, key);
        }
        put_varint(&mut out, self.rollback_ts.len() as u64);
        for ts in &self.rollback_ts {
            put_varint(&mut out, ts.get());
        }
        out.into()
    }

    /// Reads the stored form.
    pub fn parse(bytes: &[u8]) -> Result<Self, LockError> {
        let mut reader = Reader { rest: bytes };
        if reader.byte()? != VERSION {
            return Err(reader.error("unknown version"));
        }
        let Some(kind) = LockKind::of_code(reader.byte()?) else {
            return Err(reader.error("unknown kind"));
        };
        let flags = reader.byte()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(reader.error("unknown flags"));
        }
        let primary = reader.bytes()?;
        let start_ts = reader.ts()?;
        let mut lock = LockRecord::new(kind, primary, start_ts, reader.varint()?);
        lock.for_update_ts = reader.ts()?;
        lock.txn_size = reader.varint()?;
        lock.min_commit_ts = reader.ts()?;
        lock.txn_source = reader.varint()?;
        lock.use_async_commit = flags & FLAG_ASYNC_COMMIT != 0;
        if flags & FLAG_SHORT_VALUE != 0 {
            lock.short_value = Some(reader.bytes()?);
        }
        if flags & FLAG_LAST_CHANGE != 0 {
            lock.last_change = Some((reader.ts()?, reader.varint()?));
        }
        lock.secondaries = reader.list(Reader::bytes)?;
        lock.rollback_ts = reader.list(Reader::ts)?;
        if reader.rest.is_empty() {
            Ok(lock)
        } else {
            Err(reader.error("bytes after the last field"))
        }
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn error(&self, reason: &'static str) -> LockError {
        LockError {
            reason,
            left: self.rest.len(),
        }
    }

    fn byte(&mut self) -> Result<u8, LockError> {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                Ok(*first)
            }
            None => Err(self.error("it ends early")),
        }
    }

    fn varint(&mut self) -> Result<u64, LockError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.error("an integer beyond 64 bits"))
    }

    fn ts(&mut self) -> Result<Ts, LockError> {
        self.varint().map(Ts::new)
    }

    fn bytes(&mut self) -> Result<Bytes, LockError> {
        let len = self.varint()?;
        match usize::try_from(len)
            .ok()
            .and_then(|n| self.rest.split_at_checked(n))
        {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(Bytes::copy_from_slice(bytes))
            }
            None => Err(self.error("a length beyond the end")),
        }
    }

    fn list<T>(
        &mut self,
        item: impl Fn(&mut Self) -> Result<T, LockError>,
    ) -> Result<Vec<T>, LockError> {
        let count = self.varint()?;
        // Every item takes at least one byte.
        if count > self.rest.len() as u64 {
            return Err(self.error("a count beyond the end"));
        }
        (0..count).map(|_| item(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn any_kind() -> impl Strategy<Value = LockKind> {
        prop::sample::select(vec![
            LockKind::Put,
            LockKind::Delete,
            LockKind::Lock,
            LockKind::Pessimistic,
        ])
    }

    prop_compose! {
        fn any_lock()(
            kind in any_kind(),
            primary in any_bytes(),
            numbers in any::<[u64; 6]>(),
            short_value in proptest::option::of(any_bytes()),
            last_change in proptest::option::of(any::<(u64, u64)>()),
            use_async_commit in any::<bool>(),
            secondaries in proptest::collection::vec(any_bytes(), 0..5),
            rollback_ts in proptest::collection::vec(any::<u64>(), 0..5),
        ) -> LockRecord {
            LockRecord {
                kind,
                primary,
                start_ts: Ts::new(numbers[0]),
                ttl: numbers[1],
                short_value,
                for_update_ts: Ts::new(numbers[2]),
                txn_size: numbers[3],
                min_commit_ts: Ts::new(numbers[4]),
                use_async_commit,
                secondaries,
                rollback_ts: rollback_ts.into_iter().map(Ts::new).collect(),
                last_change: last_change.map(|(ts, n)| (Ts::new(ts), n)),
                txn_source: numbers[5],
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_lock_comes_back_as_it_was_written(lock in any_lock()) {
            prop_assert_eq!(LockRecord::parse(&lock.to_bytes()).unwrap(), lock);
        }

        #[test]
        fn every_truncated_lock_is_refused(lock in any_lock(), at in any::<prop::sample::Index>()) {
            let bytes = lock.to_bytes();
            prop_assert!(LockRecord::parse(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = LockRecord::parse(&bytes);
        }
    }

    #[test]
    fn a_count_that_cannot_fit_is_refused_before_anything_is_allocated() {
        let lock = LockRecord::new(LockKind::Put, Bytes::from_static(b"p"), Ts::new(1), 0);
        let mut bytes = lock.to_bytes().to_vec();
        let secondaries_at = bytes.len() - 2;
        bytes.truncate(secondaries_at);
        put_varint(&mut bytes, u64::MAX);
        let error = LockRecord::parse(&bytes).unwrap_err();
        assert_eq!(error.reason, "a count beyond the end");
    }
}
