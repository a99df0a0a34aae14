//! `MultiIngest`: uploaded files into the engine, in TiKV's order of checks (tikv/tikv
//! `src/import/ingest.rs`): store, region, then the files' existence, then each file against the
//! region. A host that replicates by itself has the files of all replicas checked and ingested. Every file is compared with its record once more, so that a byte that changed since its
//! upload or download never reaches the engine.

use std::path::PathBuf;

use pitr_format::Cf;
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::{MultiIngestRequest, SstMeta};
use pitr_proto::metapb::Region;

use super::check_store;
use super::host::{ImportHost, RegionError};
use super::import_dir::{ImportDir, Record};
use crate::engine::{Engine, EngineCf, EngineError};

/// TiKV's words, including their spelling.
const FILE_GONE: &str = "The file which would be ingested doest not exist.";

pub(super) fn multi_ingest<H: ImportHost>(
    host: &H,
    dir: &ImportDir,
    request: &MultiIngestRequest,
) -> Result<(), RegionError> {
    let context = request.context.clone().unwrap_or_default();
    check_store(host, &context)?;
    host.region(&context)?;
    let replicas = host.replicas();
    let stores: Vec<u64> = replicas.iter().map(|replica| replica.store_id).collect();
    let mut places = vec![(host.engine(), locate(dir, &request.ssts)?)];
    for replica in &replicas {
        let files = locate(&replica.dir, &request.ssts)?;
        places.push((replica.engine.clone(), files));
    }
    let region_id = context.region_id;
    host.change(&context, |region| -> Result<(), RegionError> {
        for sst in &request.ssts {
            check_file(sst, region)?;
        }
        // Under the lock again: another call may have consumed the files meanwhile, a store may have
        // come or gone.
        for (_, path) in places.iter().flat_map(|(_, files)| files) {
            exists(path)?;
        }
        if !host.replicas().iter().map(|r| r.store_id).eq(stores) {
            return Err(gone());
        }
        for (engine, files) in &places {
            ingest_into(&**engine, files).map_err(|e| failed(region_id, &e))?;
        }
        Ok(())
    })??;
    let dirs = std::iter::once(dir).chain(replicas.iter().map(|replica| &*replica.dir));
    for (dir, (_, files)) in dirs.zip(&places) {
        for (_, path) in files {
            dir.discard(path);
        }
    }
    host.ingested(region_id);
    Ok(())
}

fn ingest_into(engine: &impl Engine, files: &[(Cf, PathBuf)]) -> Result<(), EngineError> {
    for cf in [Cf::Default, Cf::Write] {
        let of_cf = files
            .iter()
            .filter(|(c, _)| *c == cf)
            .map(|(_, path)| path.clone());
        engine.ingest(EngineCf::from(cf), &of_cf.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn locate(dir: &ImportDir, ssts: &[SstMeta]) -> Result<Vec<(Cf, PathBuf)>, RegionError> {
    let mut files = Vec::with_capacity(ssts.len());
    for sst in ssts {
        let path = dir.path(sst).map_err(|e| failed(sst.region_id, &e))?;
        let record = dir.intact(&path).map_err(|e| failed(sst.region_id, &e))?;
        let Some(record) = record else {
            return Err(gone());
        };
        check_range(sst, &record)?;
        let cf = Cf::parse(&sst.cf_name)
            .ok_or_else(|| failed(sst.region_id, &"unknown column family"))?;
        files.push((cf, path));
    }
    Ok(files)
}

fn exists(path: &std::path::Path) -> Result<(), RegionError> {
    match path.is_file() {
        true => Ok(()),
        false => Err(gone()),
    }
}

fn gone() -> RegionError {
    Box::new(errorpb::Error {
        message: FILE_GONE.to_owned(),
        stale_command: Some(errorpb::StaleCommand::default()),
        ..errorpb::Error::default()
    })
}

/// The range that is checked against the region must be one that holds the file: what a download
/// found is known.
fn check_range(sst: &SstMeta, record: &Record) -> Result<(), RegionError> {
    let Some(actual) = &record.response.range else {
        return Ok(());
    };
    let said = sst.range.clone().unwrap_or_default();
    if said.start <= actual.start && actual.end <= said.end {
        return Ok(());
    }
    let what = format!(
        "the file holds keys {} to {}, the request says {} to {}",
        hex::encode_upper(&actual.start),
        hex::encode_upper(&actual.end),
        hex::encode_upper(&said.start),
        hex::encode_upper(&said.end)
    );
    Err(failed(sst.region_id, &what))
}

/// The file was made for this region at this epoch, and its keys lie inside.
fn check_file(sst: &SstMeta, region: &Region) -> Result<(), RegionError> {
    if sst.region_id != region.id {
        let what = format!("the file was uploaded for region {}", sst.region_id);
        return Err(failed(region.id, &what));
    }
    if sst.region_epoch != region.region_epoch {
        return Err(Box::new(errorpb::Error {
            message: format!(
                "EpochNotMatch current epoch of region {} is {:?}, but the file has {:?}",
                region.id, region.region_epoch, sst.region_epoch
            ),
            epoch_not_match: Some(errorpb::EpochNotMatch {
                current_regions: vec![region.clone()],
            }),
            ..errorpb::Error::default()
        }));
    }
    let range = sst.range.clone().unwrap_or_default();
    for key in [&range.start, &range.end] {
        let inside =
            *key >= region.start_key && (region.end_key.is_empty() || *key < region.end_key);
        if !inside {
            return Err(Box::new(errorpb::Error {
                message: format!(
                    "key {} is not in region {}",
                    hex::encode_upper(key),
                    region.id
                ),
                key_not_in_region: Some(errorpb::KeyNotInRegion {
                    key: key.clone(),
                    region_id: region.id,
                    start_key: region.start_key.clone(),
                    end_key: region.end_key.clone(),
                }),
                ..errorpb::Error::default()
            }));
        }
    }
    Ok(())
}

fn failed(region_id: u64, what: &dyn std::fmt::Display) -> RegionError {
    Box::new(errorpb::Error {
        message: format!("[region {region_id}] ingest failed: {what}"),
        ..errorpb::Error::default()
    })
}
