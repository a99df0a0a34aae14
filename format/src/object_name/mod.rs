//! The names of all objects of a log backup archive, relative to its root, `/` separated.
//!
//! Source: tikv/tikv `components/backup-stream/src/{router, utils}.rs`, pingcap/tidb
//! `br/pkg/stream/{stream_metas.go, backupmetas/parser.go}`. Names carry facts that readers skip
//! by, so they are part of the format. Called by the observer's flush, restore and verify.

mod meta_name;

pub use meta_name::{
    FLAG_EMPTY, FLAG_NO_META_KV, Generation, META_SUFFIX, MetaName, ObjectNameError,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::Ts;

/// Folder of everything that the observer writes.
pub const ROOT_DIR: &str = "v1/";
/// Folder of the `.meta` objects.
pub const META_DIR: &str = "v1/backupmeta/";
/// Folder of the `.ts` objects; the largest value is the archive's upper bound.
pub const CHECKPOINT_DIR: &str = "v1/global_checkpoint/";
/// Folder of the migrations that truncation with clean-up, compaction and BR's restore leave.
pub const MIGRATION_DIR: &str = "v1/migrations/";
/// Suffix of the objects in [`CHECKPOINT_DIR`].
pub const CHECKPOINT_SUFFIX: &str = ".ts";
/// Suffix of merged data objects.
pub const LOG_SUFFIX: &str = ".log";
/// Cluster and start ts of the log, see [`crate::backup_meta`].
pub const BACKUP_META: &str = "backupmeta";
/// Marks the storage as used, see [`crate::lock`].
pub const BACKUP_LOCK: &str = "backup.lock";
/// What was known at the start of the log, see [`crate::start_probe`]; ours alone.
pub const START_PROBE: &str = "tikv-pitr/start.json";
/// Everything below this ts was truncated, see [`crate::truncate_safepoint`]. The spelling is
/// BR's.
pub const TRUNCATE_SAFEPOINT: &str = "v1_stream_trancate_safepoint.txt";
/// The spelling of BR's documentation; read, never written.
pub const TRUNCATE_SAFEPOINT_AS_DOCUMENTED: &str = "v1_stream_truncate_safepoint.txt";

/// Path of a merged object. Its folder is named after the UTC hour of the newest record in it,
/// its name begins with the oldest; `uuid` is a random v4.
pub fn log_path(store_id: u64, min_ts: Ts, max_ts: Ts, uuid: Uuid, is_meta: bool) -> String {
    // The physical part has 46 bits: no ts is later than the year 4199, which jiff can express.
    let time = i64::try_from(max_ts.physical_ms())
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX);
    let hour = time.strftime("%Y%m%d/%H");
    let kind = if is_meta { "schema-meta/" } else { "" };
    let uuid = uuid.hyphenated();
    format!("{ROOT_DIR}{hour}/{store_id}/{kind}{min_ts}-{uuid}{LOG_SUFFIX}")
}

/// Path of the object in which the store's observer publishes the global checkpoint.
pub fn checkpoint_path(store_id: u64) -> String {
    format!("{CHECKPOINT_DIR}{store_id}{CHECKPOINT_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_merged_object_is_the_utc_hour_of_its_newest_record() {
        let uuid = Uuid::from_u128(0x595b39ff_8270_4882_8f5a_78e0ff01ed5a);
        let min_ts = Ts::new(470_630_701_673_742_338);
        let max_ts = Ts::new(0x0688_0421_7734_001D);
        assert_eq!(
            log_path(1, min_ts, max_ts, uuid, false),
            "v1/20261122/02/1/470630701673742338-595b39ff-8270-4882-8f5a-78e0ff01ed5a.log"
        );
        assert_eq!(
            log_path(12, Ts::new(7), max_ts, uuid, true),
            "v1/20261122/02/12/schema-meta/7-595b39ff-8270-4882-8f5a-78e0ff01ed5a.log"
        );
    }

    #[test]
    fn date_and_hour_change_with_the_last_millisecond_and_pad_with_zeros() {
        let path = |ms| log_path(1, Ts::ZERO, Ts::compose(ms, 0), Uuid::nil(), false);
        let day = |ms| path(ms)[3..14].to_owned();
        assert_eq!(day(0), "19700101/00");
        assert_eq!(day(3_600_000 - 1), "19700101/00");
        assert_eq!(day(3_600_000), "19700101/01");
        assert_eq!(day(951_868_799_999), "20000229/23");
        assert_eq!(day(951_868_800_000), "20000301/00");
        let last = log_path(1, Ts::ZERO, Ts::MAX, Uuid::nil(), false);
        assert_eq!(&last[3..14], "41991124/01");
    }

    #[test]
    fn the_checkpoint_object_is_named_after_its_store() {
        assert_eq!(checkpoint_path(17), "v1/global_checkpoint/17.ts");
    }
}
