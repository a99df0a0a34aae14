//! Reads a `.meta` object and checks it against its own name, because a protobuf message that
//! was cut between two fields still decodes.

use pitr_env::Clock;
use pitr_format::meta::{decode_metadata, file_groups};
use pitr_format::object_name::{FLAG_EMPTY, Generation, MetaName};
use pitr_format::{Cf, Ts};
use pitr_proto::backup::{DataFileGroup, MetaVersion, Metadata};
use pitr_storage::{Storage, StorageError};

use super::ATTEMPTS;
use crate::damage::Damage;
use crate::fetch::get;
use crate::plan::Slice;

/// One `.meta` object.
#[derive(Clone, Debug)]
pub struct MetaObject {
    /// Its name.
    pub path: String,
    /// What the name says; `None` for names of the oldest form and of unknown writers.
    pub name: Option<MetaName>,
    /// What it holds, or what is wrong with it.
    pub content: Result<MetaContent, Damage>,
}

/// What a `.meta` object holds.
#[derive(Clone, Debug)]
pub struct MetaContent {
    /// Store that wrote it.
    pub store_id: i64,
    /// Smallest and largest ts of its records; zero when it is empty.
    pub min_ts: Ts,
    /// See `min_ts`.
    pub max_ts: Ts,
    /// The slices it refers to.
    pub slices: Vec<Slice>,
}

/// Reads one; damage is inside of it.
pub(crate) async fn read_one(
    storage: &dyn Storage,
    clock: &dyn Clock,
    path: String,
) -> Result<MetaObject, StorageError> {
    let name = MetaName::parse(&path).ok();
    let content = match get(storage, clock, &path, ATTEMPTS).await {
        Ok(bytes) => match decode_metadata(&bytes) {
            Ok(meta) => content(&path, name.as_ref(), meta),
            Err(e) => Err(Damage::new(&path, e)),
        },
        Err(e) => Err(Damage::from_read(&path, e)?),
    };
    Ok(MetaObject {
        path,
        name,
        content,
    })
}

fn content(path: &str, name: Option<&MetaName>, meta: Metadata) -> Result<MetaContent, Damage> {
    let (store_id, min_ts, max_ts) = (meta.store_id, meta.min_ts, meta.max_ts);
    if !meta.file_groups.is_empty() && meta.meta_version() != MetaVersion::V2 {
        return Err(Damage::new(path, "it ends before its version: it was cut"));
    }
    let groups = file_groups(meta);
    check_message(name, store_id, (min_ts, max_ts), &groups)
        .map_err(|what| Damage::new(path, what))?;
    if let Some(name) = name {
        check_name(name, store_id, &groups).map_err(|what| Damage::new(path, what))?;
    }
    let mut slices = Vec::new();
    for group in groups {
        for info in group.data_files_info {
            let cf = Cf::parse(&info.cf).ok_or_else(|| {
                Damage::new(
                    path,
                    format!("it names the unknown column family {:?}", info.cf),
                )
            })?;
            slices.push(Slice {
                object: group.path.clone(),
                cf,
                info,
            });
        }
    }
    Ok(MetaContent {
        store_id,
        min_ts: Ts::new(min_ts),
        max_ts: Ts::new(max_ts),
        slices,
    })
}

/// What holds for every writer, whatever the name says: a message that was cut between two fields
/// breaks one of these.
fn check_message(
    name: Option<&MetaName>,
    store_id: i64,
    told: (u64, u64),
    groups: &[DataFileGroup],
) -> Result<(), String> {
    if store_id <= 0 {
        return Err("it names no store: it was cut".to_owned());
    }
    let Some(held) = bounds(groups) else {
        let flags = name.and_then(|name| name.flags).unwrap_or_default();
        return match flags & FLAG_EMPTY {
            0 => Err("it refers to nothing, and its name does not say so: it was cut".to_owned()),
            _ => Ok(()),
        };
    };
    if told != (0, 0) && told != held {
        return Err(format!(
            "it says records from {} to {}, its slices are from {} to {}",
            told.0, told.1, held.0, held.1
        ));
    }
    Ok(())
}

/// Smallest and largest ts of the slices; `None` without any.
fn bounds(groups: &[DataFileGroup]) -> Option<(u64, u64)> {
    let files = || groups.iter().flat_map(|g| &g.data_files_info);
    Some((
        files().map(|f| f.min_ts).min()?,
        files().map(|f| f.max_ts).max()?,
    ))
}

