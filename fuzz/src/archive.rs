//! Target for the reader of a whole archive: names and contents of its objects are the input.

use pitr_format::Ts;
use pitr_restore_worker::Env;
use pitr_restore_worker::archive::Archive;
use pitr_restore_worker::plan::{PlanError, Window, plan};
use pitr_restore_worker::verify::{VerifyOptions, verify};
use pitr_storage::open_url;

/// Most objects of one input.
const OBJECTS: usize = 32;

/// Objects one after the other: length of the name (u8), name, length of the content (u16, little
/// endian), content.
pub fn archive(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return;
    };
    let _ = runtime.block_on(read(data));
}

async fn read(data: &[u8]) -> Option<()> {
    let storage = open_url("memory://").ok()?;
    for (name, content) in objects(data) {
        // A name that no storage takes is no object.
        let _ = storage.put(name, content.to_vec().into()).await;
    }
    let archive = Archive::open(storage, Env::default()).await.ok()?;
    let options = VerifyOptions {
        fetches: 1,
        max_slice_bytes: 1 << 20,
        attempts: 1,
    };
    let report = verify(&archive, &options).await.ok()?;
    let window = Window {
        start: None,
        restored: Ts::MAX,
        ranges: Vec::new(),
        log_only: true,
    };
    let planned = plan(&archive, &window).await;
    if report.is_sound() {
        assert!(!matches!(planned, Err(PlanError::Damage(_))));
    }
    Some(())
}

fn objects(data: &[u8]) -> Vec<(&str, &[u8])> {
    let mut rest = data;
    let mut objects = Vec::new();
    while let Some((name, content, after)) = object(rest) {
        objects.push((name, content));
        if objects.len() == OBJECTS {
            break;
        }
        rest = after;
    }
    objects
}

fn object(data: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let (len, rest) = data.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (content, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    Some((std::str::from_utf8(name).ok()?, content, rest))
}
