//! The rows that everything is measured with: index entries and JSON documents, of the sizes and
//! about the compressibility of real ones, the same in every run.
//!
//! A *short* row is one write record of 139 bytes with its length fields. A *long* row is a
//! `default` record and a write record, 820 bytes together. At zstd level 1 they shrink to about a
//! half and to less than two fifths.

use std::fmt;

use bytes::Bytes;
use clap::ValueEnum;
use pitr_format::key::append_encoded;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, EncodedKey, EncodedRange, OpKind, RecordBatch, Ts};
use pitr_observer::RegionMeta;

use crate::Result;

/// Regions of a path bench.
pub const REGIONS: u64 = 32;
/// Start ts of the first transaction.
const FIRST_TS: u64 = 446_850_000_000_000_000;
/// Table that all rows belong to.
const TABLE: u64 = 1 << 63 | 117;
/// Bytes of a row as the log keeps it.
const SHORT: usize = 139;
const LONG: usize = 820;
/// Letters of a document's signature.
const SIGNATURE: usize = 128;

const WORDS: &str = "account amount annual archive balance before branch budget cancel carrier \
    center charge client closed confirm contract country credit customer daily damaged delivery \
    deposit discount email express failed family first gift global green home house import \
    invoice item large ledger limit local market member mobile monthly note number office online \
    order outlet packed paid parcel partner pending phone price private product public refund \
    region retail return sample school second season seller shipped silver single small sold \
    standard storage store street supply tax ticket total trade transfer travel unit urgent value \
    vendor voucher warehouse weekly yearly";

/// Kind of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Index entries: the value stands in the write record.
    Short,
    /// JSON documents: the value is a record of its own.
    Long,
}

impl Shape {
    /// Both.
    pub const ALL: [Shape; 2] = [Shape::Short, Shape::Long];

    /// Bytes of one row in the log.
    pub fn row_bytes(self) -> usize {
        match self {
            Shape::Short => SHORT,
            Shape::Long => LONG,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shape::Short => "short",
            Shape::Long => "long",
        })
    }
}

/// One committed row.
pub struct Row {
    /// User key.
    pub key: Vec<u8>,
    /// Value as the client wrote it.
    pub value: Bytes,
    /// Start ts.
    pub start_ts: Ts,
    /// Commit ts.
    pub commit_ts: Ts,
}

impl Row {
    /// The records that the log holds of it: the value first, if it is one of its own.
    pub fn records(&self, shape: Shape, out: &mut RecordBatch) -> Result<()> {
        let key = EncodedKey::encode(&self.key);
        let mut push = |cf, ts, value: &[u8]| {
            let key = key.at(ts).into_bytes();
            out.push(cf, OpKind::Put, &key, value)
        };
        let short = match shape {
            Shape::Short => Some(self.value.clone()),
            Shape::Long => {
                push(Cf::Default, self.start_ts, &self.value)?;
                None
            }
        };
        let write = WriteRecord::put(self.start_ts, short).to_bytes();
        Ok(push(Cf::Write, self.commit_ts, &write)?)
    }
}

/// Makes rows of one shape; row `n` of a region is always the same.
pub struct Rows {
    shape: Shape,
    words: Vec<&'static str>,
}

impl Rows {
    /// Rows of a shape.
    pub fn new(shape: Shape) -> Self {
        Rows {
            shape,
            words: WORDS.split_whitespace().collect(),
        }
    }

    /// Row `n` of region `region` (from 1); keys come in no order, timestamps rise.
    pub fn row(&self, region: u64, n: u64) -> Row {
        // Odd factor: a permutation of all numbers, so that no key comes twice.
        let scattered = (n.wrapping_mul(0x9E37_79B1) & 0xFFFF_FFFF) as u32;
        self.version(region, scattered, n)
    }

    /// The version that transaction `n` writes of key `number`.
    pub fn version(&self, region: u64, number: u32, n: u64) -> Row {
        let mut random = Random(region << 40 ^ n);
        let start = FIRST_TS + ((n * 37) << 18) + region % 13;
        let mut key = region_start(region);
        key.extend_from_slice(&number.to_be_bytes());
        let value = match self.shape {
            Shape::Short => self.entry(&mut random),
            Shape::Long => self.document(&mut random, &key),
        };
        Row {
            key,
            value: value.into(),
            start_ts: Ts::new(start),
            commit_ts: Ts::new(start + (random.below(30) << 18) + 1),
        }
    }

    /// An index value: handle, flags and a column of text.
    fn entry(&self, random: &mut Random) -> Vec<u8> {
        // Row in the log: 4 + encoded key and ts + 4 + `P`, start ts (9 bytes), `v`, length, value.
        let len = SHORT - 8 - self.key_len() - 12;
        let mut out = vec![0, 0x80, 0, 1, 0, 0, 0, 1, 8, 0];
        for _ in 0..5 {
            out.extend_from_slice(&random.next().to_le_bytes()[..7]);
        }
        out.extend_from_slice(format!("{:08}", random.below(100_000_000)).as_bytes());
        self.fill(out, len, random)
    }

