//! `archive stat`: totals of an archive from its metas and one listing. No log file is read: what
//! can be seen from outside (missing, shorter than its metas say) is told, the rest is for `verify
//! data`. Memory is that of the listing and of the groups.

use std::collections::{BTreeMap, BTreeSet};

use pitr_format::{Cf, Ts};
use pitr_proto::backup::DataFileInfo;
use pitr_restore_worker::Damage;
use pitr_restore_worker::archive::{ArchiveInfo, MetaContent};
use pitr_restore_worker::plan::Slice;
use pitr_storage::{ObjectInfo, SharedStorage};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::args::{OutputArgs, StorageArgs};
use super::super::{Outcome, output, progress};
use super::Damages;
use super::name::{self, Kind};
use crate::failure::Failure;
use crate::{archive, storage, time};

/// Groups of one kind that the text form shows.
const SHOWN_GROUPS: usize = 10;

/// Arguments of `archive stat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Totals of an archive.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The storage, without credentials.
    storage: String,
    /// The cluster that it was taken from; null without `backupmeta`.
    cluster_id: Option<u64>,
    /// What can be restored; null without `backupmeta` or checkpoint.
    recoverable: Option<Span>,
    /// From the oldest to the newest record; null without records.
    records_span: Option<Span>,
    /// Metas, and their bytes.
    metas: Objects,
    /// Log files, and their bytes.
    logs: Objects,
    /// Log files that no meta names; no fault.
    unreferenced: Objects,
    /// All slices together.
    total: Amount,
    /// By store, the largest first.
    stores: Vec<Group>,
    /// By region, the largest first.
    regions: Vec<Group>,
    /// By table of TiDB (0: none), the largest first.
    tables: Vec<Group>,
    /// In `default`.
    default_cf: Amount,
    /// In `write`.
    write_cf: Amount,
    /// What is damaged as far as it can be seen without reading the log files; the exit code is 20 if
    /// there is any.
    problems: Vec<Problem>,
    /// What a reader should know about the archive.
    warnings: Vec<String>,
}

/// A span of time.
#[derive(Debug, Serialize, JsonSchema)]
struct Span {
    /// Its begin.
    min: time::Shown,
    /// Its end.
    max: time::Shown,
}

/// Objects of one kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
struct Objects {
    /// How many.
    count: u64,
    /// Their bytes.
    bytes: u64,
}

/// Number and size of slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
struct Amount {
    /// Slices.
    slices: u64,
    /// Records.
    records: u64,
    /// Bytes as stored.
    stored_bytes: u64,
    /// Bytes when decompressed.
    plain_bytes: u64,
}

/// The slices of one store, region or table.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Group {
    /// Its id.
    id: i64,
    /// What it has.
    #[serde(flatten)]
    amount: Amount,
}

/// One damaged object.
#[derive(Debug, Serialize, JsonSchema)]
struct Problem {
    /// Its name.
    object: String,
    /// What is wrong with it.
    what: String,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let info = archive::info(storage.as_ref()).await?;
    let tally = tally(&storage).await?;
    let report = report(&info, &tally);
    args.output.show(&report, || text(&report))?;
    if !args.output.json {
        for warning in &report.warnings {
            output::say(&format!("warning: {warning}"));
        }
    }
    let mut damages = Damages::default();
    for damage in tally.problems {
        damages.meet(damage);
    }
    damages.judge(&storage.uri())
}

async fn tally(storage: &SharedStorage) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let mut metas = Vec::new();
    for object in storage.list("v1/").await? {
        match name::read(&object.path).kind {
            Kind::Meta => {
                tally.metas.add(object.size);
                metas.push(object.path);
            }
            Kind::Log | Kind::SchemaLog => {
                tally.logs.add(object.size);
                tally.listed.push(Listed::new(object));
            }
            _ => {}
        }
    }
    let bar = progress::counter("metas read");
    let mut walk = super::walk(storage, metas);
    while let Some(meta) = walk.next().await? {
        bar.inc(1);
        match meta.content {
            Ok(content) => tally.add(&content),
            Err(damage) => tally.problems.push(damage),
        }
    }
    tally.finish();
    Ok(tally)
}

/// A log file of the listing and what the metas said about it so far.
#[derive(Debug)]
struct Listed {
    object: ObjectInfo,
    referenced: bool,
    cut: bool,
}

