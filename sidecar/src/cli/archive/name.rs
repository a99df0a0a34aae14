//! What the name of an object says without reading it: its kind, its store and, as far as it can
//! be known, the span of time outside of which it has no record. Names of forms that are not known
//! span everything, so that no filter ever hides them.

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use pitr_format::Ts;
use pitr_format::object_name::{
    BACKUP_LOCK, BACKUP_META, CHECKPOINT_DIR, CHECKPOINT_SUFFIX, LOG_SUFFIX, META_DIR, META_SUFFIX,
    MIGRATION_DIR, MetaName, ROOT_DIR, START_PROBE, TRUNCATE_SAFEPOINT,
    TRUNCATE_SAFEPOINT_AS_DOCUMENTED,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::speed_test;

/// Part of the path of log objects that hold TiDB's schema.
const SCHEMA_PART: &str = "schema-meta";
/// An hour of a ts' physical part.
const HOUR_MS: u64 = 60 * 60 * 1000;

/// Kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The metadata of a flush.
    Meta,
    /// Records.
    Log,
    /// Records of TiDB's schema.
    SchemaLog,
    /// A global checkpoint.
    Checkpoint,
    /// `backupmeta`: whose log it is and where it begins.
    BackupMeta,
    /// `backup.lock`: the storage is taken.
    Lock,
    /// What the start of the task found in the ranges.
    Start,
    /// Up to where the log was truncated.
    TruncateSafepoint,
    /// A migration of another tool.
    Migration,
    /// A temporary object of `speed-test`.
    SpeedTest,
    /// None of a log archive.
    Other,
}

impl Kind {
    /// The word in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Meta => "meta",
            Kind::Log => "log",
            Kind::SchemaLog => "schema-log",
            Kind::Checkpoint => "checkpoint",
            Kind::BackupMeta => "backup-meta",
            Kind::Lock => "lock",
            Kind::Start => "start",
            Kind::TruncateSafepoint => "truncate-safepoint",
            Kind::Migration => "migration",
            Kind::SpeedTest => "speed-test",
            Kind::Other => "other",
        }
    }
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Kind.
    pub kind: Kind,
    /// Store that wrote it.
    pub store: Option<u64>,
    /// No record is older.
    pub earliest: Option<Ts>,
    /// No record is newer.
    pub latest: Option<Ts>,
}

/// Reads a name.
pub(super) fn read(path: &str) -> Name {
    let kind = kind(path);
    let nothing = Name {
        kind,
        store: None,
        earliest: None,
        latest: None,
    };
    match kind {
        Kind::Meta => meta(path).unwrap_or(nothing),
        Kind::Log | Kind::SchemaLog => log(path, kind).unwrap_or(nothing),
        Kind::Checkpoint => {
            let stem = path.strip_prefix(CHECKPOINT_DIR);
            let stem = stem.and_then(|name| name.strip_suffix(CHECKPOINT_SUFFIX));
            let store = stem.and_then(|stem| stem.parse().ok());
            Name { store, ..nothing }
        }
        _ => nothing,
    }
}

fn kind(path: &str) -> Kind {
    match path {
        BACKUP_META => return Kind::BackupMeta,
        BACKUP_LOCK => return Kind::Lock,
        START_PROBE => return Kind::Start,
        TRUNCATE_SAFEPOINT | TRUNCATE_SAFEPOINT_AS_DOCUMENTED => return Kind::TruncateSafepoint,
        _ => {}
    }
    let is = |dir, suffix| path.starts_with(dir) && path.ends_with(suffix);
    if is(META_DIR, META_SUFFIX) {
        Kind::Meta
    } else if is(CHECKPOINT_DIR, CHECKPOINT_SUFFIX) {
        Kind::Checkpoint
    } else if path.starts_with(MIGRATION_DIR) {
        Kind::Migration
    } else if is(ROOT_DIR, LOG_SUFFIX) {
        match path.split('/').any(|part| part == SCHEMA_PART) {
            true => Kind::SchemaLog,
            false => Kind::Log,
        }
    } else if path.starts_with(speed_test::PREFIX) {
        Kind::SpeedTest
    } else {
        Kind::Other
    }
}

