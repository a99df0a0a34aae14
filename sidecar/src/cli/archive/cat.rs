//! `archive cat`: what an object holds, as text or as one JSON document a line. A log file is read
//! through the metas that refer to it; only slices that match their metadata are shown.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use pitr_format::{backup_meta, checkpoint_ts, start_probe, truncate_safepoint};
use pitr_restore_worker::Damage;
use pitr_restore_worker::archive::{ArchiveError, meta_paths};
use pitr_restore_worker::plan::Slice;
use pitr_storage::{ObjectInfo, SharedStorage, StorageErrorKind};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::args::{OutputArgs, StorageArgs};
use super::super::output::Lines;
use super::super::{Outcome, progress};
use super::lines::{BackupMeta, Meta, SliceLine, Start};
use super::name::{self, Kind};
use super::record::Record;
use super::{Damages, slices};
use crate::codes::Code;
use crate::failure::Failure;
use crate::{storage, time};

/// Largest object at the root of an archive that is read.
const MAX_ROOT_OBJECT: u64 = 1 << 20;

/// Arguments of `archive cat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the object, as `archive ls` shows it.
    object: String,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One line of the output.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// The head of a meta.
    Meta(Meta),
    /// A slice that the meta refers to.
    Slice(SliceLine),
    /// A record of a log file.
    Record(Record),
    /// A checkpoint.
    Checkpoint {
        /// The log is complete up to here.
        ts: time::Shown,
    },
    /// Up to where the log was truncated.
    TruncateSafepoint {
        /// Nothing before it can be restored.
        ts: time::Shown,
    },
    /// Whose log it is.
    BackupMeta(BackupMeta),
    /// What the start of the task found.
    Start(Start),
    /// Text for people.
    Text {
        /// The text.
        text: String,
    },
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let object = find(&storage, &args.object).await?;
    let mut out = Lines::new(args.output.json);
    let mut damages = Damages::default();
    match name::read(&object.path).kind {
        Kind::Meta => meta(&storage, object.path, &mut out, &mut damages).await?,
        Kind::Log | Kind::SchemaLog => log(&storage, &object.path, &mut out, &mut damages).await?,
        _ => match small(&storage, &object).await? {
            Ok(line) => out.print(&line)?,
            Err(damage) => damages.meet(damage),
        },
    }
    out.flush();
    damages.judge(&storage.uri())
}

async fn find(storage: &SharedStorage, path: &str) -> Result<ObjectInfo, Failure> {
    let missing = || {
        Failure::new(Code::ObjectNotFound, "the archive has no such object")
            .at(format!("{path} in {}", storage.uri()))
            .action("`tikv-pitr archive ls` lists the objects")
    };
    match storage.head(path).await {
        Ok(found) => found.ok_or_else(missing),
        // Names that no object can have are as unknown as others.
        Err(error) if error.kind == StorageErrorKind::InvalidPath => Err(missing()),
        Err(error) => Err(error.into()),
    }
}

async fn meta(
    storage: &SharedStorage,
    path: String,
    out: &mut Lines,
    damages: &mut Damages,
) -> Result<(), Failure> {
    let mut walk = super::walk(storage, vec![path]);
    while let Some(meta) = walk.next().await? {
        match &meta.content {
            Err(damage) => damages.meet(damage.clone()),
            Ok(content) => {
                out.print(&Line::Meta(Meta::new(&meta, content)))?;
                for slice in &content.slices {
                    out.print(&Line::Slice(SliceLine::new(slice)))?;
                }
            }
        }
    }
    Ok(())
}