impl Listed {
    fn new(object: ObjectInfo) -> Self {
        Listed {
            object,
            referenced: false,
            cut: false,
        }
    }
}

/// The sums while metas go by.
#[derive(Debug, Default)]
struct Tally {
    metas: Objects,
    logs: Objects,
    unreferenced: Objects,
    /// Log files by name.
    listed: Vec<Listed>,
    missing: BTreeSet<String>,
    total: Amount,
    stores: BTreeMap<i64, Amount>,
    regions: BTreeMap<i64, Amount>,
    tables: BTreeMap<i64, Amount>,
    default_cf: Amount,
    write_cf: Amount,
    span: Option<(u64, u64)>,
    problems: Vec<Damage>,
}

impl Tally {
    fn add(&mut self, meta: &MetaContent) {
        for slice in &meta.slices {
            let info = &slice.info;
            self.total.add(info);
            self.stores.entry(meta.store_id).or_default().add(info);
            self.regions.entry(info.region_id).or_default().add(info);
            self.tables.entry(info.table_id).or_default().add(info);
            match slice.cf {
                Cf::Default => self.default_cf.add(info),
                Cf::Write => self.write_cf.add(info),
            }
            let (min, max) = self.span.unwrap_or((info.min_ts, info.max_ts));
            self.span = Some((min.min(info.min_ts), max.max(info.max_ts)));
            self.look_at_log(slice);
        }
    }

    fn look_at_log(&mut self, slice: &Slice) {
        let found = self
            .listed
            .binary_search_by(|listed| listed.object.path.cmp(&slice.object));
        match found.ok().and_then(|at| self.listed.get_mut(at)) {
            Some(listed) => {
                listed.referenced = true;
                let end = slice
                    .info
                    .range_offset
                    .saturating_add(slice.info.range_length);
                listed.cut |= end > listed.object.size;
            }
            None => {
                self.missing.insert(slice.object.clone());
            }
        }
    }

    fn finish(&mut self) {
        for listed in &self.listed {
            if !listed.referenced {
                self.unreferenced.add(listed.object.size);
            }
            if listed.cut {
                let what = "the object ends before a slice that its meta names";
                self.problems.push(Damage::new(&listed.object.path, what));
            }
        }
        let missing = self.missing.iter();
        let missing = missing.map(|object| Damage::new(object, "the object is missing"));
        self.problems.extend(missing);
        self.problems.sort();
    }
}

impl Objects {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Amount {
    /// Numbers from outside: a sum that does not fit is only shown.
    fn add(&mut self, info: &DataFileInfo) {
        self.slices += 1;
        let records = u64::try_from(info.number_of_entries).unwrap_or(0);
        self.records = self.records.saturating_add(records);
        self.stored_bytes = self.stored_bytes.saturating_add(info.range_length);
        self.plain_bytes = self.plain_bytes.saturating_add(info.length);
    }
}

fn report(info: &ArchiveInfo, tally: &Tally) -> Report {
    let span = |min: Ts, max: Ts| Span {
        min: time::show(min),
        max: time::show(max),
    };
    let meta = info.backup_meta.as_ref();
    let max = info.log_max.filter(|max| *max >= info.log_min());
    let problems = tally.problems.iter();
    Report {
        storage: info.uri.clone(),
        cluster_id: meta.map(|meta| meta.cluster_id),
        recoverable: meta.and(max).map(|max| span(info.log_min(), max)),
        records_span: tally
            .span
            .map(|(min, max)| span(Ts::new(min), Ts::new(max))),
        metas: Objects { ..tally.metas },
        logs: Objects { ..tally.logs },
        unreferenced: Objects {
            ..tally.unreferenced
        },
        total: tally.total,
        stores: groups(&tally.stores),
        regions: groups(&tally.regions),
        tables: groups(&tally.tables),
        default_cf: tally.default_cf,
        write_cf: tally.write_cf,
        problems: problems
            .map(|damage| Problem {
                object: damage.object.clone(),
                what: damage.what.clone(),
            })
            .collect(),
        warnings: info.warnings(),
    }
}

fn groups(amounts: &BTreeMap<i64, Amount>) -> Vec<Group> {
    let groups = amounts.iter().map(|(&id, &amount)| Group { id, amount });
    let mut groups: Vec<_> = groups.collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.amount.stored_bytes));
    groups
}