    /// A JSON document.
    fn document(&self, random: &mut Random, key: &[u8]) -> Vec<u8> {
        let len = LONG - 2 * (8 + self.key_len()) - 10;
        let (id, r) = (&key[key.len() - 4..], random);
        let mut out = format!(
            "{{\"id\":{},\"uuid\":\"{:016x}{:016x}\",\"user\":\"{}.{}{}\",\"created_at\":\
             \"2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z\",\"amount\":{}.{:02},\"currency\":\"EUR\",\
             \"status\":\"{}\",\"session\":\"{:016x}\",\"address\":{{\"street\":\"{} {} {}\",\
             \"zip\":\"{:05}\",\"city\":\"{}\"}},\"tags\":[\"{}\",\"{}\"],\"signature\":\"{}\",\"note\":\"",
            id.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)),
            r.next(),
            r.next(),
            self.word(r),
            self.word(r),
            r.below(10_000),
            1 + r.below(12),
            1 + r.below(28),
            r.below(24),
            r.below(60),
            r.below(60),
            r.below(1000),
            r.below(100_000),
            r.below(100),
            self.word(r),
            r.next(),
            self.word(r),
            self.word(r),
            r.below(300),
            r.below(100_000),
            self.word(r),
            self.word(r),
            self.word(r),
            letters(r),
        );
        out.truncate(len - 2);
        let mut out = self.fill(out.into_bytes(), len - 2, r);
        out.extend_from_slice(b"\"}");
        out
    }

    /// Words up to exactly `len` bytes.
    fn fill(&self, mut out: Vec<u8>, len: usize, random: &mut Random) -> Vec<u8> {
        while out.len() < len {
            out.extend_from_slice(self.word(random).as_bytes());
            out.push(b' ');
        }
        out.truncate(len);
        out
    }

    fn word(&self, random: &mut Random) -> &'static str {
        self.words[random.below(self.words.len() as u64) as usize]
    }

    /// Bytes of a versioned key.
    fn key_len(&self) -> usize {
        pitr_format::key::encoded_len(region_start(1).len() + 4) + 8
    }
}

/// First user key of a region.
fn region_start(region: u64) -> Vec<u8> {
    let mut key = vec![b't'];
    key.extend_from_slice(&TABLE.to_be_bytes());
    key.extend_from_slice(b"_r");
    key.extend_from_slice(&(region as u32).to_be_bytes());
    key
}

/// Text that does not shrink to less than six bits a byte, as signatures and tokens do.
fn letters(random: &mut Random) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |_| char::from(LETTERS[random.below(64) as usize]);
    (0..SIGNATURE).map(letter).collect()
}

/// A region, as a source describes it.
pub fn region(id: u64) -> RegionMeta {
    let bound = |id| {
        let mut out = Vec::new();
        append_encoded(&region_start(id), &mut out);
        out
    };
    RegionMeta {
        id,
        conf_ver: 1,
        version: 1,
        range: EncodedRange::new(bound(id), bound(id + 1)),
    }
}

/// Rows per region that make `megabytes` in all regions together.
pub fn rows_per_region(shape: Shape, megabytes: usize) -> u64 {
    (megabytes as u64 * 1_000_000 / shape.row_bytes() as u64 / REGIONS).max(1)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::compress::compress;
    use pitr_format::record::append_record;

    use super::*;

    fn plain(shape: Shape) -> Vec<u8> {
        let rows = Rows::new(shape);
        let mut records = RecordBatch::default();
        for n in 0..2_000 {
            rows.row(3, n).records(shape, &mut records).unwrap();
        }
        let mut slices = [Vec::new(), Vec::new()];
        for r in &records {
            append_record(&mut slices[r.cf as usize], r.key, r.value).unwrap();
        }
        slices.concat()
    }

    #[test]
    fn rows_have_the_size_and_about_the_compressibility_they_promise() {
        for (shape, size, low, high) in
            [(Shape::Short, 139, 1.8, 2.2), (Shape::Long, 820, 2.4, 2.8)]
        {
            let plain = plain(shape);
            assert_eq!(plain.len(), 2_000 * size, "{shape}");
            let ratio = plain.len() as f64 / compress(&plain).unwrap().len() as f64;
            assert!((low..high).contains(&ratio), "{shape}: {ratio}");
        }
    }

    #[test]
    fn rows_lie_in_their_region_and_no_key_comes_twice() {
        let rows = Rows::new(Shape::Short);
        let range = region(7).range;
        let mut keys: Vec<_> = (0..1_000).map(|n| rows.row(7, n).key).collect();
        for key in &keys {
            assert!(range.contains(EncodedKey::encode(key).as_bytes()));
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 1_000);
    }
}