async fn log(
    storage: &SharedStorage,
    path: &str,
    out: &mut Lines,
    damages: &mut Damages,
) -> Result<(), Failure> {
    let slices = slices_of(storage, path, damages).await?;
    if slices.is_empty() && !damages.any() {
        let failure = Failure::new(Code::UnreferencedLog, "no meta refers to the log file");
        return Err(failure.at(format!("{path} in {}", storage.uri())));
    }
    for slice in slices {
        let plain = match slices::open(storage, &slice).await? {
            Ok(plain) => plain,
            Err(damage) => {
                out.flush();
                damages.meet(damage);
                continue;
            }
        };
        let mut failed = None;
        let shown = slices::each_record(&slice, &plain, |offset, key, value| {
            let record = Record::new(&slice, offset, key, value)?;
            failed = out.print(&Line::Record(record)).err();
            Ok(match failed.is_some() || out.closed() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        });
        if let Err(damage) = shown {
            damages.meet(damage);
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        if out.closed() {
            break;
        }
    }
    Ok(())
}

/// The slices of a log file, by offset. Metas whose names say that they hold its first record come
/// first; the others are read only if none of those refers to it.
async fn slices_of(
    storage: &SharedStorage,
    path: &str,
    damages: &mut Damages,
) -> Result<Vec<Slice>, Failure> {
    let first = name::read(path).earliest;
    let spans = |meta: &String| {
        let name = name::read(meta);
        match (name.earliest, name.latest, first) {
            (Some(earliest), Some(latest), Some(first)) => earliest <= first && first <= latest,
            _ => false,
        }
    };
    let (likely, others): (Vec<_>, Vec<_>) =
        meta_paths(storage).await?.into_iter().partition(spans);
    let bar = progress::counter("metas read");
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for paths in [likely, others] {
        let mut walk = super::walk(storage, paths);
        while let Some(meta) = walk.next().await? {
            bar.inc(1);
            match meta.content {
                Err(damage) => damages.meet(damage),
                Ok(content) => found.extend(content.slices.into_iter().filter(|slice| {
                    // A repeated flush refers to the same slice again.
                    let at = (slice.info.range_offset, slice.info.range_length);
                    slice.object == path && seen.insert(at)
                })),
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    found.sort_by_key(|slice| slice.info.range_offset);
    Ok(found)
}

/// Objects that are decoded whole.
async fn small(
    storage: &SharedStorage,
    object: &ObjectInfo,
) -> Result<Result<Line, Damage>, Failure> {
    let path = object.path.as_str();
    let kind = name::read(path).kind;
    let known = [
        Kind::Checkpoint,
        Kind::BackupMeta,
        Kind::Lock,
        Kind::Start,
        Kind::TruncateSafepoint,
    ];
    if !known.contains(&kind) {
        let what = "the object is none that a log archive has";
        let place = format!("{path} in {}", storage.uri());
        return Err(Failure::new(Code::OpaqueObject, what).at(place));
    }
    if object.size > MAX_ROOT_OBJECT {
        let what = format!("{} bytes are more than such an object has", object.size);
        return Ok(Err(Damage::new(path, what)));
    }
    let bytes = storage.get(path).await?;
    let damage = |error: &dyn std::error::Error| Damage::new(path, error);
    Ok(match kind {
        Kind::Checkpoint => checkpoint_ts::decode(&bytes)
            .map(|ts| Line::Checkpoint { ts: time::show(ts) })
            .map_err(|error| damage(&error)),
        Kind::TruncateSafepoint => truncate_safepoint::decode(&bytes)
            .map(|ts| Line::TruncateSafepoint { ts: time::show(ts) })
            .map_err(|error| damage(&error)),
        Kind::Start => start_probe::decode(&bytes)
            .map(|probe| Line::Start(probe.into()))
            .map_err(|error| damage(&error)),
        Kind::BackupMeta => match backup_meta::decode(&bytes) {
            Ok(meta) => Ok(Line::BackupMeta(meta.into())),
            Err(error @ backup_meta::BackupMetaError::Damaged(_)) => Err(damage(&error)),
            Err(error) => {
                let uri = storage.uri();
                return Err(ArchiveError::NotALog { uri, error }.into());
            }
        },
        _ => Ok(Line::Text {
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }),
    })
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Meta(meta) => meta.fmt(f),
            Line::Slice(slice) => slice.fmt(f),
            Line::Record(record) => record.fmt(f),
            Line::Checkpoint { ts } => write!(f, "checkpoint: {ts}"),
            Line::TruncateSafepoint { ts } => write!(f, "truncated before: {ts}"),
            Line::BackupMeta(meta) => meta.fmt(f),
            Line::Start(start) => start.fmt(f),
            Line::Text { text } => f.write_str(text),
        }
    }
}
