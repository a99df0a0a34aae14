//! The matcher's rules one by one. Rows are written as the store sends them.

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_format::{Cf, EncodedKey, KvRecord, RecordRef, VersionedKey};
use pitr_proto::cdcpb::event;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

pub(super) fn row(
    kind: LogType,
    op: OpType,
    key: &str,
    start: u64,
    commit: u64,
    value: &[u8],
) -> event::Row {
    event::Row {
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

pub(super) fn prewrite(key: &str, start: u64, value: &[u8]) -> event::Row {
    row(LogType::Prewrite, OpType::Put, key, start, 0, value)
}

fn prewrite_delete(key: &str, start: u64) -> event::Row {
    row(LogType::Prewrite, OpType::Delete, key, start, 0, b"")
}

pub(super) fn commit(key: &str, start: u64, at: u64, value: &[u8]) -> event::Row {
    row(LogType::Commit, OpType::Put, key, start, at, value)
}

fn commit_delete(key: &str, start: u64, at: u64) -> event::Row {
    row(LogType::Commit, OpType::Delete, key, start, at, b"")
}

pub(super) fn committed(key: &str, start: u64, at: u64, value: &[u8]) -> event::Row {
    row(LogType::Committed, OpType::Put, key, start, at, value)
}

pub(super) fn rollback(key: &str, start: u64) -> event::Row {
    row(LogType::Rollback, OpType::Unknown, key, start, 0, b"p")
}

pub(super) fn initialized() -> event::Row {
    row(LogType::Initialized, OpType::Unknown, "", 0, 0, b"")
}

/// A matcher with what the feed gives it.
pub(super) struct Harness {
    pub matcher: Matcher,
    pub pool: Pool,
    pub stage: Stage,
    pub enough: usize,
}

impl Harness {
    pub fn new(pool: Pool, wanted: &[EncodedRange]) -> Self {
        Harness {
            matcher: Matcher::new(&EncodedRange::ALL, wanted, &pool),
            pool,
            stage: Stage::default(),
            enough: usize::MAX,
        }
    }

    /// One event.
    pub fn apply(&mut self, rows: Vec<event::Row>) -> Result<Vec<KvRecord>, MatchError> {
        let rows = event::Entries { entries: rows }.encode_to_vec();
        let (mut at, mut batch, mut out) = (0, Batch::default(), Vec::new());
        self.stage.clear();
        loop {
            let (stage, pool) = (&mut self.stage, &mut self.pool);
            if stage.is_done() {
                if at == rows.len() {
                    return Ok(out);
                }
                self.matcher.stage(&rows, &mut at, stage, pool)?;
            }
            let step = self
                .matcher
                .advance(&rows, stage, pool, &mut batch, self.enough);
            let owned = |r: RecordRef<'_>| KvRecord {
                cf: r.cf,
                op: r.op,
                key: Bytes::copy_from_slice(r.key),
                value: Bytes::copy_from_slice(r.value),
            };
            out.extend(batch.finish().iter().map(owned));
            step?;
        }
    }

    pub fn memory(&self) -> usize {
        self.matcher.held()
    }
}

fn plain_pool() -> Pool {
    Pool::new(MemoryBudget::new(1 << 30), None, 1 << 30)
}

pub(super) fn fresh() -> Harness {
    Harness::new(plain_pool(), &[EncodedRange::ALL])
}

/// A matcher whose scan is over.
fn live() -> Harness {
    let mut matcher = fresh();
    assert_eq!(run(&mut matcher, vec![initialized()]), Vec::<String>::new());
    matcher
}

/// Records as `cf key@ts value-length-or-text`.
fn run(matcher: &mut Harness, rows: Vec<event::Row>) -> Vec<String> {
    matcher.apply(rows).unwrap().iter().map(show).collect()
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
    let with = |generation, value: &[u8]| event::Row {
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
    let error = live().apply(vec![commit("k", 10, 11, b"v")]).unwrap_err();
    assert_eq!(
        error,
        MatchError::MissingPrewrite {
            start_ts: Ts::new(10),
            commit_ts: Ts::new(11)
        }
    );
    assert_eq!(error.class(), Class::Refresh);
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
    let error = m.apply(vec![commit("k", 10, 11, b"")]).unwrap_err();
    let start_ts = Ts::new(10);
    assert_eq!(error, MatchError::TwoValues { start_ts });
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
    let mut m = Harness::new(plain_pool(), &[wanted]);
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
    let future = event::Row {
        r#type: 99,
        ..unknown.clone()
    };
    assert!(run(&mut m, vec![unknown, future]).is_empty());
    let nameless = row(LogType::Committed, OpType::Unknown, "k", 1, 2, b"");
    assert!(m.apply(vec![nameless]).is_err());
    let dateless = committed("k", 1, 0, b"");
    assert!(m.apply(vec![dateless]).is_err());
}

#[test]
fn the_transaction_source_is_kept() {
    let row = event::Row {
        txn_source: 1,
        ..committed("k", 1, 2, b"")
    };
    let out = live().apply(vec![row]).unwrap();
    assert_eq!(&out[0].value[..], b"P\x01v\x00S\x01");
}

/// A pool whose memory holds next to nothing.
fn spilling_pool(dir: &tempfile::TempDir, limit: u64) -> Pool {
    let spill = SpillDir::open(dir.path(), 1 << 30).unwrap();
    Pool::new(MemoryBudget::new(1 << 30), Some(spill), limit)
}

#[test]
fn values_that_were_moved_to_disk_come_back_with_their_commits() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Harness::new(spilling_pool(&dir, 128 << 10), &[EncodedRange::ALL]);
    run(&mut m, vec![initialized()]);
    let value = |n: usize| vec![n as u8; 4000 + n];
    for n in 0..200 {
        run(&mut m, vec![prewrite(&format!("k{n}"), 10, &value(n))]);
        assert!(m.pool.bytes() <= 128 << 10, "at {n}");
    }
    assert!(m.memory() > 800_000, "what is on disk counts as held");
    // Not in the order in which they came.
    for n in (0..200).map(|n| n * 71 % 200) {
        let out = m
            .apply(vec![commit(&format!("k{n}"), 10, 11, b"")])
            .unwrap();
        assert_eq!((out.len(), &out[0].value[..]), (2, &value(n)[..]));
    }
    assert_eq!(m.memory(), 0);
    m.stage.clear();
    assert!(m.pool.bytes() < 8192, "a small table stays");
    drop(m);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "only the lock");
}

