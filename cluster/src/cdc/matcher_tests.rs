//! The matcher's rules one by one. Rows are written as the store sends them.

use pitr_format::{Cf, VersionedKey};

use super::*;

fn row(kind: LogType, op: OpType, key: &str, start: u64, commit: u64, value: &[u8]) -> Row {
    Row {
        start_ts: start,
        commit_ts: commit,
        r#type: kind as i32,
        op_type: op as i32,
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value),
        old_value: Bytes::from_static(b"never needed"),
        ..Default::default()
    }
}

fn prewrite(key: &str, start: u64, value: &[u8]) -> Row {
    row(LogType::Prewrite, OpType::Put, key, start, 0, value)
}

fn prewrite_delete(key: &str, start: u64) -> Row {
    row(LogType::Prewrite, OpType::Delete, key, start, 0, b"")
}

fn commit(key: &str, start: u64, at: u64, value: &[u8]) -> Row {
    row(LogType::Commit, OpType::Put, key, start, at, value)
}

fn commit_delete(key: &str, start: u64, at: u64) -> Row {
    row(LogType::Commit, OpType::Delete, key, start, at, b"")
}

fn committed(key: &str, start: u64, at: u64, value: &[u8]) -> Row {
    row(LogType::Committed, OpType::Put, key, start, at, value)
}

fn rollback(key: &str, start: u64) -> Row {
    row(LogType::Rollback, OpType::Unknown, key, start, 0, b"p")
}

fn initialized() -> Row {
    row(LogType::Initialized, OpType::Unknown, "", 0, 0, b"")
}

fn fresh() -> Matcher {
    Matcher::new(&EncodedRange::ALL, &[EncodedRange::ALL])
}

/// A matcher whose scan is over.
fn live() -> Matcher {
    let mut matcher = fresh();
    assert_eq!(run(&mut matcher, vec![initialized()]), Vec::<String>::new());
    matcher
}

/// Records as `cf key@ts value-length-or-text`.
fn run(matcher: &mut Matcher, rows: Vec<Row>) -> Vec<String> {
    let mut out = Vec::new();
    matcher.apply(rows, &mut out).unwrap();
    out.iter().map(show).collect()
}

fn show(record: &KvRecord) -> String {
    let key = VersionedKey::from_bytes(record.key.clone()).unwrap();
    let (key, ts) = key.decode().unwrap();
    let key = String::from_utf8(key).unwrap();
    match record.cf {
        Cf::Default => format!("default {key}@{ts} {} bytes", record.value.len()),
        Cf::Write => {
            let write = pitr_format::write_cf::WriteRecord::parse(&record.value).unwrap();
            let value = write
                .short_value
                .map(|v| String::from_utf8(v.to_vec()).unwrap());
            format!(
                "{:?} {key}@{ts} from {} {value:?}",
                write.kind, write.start_ts
            )
        }
    }
}

const LONG: &[u8] = &[b'L'; 300];

#[test]
fn a_live_short_put_is_written_when_it_commits() {
    let mut m = live();
    assert!(run(&mut m, vec![prewrite("k", 10, b"v")]).is_empty());
    assert!(m.memory() > 0);
    assert_eq!(
        run(&mut m, vec![commit("k", 10, 11, b"v")]),
        ["Put k@11 from 10 Some(\"v\")"]
    );
    assert_eq!(m.memory(), 0);
}

#[test]
fn a_long_value_comes_out_of_the_prewrite_together_with_its_write_record() {
    let mut m = live();
    assert!(run(&mut m, vec![prewrite("k", 10, LONG)]).is_empty());
    assert_eq!(
        run(&mut m, vec![commit("k", 10, 11, b"")]),
        ["default k@10 300 bytes", "Put k@11 from 10 None"]
    );
}

#[test]
fn an_empty_value_is_an_empty_short_value_and_a_delete_has_none() {
    let mut m = live();
    let rows = vec![
        prewrite("e", 10, b""),
        commit("e", 10, 11, b""),
        prewrite_delete("d", 10),
        commit_delete("d", 10, 11),
    ];
    assert_eq!(
        run(&mut m, rows),
        ["Put e@11 from 10 Some(\"\")", "Delete d@11 from 10 None"]
    );
}

