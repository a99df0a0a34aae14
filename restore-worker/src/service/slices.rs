//! From a `KVMeta` to proven plaintext: range read, encrypted digest, decryption, decompression,
//! length, plaintext digest, framing; in the order of TiKV (tikv/tikv `components/
//! external_storage/src/lib.rs`), but also for what comes out of the cache.

use std::sync::Arc;

use bytes::Bytes;
use pitr_budget::Reservation;
use pitr_format::compress::decompress;
use pitr_format::record::RecordIter;
use pitr_proto::backup::{CipherInfo, CompressionType};
use pitr_proto::import_sstpb::KvMeta;
use pitr_storage::StorageError;
use sha2::{Digest, Sha256};

use super::cache::{CachedSlice, SliceCache, SliceKey};
use super::cipher::{self, CipherKey};
use super::error::{ImportError, Reading};
use super::speed::SpeedLimits;
use super::storages::Opened;
use crate::env::Env;

/// What reads slices of one request.
pub(super) struct SliceReader<'a> {
    pub(super) env: &'a Env,
    pub(super) cache: &'a SliceCache,
    pub(super) speed: &'a SpeedLimits,
    pub(super) opened: &'a Opened,
    pub(super) cipher: Option<&'a CipherInfo>,
    pub(super) max_slice_bytes: u64,
}

/// What is compared with the request, cached or not.
enum Proof {
    Holds,
    Fails(String),
}

impl SliceReader<'_> {
    /// The proven slice. `held` is the memory of the call, which grows for the time of the read.
    pub(super) async fn slice(
        &self,
        meta: &KvMeta,
        held: &mut Reservation,
    ) -> Result<Arc<CachedSlice>, ImportError> {
        let compression = compression(meta)?;
        let key = cipher::of_slice(meta.file_encryption_info.as_ref(), self.cipher)?;
        if meta.length > self.max_slice_bytes {
            let (got, most) = (meta.length, self.max_slice_bytes);
            let what = format!("slice of {got} bytes, at most {most}");
            return Err(ImportError::BadFormat(what));
        }
        let name = SliceKey {
            storage: self.opened.id,
            object: meta.name.clone(),
            offset: if meta.range_length == 0 {
                0
            } else {
                meta.range_offset
            },
            length: meta.range_length,
            compression: compression as i32,
            cipher: key.as_ref().map(|(key, iv)| key.fingerprint(iv)),
        };
        let mut fresh = false;
        loop {
            let load = async {
                fresh = true;
                self.load(meta, compression, key.as_ref(), held).await
            };
            let slice = self.cache.get(&name, load).await?;
            match prove(meta, &slice) {
                Proof::Holds => return Ok(slice),
                // The object may have been replaced since: what it holds now decides.
                Proof::Fails(_) if !fresh => self.cache.remove(&name),
                Proof::Fails(what) => {
                    self.cache.remove(&name);
                    return Err(self.reading(meta).damaged(what));
                }
            }
        }
    }

    async fn load(
        &self,
        meta: &KvMeta,
        compression: CompressionType,
        key: Option<&(CipherKey, &[u8])>,
        held: &mut Reservation,
    ) -> Result<CachedSlice, ImportError> {
        let stored_len = self.stored_len(meta).await?;
        let compressed = compression != CompressionType::Unknown;
        // Decryption and decompression each need a second buffer.
        let copy = if key.is_some() { stored_len } else { 0 };
        let plain_len = if compressed { meta.length } else { 0 };
        self.cache.grow(held, stored_len + copy + plain_len)?;
        let mut memory = held.split(stored_len + copy + plain_len);
        let stored = self.read(meta).await?;
        self.speed.pass(meta.length.max(stored.len() as u64)).await;
        let reading = self.reading(meta);
        let key = key.map(|(key, iv)| (key.clone(), iv.to_vec()));
        let meta = meta.clone();
        let decode = move || decode(&meta, compression, key, stored, &reading);
        let decoded = self.env.unblock(decode).await;
        let (plain, sha256, stored_sha256) =
            decoded.map_err(|e| ImportError::Engine(e.to_string()))??;
        memory.shrink_to(plain.len() as u64);
        Ok(CachedSlice {
            plain,
            sha256,
            stored_sha256,
            memory,
        })
    }

    /// Stored bytes, known before any is read. Slices of the oldest metadata are whole objects.
    async fn stored_len(&self, meta: &KvMeta) -> Result<u64, ImportError> {
        if meta.range_length != 0 {
            return self.bounded(meta, meta.range_length);
        }
        let head = self.opened.storage.head(&meta.name).await;
        match head.map_err(|e| self.refused(meta, &e))? {
            Some(object) => self.bounded(meta, object.size),
            None => Err(self.reading(meta).damaged("No such file or directory")),
        }
    }

    fn bounded(&self, meta: &KvMeta, bytes: u64) -> Result<u64, ImportError> {
        if bytes <= self.max_slice_bytes {
            return Ok(bytes);
        }
        let most = self.max_slice_bytes;
        let what = format!("{bytes} stored bytes, at most {most}");
        Err(self.reading(meta).damaged(what))
    }

    async fn read(&self, meta: &KvMeta) -> Result<Bytes, ImportError> {
        let storage = &self.opened.storage;
        let answer = if meta.range_length == 0 {
            storage.get(&meta.name).await
        } else {
            let Some(end) = meta.range_offset.checked_add(meta.range_length) else {
                let what = "the range ends beyond 2^64 bytes";
                return Err(self.reading(meta).damaged(what));
            };
            storage.get_range(&meta.name, meta.range_offset..end).await
        };
        answer.map_err(|e| self.refused(meta, &e))
    }

    fn reading(&self, meta: &KvMeta) -> Reading {
        Reading {
            uri: self.opened.storage.uri(),
            name: meta.name.clone(),
            into: "memory".to_owned(),
        }
    }

    fn refused(&self, meta: &KvMeta, error: &StorageError) -> ImportError {
        self.reading(meta).refused(error)
    }
}

