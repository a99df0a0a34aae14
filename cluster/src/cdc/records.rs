//! From one committed row to the records that log backup stores, byte exact.
//!
//! Values of at most 255 bytes stand inside the write record; a longer one is a `default` record
//! at start_ts, emitted together with its write record at commit time: it is then never in a
//! later flush than the write record, and the values of rolled-back transactions are never
//! stored. Source of the layout: tikv/tikv `components/txn_types/src/write.rs`.

use bytes::Bytes;
use pitr_format::write_cf::{SHORT_VALUE_MAX_LEN, WriteRecord};
use pitr_format::{Cf, EncodedKey, KvRecord, OpKind, Ts};

/// A version that is committed for sure.
pub(super) struct Commit<'a> {
    /// User key.
    pub key: &'a [u8],
    pub start_ts: Ts,
    pub commit_ts: Ts,
    /// 0 = not recorded.
    pub txn_source: u64,
}

impl Commit<'_> {
    /// The user key was deleted: one `D` record.
    pub fn deleted(&self, out: &mut Vec<KvRecord>) {
        self.write(WriteRecord::delete(self.start_ts), out);
    }

    /// The user key was set to `value`.
    pub fn put(&self, value: &Bytes, out: &mut Vec<KvRecord>) {
        if value.len() > SHORT_VALUE_MAX_LEN {
            self.put_long(Bytes::copy_from_slice(value), out);
        } else {
            self.write(WriteRecord::put(self.start_ts, Some(value.clone())), out);
        }
    }

    /// The user key was set to a value that lies in `default`.
    pub fn put_long(&self, value: Bytes, out: &mut Vec<KvRecord>) {
        out.push(KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(self.key).at(self.start_ts).into_bytes(),
            value,
        });
        self.write(WriteRecord::put(self.start_ts, None), out);
    }

    fn write(&self, record: WriteRecord, out: &mut Vec<KvRecord>) {
        let record = WriteRecord {
            txn_source: self.txn_source,
            ..record
        };
        out.push(KvRecord {
            cf: Cf::Write,
            op: OpKind::Put,
            key: EncodedKey::encode(self.key).at(self.commit_ts).into_bytes(),
            value: record.to_bytes(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Ts = Ts::new(446_850_000_000_000_001);

    fn commit(txn_source: u64) -> Commit<'static> {
        Commit {
            key: b"vol\xFDA\x01\0\0\0\0\0\0\0I",
            start_ts: START,
            commit_ts: Ts::new(446_850_000_000_000_005),
            txn_source,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    const ENCODED: &str = "766f6cfd41010000ff0000000000490000fd";

    #[test]
    fn a_short_put_is_one_write_record_at_the_commit_ts() {
        let mut out = Vec::new();
        commit(0).put(&Bytes::from_static(b"hello"), &mut out);
        commit(1).put(&Bytes::from_static(b"hello"), &mut out);
        commit(0).put(&Bytes::new(), &mut out);
        commit(0).deleted(&mut out);
        let values: Vec<_> = out.iter().map(|r| hex(&r.value)).collect();
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        assert_eq!(
            values,
            [
                "5081c088efd1f6e19906760568656c6c6f",
                "5081c088efd1f6e19906760568656c6c6f5301",
                "5081c088efd1f6e199067600",
                "4481c088efd1f6e19906",
            ]
        );
        for record in &out {
            assert_eq!(record.cf, Cf::Write);
            assert_eq!(hex(&record.key), format!("{ENCODED}f9cc784ae21ddffa"));
        }
    }

    #[test]
    fn the_limit_between_inside_and_beside_the_write_record_is_255_bytes() {
        let mut out = Vec::new();
        commit(0).put(&Bytes::from(vec![7; 255]), &mut out);
        assert_eq!(out.len(), 1);
        out.clear();
        commit(0).put(&Bytes::from(vec![7; 256]), &mut out);
        assert_eq!((out[0].cf, out[1].cf), (Cf::Default, Cf::Write));
        assert_eq!(hex(&out[0].key), format!("{ENCODED}f9cc784ae21ddffe"));
        assert_eq!(out[0].value.len(), 256);
        assert_eq!(hex(&out[1].value), "5081c088efd1f6e19906");
    }
}
