//! `restore point`: from an archive into an empty cluster, with proof.
//!
//! Order: what the archive can give ([`plan`]), what the target must be ([`checks`]), the restore
//! itself into [`target`], then the scan of the target at the restored ts, compared with what the
//! selection of the archive must show. Nothing is written before every slice was read and proven.

pub mod checks;
pub mod import_mode;
pub mod target;

use pitr_format::Ts;
use pitr_restore_worker::{Archive, Plan, PlanError, RestoreError, Window};

use crate::codes::Code;
use crate::failure::{Failure, code_of};
use crate::storage::code_of_storage;
use crate::time::{self, Point};

/// Resolves `--restored-ts`; the default is the archive's end. An archive without a head or
/// without any checkpoint is refused here, before its missing bounds confuse the message.
pub fn restored_ts(archive: &Archive, point: Option<&Point>, now: Ts) -> Result<Ts, Failure> {
    let uri = || archive.info.uri.clone();
    if archive.info.backup_meta.is_none() {
        return Err(plan_failure(PlanError::NoBackupMeta { uri: uri() }));
    }
    let Some(latest) = archive.info.log_max else {
        return Err(plan_failure(PlanError::NoCheckpoint { uri: uri() }));
    };
    let point = point.unwrap_or(&Point::Latest);
    point
        .resolve(now, Some(latest))
        .map_err(|error| Failure::from_error(Code::BadTime, &error))
}

/// Plans the restore of the whole archive up to `restored`.
pub async fn plan(archive: &Archive, restored: Ts, log_only: bool) -> Result<Plan, Failure> {
    let window = Window {
        start: None,
        restored,
        ranges: Vec::new(),
        log_only,
    };
    pitr_restore_worker::plan(archive, &window)
        .await
        .map_err(plan_failure)
}

fn plan_failure(error: PlanError) -> Failure {
    let code = match &error {
        PlanError::NoBackupMeta { .. } => Code::NoBackupMeta,
        PlanError::NoCheckpoint { .. } => Code::NoCheckpoint,
        PlanError::OutsideWindow { .. } => Code::OutsideWindow,
        PlanError::NotProvenEmpty { .. } => Code::NotProvenEmpty,
        PlanError::Unsupported { .. } => Code::UnsupportedArchive,
        PlanError::Damage(_) => Code::ArchiveDamaged,
        PlanError::Storage(error) => code_of_storage(error.kind),
        PlanError::TooLittleMemory { .. } => Code::TooLittleMemory,
    };
    let failure = Failure::from_error(code, &error).effect("nothing was written");
    match error {
        PlanError::OutsideWindow { min, max, .. } => failure
            .at(format!(
                "the window is {} to {}",
                time::line(min),
                time::line(max)
            ))
            .action("choose a time inside the window"),
        PlanError::Damage(_) => {
            failure.action("`tikv-pitr verify data` lists everything that is damaged")
        }
        _ => failure,
    }
}

/// How a restore that began ended badly. `touched`: the target was asked to take something;
/// `written`: the records that it confirmed by then.
pub fn restore_failure(error: &RestoreError, touched: bool, written: u64) -> Failure {
    let code = match error {
        RestoreError::Damage(_) => Code::ArchiveDamaged,
        RestoreError::NotProven(_) => Code::TargetDiffers,
        RestoreError::Cut(error) if error.is_damage() => Code::ArchiveDamaged,
        RestoreError::Storage(error) => code_of_storage(error.kind),
        RestoreError::TempDir { .. } => Code::BadTempDir,
        RestoreError::TooLittleMemory { .. } => Code::TooLittleMemory,
        _ if touched => Code::RestoredInPart,
        other => code_of(other.class()),
    };
    partial(Failure::from_error(code, error), touched, written)
}

/// A restore that a signal ended.
pub fn interrupted(touched: bool, written: u64) -> Failure {
    let failure = Failure::new(Code::Interrupted, "the restore was ended by a signal");
    partial(failure, touched, written)
}

fn partial(failure: Failure, touched: bool, written: u64) -> Failure {
    if !touched {
        return failure.effect("nothing was written to the target");
    }
    failure
        .effect(format!(
            "the target may hold a part of the data ({written} records are confirmed): do not use it"
        ))
        .action("restore again into a new, empty cluster")
}
