//! One suite that every backend must pass.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use pitr_storage::fault::{FaultPlan, FaultyStorage};
use pitr_storage::{Payload, Segment, SharedStorage, StorageErrorKind, open_url};

/// Runs the whole suite on an empty storage.
pub async fn conformance(storage: SharedStorage) {
    objects_are_written_whole_and_replaced(&storage).await;
    objects_are_made_of_memory_and_files(&storage).await;
    put_new_refuses_an_existing_object(&storage).await;
    ranges_are_exact_or_refused(&storage).await;
    listings_are_sorted_and_filtered_by_any_prefix(&storage).await;
    deletion_is_idempotent(&storage).await;
    missing_objects_are_not_found(&storage).await;
    names_that_leave_the_storage_are_refused(&storage).await;
    concurrent_put_new_has_one_winner(&storage).await;
    large_objects_are_whole(&storage).await;
    names_with_odd_characters_are_kept(&storage).await;
}

/// Larger than any single request of a backend.
async fn large_objects_are_whole(storage: &SharedStorage) {
    let data: Bytes = (0..(17u32 << 20)).map(|i| (i % 253) as u8).collect();
    storage.put("large.log", data.clone().into()).await.unwrap();
    let size = storage.head("large.log").await.unwrap().unwrap().size;
    assert_eq!(size, data.len() as u64);
    // Around the border of two parts.
    let (start, end) = ((8 << 20) - 3, (8 << 20) + 3);
    let read = storage.get_range("large.log", start..end).await.unwrap();
    assert_eq!(read, data[start as usize..end as usize]);
    assert!(storage.get("large.log").await.unwrap() == data);
    storage.delete("large.log").await.unwrap();
}

async fn names_with_odd_characters_are_kept(storage: &SharedStorage) {
    let names = [
        "odd/%2F.log",
        "odd/a b.log",
        "odd/a&b=c;d,e@f$g!h'i(j)k*.log",
        "odd/a+b.log",
        "odd/a:b.log",
        "odd/ü-日本.log",
    ];
    for name in names {
        storage.put(name, name.into()).await.unwrap();
    }
    let listed = storage.list("odd/").await.unwrap();
    let mut expected = names;
    expected.sort_unstable();
    let listed: Vec<_> = listed.iter().map(|info| info.path.as_str()).collect();
    assert_eq!(listed, expected);
    for name in names {
        assert_eq!(storage.get(name).await.unwrap(), name);
        storage.delete(name).await.unwrap();
    }
}

async fn objects_are_written_whole_and_replaced(storage: &SharedStorage) {
    let large = Bytes::from(vec![7u8; 3 << 20]);
    for data in [
        Bytes::from_static(b"one"),
        Bytes::new(),
        large,
        Bytes::from_static(b"last"),
    ] {
        storage
            .put("v1/x/a.log", data.clone().into())
            .await
            .unwrap();
        assert_eq!(storage.get("v1/x/a.log").await.unwrap(), data);
        let info = storage.head("v1/x/a.log").await.unwrap().unwrap();
        assert_eq!(
            (info.path.as_str(), info.size),
            ("v1/x/a.log", data.len() as u64)
        );
    }
    storage.delete("v1/x/a.log").await.unwrap();
}