#[test]
fn a_transaction_whose_index_does_not_fit_is_refused_and_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Harness::new(spilling_pool(&dir, 64 << 10), &[EncodedRange::ALL]);
    run(&mut m, vec![initialized()]);
    let refused = (0..10_000).find_map(|n| {
        let rows = vec![prewrite(&format!("key/{n}"), 10, LONG)];
        m.apply(rows).err()
    });
    let Some(refused @ MatchError::NoRoom(_)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(refused.class(), Class::Retry);
    assert!(m.pool.bytes() <= 64 << 10);
}

#[test]
fn a_full_disk_refuses_and_what_is_kept_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 100_000).unwrap();
    let pool = Pool::new(MemoryBudget::new(1 << 30), Some(spill), 64 << 10);
    let mut m = Harness::new(pool, &[EncodedRange::ALL]);
    run(&mut m, vec![initialized()]);
    let mut kept = 0;
    while m
        .apply(vec![prewrite(&format!("k{kept}"), 10, &[kept as u8; 3000])])
        .is_ok()
    {
        kept += 1;
    }
    assert!(kept > 35, "{kept}");
    for n in 0..kept {
        let out = m
            .apply(vec![commit(&format!("k{n}"), 10, 11, b"")])
            .unwrap();
        assert_eq!(out[0].value, [n as u8; 3000][..]);
    }
}

#[test]
fn damage_on_disk_ends_the_subscription_instead_of_reaching_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Harness::new(spilling_pool(&dir, 64 << 10), &[EncodedRange::ALL]);
    run(&mut m, vec![initialized()]);
    for n in 0..60 {
        run(&mut m, vec![prewrite(&format!("k{n}"), 10, &[7; 3000])]);
    }
    let files = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().path());
    let spilled: Vec<_> = files
        .filter(|f| f.extension().is_some_and(|e| e == "spill"))
        .collect();
    let mut bytes = std::fs::read(&spilled[0]).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&spilled[0], bytes).unwrap();
    let outcomes: Vec<_> = (0..60)
        .map(|n| m.apply(vec![commit(&format!("k{n}"), 10, 11, b"")]))
        .collect();
    assert!(
        matches!(outcomes[1], Err(MatchError::Lost(_))),
        "{:?}",
        outcomes[1]
    );
    assert!(outcomes[59].is_ok());
}

#[test]
fn commits_that_complete_much_come_out_in_pieces() {
    let mut m = live();
    m.enough = 10_000;
    let prewrites = (0..100)
        .map(|n| prewrite(&format!("k{n}"), 10, &[1; 5000]))
        .collect();
    run(&mut m, prewrites);
    let commits: Vec<_> = (0..100)
        .map(|n| commit(&format!("k{n}"), 10, 11, b""))
        .collect();
    let rows = event::Entries { entries: commits }.encode_to_vec();
    let (mut at, mut batch, mut pieces) = (0, Batch::default(), 0);
    m.stage.clear();
    m.matcher
        .stage(&rows, &mut at, &mut m.stage, &mut m.pool)
        .unwrap();
    loop {
        let step = m
            .matcher
            .advance(&rows, &mut m.stage, &mut m.pool, &mut batch, m.enough);
        let step = step.unwrap();
        assert!(batch.bytes() < 20_000);
        pieces += 1;
        batch.finish();
        if step == Step::Done {
            break;
        }
    }
    assert!(pieces > 40);
}

/// Steps of a made-up history of a few keys, as a store may send them.
fn any_rows() -> impl Strategy<Value = Vec<Vec<event::Row>>> {
    let row = (
        0..7u8,
        0..6u8,
        1..4u64,
        prop_oneof![0..3usize, 250..260usize, 2000..6000usize],
    );
    let row = row.prop_map(|(kind, key, txn, len)| {
        let key = format!("key-{key}");
        let (start, at) = (txn * 10, txn * 10 + 5);
        let value = vec![b'a' + txn as u8; len];
        let long = if len > 255 { Vec::new() } else { value.clone() };
        match kind {
            0..=2 => prewrite(&key, start, &value),
            3 | 4 => commit(&key, start, at, &long),
            5 => rollback(&key, start),
            _ => committed(&key, start, at, &value),
        }
    });
    let events = proptest::collection::vec(proptest::collection::vec(row, 1..6), 1..60);
    (events, any::<prop::sample::Index>()).prop_map(|(mut events, at)| {
        let at = at.index(events.len());
        events[at].push(initialized());
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_matcher_that_spills_gives_exactly_what_one_in_memory_gives(
        events in any_rows(),
        limit in 60_000..150_000u64,
        enough in prop_oneof![Just(usize::MAX), 1..9000usize],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut plain = fresh();
        let mut spilling = Harness::new(spilling_pool(&dir, limit), &[EncodedRange::ALL]);
        spilling.enough = enough;
        for rows in events {
            let expected = plain.apply(rows.clone());
            let found = spilling.apply(rows);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(plain.memory(), spilling.memory());
            if expected.is_err() {
                return Ok(());
            }
        }
    }
}
