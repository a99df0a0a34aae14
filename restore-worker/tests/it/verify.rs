//! The check of whole archives.

use pitr_restore_worker::verify;

use super::golden::Golden;

#[tokio::test]
async fn golden_archives_are_sound_and_every_record_is_counted() {
    for (name, records) in [("log-basic", 3543), ("log-splits", 4641)] {
        let report = verify(
            &Golden::proven_empty(name).open().await,
            &Default::default(),
        )
        .await
        .unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(
            (
                report.records,
                report.unreferenced.len(),
                report.warnings.len()
            ),
            (records, 0, 0)
        );
    }
}

#[tokio::test]
async fn an_archive_as_tikv_alone_leaves_it_is_checked_in_full_with_two_warnings() {
    let report = verify(&Golden::bare("log-basic").open().await, &Default::default())
        .await
        .unwrap();
    assert!(report.is_sound());
    assert_eq!(report.records, 3543);
    assert_eq!(report.warnings.len(), 2);
}

#[tokio::test]
async fn unreferenced_objects_are_listed_and_are_no_damage() {
    let golden = Golden::proven_empty("log-basic");
    golden.write(
        "v1/20261122/02/1/470630701673742338-left-over.log",
        b"half a flush",
    );
    let report = verify(&golden.open().await, &Default::default())
        .await
        .unwrap();
    assert!(report.is_sound());
    assert_eq!(
        report.unreferenced,
        ["v1/20261122/02/1/470630701673742338-left-over.log"]
    );
}
