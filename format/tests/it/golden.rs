//! What a real TiKV wrote is read without loss, and what we would write is the same.

use bytes::Bytes;
use pitr_format::meta::{build_group, build_metadata, decode_metadata, encode_metadata};
use pitr_format::object_name::{Generation, MetaName, log_path};
use pitr_format::record::RecordIter;
use pitr_format::slice::{SliceBuilder, SliceId, classify_encoded, verify_slice};
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, KvRecord, OpKind, RecordBatch, Ts, VersionedKey};
use pitr_proto::backup::{DataFileInfo, FileType};
use uuid::Uuid;

use crate::archive::{Archive, NAMES};

const LIMIT: u64 = 64 << 20;

fn each_archive(check: impl Fn(&Archive)) {
    for name in NAMES {
        check(&Archive::open(name));
    }
}

fn id_of(info: &DataFileInfo) -> SliceId {
    SliceId {
        table_id: info.table_id,
        region_id: info.region_id as u64,
        cf: Cf::parse(&info.cf).unwrap(),
        op: match info.r#type() {
            FileType::Put => OpKind::Put,
            FileType::Delete => OpKind::Delete,
        },
        is_meta: info.is_meta,
    }
}

/// The records of a slice, through every check.
fn records(archive: &Archive, info: &DataFileInfo) -> Vec<KvRecord> {
    let plain = verify_slice(info, archive.stored(info), LIMIT)
        .unwrap_or_else(|e| panic!("{} at {}: {e}", info.path, info.range_offset));
    let id = id_of(info);
    RecordIter::new(&plain)
        .map(|record| {
            let (key, value) = record.unwrap();
            KvRecord {
                cf: id.cf,
                op: id.op,
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            }
        })
        .collect()
}

fn slices(archive: &Archive) -> Vec<DataFileInfo> {
    let groups = archive.groups();
    groups.into_iter().flat_map(|g| g.data_files_info).collect()
}

#[test]
fn every_slice_verifies_and_its_records_are_those_of_an_independent_reader() {
    each_archive(|archive| {
        let mut lines = Vec::new();
        for info in slices(archive) {
            for record in records(archive, &info) {
                let key = VersionedKey::from_bytes(record.key).unwrap();
                let (user_key, ts) = key.decode().unwrap();
                let op = match record.op {
                    OpKind::Put => "put",
                    OpKind::Delete => "delete",
                };
                lines.push(format!(
                    "{}\t{op}\t{}\t{ts}\t{}",
                    record.cf,
                    hex::encode(user_key),
                    hex::encode(record.value)
                ));
            }
        }
        lines.sort_unstable();
        let expected = archive.expected_records();
        assert!(expected.len() > 2_000);
        assert_eq!(lines.len(), expected.len());
        let differs = lines.iter().zip(&expected).find(|(a, b)| a != b);
        assert_eq!(differs, None);
    });
}

#[test]
fn sealing_the_same_records_gives_the_metadata_that_tikv_computed() {
    each_archive(|archive| {
        for theirs in slices(archive) {
            let mut builder = SliceBuilder::new(id_of(&theirs));
            builder.note_resolved(Ts::new(theirs.resolved_ts));
            for record in records(archive, &theirs) {
                let class = (theirs.table_id, theirs.is_meta);
                assert_eq!(classify_encoded(&record.key), class);
                builder
                    .append(RecordBatch::of([&record]).unwrap().iter().next().unwrap())
                    .unwrap();
            }
            let ours = builder.seal().unwrap();
            verify_slice(&ours.info, &ours.stored, LIMIT).unwrap();
            // What only the flush knows, and the length of another encoder's output.
            let expected = DataFileInfo {
                path: String::new(),
                range_offset: 0,
                range_length: ours.info.range_length,
                region_start_key: Bytes::new(),
                region_end_key: Bytes::new(),
                region_epoch: vec![],
                ..theirs
            };
            assert_eq!(ours.info, expected);
        }
    });
}

#[test]
fn every_write_record_encodes_back_to_its_bytes() {
    each_archive(|archive| {
        let write_slices = slices(archive).into_iter().filter(|i| i.cf == "write");
        for info in write_slices {
            for record in records(archive, &info) {
                if record.value.is_empty() {
                    continue;
                }
                let parsed = WriteRecord::parse(&record.value).unwrap();
                assert_eq!(parsed.to_bytes(), record.value);
            }
        }
    });
}

#[test]
fn rebuilt_groups_and_metadata_have_the_sums_that_tikv_computed() {
    each_archive(|archive| {
        for (_, theirs) in archive.metas() {
            let groups = theirs.file_groups.iter().map(|group| {
                let mut infos = group.data_files_info.clone();
                for info in &mut infos {
                    info.range_offset = u64::MAX;
                }
                build_group(group.path.clone(), infos)
            });
            let store_id = theirs.store_id as u64;
            let ours = build_metadata(store_id, Ts::new(theirs.resolved_ts), groups.collect());
            assert_eq!(ours, theirs);
            assert_eq!(decode_metadata(&encode_metadata(&ours)).unwrap(), theirs);
        }
    });
}

#[test]
fn the_names_of_metadata_objects_read_and_write_identically_and_follow_from_the_content() {
    each_archive(|archive| {
        let mut empty = 0;
        for (path, metadata) in archive.metas() {
            let name = MetaName::parse(path).unwrap();
            assert_eq!(name.generation, Generation::G4);
            assert_eq!(name.write(), path);
            assert_eq!(MetaName::of_flush(name.flush_ts, &metadata), name);
            empty += usize::from(metadata.file_groups.is_empty());
        }
        assert!(empty > 0, "an idle flush is part of the archive");
    });
}

#[test]
fn the_names_of_merged_objects_follow_from_their_groups() {
    each_archive(|archive| {
        let mut referenced = 0;
        for group in archive.groups() {
            let stem = group.path.strip_suffix(".log").unwrap();
            let uuid = Uuid::try_parse(&stem[stem.len() - 36..]).unwrap();
            let is_meta = group.data_files_info[0].is_meta;
            let (min_ts, max_ts) = (Ts::new(group.min_ts), Ts::new(group.max_ts));
            assert_eq!(log_path(1, min_ts, max_ts, uuid, is_meta), group.path);
            assert_eq!(archive.objects[&group.path].len() as u64, group.length);
            referenced += 1;
        }
        let logs = archive.objects.keys().filter(|p| p.ends_with(".log"));
        assert_eq!(logs.count(), referenced);
    });
}
