//! Which keys of a file are taken, and under which key: the rewrite rule of a download.
//!
//! The wanted range is given in the *target's* keys; the rule maps it back to the source's. In a
//! request of type Legacy prefixes and bounds are encoded bytes and are compared as they are; in
//! one of type Keyspace they are raw, and every key is decoded, renamed and encoded again
//! (tikv/tikv `components/sst_importer/src/sst_importer.rs`, `components/keys/src/rewrite.rs`).

use std::ops::Bound;

use bytes::Bytes;
use pitr_format::key::{TS_LEN, append_encoded, decode_prefix, prefix_end, split_versioned};
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, EncodedKey};
use pitr_proto::import_sstpb::{DownloadRequestType, RewriteRule, SstMeta};

use super::super::error::ImportError;

/// A key without `z`, and its value.
pub(super) type KeyValue = (Vec<u8>, Vec<u8>);

/// Where a source key lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Before,
    Inside,
    Behind,
}

/// A rule and a range, ready for use. Keys are without `z`.
#[derive(Clone, Debug)]
pub(super) struct KeyRule {
    keyspace: bool,
    old: Bytes,
    new: Bytes,
    new_ts: u64,
    ignore_after: u64,
    ignore_before: u64,
    write_cf: bool,
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
}

impl KeyRule {
    pub(super) fn new(
        rule: Option<&RewriteRule>,
        output: &SstMeta,
        kind: DownloadRequestType,
    ) -> Result<KeyRule, ImportError> {
        let rule = rule.cloned().unwrap_or_default();
        let (old, new) = (rule.old_key_prefix, rule.new_key_prefix);
        let range = output.range.clone().unwrap_or_default();
        let keyspace = kind == DownloadRequestType::Keyspace;
        let source = |bound: &[u8], what: &str| match bound.strip_prefix(&new[..]) {
            Some(rest) => Ok([&old[..], rest].concat()),
            None => Err(ImportError::WrongKeyPrefix {
                what: what.to_owned(),
                key: hex::encode_upper(bound),
                prefix: hex::encode_upper(&new),
            }),
        };
        let encode = |key: Vec<u8>| match keyspace {
            true => EncodedKey::encode(&key).as_bytes().to_vec(),
            false => key,
        };
        let start = match range.start.is_empty() {
            false => Bound::Included(encode(source(&range.start, "SST start range")?)),
            true if new.is_empty() && !old.is_empty() => Bound::Included(encode(old.to_vec())),
            true => Bound::Unbounded,
        };
        let end = match range.end.is_empty() {
            false => {
                let end = encode(source(&range.end, "SST end range")?);
                match output.end_key_exclusive {
                    true => Bound::Excluded(end),
                    false => Bound::Included(end),
                }
            }
            true if new.is_empty() => match prefix_end(&old) {
                Some(end) => Bound::Excluded(encode(end)),
                None => Bound::Unbounded,
            },
            true => Bound::Unbounded,
        };
        Ok(KeyRule {
            keyspace,
            old,
            new,
            new_ts: rule.new_timestamp,
            ignore_after: rule.ignore_after_timestamp,
            ignore_before: rule.ignore_before_timestamp,
            write_cf: Cf::parse(&output.cf_name) == Some(Cf::Write),
            start,
            end,
        })
    }

    /// Whether keys inside of the range are taken as they are.
    pub(super) fn is_identity(&self) -> bool {
        self.old == self.new
            && self.new_ts == 0
            && self.ignore_after == 0
            && self.ignore_before == 0
    }

    pub(super) fn place(&self, key: &[u8]) -> Place {
        let before = match &self.start {
            Bound::Included(start) => key < &start[..],
            Bound::Excluded(start) => key <= &start[..],
            Bound::Unbounded => false,
        };
        let behind = match &self.end {
            Bound::Included(end) => key > &end[..],
            Bound::Excluded(end) => key >= &end[..],
            Bound::Unbounded => false,
        };
        match (before, behind) {
            (true, _) => Place::Before,
            (false, true) => Place::Behind,
            (false, false) => Place::Inside,
        }
    }