async fn objects_are_made_of_memory_and_files(storage: &SharedStorage) {
    let mut file = tempfile::tempfile().unwrap();
    let spilled: Vec<u8> = (0..3u32 << 18).flat_map(u32::to_le_bytes).collect();
    file.write_all(&spilled).unwrap();
    let file = Arc::new(file);
    let payload = Payload::new(vec![
        Segment::Memory(Bytes::from_static(b"begin")),
        Segment::File {
            file: Arc::clone(&file),
            range: 4..spilled.len() as u64,
        },
        Segment::Memory(Bytes::from_static(b"end")),
    ]);
    storage.put("spilled.log", payload.clone()).await.unwrap();
    let expected = [b"begin", &spilled[4..], b"end"].concat();
    assert!(storage.get("spilled.log").await.unwrap() == expected);
    storage.delete("spilled.log").await.unwrap();
    storage.put_new("spilled.log", payload).await.unwrap();
    assert!(storage.get("spilled.log").await.unwrap() == expected);

    // A file that lost its end must not become a shorter object.
    let beyond = spilled.len() as u64 - 2..spilled.len() as u64 + 2;
    let cut = Payload::new(vec![Segment::File {
        file,
        range: beyond,
    }]);
    let error = storage.put("spilled.log", cut.clone()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Transient, "{error}");
    storage.put_new("cut.log", cut).await.unwrap_err();
    assert_eq!(storage.head("cut.log").await.unwrap(), None);
    assert!(storage.get("spilled.log").await.unwrap() == expected);
    storage.delete("spilled.log").await.unwrap();
}

async fn put_new_refuses_an_existing_object(storage: &SharedStorage) {
    storage.put_new("once.meta", "first".into()).await.unwrap();
    let error = storage
        .put_new("once.meta", "second".into())
        .await
        .unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::AlreadyExists);
    assert_eq!(error.path, "once.meta");
    assert_eq!(storage.get("once.meta").await.unwrap(), "first");
    storage.delete("once.meta").await.unwrap();
    storage.put_new("once.meta", "third".into()).await.unwrap();
    storage.delete("once.meta").await.unwrap();
}

async fn ranges_are_exact_or_refused(storage: &SharedStorage) {
    storage.put("r.log", "0123456789".into()).await.unwrap();
    for (range, expected) in [
        (0..10, "0123456789"),
        (3..7, "3456"),
        (9..10, "9"),
        (4..4, ""),
        (10..10, ""),
    ] {
        assert_eq!(
            storage.get_range("r.log", range.clone()).await.unwrap(),
            expected,
            "{range:?}"
        );
    }
    #[allow(clippy::reversed_empty_ranges)]
    for range in [
        0..11,
        9..11,
        10..11,
        11..11,
        20..30,
        5..4,
        0..u64::MAX,
        1 << 40..1 << 41,
    ] {
        let error = storage.get_range("r.log", range.clone()).await.unwrap_err();
        assert_eq!(
            error.kind,
            StorageErrorKind::OutOfRange,
            "{range:?}: {error}"
        );
    }
    let error = storage.get_range("none.log", 0..1).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::NotFound);
    storage.delete("r.log").await.unwrap();
}

async fn listings_are_sorted_and_filtered_by_any_prefix(storage: &SharedStorage) {
    let names = [
        "backupmeta",
        "v1/a/1.log",
        "v1/a/10.log",
        "v1/a/2.log",
        "v1/ab.log",
        "v1/b/x y%41.log",
    ];
    for name in names.iter().rev() {
        storage
            .put(name, Bytes::copy_from_slice(name.as_bytes()).into())
            .await
            .unwrap();
    }
    let list = async |prefix: &str| -> Vec<String> {
        storage
            .list(prefix)
            .await
            .unwrap()
            .into_iter()
            .map(|info| info.path)
            .collect()
    };
    assert_eq!(list("").await, names);
    assert_eq!(list("v1/a/").await, names[1..4]);
    assert_eq!(list("v1/a").await, names[1..5]);
    assert_eq!(list("v1/a/1").await, names[1..3]);
    assert_eq!(list("backupmeta").await, names[..1]);
    assert_eq!(list("v2/").await, [""; 0]);
    assert_eq!(list("backupmeta/").await, [""; 0]);
    for info in storage.list("").await.unwrap() {
        assert_eq!(info.size, info.path.len() as u64);
        storage.delete(&info.path).await.unwrap();
    }
    assert_eq!(list("").await, [""; 0]);
}

async fn deletion_is_idempotent(storage: &SharedStorage) {
    storage.put("d/e.log", "x".into()).await.unwrap();
    storage.delete("d/e.log").await.unwrap();
    storage.delete("d/e.log").await.unwrap();
    storage.delete("never/was/there.log").await.unwrap();
    assert_eq!(storage.head("d/e.log").await.unwrap(), None);
}

