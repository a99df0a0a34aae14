//! The content of a `.meta` object: which slices a flush stored, and where.
//!
//! Two layouts exist: V2 (since 6.3) groups slices by the merged object they lie in; V1 lists
//! objects with one slice each. [`file_groups`] makes one of both. Source: tikv/tikv
//! `components/backup-stream/src/router.rs`, pingcap/tidb `br/pkg/stream/stream_mgr.go`. Built by
//! the observer's flush, read by restore and verify.

use bytes::Bytes;
use pitr_proto::backup::{CompressionType, DataFileGroup, DataFileInfo, MetaVersion, Metadata};
use prost::Message;

use crate::varint;
use crate::{Class, Ts};

/// Largest object that is decoded; a flush of a million slices stays far below.
pub const MAX_METADATA_LEN: usize = 1 << 30;

/// Fewest bytes of a slice description: its hash alone takes as many. Checked before decoding,
/// because a description of 0 bytes would still cost some hundred bytes of memory.
const MIN_INFO_LEN: u64 = 34;

const FIELD_FILES: u64 = 1;
const FIELD_FILE_GROUPS: u64 = 6;
const FIELD_GROUP_INFOS: u64 = 2;

/// Why bytes are not the metadata of a flush. The caller adds the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Above [`MAX_METADATA_LEN`].
    #[error("metadata of {0} bytes is above the limit of {MAX_METADATA_LEN}")]
    TooLarge(usize),
    /// Not the protobuf message, for example because it was cut.
    #[error("metadata is damaged: {0}")]
    Damaged(String),
    /// A later layout than V2.
    #[error("metadata has version {0}, this build reads versions 0 and 1: use a newer build")]
    Version(i32),
}

impl MetaError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Decodes a `.meta` object of either layout. Memory stays within a small multiple of the bytes.
pub fn decode_metadata(bytes: &[u8]) -> Result<Metadata, MetaError> {
    if bytes.len() > MAX_METADATA_LEN {
        return Err(MetaError::TooLarge(bytes.len()));
    }
    check_density(bytes).map_err(|reason| MetaError::Damaged(reason.to_owned()))?;
    // A copy that the decoded byte fields share, instead of one allocation each.
    let metadata = Metadata::decode(Bytes::copy_from_slice(bytes))
        .map_err(|e| MetaError::Damaged(e.to_string()))?;
    check_understood(&metadata).map_err(|reason| MetaError::Damaged(reason.to_owned()))?;
    match MetaVersion::try_from(metadata.meta_version) {
        Ok(_) => Ok(metadata),
        Err(_) => Err(MetaError::Version(metadata.meta_version)),
    }
}

/// The bytes of a `.meta` object: the bare message, never compressed or encrypted.
pub fn encode_metadata(metadata: &Metadata) -> Bytes {
    metadata.encode_to_vec().into()
}

/// The groups of either layout, each slice with the path of its object. Order is kept: restores
/// identify slices by it.
pub fn file_groups(metadata: Metadata) -> Vec<DataFileGroup> {
    let is_v1 = metadata.meta_version() == MetaVersion::V1 && metadata.file_groups.is_empty();
    if is_v1 {
        return metadata.files.into_iter().map(group_of_v1).collect();
    }
    let mut groups = metadata.file_groups;
    for group in &mut groups {
        for info in &mut group.data_files_info {
            info.path.clone_from(&group.path);
        }
    }
    groups
}

fn group_of_v1(info: DataFileInfo) -> DataFileGroup {
    // V1 objects hold one slice; only an uncompressed one has a stored size that is known.
    let stored_len = match info.range_length {
        0 if info.compression_type() == CompressionType::Unknown => info.length,
        len => len,
    };
    DataFileGroup {
        path: info.path.clone(),
        min_ts: info.min_ts,
        max_ts: info.max_ts,
        min_resolved_ts: info.resolved_ts,
        length: stored_len,
        data_files_info: vec![info],
    }
}

/// The group of one merged object: `infos` in the order in which their stored bytes are
/// concatenated. Sets their `range_offset`s and all sums.
pub fn build_group(path: String, mut infos: Vec<DataFileInfo>) -> DataFileGroup {
    let mut length = 0;
    for info in &mut infos {
        info.range_offset = length;
        length += info.range_length;
    }
    DataFileGroup {
        path,
        min_ts: infos.iter().map(|i| i.min_ts).min().unwrap_or_default(),
        max_ts: infos.iter().map(|i| i.max_ts).max().unwrap_or_default(),
        min_resolved_ts: infos
            .iter()
            .map(|i| i.resolved_ts)
            .min()
            .unwrap_or_default(),
        length,
        data_files_info: infos,
    }
}