#[test]
fn a_committed_row_stands_alone_and_takes_no_prewrite_away() {
    let mut m = live();
    let rows = vec![
        prewrite("k", 20, LONG),
        committed("k", 10, 11, b"v"),
        committed("k", 5, 6, LONG),
        row(LogType::Committed, OpType::Delete, "k", 3, 4, b""),
        commit("k", 20, 21, b""),
    ];
    assert_eq!(
        run(&mut m, rows),
        [
            "Put k@11 from 10 Some(\"v\")",
            "default k@5 300 bytes",
            "Put k@6 from 5 None",
            "Delete k@4 from 3 None",
            "default k@20 300 bytes",
            "Put k@21 from 20 None",
        ]
    );
}

#[test]
fn a_rollback_writes_nothing_and_frees_the_entry() {
    let mut m = live();
    assert!(run(&mut m, vec![prewrite("k", 10, LONG), rollback("k", 10)]).is_empty());
    assert_eq!(m.memory(), 0);
    // A rollback of a transaction that never locked the key.
    assert!(run(&mut m, vec![rollback("k", 12)]).is_empty());
}

#[test]
fn the_rollback_that_overlaps_a_commit_leaves_the_commit_alone() {
    let mut m = live();
    let rows = vec![
        prewrite("k", 10, b"v"),
        commit("k", 10, 11, b"v"),
        prewrite("k", 11, b"w"),
        rollback("k", 11),
    ];
    assert_eq!(run(&mut m, rows), ["Put k@11 from 10 Some(\"v\")"]);
    assert_eq!(m.memory(), 0);
}

#[test]
fn a_repeated_prewrite_without_a_value_does_not_overwrite_the_stored_one() {
    let mut m = live();
    let rows = vec![
        prewrite("k", 10, LONG),
        prewrite("k", 10, b""),
        commit("k", 10, 11, b""),
    ];
    assert_eq!(run(&mut m, rows)[0], "default k@10 300 bytes");
}

#[test]
fn a_flush_with_a_smaller_generation_never_replaces_a_larger_one() {
    let with = |generation, value: &[u8]| Row {
        generation,
        ..prewrite("k", 10, value)
    };
    let mut m = live();
    let rows = vec![
        with(2, &[2; 302]),
        with(1, &[1; 301]),
        with(3, &[3; 303]),
        commit("k", 10, 11, b""),
    ];
    assert_eq!(run(&mut m, rows)[0], "default k@10 303 bytes");
}

#[test]
fn a_commit_after_the_scan_without_its_prewrite_is_an_error() {
    let mut out = Vec::new();
    let error = live()
        .apply(vec![commit("k", 10, 11, b"v")], &mut out)
        .unwrap_err();
    assert_eq!(
        error,
        MatchError::MissingPrewrite {
            start_ts: Ts::new(10),
            commit_ts: Ts::new(11)
        }
    );
    assert_eq!(error.class(), Class::Refresh);
    assert!(out.is_empty());
}

#[test]
fn a_live_commit_before_the_scanned_prewrite_waits_for_the_end_of_the_scan() {
    let mut m = fresh();
    assert!(run(&mut m, vec![commit("k", 10, 11, b"")]).is_empty());
    assert!(run(&mut m, vec![prewrite("k", 10, LONG)]).is_empty());
    assert_eq!(
        run(&mut m, vec![initialized()]),
        ["default k@10 300 bytes", "Put k@11 from 10 None"]
    );
    assert_eq!(m.memory(), 0);
}

#[test]
fn a_commit_put_aside_whose_prewrite_never_came_is_the_scans_own_version() {
    let mut m = fresh();
    let rows = vec![
        commit("k", 10, 11, b""),
        committed("k", 10, 11, LONG),
        initialized(),
    ];
    assert_eq!(
        run(&mut m, rows),
        ["default k@10 300 bytes", "Put k@11 from 10 None"]
    );
    assert_eq!(m.memory(), 0);
}

