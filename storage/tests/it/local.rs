//! What only a directory can do wrong: missing roots, modes, leftovers, readers during writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pitr_storage::{
    SharedStorage, StorageErrorKind, backend_of_url, open_backend, open_existing_url, open_url,
};

fn open(path: &std::path::Path) -> SharedStorage {
    open_url(&format!("local://{}", path.display())).unwrap()
}

#[tokio::test]
async fn a_missing_root_is_not_found_for_readers_and_made_by_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/archive");
    let url = format!("local://{}", root.display());
    assert_eq!(
        open_existing_url(&url).err().unwrap().kind,
        StorageErrorKind::NotFound
    );
    let storage = open_url(&url).unwrap();
    for prefix in ["", "v1/backupmeta/"] {
        let error = storage.list(prefix).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::NotFound);
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
    assert_eq!(
        storage.get("backupmeta").await.unwrap_err().kind,
        StorageErrorKind::NotFound
    );
    assert_eq!(storage.head("backupmeta").await.unwrap(), None);
    assert!(!root.exists(), "reading must not create the root");
    storage.put("backupmeta", "x".into()).await.unwrap();
    assert_eq!(
        open_existing_url(&url)
            .unwrap()
            .list("")
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_root_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    let url = format!("local://{}", file.display());
    assert_eq!(
        open_existing_url(&url).err().unwrap().kind,
        StorageErrorKind::InvalidConfig
    );
    let error = open_url(&url)
        .unwrap()
        .put("a.log", "".into())
        .await
        .unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::InvalidPath, "{error}");
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_permission_denied() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Root writes anywhere but in the kernel's own file systems.
    let root_user = fs::create_dir(dir.path().join("probe")).is_ok();
    let root = if root_user {
        "/sys/kernel".into()
    } else {
        dir.path().to_path_buf()
    };
    let storage = open(&root);
    for name in ["a.log", "v1/new/a.log"] {
        let error = storage.put(name, "x".into()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn leftovers_of_dead_writers_are_hidden_and_removed_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage.put("v1/a.log", "whole".into()).await.unwrap();
    let fresh = dir.path().join("v1/a.tmp0123456789abcdef");
    let stale = dir.path().join("v1/b.tmpfedcba9876543210");
    for leftover in [&fresh, &stale] {
        fs::write(leftover, b"half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options()
        .write(true)
        .open(&stale)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();

    let names: Vec<_> = storage
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.path)
        .collect();
    assert_eq!(names, ["v1/a.log"]);
    assert_eq!(
        storage
            .remove_leftovers(Duration::from_secs(3600))
            .await
            .unwrap(),
        1
    );
    assert!(fresh.exists() && !stale.exists());
    assert_eq!(storage.get("v1/a.log").await.unwrap(), "whole");
}

#[tokio::test]
async fn what_cannot_be_looked_at_fails_the_listing_instead_of_missing_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage
        .put("v1/backupmeta/a.meta", "x".into())
        .await
        .unwrap();
    let link = dir.path().join("v1/backupmeta/b.meta");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    let error = storage.list("v1/backupmeta/").await.unwrap_err();
    assert!(error.to_string().contains("b.meta"), "{error}");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("a.meta", &link).unwrap();
    assert_eq!(storage.list("v1/backupmeta/").await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_during_rewrites_sees_whole_objects_only() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let object = |fill: u8| Bytes::from(vec![fill; 200_000 + usize::from(fill)]);
    storage.put("1.ts", object(0).into()).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (storage, done) = (Arc::clone(&storage), Arc::clone(&done));
        tokio::spawn(async move {
            let mut reads = 0u32;
            while !done.load(Ordering::Relaxed) {
                let seen = storage.get("1.ts").await.unwrap();
                assert_eq!(seen.len(), 200_000 + usize::from(seen[0]));
                assert!(seen.iter().all(|byte| *byte == seen[0]));
                assert_eq!(storage.list("").await.unwrap().len(), 1);
                reads += 1;
            }
            reads
        })
    };
    for fill in 1..60 {
        storage.put("1.ts", object(fill).into()).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 0);
}

#[tokio::test]
async fn a_task_message_and_a_url_open_the_same_archive() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("local://{}", dir.path().display());
    open_url(&url).unwrap().put("a", "x".into()).await.unwrap();
    let storage = open_backend(&backend_of_url(&url).unwrap()).unwrap();
    assert_eq!(storage.get("a").await.unwrap(), "x");
    assert_eq!(storage.uri(), url);
}