/// The metadata of one flush. `groups` with data come first, then those with schema slices;
/// none at all is a valid (idle) flush. `resolved_ts` is what the flush itself proves; the
/// groups' own may be later.
pub fn build_metadata(store_id: u64, resolved_ts: Ts, groups: Vec<DataFileGroup>) -> Metadata {
    let of_groups = groups.iter().map(|g| g.min_resolved_ts).min();
    Metadata {
        store_id: store_id as i64,
        resolved_ts: of_groups.unwrap_or_default().max(resolved_ts.get()),
        min_ts: groups.iter().map(|g| g.min_ts).min().unwrap_or_default(),
        max_ts: groups.iter().map(|g| g.max_ts).max().unwrap_or_default(),
        meta_version: MetaVersion::V2.into(),
        file_groups: groups,
        files: Vec::new(),
    }
}

/// Refuses messages whose slice descriptions are too short to be ones.
fn check_density(bytes: &[u8]) -> Result<(), &'static str> {
    for_each_message(bytes, |number, message| match number {
        FIELD_FILES => check_info(message),
        FIELD_FILE_GROUPS => for_each_message(message, |number, message| match number {
            FIELD_GROUP_INFOS => check_info(message),
            _ => Ok(()),
        })
        .and_then(|()| check_info(message)),
        _ => Ok(()),
    })
}

fn check_info(message: &[u8]) -> Result<(), &'static str> {
    check_len(message.len())
}

fn check_len(len: usize) -> Result<(), &'static str> {
    match len as u64 >= MIN_INFO_LEN {
        true => Ok(()),
        false => Err("a slice description is shorter than the hash it has to hold"),
    }
}

/// The same rule for what was understood: a description that is only padded, with fields that
/// nobody knows or with one field over and over, holds no hash either.
fn check_understood(metadata: &Metadata) -> Result<(), &'static str> {
    let groups = metadata.file_groups.iter();
    let of_groups = groups.clone().flat_map(|group| &group.data_files_info);
    let mut infos = metadata.files.iter().chain(of_groups);
    infos.try_for_each(|info| check_len(info.encoded_len()))?;
    groups.map(Message::encoded_len).try_for_each(check_len)
}