fn meta(path: &str) -> Option<Name> {
    let name = MetaName::parse(path).ok()?;
    // Names of the first forms, and of metas without records, have no bounds.
    let bounded = !name.max_ts.is_zero();
    Some(Name {
        kind: Kind::Meta,
        store: name.store_id,
        earliest: bounded.then_some(name.min_ts),
        latest: bounded.then_some(name.max_ts),
    })
}

/// `v1/YYYYMMDD/HH/STORE/[…/]MIN_TS-UUID.log`; day and hour are those of the newest record, in UTC.
fn log(path: &str, kind: Kind) -> Option<Name> {
    let mut parts = path.strip_prefix(ROOT_DIR)?.split('/');
    let (day, hour, store) = (parts.next()?, parts.next()?, parts.next()?);
    let earliest = parts.next_back()?.split_once('-')?.0.parse().ok()?;
    Some(Name {
        kind,
        store: Some(store.parse().ok()?),
        earliest: Some(Ts::new(earliest)),
        latest: Some(end_of_hour(day, hour)?),
    })
}

fn end_of_hour(day: &str, hour: &str) -> Option<Ts> {
    let day = Date::strptime("%Y%m%d", day).ok()?;
    let hour = Time::new(hour.parse().ok()?, 0, 0, 0).ok()?;
    let begin = day
        .to_datetime(hour)
        .to_zoned(TimeZone::UTC)
        .ok()?
        .timestamp();
    let end = u64::try_from(begin.as_millisecond())
        .ok()?
        .checked_add(HOUR_MS)?;
    Some(Ts::compose(end, 0).prev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_the_name() {
        for (path, kind) in [
            ("backupmeta", Kind::BackupMeta),
            ("backup.lock", Kind::Lock),
            ("tikv-pitr/start.json", Kind::Start),
            ("v1_stream_trancate_safepoint.txt", Kind::TruncateSafepoint),
            ("v1/backupmeta/x.meta", Kind::Meta),
            ("v1/backupmeta/x.txt", Kind::Other),
            ("v1/global_checkpoint/1.ts", Kind::Checkpoint),
            ("v1/migrations/00000001.mgrt", Kind::Migration),
            ("v1/20261122/02/1/5-u.log", Kind::Log),
            ("v1/20261122/02/1/schema-meta/5-u.log", Kind::SchemaLog),
            ("tikv-pitr/speed-test-1/small-0", Kind::SpeedTest),
            ("notes.txt", Kind::Other),
        ] {
            assert_eq!(read(path).kind, kind, "{path}");
        }
        assert_eq!(read("v1/global_checkpoint/14.ts").store, Some(14));
    }

    #[test]
    fn a_log_file_spans_from_its_first_ts_to_the_end_of_its_hour() {
        let path = "v1/20261122/02/7/schema-meta/470630705605902339-96ea2aa4.log";
        let name = read(path);
        assert_eq!(name.store, Some(7));
        assert_eq!(name.earliest, Some(Ts::new(470_630_705_605_902_339)));
        // 2026-11-22T02:59:59.999Z
        assert_eq!(name.latest.unwrap().physical_ms(), 1_795_316_399_999);
        assert!(name.latest > name.earliest);
    }

    #[test]
    fn a_meta_spans_what_its_name_says() {
        let path = "v1/backupmeta/06880421935400010000000000000001-d0688042131A80001l0688042131A80002u068804217734001Dp0000000000000000.meta";
        let name = read(path);
        assert_eq!(name.store, Some(1));
        assert_eq!(name.earliest.unwrap().get(), 0x0688_0421_31A8_0002);
        assert_eq!(name.latest.unwrap().get(), 0x0688_0421_7734_001D);
    }

    #[test]
    fn a_name_of_an_unknown_form_has_no_bounds() {
        for path in [
            "v1/2026/02/1/5-u.log",
            "v1/20261122/24/1/5-u.log",
            "v1/20261322/02/1/5-u.log",
            "v1/20261122/02/one/5-u.log",
            "v1/20261122/02/1/five-u.log",
            "v1/x.log",
            "v1/backupmeta/strange.meta",
        ] {
            let name = read(path);
            assert_eq!((name.earliest, name.latest), (None, None), "{path}");
        }
    }
}
