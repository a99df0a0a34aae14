//! Damage of any object stops a restore with the object's name before the target is touched.

use std::sync::Arc;

use pitr_restore_worker::archive::MetaObject;
use pitr_restore_worker::engine::{Engine, EngineCf};
use pitr_restore_worker::plan::PlanError;
use pitr_restore_worker::{Damage, RestoreError, plan, restore, verify};

use super::golden::{Golden, Local, up_to};

/// Restores the damaged archive; the damage that both restore and verify must find.
async fn damage_of(golden: &Golden) -> Damage {
    let archive = golden.open().await;
    let local = Local::new();
    let window = up_to(golden.times.end_ts);
    let found = match plan(&archive, &window).await {
        Err(PlanError::Damage(damage)) => damage,
        Err(other) => panic!("{other}"),
        Ok(plan) => {
            let target = local.target();
            let storage = Arc::clone(archive.storage());
            match restore(&plan, storage, &target, local.options(), Arc::default()).await {
                Err(RestoreError::Damage(damage)) => damage,
                other => panic!("{other:?}"),
            }
        }
    };
    for cf in EngineCf::ALL {
        assert_eq!(
            local.engine.scan(cf, &[], &[]).count(),
            0,
            "nothing was ingested"
        );
    }
    let report = verify(&archive, &Default::default()).await.unwrap();
    assert!(
        report.problems.iter().any(|p| p.object == found.object),
        "{report:?}"
    );
    assert!(
        report.problems.iter().all(|p| p.object == found.object),
        "{report:?}"
    );
    found
}

#[tokio::test]
async fn a_truncated_log_is_named() {
    for cut in [1, 1000] {
        let golden = Golden::proven_empty("log-basic");
        let log = golden.logs().await.remove(0);
        let bytes = golden.read(&log);
        golden.write(&log, &bytes[..bytes.len() - cut]);
        assert_eq!(damage_of(&golden).await.object, log);
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_log_is_named() {
    for part in 0..8 {
        let golden = Golden::proven_empty("log-basic");
        let log = golden.logs().await.remove(1);
        let mut bytes = golden.read(&log);
        let at = bytes.len() * part / 8 + 11;
        bytes[at] ^= 1;
        golden.write(&log, &bytes);
        assert_eq!(damage_of(&golden).await.object, log, "byte {at}");
    }
}

#[tokio::test]
async fn a_missing_log_is_named() {
    let golden = Golden::proven_empty("log-basic");
    let log = golden.logs().await.remove(2);
    golden.remove(&log);
    let damage = damage_of(&golden).await;
    assert_eq!(
        (damage.object.as_str(), damage.what.as_str()),
        (log.as_str(), "the object is missing")
    );
}

#[tokio::test]
async fn a_truncated_meta_is_named_wherever_it_was_cut() {
    let pristine = Golden::proven_empty("log-basic");
    let metas = pristine.metas().await;
    let full = |m: &MetaObject| !m.content.as_ref().unwrap().slices.is_empty();
    let path = metas.into_iter().find(full).unwrap().path;
    let bytes = pristine.read(&path);
    let cuts = (0..20)
        .map(|i| bytes.len() * i / 20)
        .chain(bytes.len() - 4..bytes.len());
    for cut in cuts {
        pristine.write(&path, &bytes[..cut]);
        assert_eq!(
            damage_of(&pristine).await.object,
            path,
            "cut at {cut} of {}",
            bytes.len()
        );
    }
}