fn compression(meta: &KvMeta) -> Result<CompressionType, ImportError> {
    match CompressionType::try_from(meta.compression_type) {
        Ok(CompressionType::Zstd) if meta.length == 0 => {
            let what = "a compressed slice without its length".to_owned();
            Err(ImportError::BadFormat(what))
        }
        Ok(known @ (CompressionType::Unknown | CompressionType::Zstd)) => Ok(known),
        Ok(other) => Err(ImportError::Compression(format!("{other:?}"))),
        Err(_) => Err(ImportError::Compression(meta.compression_type.to_string())),
    }
}

type Decoded = (Bytes, [u8; 32], Option<[u8; 32]>);

fn decode(
    meta: &KvMeta,
    compression: CompressionType,
    key: Option<(CipherKey, Vec<u8>)>,
    stored: Bytes,
    reading: &Reading,
) -> Result<Decoded, ImportError> {
    let (stored, stored_sha256) = match key {
        None => (stored, None),
        Some((key, iv)) => {
            let digest: [u8; 32] = Sha256::digest(&stored).into();
            let mut data = stored.to_vec();
            key.decrypt(&iv, 0, &mut data)?;
            (data.into(), Some(digest))
        }
    };
    let plain = match compression {
        CompressionType::Zstd => decompress(&stored, meta.length)
            .map_err(|e| reading.damaged(e))?
            .into(),
        _ => stored,
    };
    for record in RecordIter::new(&plain) {
        record.map_err(|e| reading.damaged(e))?;
    }
    let sha256 = Sha256::digest(&plain).into();
    Ok((plain, sha256, stored_sha256))
}

/// Compares with the request: length, digest of the encrypted bytes, digest of the plaintext.
fn prove(meta: &KvMeta, slice: &CachedSlice) -> Proof {
    let got = slice.plain.len();
    if meta.length != 0 && got as u64 != meta.length {
        return Proof::Fails(format!("downloaded size {got}, expected {}", meta.length));
    }
    let differ = |what: &str, expected: &[u8], got: &[u8]| {
        let (expected, got) = (hex::encode(expected), hex::encode(got));
        let what =
            format!("{what} file checksums do not match, expect: {expected}, calculate: {got}");
        Proof::Fails(what)
    };
    let encrypted = meta
        .file_encryption_info
        .as_ref()
        .map(|info| &info.checksum);
    if let (Some(expected), Some(got)) = (encrypted, &slice.stored_sha256)
        && !expected.is_empty()
        && expected[..] != got[..]
    {
        return differ("encrypted", expected, got);
    }
    if !meta.sha256.is_empty() && meta.sha256[..] != slice.sha256[..] {
        return differ("plaintext", &meta.sha256, &slice.sha256);
    }
    Proof::Holds
}