async fn missing_objects_are_not_found(storage: &SharedStorage) {
    storage.put("dir/file.log", "x".into()).await.unwrap();
    // A directory and a name below a plain file are no objects either.
    for name in ["nothing", "v9/nothing.log", "dir", "dir/file.log/below"] {
        let error = storage.get(name).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::NotFound, "{name}: {error}");
        assert!(error.to_string().contains(name) && error.to_string().contains(&storage.uri()));
        assert_eq!(storage.head(name).await.unwrap(), None, "{name}");
    }
    storage.delete("dir/file.log").await.unwrap();
}

async fn names_that_leave_the_storage_are_refused(storage: &SharedStorage) {
    for name in [
        "../escape",
        "/etc/escape",
        "a/../../escape",
        "",
        "a//b",
        "a.tmp0123456789abcdef",
    ] {
        let errors = [
            storage.put(name, "".into()).await.unwrap_err(),
            storage.put_new(name, "".into()).await.unwrap_err(),
            storage.get(name).await.unwrap_err(),
            storage.get_range(name, 0..1).await.unwrap_err(),
            storage.head(name).await.unwrap_err(),
            storage.delete(name).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(
                error.kind,
                StorageErrorKind::InvalidPath,
                "{name:?}: {error}"
            );
        }
    }
    let error = storage.list("../").await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::InvalidPath);
}

async fn concurrent_put_new_has_one_winner(storage: &SharedStorage) {
    let tries = (0..8u8).map(|i| {
        let storage = Arc::clone(storage);
        tokio::spawn(async move {
            storage
                .put_new("lock", Bytes::from(vec![i; 4]).into())
                .await
                .is_ok()
        })
    });
    let mut winners = Vec::new();
    for (i, task) in tries.collect::<Vec<_>>().into_iter().enumerate() {
        if task.await.unwrap() {
            winners.push(i as u8);
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(storage.get("lock").await.unwrap(), vec![winners[0]; 4]);
    storage.delete("lock").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_backend_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open_url(&format!("local://{}/a b#%25", dir.path().display()));
    // '#' must be escaped in a URL, a bare path takes it literally.
    assert_eq!(storage.err().unwrap().kind, StorageErrorKind::InvalidConfig);
    let storage = open_url(&format!("{}/a b#%25", dir.path().display())).unwrap();
    conformance(storage).await;
    assert!(dir.path().join("a b#%25").is_dir());
    assert!(!dir.path().join("escape").exists() && !dir.path().join("../escape").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_backend_conforms() {
    conformance(open_url("memory://").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fault_wrapper_without_faults_conforms() {
    let storage = FaultyStorage::new(open_url("memory://").unwrap(), FaultPlan::none());
    conformance(storage.clone()).await;
    let counters = storage.counters();
    assert!(counters.writes > 0 && counters.reads > 0 && counters.lists > 0);
    assert_eq!(
        counters.errors_before + counters.errors_after + counters.short_reads,
        0
    );
}

/// The same suite on real servers: their URLs, separated by blanks, each with a fresh prefix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_that_the_environment_names_conform() {
    for url in std::env::var("PITR_STORAGE_TEST_URLS")
        .unwrap_or_default()
        .split_whitespace()
    {
        conformance(open_url(url).unwrap()).await;
    }
}

#[tokio::test]
async fn a_named_memory_storage_is_the_same_for_everyone_in_the_process() {
    let (one, two) = (
        open_url("memory://named").unwrap(),
        open_url("memory://named").unwrap(),
    );
    one.put("a", "x".into()).await.unwrap();
    assert_eq!(two.get("a").await.unwrap(), "x");
    for other in ["memory://", "memory://other"] {
        assert_eq!(open_url(other).unwrap().list("").await.unwrap(), []);
    }
}