    /// The target's key and value of a record inside of the range; `None` when its timestamp is
    /// outside of the rule's.
    pub(super) fn apply(&self, key: &[u8], value: &[u8]) -> Result<Option<KeyValue>, ImportError> {
        if self.ignore_after != 0 || self.ignore_before != 0 {
            let (_, ts) = split_versioned(key).map_err(|e| bad_key(key, &e))?;
            let late = self.ignore_after != 0 && ts.get() > self.ignore_after;
            let early = self.ignore_before != 0 && ts.get() < self.ignore_before;
            if late || early {
                return Ok(None);
            }
        }
        let mut renamed = match self.keyspace {
            true => self.rename_raw(key)?,
            false => self.rename_encoded(key)?,
        };
        if self.new_ts == 0 {
            return Ok(Some((renamed, value.to_vec())));
        }
        let kept = split_versioned(&renamed)
            .map_err(|e| bad_key(key, &e))?
            .0
            .len();
        renamed.truncate(kept);
        renamed.extend_from_slice(&(!self.new_ts).to_be_bytes());
        let value = match self.write_cf {
            true => self.restamped(key, value)?,
            false => value.to_vec(),
        };
        Ok(Some((renamed, value)))
    }

    fn rename_encoded(&self, key: &[u8]) -> Result<Vec<u8>, ImportError> {
        let rest = self.rest(key)?;
        let renamed = [&self.new[..], rest].concat();
        if self.old != self.new {
            // A prefix of another length modulo 8 moves the groups of the encoding.
            let whole = split_versioned(&renamed)
                .and_then(|(encoded, _)| Ok(decode_prefix(encoded)?.1 == encoded.len()));
            if !matches!(whole, Ok(true)) {
                let what = format!(
                    "rewrite rule: key {} becomes {}, which is no encoded key; use the request \
                     type Keyspace",
                    hex::encode_upper(key),
                    hex::encode_upper(&renamed)
                );
                return Err(ImportError::BadFormat(what));
            }
        }
        Ok(renamed)
    }

    fn rename_raw(&self, key: &[u8]) -> Result<Vec<u8>, ImportError> {
        let (encoded, _) = split_versioned(key).map_err(|e| bad_key(key, &e))?;
        let (raw, used) = decode_prefix(encoded).map_err(|e| bad_key(key, &e))?;
        if used != encoded.len() {
            return Err(bad_key(key, &"bytes behind the encoded key"));
        }
        let renamed = [&self.new[..], self.rest(&raw)?].concat();
        let mut out = Vec::with_capacity(key.len() + renamed.len());
        append_encoded(&renamed, &mut out);
        out.extend_from_slice(&key[key.len() - TS_LEN..]);
        Ok(out)
    }

    /// The key behind the old prefix.
    fn rest<'a>(&self, key: &'a [u8]) -> Result<&'a [u8], ImportError> {
        key.strip_prefix(&self.old[..])
            .ok_or_else(|| ImportError::WrongKeyPrefix {
                what: "key in SST".to_owned(),
                key: hex::encode_upper(key),
                prefix: hex::encode_upper(&self.old),
            })
    }

    /// The write record with the new timestamp as its start.
    fn restamped(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, ImportError> {
        let record = WriteRecord::parse(&Bytes::copy_from_slice(value));
        let mut record = record.map_err(|e| bad_key(key, &e))?;
        record.start_ts = self.new_ts.into();
        Ok(record.to_bytes().to_vec())
    }
}

fn bad_key(key: &[u8], what: &dyn std::fmt::Display) -> ImportError {
    ImportError::BadFormat(format!("key {}: {what}", hex::encode_upper(key)))
}

#[cfg(test)]
mod tests {
    use pitr_format::Ts;
    use pitr_format::write_cf::WriteType;
    use pitr_proto::import_sstpb::Range;
    use proptest::prelude::*;

    use super::*;

