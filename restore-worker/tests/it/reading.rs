//! What a reader of an engine sees, and the digests of it.

use bytes::Bytes;
use pitr_format::digest::{RecordDigest, ScanDigest};
use pitr_format::key::data_key;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, Class, EncodedKey, Ts};
use pitr_restore_worker::browse::{BrowseError, visible_at};
use pitr_restore_worker::digest::{record_digest, scan_digest};
use pitr_restore_worker::engine::{Engine, EngineCf, EngineOp};

use super::memory_engine::MemoryEngine;

fn versioned(key: &[u8], ts: u64) -> Vec<u8> {
    EncodedKey::encode(key).at(Ts::new(ts)).as_bytes().to_vec()
}

fn put(engine: &MemoryEngine, cf: EngineCf, key: &[u8], value: &[u8]) {
    let (key, value) = (data_key(key), value.to_vec());
    engine.write(&[EngineOp::Put { cf, key, value }]).unwrap();
}

fn write(engine: &MemoryEngine, key: &[u8], commit: u64, record: &WriteRecord) {
    put(
        engine,
        EngineCf::Write,
        &versioned(key, commit),
        &record.to_bytes(),
    );
}

fn short(start: u64, value: &'static str) -> WriteRecord {
    WriteRecord::put(Ts::new(start), Some(Bytes::from(value)))
}

#[test]
fn locks_and_rollbacks_on_top_do_not_hide_what_was_committed_below() {
    let engine = MemoryEngine::default();
    write(&engine, b"k", 10, &short(9, "value"));
    for (commit, kind) in [(20, WriteType::Lock), (30, WriteType::Rollback)] {
        let record = WriteRecord {
            kind,
            ..WriteRecord::delete(Ts::new(commit - 1))
        };
        write(&engine, b"k", commit, &record);
    }
    put(
        &engine,
        EngineCf::Lock,
        EncodedKey::encode(b"k").as_bytes(),
        b"a lock",
    );
    for ts in [10, 20, 30, u64::MAX] {
        assert_eq!(
            engine.visible(ts),
            [(b"k".to_vec(), b"value".to_vec())].into()
        );
    }
    assert!(engine.visible(9).is_empty());
}

#[test]
fn an_empty_value_is_a_value_and_a_delete_is_none() {
    let engine = MemoryEngine::default();
    write(&engine, b"empty", 10, &short(9, ""));
    write(&engine, b"gone", 10, &short(9, "v"));
    write(&engine, b"gone", 20, &WriteRecord::delete(Ts::new(19)));
    write(&engine, b"", 10, &short(9, "of the empty key"));
    let wanted = [
        (vec![], b"of the empty key".to_vec()),
        (b"empty".to_vec(), vec![]),
    ];
    assert_eq!(engine.visible(20), wanted.into());
    assert!(engine.visible(19).contains_key(&b"gone"[..]));
}

#[test]
fn a_long_value_is_looked_up_by_the_start_of_its_transaction() {
    let engine = MemoryEngine::default();
    write(&engine, b"k", 20, &WriteRecord::put(Ts::new(15), None));
    let found = |engine: &MemoryEngine| visible_at(engine, Ts::MAX).next().unwrap();
    let Err(BrowseError::MissingValue { user_key, start_ts }) = found(&engine) else {
        panic!("a value from nowhere");
    };
    assert_eq!((user_key.as_str(), start_ts), ("6B", Ts::new(15)));
    put(
        &engine,
        EngineCf::Default,
        &versioned(b"k", 16),
        b"of another transaction",
    );
    assert!(found(&engine).is_err());
    put(&engine, EngineCf::Default, &versioned(b"k", 15), b"long");
    assert_eq!(found(&engine).unwrap(), (b"k".to_vec(), b"long".to_vec()));
}

#[test]
fn what_is_no_record_is_named_and_never_skipped() {
    for (key, value) in [
        (versioned(b"k", 10), &b"Q"[..]),
        (versioned(b"k", 10), b""),
        (b"shorter".to_vec(), b"P\x01"),
        (vec![b'x'; 17], &short(9, "v").to_bytes()[..]),
    ] {
        let engine = MemoryEngine::default();
        put(&engine, EngineCf::Write, &key, value);
        let error = visible_at(&engine, Ts::MAX).next().unwrap().unwrap_err();
        assert_eq!(error.class(), Class::Permanent);
        let BrowseError::Malformed { cf, key: named, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((*cf, named), ("write", &hex::encode_upper(data_key(&key))));
        assert!(scan_digest(&engine, Ts::MAX).is_err());
    }
}

#[test]
fn digests_tell_contents_apart_that_a_xor_would_not() {
    let fill = |pairs: &[(&'static [u8], &'static str)]| {
        let engine = MemoryEngine::default();
        for (key, value) in pairs {
            write(&engine, key, 10, &short(9, value));
        }
        engine
    };
    let (one, other) = (
        fill(&[(b"a", "1"), (b"b", "2")]),
        fill(&[(b"a", "2"), (b"b", "1")]),
    );
    let scan = |engine: &MemoryEngine| scan_digest(engine, Ts::MAX).unwrap();
    assert_ne!(scan(&one), scan(&other));
    assert_ne!(record_digest(&one).unwrap(), record_digest(&other).unwrap());
    assert_eq!(scan(&one), scan(&fill(&[(b"b", "2"), (b"a", "1")])));
    assert_eq!(scan(&fill(&[])), ScanDigest::default());
}

#[test]
fn the_scan_digest_is_of_one_moment_and_the_record_digest_of_all_versions() {
    let engine = MemoryEngine::default();
    write(&engine, b"k", 10, &short(9, "one"));
    let (scan, records) = (
        scan_digest(&engine, Ts::new(10)).unwrap(),
        record_digest(&engine),
    );
    write(&engine, b"k", 20, &short(19, "two"));
    assert_eq!(scan_digest(&engine, Ts::new(10)).unwrap(), scan);
    assert_ne!(scan_digest(&engine, Ts::new(20)).unwrap(), scan);
    assert_ne!(record_digest(&engine).unwrap(), records.unwrap());
    let mut wanted = RecordDigest::default();
    for (commit, record) in [(10, short(9, "one")), (20, short(19, "two"))] {
        wanted.add(Cf::Write, &versioned(b"k", commit), &record.to_bytes());
    }
    assert_eq!(
        record_digest(&engine).unwrap(),
        wanted,
        "keys count without their `z`"
    );
}
