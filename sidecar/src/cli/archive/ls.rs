//! `archive ls`: the objects of an archive, from one listing. Nothing is read; times come from
//! names, so a span may be wider than the records are.

use pitr_format::Ts;
use pitr_storage::ObjectInfo;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::args::{OutputArgs, StorageArgs};
use super::super::{Outcome, output, progress};
use super::name::{self, Kind, Name};
use super::window::{Window, WindowArgs};
use crate::failure::Exit;
use crate::{storage, time};

/// Arguments of `archive ls`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The objects of an archive.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The storage, without credentials.
    storage: String,
    /// Bytes of all listed objects.
    bytes: u64,
    /// The objects, by name. Those whose name tells no time are never left out.
    objects: Vec<Object>,
}

/// One object.
#[derive(Debug, Serialize, JsonSchema)]
struct Object {
    /// Its name.
    path: String,
    /// What it is.
    kind: Kind,
    /// Its size.
    bytes: u64,
    /// The store that wrote it.
    store: Option<u64>,
    /// No record in it is older; null if the name does not tell.
    earliest: Option<time::Shown>,
    /// No record in it is newer; null if the name does not tell.
    latest: Option<time::Shown>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let window = args.window.resolve(&storage).await?;
    let bar = progress::spinner("listing");
    let listed = storage.list("").await?;
    bar.finish_and_clear();
    let objects: Vec<_> = listed
        .into_iter()
        .filter_map(|found| object(found, window))
        .collect();
    let report = Report {
        storage: storage.uri(),
        bytes: objects.iter().map(|object| object.bytes).sum(),
        objects,
    };
    args.output.show(&report, || text(&report))?;
    if !args.output.json {
        let (count, bytes) = (report.objects.len(), output::bytes(report.bytes));
        output::say(&format!("{count} objects, {bytes}"));
    }
    Ok(Exit::Ok)
}

fn object(found: ObjectInfo, window: Window) -> Option<Object> {
    let Name {
        kind,
        store,
        earliest,
        latest,
    } = name::read(&found.path);
    let inside = window.meets(earliest.unwrap_or(Ts::ZERO), latest.unwrap_or(Ts::MAX));
    inside.then(|| Object {
        path: found.path,
        kind,
        bytes: found.size,
        store,
        earliest: earliest.map(time::show),
        latest: latest.map(time::show),
    })
}

fn text(report: &Report) -> String {
    let head = format!(
        "{:<18} {:>10}  {:<29}  {:<29}  NAME",
        "KIND", "SIZE", "EARLIEST", "LATEST"
    );
    let mut lines = vec![head];
    let local = |at: &Option<time::Shown>| at.as_ref().map_or("-".to_owned(), |t| t.local.clone());
    lines.extend(report.objects.iter().map(|object| {
        format!(
            "{:<18} {:>10}  {:<29}  {:<29}  {}",
            object.kind.as_str(),
            output::bytes(object.bytes),
            local(&object.earliest),
            local(&object.latest),
            object.path
        )
    }));
    lines.join("\n")
}
