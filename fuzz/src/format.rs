//! Targets for `pitr-format`: everything that lies in an archive.

use bytes::Bytes;
use pitr_format::object_name::MetaName;
use pitr_format::record::{RecordIter, append_record};
use pitr_format::write_cf::{WriteRecord, start_ts_of};
use pitr_format::{
    EncodedKey, VersionedKey, backup_meta, checkpoint_ts, compress, key, meta, pd_value, slice,
    start_probe, truncate_safepoint,
};
use pitr_proto::backup::DataFileInfo;
use prost::Message;

/// Largest plaintext that a target lets a decoder make.
const PLAIN_LIMIT: u64 = 1 << 20;

/// Memcomparable keys, with and without a ts.
pub fn key(data: &[u8]) {
    if let Ok((raw, used)) = key::decode_prefix(data) {
        assert_eq!(EncodedKey::encode(&raw).as_bytes(), &data[..used]);
    }
    if let Ok((encoded, ts)) = key::split_versioned(data) {
        let versioned = EncodedKey::from_encoded(encoded.to_vec()).at(ts);
        assert_eq!(versioned.as_bytes(), data);
    }
    if let Ok(versioned) = VersionedKey::from_bytes(data.to_vec()) {
        let _ = versioned.decode();
        assert_eq!(versioned.split().1, versioned.ts());
    }
    let _ = slice::classify(data);
    let _ = slice::classify_encoded(data);
}

/// Values of the write column family.
pub fn write_record(data: &[u8]) {
    let _ = start_ts_of(data);
    let value = Bytes::copy_from_slice(data);
    if let Ok(record) = WriteRecord::parse(&value) {
        let again = WriteRecord::parse(&record.to_bytes());
        assert_eq!(again.ok(), Some(record));
    }
}

/// The record stream of a slice.
pub fn records(data: &[u8]) {
    let mut stream = Vec::new();
    let mut failed = false;
    for record in RecordIter::new(data) {
        match record {
            Ok((key, value)) => assert!(append_record(&mut stream, key, value).is_ok()),
            Err(_) => failed = true,
        }
    }
    assert!(data.starts_with(&stream));
    assert!(failed || stream == data);
}

/// One zstd frame and nothing after it.
pub fn zstd_frame(data: &[u8]) {
    let Some((len, stored)) = data.split_first_chunk::<4>() else {
        return;
    };
    let len = u64::from(u32::from_le_bytes(*len)).min(PLAIN_LIMIT);
    if let Ok(plain) = compress::decompress(stored, len) {
        assert_eq!(plain.len() as u64, len);
    }
}

/// A slice with what its meta says about it: length of the info (u16, little endian), info, bytes.
pub fn slice(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let Some((info, stored)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else {
        return;
    };
    let Ok(info) = DataFileInfo::decode(info) else {
        return;
    };
    if let Ok(plain) = slice::verify_slice(&info, stored, PLAIN_LIMIT) {
        assert_eq!(plain.len() as u64, info.length);
        let mut count = 0;
        for record in RecordIter::new(&plain) {
            assert!(record.is_ok());
            count += 1;
        }
        assert_eq!(count, info.number_of_entries);
    }
}

/// A `.meta` object, both layouts.
pub fn metadata(data: &[u8]) {
    let Ok(metadata) = meta::decode_metadata(data) else {
        return;
    };
    let again = meta::decode_metadata(&meta::encode_metadata(&metadata));
    assert_eq!(again.as_ref().ok(), Some(&metadata));
    for group in meta::file_groups(metadata) {
        for file in &group.data_files_info {
            assert_eq!(file.path, group.path);
        }
    }
}

/// The name of a `.meta` object, every form.
pub fn object_name(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(name) = MetaName::parse(path) {
        let written = name.write();
        let again = MetaName::parse(&written);
        assert_eq!(again.map(|name| name.write()).ok(), Some(written));
    }
}

/// Objects and PD values of a few bytes. The first byte chooses.
pub fn small_objects(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 5 {
        0 => {
            if let Ok(ts) = checkpoint_ts::decode(data) {
                assert_eq!(checkpoint_ts::encode(ts), data);
            }
        }
        1 => {
            if let Ok(ts) = pd_value::decode(data) {
                assert_eq!(pd_value::encode_checkpoint(ts), data);
            }
        }
        2 => {
            if let Ok(meta) = backup_meta::decode(data) {
                let again = backup_meta::decode(&backup_meta::encode(&meta));
                assert_eq!(again.ok(), Some(meta));
            }
        }
        3 => {
            if let Ok(probe) = start_probe::decode(data) {
                assert!(start_probe::encode(&probe).is_ok());
            }
        }
        _ => {
            if let Ok(ts) = truncate_safepoint::decode(data) {
                let text = truncate_safepoint::encode(ts);
                assert_eq!(truncate_safepoint::decode(text.as_bytes()).ok(), Some(ts));
            }
        }
    }
}
