//! `Apply`, rule by rule as the wire specification has them: from events to changes of the engine.

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedKey, OpKind, Ts};
use pitr_proto::import_sstpb::KvMeta;
use pitr_restore_worker::engine::EngineCf;
use pitr_restore_worker::service::ImportLimits;

use super::desk::{Desk, encoded_prefix, rule};
use super::synthetic::{long, record, short, value};

fn versioned(key: &[u8], ts: u64) -> Vec<u8> {
    EncodedKey::encode(key).at(Ts::new(ts)).as_bytes().to_vec()
}

fn seen<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The write records that the engine has, decoded.
fn writes(desk: &Desk) -> Vec<(Vec<u8>, WriteRecord)> {
    let records = desk.host.engine.records().into_iter();
    let writes = records.filter(|((cf, _), _)| *cf == EngineCf::Write);
    writes
        .map(|((_, key), value)| (key, WriteRecord::parse(&Bytes::from(value)).unwrap()))
        .collect()
}

#[tokio::test]
async fn both_ends_of_the_window_of_a_slice_are_inside() {
    let desk = Desk::new();
    let records: Vec<_> = (0..5)
        .map(|i| short(&[b'a' + i], 1, 10 + u64::from(i), "v"))
        .collect();
    let meta = KvMeta {
        start_ts: 11,
        restore_ts: 13,
        ..desk.slice("a", &records)
    };
    let range = desk.apply(&[meta]).await.unwrap().unwrap();
    assert_eq!(desk.seen(), seen([("b", "v"), ("c", "v"), ("d", "v")]));
    assert_eq!(range.start, versioned(b"b", 11));
    assert_eq!(
        range.end,
        versioned(b"d", 13),
        "both ends of the answer are keys that were taken"
    );
}

#[tokio::test]
async fn the_range_of_a_slice_is_compared_with_the_whole_key_and_ends_before_its_end() {
    let desk = Desk::new();
    let records: Vec<_> = (10..15).map(|ts| short(b"k", 1, ts, "v")).collect();
    // Newer versions are smaller keys.
    let meta = KvMeta {
        start_key: versioned(b"k", 13).into(),
        end_key: versioned(b"k", 11).into(),
        ..desk.slice("a", &records)
    };
    desk.apply(&[meta]).await.unwrap();
    let found: Vec<_> = writes(&desk).into_iter().map(|(key, _)| key).collect();
    assert_eq!(found, [versioned(b"k", 13), versioned(b"k", 12)]);
}

#[tokio::test]
async fn a_slice_with_nothing_inside_has_no_range_and_writes_nothing() {
    let desk = Desk::new();
    let meta = KvMeta {
        start_ts: 50,
        ..desk.slice("a", &[short(b"k", 1, 10, "v")])
    };
    assert_eq!(desk.apply(&[meta]).await, Ok(None));
    assert_eq!(desk.apply(&[]).await, Ok(None));
    assert!(desk.host.writes.lock().is_empty());
}

#[tokio::test]
async fn only_puts_and_deletes_of_a_transaction_are_written_and_they_carry_the_mark_of_a_restore() {
    let desk = Desk::new();
    let kinds = [
        WriteType::Put,
        WriteType::Delete,
        WriteType::Lock,
        WriteType::Rollback,
    ];
    let records: Vec<_> = kinds
        .into_iter()
        .zip(b"pdlr")
        .map(|(kind, key)| {
            let write = WriteRecord {
                kind,
                txn_source: 5,
                overlapped_rollback: true,
                gc_fence: Some(Ts::new(99)),
                ..WriteRecord::put(Ts::new(1), None)
            };
            record(Cf::Write, OpKind::Put, &[*key], 10, write.to_bytes())
        })
        .collect();
    let range = desk.apply(&[desk.slice("a", &records)]).await.unwrap();
    let plain = |kind| WriteRecord {
        kind,
        txn_source: 5 | 1 << 16,
        ..WriteRecord::put(Ts::new(1), None)
    };
    let wanted = vec![
        (versioned(b"d", 10), plain(WriteType::Delete)),
        (versioned(b"p", 10), plain(WriteType::Put)),
    ];
    assert_eq!(writes(&desk), wanted);
    let range = range.unwrap();
    assert_eq!(
        (range.start, range.end),
        (versioned(b"d", 10).into(), versioned(b"r", 10).into()),
        "as in TiKV, a rollback counts for the range"
    );
}