#[test]
fn a_prewrite_that_the_scan_delivers_after_its_live_commit_or_rollback_is_dropped() {
    let mut m = fresh();
    let rows = vec![
        prewrite("a", 10, LONG),
        commit("a", 10, 11, b""),
        prewrite("a", 10, LONG),
        rollback("b", 12),
        prewrite("b", 12, LONG),
    ];
    assert_eq!(run(&mut m, rows).len(), 2);
    assert!(run(&mut m, vec![initialized()]).is_empty());
    assert_eq!(m.memory(), 0);
}

#[test]
fn two_values_before_the_end_of_the_scan_are_not_guessed() {
    let mut m = fresh();
    let rows = vec![
        prewrite("k", 10, &[1; 300]),
        prewrite("k", 10, &[2; 300]),
        initialized(),
    ];
    assert!(run(&mut m, rows).is_empty());
    let error = m.apply(vec![commit("k", 10, 11, b"")], &mut Vec::new());
    let start_ts = Ts::new(10);
    assert_eq!(error, Err(MatchError::TwoValues { start_ts }));
}

#[test]
fn a_live_prewrite_after_the_scan_settles_which_value_is_newer() {
    let mut m = fresh();
    let rows = vec![
        prewrite("k", 10, &[1; 300]),
        prewrite("k", 10, &[2; 300]),
        initialized(),
        prewrite("k", 10, &[3; 303]),
        commit("k", 10, 11, b""),
    ];
    assert_eq!(run(&mut m, rows)[0], "default k@10 303 bytes");
}

#[test]
fn the_prewrite_of_a_rollback_without_a_row_goes_when_the_key_is_locked_again() {
    let mut m = live();
    run(&mut m, vec![prewrite("k", 10, LONG)]);
    let orphan = m.memory();
    run(&mut m, vec![prewrite("k", 20, LONG)]);
    assert_eq!(m.memory(), orphan);
    assert_eq!(run(&mut m, vec![commit("k", 20, 21, b"")]).len(), 2);
    assert_eq!(m.memory(), 0);
}

#[test]
fn rows_outside_of_the_task_are_dropped_whatever_their_type() {
    let wanted = EncodedRange::new(
        EncodedKey::encode(b"b").into_bytes(),
        EncodedKey::encode(b"c").into_bytes(),
    );
    let mut m = Matcher::new(&EncodedRange::ALL, &[wanted]);
    run(&mut m, vec![committed("a", 1, 2, b"v"), initialized()]);
    let rows = vec![
        prewrite("a", 10, LONG),
        commit("a", 10, 11, b""),
        prewrite("b", 10, b"v"),
        commit("b", 10, 11, b"v"),
        committed("c", 10, 11, b"v"),
    ];
    assert_eq!(run(&mut m, rows), ["Put b@11 from 10 Some(\"v\")"]);
}

#[test]
fn rows_of_unknown_kind_are_ignored_and_rows_without_an_operation_are_an_error() {
    let mut m = live();
    let unknown = row(LogType::Unknown, OpType::Unknown, "", 0, 0, b"value");
    let future = Row {
        r#type: 99,
        ..unknown.clone()
    };
    assert!(run(&mut m, vec![unknown, future]).is_empty());
    let nameless = row(LogType::Committed, OpType::Unknown, "k", 1, 2, b"");
    assert!(m.apply(vec![nameless], &mut Vec::new()).is_err());
    let dateless = committed("k", 1, 0, b"");
    assert!(m.apply(vec![dateless], &mut Vec::new()).is_err());
}

#[test]
fn the_transaction_source_is_kept() {
    let mut out = Vec::new();
    let row = Row {
        txn_source: 1,
        ..committed("k", 1, 2, b"")
    };
    live().apply(vec![row], &mut out).unwrap();
    assert_eq!(&out[0].value[..], b"P\x01v\x00S\x01");
}