/// Calls `visit` with number and bytes of each length-delimited field of a protobuf message.
fn for_each_message<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u64, &'a [u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    const CUT: &str = "ends inside a field";
    fn number(bytes: &mut &[u8]) -> Result<u64, &'static str> {
        let (number, used) = varint::decode(bytes).map_err(|_| "bad number")?;
        *bytes = &bytes[used..];
        Ok(number)
    }
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        let skip = match key & 7 {
            0 => {
                number(&mut bytes)?;
                0
            }
            1 => 8,
            2 => number(&mut bytes)?,
            5 => 4,
            _ => return Err("field of an unknown wire type"),
        };
        let skip = usize::try_from(skip).map_err(|_| CUT)?;
        let (field, rest) = bytes.split_at_checked(skip).ok_or(CUT)?;
        if key & 7 == 2 {
            visit(key >> 3, field)?;
        }
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(path: &str, ts: u64, stored: u64) -> DataFileInfo {
        DataFileInfo {
            sha256: Bytes::from(vec![7; 32]),
            path: path.to_owned(),
            min_ts: ts,
            max_ts: ts + 5,
            resolved_ts: ts + 100,
            length: 3 * stored,
            range_length: stored,
            compression_type: CompressionType::Zstd.into(),
            ..DataFileInfo::default()
        }
    }

    #[test]
    fn a_group_lays_its_slices_end_to_end_and_sums_them_up() {
        let group = build_group("o.log".to_owned(), vec![info("", 20, 10), info("", 10, 7)]);
        let offsets: Vec<u64> = group
            .data_files_info
            .iter()
            .map(|i| i.range_offset)
            .collect();
        assert_eq!((offsets, group.length), (vec![0, 10], 17));
        assert_eq!((group.min_ts, group.max_ts), (10, 25));
        assert_eq!(group.min_resolved_ts, 110);
        assert_eq!(group.path, "o.log");
    }

    #[test]
    fn the_metadata_of_a_flush_covers_its_groups_and_an_idle_flush_is_all_zero() {
        let groups = vec![
            build_group("a".to_owned(), vec![info("", 20, 1)]),
            build_group("b".to_owned(), vec![info("", 10, 1)]),
        ];
        let metadata = build_metadata(3, Ts::new(50), groups.clone());
        assert_eq!(
            (metadata.store_id, metadata.meta_version()),
            (3, MetaVersion::V2)
        );
        assert_eq!((metadata.min_ts, metadata.max_ts), (10, 25));
        assert_eq!(
            metadata.resolved_ts, 110,
            "the groups prove more than the flush"
        );
        assert_eq!(build_metadata(3, Ts::new(500), groups).resolved_ts, 500);
        let idle = build_metadata(3, Ts::new(50), vec![]);
        assert_eq!((idle.min_ts, idle.max_ts, idle.resolved_ts), (0, 0, 50));
        assert_eq!(decode_metadata(&encode_metadata(&idle)).unwrap(), idle);
    }

    #[test]
    fn padding_makes_no_description_of_something_that_holds_no_hash() {
        // Field 4 of a group and of a slice, 20 times the same number: 40 bytes that say nothing.
        let padding = [0x20, 0x07].repeat(20);
        let field =
            |number: u8, inner: &[u8]| [&[number << 3 | 2, inner.len() as u8], inner].concat();
        for bytes in [
            field(1, &padding),
            field(6, &padding),
            field(6, &field(2, &padding)),
        ] {
            let refused = decode_metadata(&bytes).unwrap_err();
            assert!(matches!(refused, MetaError::Damaged(_)), "{refused}");
        }
        let unknown = [
            field(15, &padding),
            encode_metadata(&Metadata::default()).to_vec(),
        ];
        decode_metadata(&unknown.concat()).expect("fields of later builds are passed over");
    }

    #[test]
    fn both_layouts_become_groups_whose_slices_know_their_object() {
        let v1 = Metadata {
            files: vec![info("x.log", 1, 0), info("y.log", 2, 9)],
            ..Metadata::default()
        };
        let plain = DataFileInfo {
            compression_type: 0,
            ..info("z.log", 3, 0)
        };
        let plain = DataFileInfo {
            length: 44,
            ..plain
        };
        let v1 = Metadata {
            files: [v1.files, vec![plain]].concat(),
            ..Metadata::default()
        };
        let groups = file_groups(decode_metadata(&v1.encode_to_vec()).unwrap());
        let seen: Vec<_> = groups
            .iter()
            .map(|g| (g.path.as_str(), g.min_ts, g.max_ts, g.length))
            .collect();
        assert_eq!(
            seen,
            [("x.log", 1, 6, 0), ("y.log", 2, 7, 9), ("z.log", 3, 8, 44)]
        );
        assert_eq!(groups[1].min_resolved_ts, 102);
        let v2 = build_metadata(
            1,
            Ts::ZERO,
            vec![build_group("o".to_owned(), vec![info("", 1, 1)])],
        );
        // Files beside groups are no V1 metadata, whatever the version field says.
        for meta_version in [0, 1] {
            let mixed = Metadata {
                files: vec![info("ignored", 1, 1)],
                meta_version,
                ..v2.clone()
            };
            let groups = file_groups(mixed);
            assert_eq!(groups.len(), 1);
            assert_eq!(groups[0].data_files_info[0].path, "o");
        }
        let empty_v2 = build_metadata(1, Ts::ZERO, vec![]);
        assert_eq!(file_groups(empty_v2), vec![]);
    }

    #[test]
    fn a_cut_message_a_later_version_and_hollow_descriptions_are_refused() {
        let metadata = build_metadata(
            1,
            Ts::ZERO,
            vec![build_group("o".to_owned(), vec![info("", 1, 1)])],
        );
        let bytes = encode_metadata(&metadata);
        let whole_fields = [0, bytes.len()];
        let mut refused = 0;
        for cut in (0..bytes.len()).filter(|cut| !whole_fields.contains(cut)) {
            refused += usize::from(decode_metadata(&bytes[..cut]).is_err());
        }
        // A cut between two top-level fields is a valid message; there are four such places.
        assert!(refused >= bytes.len() - 6, "{refused} of {}", bytes.len());
        let later = Metadata {
            meta_version: 2,
            ..metadata.clone()
        };
        assert_eq!(
            decode_metadata(&encode_metadata(&later)),
            Err(MetaError::Version(2))
        );
        for hollow in [&[0x0A, 0][..], &[0x32, 0], &[0x32, 2, 0x12, 0]] {
            let bomb = hollow.repeat(1000);
            assert!(matches!(decode_metadata(&bomb), Err(MetaError::Damaged(_))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_metadata_survives_a_round_trip(
            slices in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..8),
        ) {
            let groups = slices
                .iter()
                .map(|(ts, len)| {
                    build_group(format!("{ts}"), vec![info("", (*ts).into(), (*len).into())])
                })
                .collect();
            let metadata = build_metadata(1, Ts::new(9), groups);
            prop_assert_eq!(decode_metadata(&encode_metadata(&metadata)).unwrap(), metadata);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in any::<Vec<u8>>(), at in any::<u8>()) {
            let _ = decode_metadata(&bytes).map(file_groups);
            let group = build_group("o".to_owned(), vec![info("", 1, 1)]);
            let mut near = encode_metadata(&build_metadata(1, Ts::ZERO, vec![group])).to_vec();
            let at = usize::from(at) % near.len();
            near.splice(at..at + 1, bytes);
            let _ = decode_metadata(&near).map(file_groups);
        }
    }
}
