//! Reads every `.meta` object and checks it against its own name, because a protobuf message that
//! was cut between two fields still decodes.

use futures::{StreamExt, TryStreamExt};
use pitr_format::meta::{decode_metadata, file_groups};
use pitr_format::object_name::{FLAG_EMPTY, Generation, META_DIR, META_SUFFIX, MetaName};
use pitr_format::{Cf, Ts};
use pitr_proto::backup::{DataFileGroup, MetaVersion, Metadata};
use pitr_storage::{Storage, StorageError};

use super::ATTEMPTS;
use crate::damage::Damage;
use crate::fetch::get;
use crate::plan::Slice;

/// Metas read at once.
const CONCURRENCY: usize = 32;

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

pub(super) async fn read_all(storage: &dyn Storage) -> Result<Vec<MetaObject>, StorageError> {
    let listed = storage.list(META_DIR).await?;
    let paths = listed
        .into_iter()
        .map(|o| o.path)
        .filter(|p| p.ends_with(META_SUFFIX));
    futures::stream::iter(paths)
        .map(|path| read_one(storage, path))
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

async fn read_one(storage: &dyn Storage, path: String) -> Result<MetaObject, StorageError> {
    let name = MetaName::parse(&path).ok();
    let content = match get(storage, &path, ATTEMPTS).await {
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
    let files = || groups.iter().flat_map(|g| &g.data_files_info);
    let held = (
        files().map(|f| f.min_ts).min().unwrap_or_default(),
        files().map(|f| f.max_ts).max().unwrap_or_default(),
    );
    if (name.min_ts.get(), name.max_ts.get()) != held {
        return Err(format!(
            "its name says records from {} to {}, its content from {} to {}",
            name.min_ts, name.max_ts, held.0, held.1
        ));
    }
    Ok(())
}
