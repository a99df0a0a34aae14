//! The recorded scans beside the archives, and what the archives' metadata lists.

use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use pitr_proto::backup::{DataFileInfo, FileType, Metadata};
use prost::Message;

use super::transcript::golden;

/// Pairs of a `scan*.tsv.gz`.
pub fn scan(name: &str) -> Vec<(Bytes, Bytes)> {
    let file = std::fs::File::open(golden(name)).expect(name);
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).expect(name);
    text.lines()
        .map(|line| {
            let (key, value) = line.split_once('\t').expect("two columns");
            (
                hex::decode(key).expect("hex").into(),
                hex::decode(value).expect("hex").into(),
            )
        })
        .collect()
}

/// A number of a `times-and-regions.json`.
pub fn time(folder: &str, name: &str) -> u64 {
    let path = golden(folder).join("times-and-regions.json");
    let text = std::fs::read_to_string(path).expect(folder);
    let value: serde_json::Value = serde_json::from_str(&text).expect(folder);
    value[name].as_u64().expect(name)
}

/// Slices of one region and column family with their objects' names, in the order of the metas,
/// puts before deletes.
pub fn slices(folder: &str, region_id: i64, cf: &str) -> Vec<(String, DataFileInfo)> {
    let mut metas: Vec<_> = std::fs::read_dir(golden(folder).join("archive/v1/backupmeta"))
        .expect(folder)
        .map(|entry| entry.expect("entry").path())
        .collect();
    metas.sort();
    let mut found = Vec::new();
    for path in metas {
        let bytes = std::fs::read(path).expect("meta");
        for group in Metadata::decode(bytes.as_slice())
            .expect("meta")
            .file_groups
        {
            let mine = group.data_files_info.into_iter();
            let mine = mine.filter(|i| i.region_id == region_id && i.cf == cf);
            found.extend(mine.map(|info| (group.path.clone(), info)));
        }
    }
    found.sort_by_key(|(_, info)| info.r#type() == FileType::Delete);
    found
}