#[tokio::test]
async fn events_without_a_value_and_write_records_that_are_none_are_left_out() {
    let desk = Desk::new();
    let good = WriteRecord::put(Ts::new(1), Some(Bytes::from("v"))).to_bytes();
    let metas = [
        desk.plain(
            "w",
            "write",
            &[
                (versioned(b"a", 10), Vec::new()),
                (versioned(b"b", 10), b"no write record".to_vec()),
                (versioned(b"c", 10), good.to_vec()),
            ],
        ),
        desk.plain("d", "default", &[(versioned(b"d", 10), Vec::new())]),
    ];
    desk.apply(&metas).await.unwrap();
    assert_eq!(desk.host.engine.records().len(), 1);
    assert_eq!(desk.seen(), seen([("c", "v")]));
}

#[tokio::test]
async fn a_delete_slice_removes_exactly_the_keys_of_its_column_family() {
    let desk = Desk::new();
    let puts = [
        desk.slice("d", &[value(b"a", 5, "one"), value(b"a", 7, "two")]),
        desk.slice("w", &[long(b"a", 5, 10), long(b"a", 7, 12)]),
    ];
    desk.apply(&puts).await.unwrap();
    let deletes = KvMeta {
        is_delete: true,
        ..desk.slice("x", &[record(Cf::Write, OpKind::Delete, b"a", 12, "")])
    };
    desk.apply(&[deletes]).await.unwrap();
    assert_eq!(desk.seen(), seen([("a", "one")]));
    let left: Vec<_> = desk.host.engine.records().into_keys().collect();
    assert_eq!(
        left.len(),
        3,
        "the value of the removed record stays: {left:?}"
    );
}

