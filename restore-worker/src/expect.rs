//! What a reader of the target must see at the restored ts, told from the records alone while
//! they are cut: the far end of the scan digest, without a second engine.
//!
//! Only kept records pass (puts and deletes up to the restored ts), so the newest write record of
//! a user key decides. Called by [`crate::cut`], newest write record first, then the key's values.

use pitr_format::Ts;
use pitr_format::digest::ScanDigest;
use pitr_format::key::{TS_LEN, decode_prefix_into, split_versioned};
use pitr_format::write_cf::{WriteType, WriteView};

/// The digest in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    digest: ScanDigest,
    /// The present user key, when it is needed.
    user_key: Vec<u8>,
    /// Start ts of the long value that is visible of the present user key.
    awaited: Option<Ts>,
}

impl Expected {
    /// A user key begins; `write` is its newest write record (versioned key, value), if it has one.
    pub(crate) fn begin_key(&mut self, write: Option<(&[u8], &[u8])>) {
        self.awaited = None;
        let Some((key, value)) = write else {
            return;
        };
        // A record that cannot be read adds nothing: the digests then differ, as they must.
        let Ok(record) = WriteView::parse(value) else {
            return;
        };
        if record.kind != WriteType::Put {
            return;
        }
        match record.short_value {
            Some(value) => self.add(key, value),
            None => self.awaited = Some(record.start_ts),
        }
    }

    /// A referenced value of the present user key, by its versioned key.
    pub(crate) fn value(&mut self, key: &[u8], value: &[u8]) {
        if self.awaited.is_some() && split_versioned(key).ok().map(|(_, ts)| ts) == self.awaited {
            self.awaited = None;
            self.add(key, value);
        }
    }

    /// What was gathered so far.
    pub(crate) fn digest(&self) -> ScanDigest {
        self.digest
    }

    fn add(&mut self, versioned: &[u8], value: &[u8]) {
        let encoded = &versioned[..versioned.len().saturating_sub(TS_LEN)];
        self.user_key.clear();
        if decode_prefix_into(encoded, &mut self.user_key).is_ok() {
            self.digest.add(&self.user_key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_format::EncodedKey;
    use pitr_format::write_cf::WriteRecord;

    use super::*;

    fn key(raw: &[u8], ts: u64) -> Vec<u8> {
        EncodedKey::encode(raw).at(Ts::new(ts)).as_bytes().to_vec()
    }

    #[test]
    fn the_newest_record_of_a_key_decides_what_is_seen() {
        let mut expected = Expected::default();
        let short = WriteRecord::put(Ts::new(5), Some(Bytes::from_static(b"v"))).to_bytes();
        let long = WriteRecord::put(Ts::new(15), None).to_bytes();
        let delete = WriteRecord::delete(Ts::new(25)).to_bytes();
        expected.begin_key(Some((&key(b"short", 10), &short)));
        expected.begin_key(Some((&key(b"long", 20), &long)));
        expected.value(&key(b"long", 15), b"the newest");
        expected.value(&key(b"long", 9), b"an older one");
        expected.begin_key(Some((&key(b"gone", 30), &delete)));
        expected.value(&key(b"gone", 9), b"an older one");
        expected.begin_key(None);
        expected.value(&key(b"stray", 15), b"nobody refers to it");

        let mut seen = ScanDigest::default();
        seen.add(b"short", b"v");
        seen.add(b"long", b"the newest");
        assert_eq!(expected.digest(), seen);
    }
}