fn text(report: &Report) -> String {
    let cluster = report
        .cluster_id
        .map_or("unknown".to_owned(), |id| id.to_string());
    let span = |span: &Option<Span>| match span {
        Some(span) => format!("{}\n          to {}", span.min, span.max),
        None => "none".to_owned(),
    };
    let mut lines = vec![
        format!("storage: {}", report.storage),
        format!("cluster: {cluster}"),
        format!("recoverable: {}", span(&report.recoverable)),
        format!("records: {}", span(&report.records_span)),
        format!("metas: {}", report.metas),
        format!(
            "log files: {} ({} unreferenced)",
            report.logs, report.unreferenced
        ),
        format!("total: {}", report.total),
        format!("cf write: {}", report.write_cf),
        format!("cf default: {}", report.default_cf),
    ];
    let kinds = [
        ("store", &report.stores),
        ("region", &report.regions),
        ("table", &report.tables),
    ];
    for (kind, groups) in kinds {
        let shown = groups.iter().take(SHOWN_GROUPS);
        lines.extend(shown.map(|group| format!("{kind} {}: {}", group.id, group.amount)));
        if groups.len() > SHOWN_GROUPS {
            let more = groups.len() - SHOWN_GROUPS;
            lines.push(format!("{kind}: {more} more, see --json"));
        }
    }
    lines.join("\n")
}

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.count, output::bytes(self.bytes))
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stored, plain) = (
            output::bytes(self.stored_bytes),
            output::bytes(self.plain_bytes),
        );
        let (slices, records) = (self.slices, self.records);
        write!(
            f,
            "{records} records in {slices} slices, {stored} ({plain} plain)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(object: &str, region_id: i64, range_length: u64) -> Slice {
        Slice {
            object: object.to_owned(),
            cf: Cf::Write,
            info: DataFileInfo {
                region_id,
                range_length,
                length: 3 * range_length,
                number_of_entries: 7,
                min_ts: 5,
                max_ts: 9,
                ..DataFileInfo::default()
            },
        }
    }

    fn tally(sizes: &[(&str, u64)], slices: Vec<Slice>) -> Tally {
        let mut tally = Tally::default();
        for (path, size) in sizes {
            let path = (*path).to_owned();
            tally
                .listed
                .push(Listed::new(ObjectInfo { path, size: *size }));
        }
        tally.add(&MetaContent {
            store_id: 4,
            min_ts: Ts::new(5),
            max_ts: Ts::new(9),
            slices,
        });
        tally.finish();
        tally
    }

    #[test]
    fn sums_are_made_by_store_region_and_column_family() {
        let tally = tally(&[("a", 30)], vec![slice("a", 1, 10), slice("a", 2, 20)]);
        assert_eq!(tally.total.records, 14);
        assert_eq!(tally.total.plain_bytes, 90);
        assert_eq!(tally.write_cf, tally.total);
        assert_eq!(tally.default_cf, Amount::default());
        assert_eq!(tally.stores[&4], tally.total);
        let ids: Vec<_> = groups(&tally.regions)
            .iter()
            .map(|group| group.id)
            .collect();
        assert_eq!(ids, [2, 1]);
        assert_eq!(tally.span, Some((5, 9)));
        assert!(tally.problems.is_empty());
    }

    #[test]
    fn missing_and_cut_log_files_are_problems_and_unreferenced_ones_are_not() {
        let sizes = [("a", 9), ("c", 50)];
        let tally = tally(
            &sizes,
            vec![slice("a", 1, 10), slice("b", 1, 10), slice("b", 1, 9)],
        );
        let objects: Vec<_> = tally.problems.iter().map(|p| p.object.as_str()).collect();
        assert_eq!(objects, ["a", "b"]);
        let unreferenced = Objects {
            count: 1,
            bytes: 50,
        };
        assert_eq!(tally.unreferenced, unreferenced);
    }

    #[test]
    fn absurd_numbers_of_a_meta_do_not_overflow() {
        let tally = tally(
            &[],
            vec![slice("a", 1, u64::MAX / 3), slice("a", 1, u64::MAX / 3)],
        );
        assert_eq!(tally.total.plain_bytes, u64::MAX);
    }
}