    fn versioned(raw: &[u8], ts: u64) -> Vec<u8> {
        EncodedKey::encode(raw).at(Ts::new(ts)).as_bytes().to_vec()
    }

    fn rule(old: &[u8], new: &[u8]) -> RewriteRule {
        RewriteRule {
            old_key_prefix: Bytes::copy_from_slice(old),
            new_key_prefix: Bytes::copy_from_slice(new),
            ..RewriteRule::default()
        }
    }

    fn keys(
        rule: &RewriteRule,
        range: (&[u8], &[u8]),
        exclusive: bool,
        kind: DownloadRequestType,
    ) -> Result<KeyRule, ImportError> {
        let output = SstMeta {
            range: Some(Range {
                start: Bytes::copy_from_slice(range.0),
                end: Bytes::copy_from_slice(range.1),
            }),
            end_key_exclusive: exclusive,
            cf_name: "write".to_owned(),
            ..SstMeta::default()
        };
        KeyRule::new(Some(rule), &output, kind)
    }

    const NONE: (&[u8], &[u8]) = (b"", b"");
    use DownloadRequestType::{Keyspace, Legacy};

    #[test]
    fn raw_prefixes_of_any_length_are_exchanged() {
        let keys = keys(&rule(b"old", b"volume-two"), NONE, false, Keyspace).unwrap();
        let (key, value) = keys
            .apply(&versioned(b"old/inode", 7), b"v")
            .unwrap()
            .unwrap();
        assert_eq!(
            (key, &value[..]),
            (versioned(b"volume-two/inode", 7), &b"v"[..])
        );
        let error = keys
            .apply(&versioned(b"other", 7), b"v")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("key in SST has wrong prefix"), "{error}");
        assert!(keys.apply(b"no key", b"v").is_err());
    }

    #[test]
    fn encoded_prefixes_are_exchanged_only_if_an_encoded_key_comes_out() {
        let keys = |new: &[u8]| keys(&rule(b"t1234567", new), NONE, false, Legacy).unwrap();
        let key = versioned(b"t1234567-row", 7);
        let (renamed, _) = keys(b"t7654321").apply(&key, b"").unwrap().unwrap();
        assert_eq!(renamed, versioned(b"t7654321-row", 7));
        let error = keys(b"t765432").apply(&key, b"").unwrap_err().to_string();
        assert!(error.contains("no encoded key"), "{error}");
    }

    #[test]
    fn bounds_are_in_the_targets_keys_and_inclusive_unless_said() {
        let place = |exclusive, key: &[u8]| {
            let range = (&b"nb"[..], &b"nd"[..]);
            keys(&rule(b"o", b"n"), range, exclusive, Legacy)
                .unwrap()
                .place(key)
        };
        for exclusive in [false, true] {
            assert_eq!(place(exclusive, b"oa"), Place::Before);
            assert_eq!(place(exclusive, b"ob"), Place::Inside);
            assert_eq!(place(exclusive, b"od\0"), Place::Behind);
        }
        assert_eq!(place(false, b"od"), Place::Inside);
        assert_eq!(place(true, b"od"), Place::Behind);
        for (range, words) in [
            ((&b"x"[..], &b""[..]), "SST start range"),
            ((&b""[..], &b"x"[..]), "SST end range"),
        ] {
            let error = keys(&rule(b"o", b"n"), range, false, Legacy)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn raw_bounds_are_encoded_and_an_inclusive_end_leaves_its_own_versions_out() {
        let keys = |exclusive| keys(&rule(b"", b""), (b"b", b"d"), exclusive, Keyspace).unwrap();
        for exclusive in [false, true] {
            assert_eq!(keys(exclusive).place(&versioned(b"b", 1)), Place::Inside);
            assert_eq!(keys(exclusive).place(&versioned(b"a", 1)), Place::Before);
            assert_eq!(keys(exclusive).place(&versioned(b"c", 1)), Place::Inside);
            assert_eq!(keys(exclusive).place(&versioned(b"d", 1)), Place::Behind);
        }
    }

    #[test]
    fn with_an_empty_new_prefix_an_open_range_stays_inside_the_old_one() {
        let keys = keys(&rule(b"p", b""), NONE, false, Keyspace).unwrap();
        assert_eq!(keys.place(&versioned(b"o", 1)), Place::Before);
        assert_eq!(keys.place(&versioned(b"p\xFF", 1)), Place::Inside);
        assert_eq!(keys.place(&versioned(b"q", 1)), Place::Behind);
    }

    #[test]
    fn timestamps_are_filtered_and_replaced_in_key_and_record() {
        let mut stamps = RewriteRule {
            ignore_before_timestamp: 10,
            ignore_after_timestamp: 20,
            ..RewriteRule::default()
        };
        let taken = |rule: &RewriteRule, ts| {
            let record = WriteRecord::put(Ts::new(5), None).to_bytes();
            let keys = keys(rule, NONE, false, Legacy).unwrap();
            keys.apply(&versioned(b"k", ts), &record).unwrap()
        };
        assert!(taken(&stamps, 9).is_none() && taken(&stamps, 21).is_none());
        assert!(taken(&stamps, 10).is_some() && taken(&stamps, 20).is_some());
        stamps.new_timestamp = 99;
        let (key, value) = taken(&stamps, 15).unwrap();
        assert_eq!(key, versioned(b"k", 99));
        let record = WriteRecord::parse(&value.into()).unwrap();
        assert_eq!(
            (record.start_ts, record.kind),
            (Ts::new(99), WriteType::Put)
        );
        let keys = keys(&stamps, NONE, false, Legacy).unwrap();
        assert!(keys.apply(&versioned(b"k", 15), b"no record").is_err());
    }

    fn raw() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 0xFF]), 0..11)
    }

    proptest! {
        #[test]
        fn raw_keys_are_taken_and_renamed_as_if_they_had_never_been_encoded(
            (old, new) in (raw(), raw()),
            (from, to) in (raw(), raw()),
            bounded in any::<(bool, bool)>(),
            rests in prop::collection::vec(raw(), 1..20),
        ) {
            // Bounds are the target's keys, so they begin with the new prefix.
            let (from, to) = ([&new[..], &from].concat(), [&new[..], &to].concat());
            let start = if bounded.0 { &from[..] } else { b"" };
            let end = if bounded.1 { &to[..] } else { b"" };
            let rule = keys(&rule(&old, &new), (start, end), true, Keyspace).unwrap();
            for rest in rests {
                let (key, wanted) = ([&old[..], &rest].concat(), [&new[..], &rest].concat());
                let source = versioned(&key, 7);
                let above = start.is_empty() || &wanted[..] >= start;
                let below = end.is_empty() || &wanted[..] < end;
                let inside = rule.place(&source) == Place::Inside;
                prop_assert_eq!(inside, above && below, "{:?}", wanted);
                if inside {
                    let (renamed, value) = rule.apply(&source, b"v").unwrap().unwrap();
                    prop_assert_eq!(renamed, versioned(&wanted, 7));
                    prop_assert_eq!(value, b"v");
                }
            }
        }

        #[test]
        fn a_range_of_places_is_one_piece(
            (from, to) in (raw(), raw()),
            exclusive in any::<bool>(),
            kind in prop::sample::select(vec![Keyspace, Legacy]),
            sources in prop::collection::btree_set(raw(), 1..20),
        ) {
            let rule = keys(&rule(b"", b""), (&from, &to), exclusive, kind).unwrap();
            let mut sources: Vec<_> = sources.iter().map(|key| versioned(key, 7)).collect();
            sources.sort();
            let places = sources.iter().map(|key| match rule.place(key) {
                Place::Before => 0,
                Place::Inside => 1,
                Place::Behind => 2,
            });
            let places: Vec<u8> = places.collect();
            // A range that ends before it begins has nothing inside; then order does not matter.
            let empty = !to.is_empty() && to < from;
            prop_assert!(places.is_sorted() || empty && !places.contains(&1), "{:?}", places);
        }
    }
}