fn check_name(name: &MetaName, store_id: i64, groups: &[DataFileGroup]) -> Result<(), String> {
    if let Some(store) = name.store_id
        && u64::try_from(store_id) != Ok(store)
    {
        return Err(format!(
            "its name says store {store}, its content {store_id}"
        ));
    }
    let empty = name.flags.map(|flags| flags & FLAG_EMPTY != 0);
    if let Some(empty) = empty
        && empty != groups.iter().all(|g| g.data_files_info.is_empty())
    {
        let (named, held) = (if empty { "no" } else { "some" }, groups.len());
        return Err(format!(
            "its name says {named} files, its content holds {held} groups"
        ));
    }
    if name.generation < Generation::G2 || name.max_ts.is_zero() || empty == Some(true) {
        return Ok(());
    }
    // A truncation drops groups and keeps the name: the name's bounds may be wider than the rest.
    let held = bounds(groups).unwrap_or_default();
    if held.0 < name.min_ts.get() || held.1 > name.max_ts.get() {
        return Err(format!(
            "its name says records from {} to {}, its content from {} to {}",
            name.min_ts, name.max_ts, held.0, held.1
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::DataFileInfo;

    use super::*;

    const G1: &str = "v1/backupmeta/470630701673742338-595b39ff-8270-4882-8f5a-78e0ff01ed5a.meta";
    const G4: &str = "v1/backupmeta/06880421935400010000000000000001-d0000000000000005l0000000000000005u0000000000000014p0000000000000001.meta";

    fn file(min_ts: u64, max_ts: u64) -> DataFileInfo {
        DataFileInfo {
            cf: "write".to_owned(),
            path: "v1/a.log".to_owned(),
            min_ts,
            max_ts,
            ..DataFileInfo::default()
        }
    }

    fn v2(min_ts: u64, max_ts: u64, files: Vec<DataFileInfo>) -> Metadata {
        let group = DataFileGroup {
            path: "v1/a.log".to_owned(),
            data_files_info: files,
            ..DataFileGroup::default()
        };
        Metadata {
            store_id: 1,
            min_ts,
            max_ts,
            file_groups: vec![group],
            meta_version: MetaVersion::V2 as i32,
            ..Metadata::default()
        }
    }

    fn check(path: &str, meta: Metadata) -> Result<MetaContent, Damage> {
        content(path, MetaName::parse(path).ok().as_ref(), meta)
    }

    #[test]
    fn a_meta_of_nothing_is_damage_unless_its_name_says_that_it_is_empty() {
        assert!(check(G1, Metadata::default()).is_err());
        assert!(check("v1/backupmeta/strange.meta", Metadata::default()).is_err());
        let without_groups = Metadata {
            store_id: 1,
            ..Metadata::default()
        };
        assert!(check(G1, without_groups.clone()).is_err());
        let empty = "v1/backupmeta/06880422CC9800010000000000000001-d0000000000000000l0000000000000000u0000000000000000p0000000000000003.meta";
        assert!(check(empty, without_groups).is_ok());
    }

    #[test]
    fn a_meta_of_the_first_version_that_was_cut_between_two_files_is_damage() {
        let whole = Metadata {
            files: vec![file(5, 9), file(7, 20)],
            store_id: 1,
            min_ts: 5,
            max_ts: 20,
            ..Metadata::default()
        };
        assert!(check(G1, whole.clone()).is_ok());
        let cut = Metadata {
            files: vec![file(5, 9)],
            ..Metadata::default()
        };
        assert!(check(G1, cut).is_err());
        let lacks_a_file = Metadata {
            files: vec![file(5, 9)],
            ..whole
        };
        assert!(check(G1, lacks_a_file).is_err());
    }

    #[test]
    fn a_truncation_may_leave_less_than_the_name_says_and_never_more() {
        assert!(check(G4, v2(5, 20, vec![file(5, 9), file(7, 20)])).is_ok());
        assert!(check(G4, v2(7, 20, vec![file(7, 20)])).is_ok());
        assert!(check(G4, v2(5, 21, vec![file(5, 21)])).is_err());
        assert!(check(G4, v2(5, 20, vec![file(7, 20)])).is_err());
    }
}