#[tokio::test]
async fn every_version_of_a_key_in_one_request_survives_in_whatever_order_they_come() {
    let desk = Desk::new();
    let records: Vec<_> = [30, 10, 50, 20, 40]
        .map(|ts| short(b"k", ts - 1, ts, "v"))
        .into();
    let again = desk.slice("b", &records[1..3]);
    desk.apply(&[desk.slice("a", &records), again])
        .await
        .unwrap();
    let found: Vec<_> = writes(&desk).into_iter().map(|(key, _)| key).collect();
    let wanted: Vec<_> = [50, 40, 30, 20, 10].map(|ts| versioned(b"k", ts)).into();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn the_form_of_a_single_slice_counts_behind_those_of_a_batch() {
    let desk = Desk::new();
    let mut request = desk.request(&[desk.slice("a", &[short(b"k", 1, 10, "batch")])]);
    // The same version with another value: the last one written is the one that stays.
    request.meta = Some(desk.slice(
        "b",
        &[short(b"k", 1, 10, "single"), short(b"x", 1, 10, "v")],
    ));
    assert_eq!(desk.send(request.clone()).await.error, None);
    assert_eq!(desk.seen(), seen([("k", "single"), ("x", "v")]));
    request.metas.clear();
    request.rewrite_rules.clear();
    request.rewrite_rule = Some(rule(b"nothing begins so", b"nor so"));
    let error = desk.send(request).await.error.unwrap().message;
    assert!(
        error.contains("wrong prefix"),
        "its own rule counts: {error}"
    );
}

#[tokio::test]
async fn without_a_rule_keys_stay_and_a_rule_without_new_prefix_takes_the_old_one_away() {
    let desk = Desk::new();
    let meta = desk.slice(
        "a",
        &[
            short(b"volume-1key", 1, 10, "v"),
            short(b"other", 1, 10, "w"),
        ],
    );
    desk.apply_renamed(&meta, b"", b"").await.unwrap();
    assert_eq!(desk.seen(), seen([("other", "w"), ("volume-1key", "v")]));

    let desk = Desk::new();
    let meta = desk.slice(
        "a",
        &[
            short(b"volume-1key", 1, 10, "v"),
            short(b"other", 1, 10, "w"),
        ],
    );
    desk.apply_renamed(&meta, &encoded_prefix(b"volume-1"), b"")
        .await
        .unwrap();
    assert_eq!(
        desk.seen(),
        seen([("key", "v"), ("other", "w")]),
        "keys that do not match pass as they are"
    );
}

#[tokio::test]
async fn a_rule_without_old_prefix_puts_the_new_one_before_every_key() {
    let desk = Desk::new();
    let meta = desk.slice(
        "a",
        &[short(b"key", 1, 10, "v"), short(b"", 1, 10, "empty")],
    );
    desk.apply_renamed(&meta, b"", &encoded_prefix(b"volume-2"))
        .await
        .unwrap();
    assert_eq!(
        desk.seen(),
        seen([("volume-2", "empty"), ("volume-2key", "v")])
    );
}

#[tokio::test]
async fn what_already_has_the_new_prefix_passes_and_what_has_neither_ends_the_request() {
    let (old, new) = (encoded_prefix(b"volume-1"), encoded_prefix(b"volume-2"));
    let desk = Desk::new();
    let both = desk.slice(
        "a",
        &[
            short(b"volume-1a", 1, 10, "v"),
            short(b"volume-2b", 1, 10, "w"),
        ],
    );
    desk.apply_renamed(&both, &old, &new).await.unwrap();
    assert_eq!(desk.seen(), seen([("volume-2a", "v"), ("volume-2b", "w")]));

    let desk = Desk::new();
    let third = desk.slice(
        "a",
        &[
            short(b"volume-1a", 1, 10, "v"),
            short(b"volume-3c", 1, 10, "w"),
        ],
    );
    let error = desk.apply_renamed(&third, &old, &new).await.unwrap_err();
    let key = hex::encode_upper(versioned(b"volume-3c", 10));
    let words = format!(
        "wrong prefix: key {key} does not start with {}",
        hex::encode_upper(&new)
    );
    assert!(error.contains(&words), "{error}");
    assert!(desk.seen().is_empty(), "also what matches is not written");
}

#[tokio::test]
async fn a_prefix_of_the_highest_bytes_is_a_prefix_like_others() {
    let top = [0xFF; 8];
    let desk = Desk::new();
    let keys: [&[u8]; 3] = [b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFk", &top, &[0xFF; 20]];
    let records: Vec<_> = keys.map(|key| short(key, 1, 10, "v")).into();
    let meta = desk.slice("a", &records);
    desk.apply_renamed(&meta, &encoded_prefix(&top), &encoded_prefix(b"volume-1"))
        .await
        .unwrap();
    let rest = |len: usize| format!("volume-1{}", "\\xff".repeat(len));
    let wanted = vec![
        ("volume-1".to_owned(), "v".to_owned()),
        ("volume-1k".to_owned(), "v".to_owned()),
        (rest(12), "v".to_owned()),
    ];
    assert_eq!(desk.seen(), wanted);
    let back = Desk::new();
    let records: Vec<_> = [&b"volume-1"[..], b"volume-1k"]
        .map(|k| short(k, 1, 10, "v"))
        .into();
    let meta = back.slice("a", &records);
    back.apply_renamed(&meta, &encoded_prefix(b"volume-1"), &encoded_prefix(&top))
        .await
        .unwrap();
    let prefix = "\\xff".repeat(8);
    assert_eq!(
        back.seen(),
        [
            (prefix.clone(), "v".to_owned()),
            (format!("{prefix}k"), "v".to_owned())
        ]
    );
}

#[tokio::test]
async fn rules_that_overlap_are_not_applied_one_after_the_other() {
    let desk = Desk::new();
    let volume = |n: u8| encoded_prefix(format!("volume-{n}").as_bytes());
    let mut request = desk.request(&[
        desk.slice("a", &[short(b"volume-1k", 1, 10, "from one")]),
        desk.slice("b", &[short(b"volume-2k", 1, 10, "from two")]),
    ]);
    // The second rule would take what the first one made.
    request.rewrite_rules = vec![rule(&volume(1), &volume(2)), rule(&volume(2), &volume(3))];
    assert_eq!(desk.send(request).await.error, None);
    assert_eq!(
        desk.seen(),
        seen([("volume-2k", "from one"), ("volume-3k", "from two")])
    );

    // A new prefix that begins with the old one is put in once.
    let desk = Desk::new();
    let meta = desk.slice("a", &[short(b"volume-1k", 1, 10, "v")]);
    let twice = encoded_prefix(b"volume-1volume-1");
    desk.apply_renamed(&meta, &volume(1), &twice).await.unwrap();
    assert_eq!(desk.seen(), seen([("volume-1volume-1k", "v")]));
    desk.apply_renamed(&meta, &volume(1), &twice).await.unwrap();
    assert_eq!(
        desk.seen().len(),
        1,
        "repeating the request changes nothing"
    );
}

#[tokio::test]
async fn changes_are_written_in_batches_of_the_size_asked_for_and_a_larger_one_goes_alone() {
    let limits = ImportLimits {
        write_bytes: 1_000,
        ..ImportLimits::default()
    };
    let desk = Desk::with(pitr_budget::MemoryBudget::new(64 << 20), limits);
    let text: &'static str = "x".repeat(300).leak();
    let mut records: Vec<_> = (0..9).map(|i| value(&[i], 5, text)).collect();
    records.insert(4, value(b"large", 5, "y".repeat(5_000).leak()));
    desk.apply(&[desk.slice("a", &records)]).await.unwrap();
    assert_eq!(desk.host.engine.records().len(), 10);
    let writes = desk.host.writes.lock().clone();
    assert_eq!(writes.iter().sum::<usize>(), 10);
    assert!(
        writes.iter().all(|records| (1..=3).contains(records)),
        "{writes:?}"
    );
    assert!(writes.contains(&1), "{writes:?}");
}

#[tokio::test]
async fn a_region_that_splits_in_the_middle_is_told_and_the_repetition_ends_the_same() {
    let limits = ImportLimits {
        write_bytes: 100,
        ..ImportLimits::default()
    };
    let desk = Desk::with(pitr_budget::MemoryBudget::new(64 << 20), limits);
    let records: Vec<_> = (0..20)
        .map(|i| short(&[b'a' + i], 1, 10, "value"))
        .collect();
    let meta = desk.slice("a", &records);
    desk.host
        .writes_left
        .store(3, std::sync::atomic::Ordering::SeqCst);
    let error = desk
        .send(desk.request(std::slice::from_ref(&meta)))
        .await
        .error
        .unwrap();
    assert!(
        error.message.starts_with("failed to complete raft command"),
        "{}",
        error.message
    );
    assert!(error.store_error.unwrap().epoch_not_match.is_some());
    let part = desk.seen().len();
    assert!(0 < part && part < 20, "{part} of 20 were written before");
    *desk.host.refusal.lock() = None;
    desk.apply(&[meta]).await.unwrap();
    assert_eq!(desk.seen().len(), 20);
}

#[tokio::test]
async fn an_object_that_was_replaced_is_read_anew_by_those_who_ask_for_the_new_one() {
    let desk = Desk::new();
    let old = desk.slice("a", &[short(b"k", 1, 10, "old")]);
    desk.apply(std::slice::from_ref(&old)).await.unwrap();
    let new = desk.slice("a", &[short(b"k", 1, 20, "new")]);
    assert_eq!(
        old.range_length, new.range_length,
        "the cache knows both by one name"
    );
    desk.apply(&[new]).await.unwrap();
    assert_eq!(desk.seen(), seen([("k", "new")]));
    let error = desk.apply(&[old]).await.unwrap_err();
    assert!(error.contains("checksums do not match"), "{error}");
}

#[tokio::test]
async fn many_calls_for_one_slice_at_once_read_it_once_and_all_write_it() {
    let desk = Desk::new();
    let records: Vec<_> = (0..100).map(|i| short(&[i], 1, 10, "v")).collect();
    let meta = desk.slice("a", &records);
    let calls = (0..16u8).map(|i| {
        let meta = KvMeta {
            start_key: EncodedKey::encode(&[i * 6]).into_bytes(),
            end_key: EncodedKey::encode(&[i * 6 + 6]).into_bytes(),
            ..meta.clone()
        };
        let desk = &desk;
        async move { desk.apply(&[meta]).await }
    });
    for answer in futures::future::join_all(calls).await {
        assert!(answer.unwrap().is_some());
    }
    assert_eq!(desk.seen().len(), 96);
    // One piece of work decodes, one for each call writes.
    assert_eq!(desk.threads.done(), 17);
}
