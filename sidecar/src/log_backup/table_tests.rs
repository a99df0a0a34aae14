//! The table's answers, compared with those of a real TiKV, and what several tasks make of them.

use std::sync::Arc;

use pitr_observer::{RegionMeta, RegionProgress};
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;

/// What a real TiKV answered.
const TRANSCRIPT: &str = include_str!("../../../tests/golden/log-backup-transcript.json");

fn line(id: u64, version: u64, start: &[u8], end: &[u8], ts: u64) -> RegionProgress {
    let region = RegionMeta {
        id,
        conf_ver: 1,
        version,
        range: EncodedRange::new(start.to_vec(), end.to_vec()),
    };
    RegionProgress {
        region: Arc::new(region),
        ts: Ts::new(ts),
    }
}

fn flushed(regions: Vec<RegionProgress>) -> FlushTable {
    FlushTable {
        regions,
        checkpoint: Ts::ZERO,
    }
}

fn range(start: &[u8], end: &[u8]) -> EncodedRange {
    EncodedRange::new(start.to_vec(), end.to_vec())
}

fn asked(regions: &[(u64, u64)]) -> Vec<RegionIdentity> {
    let identity = |(id, epoch_version): &(u64, u64)| RegionIdentity {
        id: *id,
        epoch_version: *epoch_version,
    };
    regions.iter().map(identity).collect()
}

/// Region → checkpoint, 0 with an error.
fn answers(tables: &FlushTables, regions: &[(u64, u64)], of: Option<i64>) -> Vec<(u64, u64)> {
    let answers = tables.last_flush(asked(regions), of).into_iter();
    answers
        .map(|answer| (answer.region.unwrap().id, answer.checkpoint))
        .collect()
}

fn events(subscription: &mut Subscription) -> Vec<FlushEvent> {
    let mut all = Vec::new();
    while let Some(message) = subscription.pending() {
        let events = message.events;
        assert!(events.len() <= 1024, "{}", events.len());
        all.extend(events);
    }
    all
}

/// An answer of the transcript: text format of a message.
fn recorded<M: prost::Message + Default>(step: &str, message: &str) -> M {
    let steps: serde_json::Value = serde_json::from_str(TRANSCRIPT).unwrap();
    let steps = steps.as_array().unwrap();
    let step = steps.iter().find(|s| s["step"] == step).unwrap();
    let text = step["answer"]
        .as_str()
        .unwrap_or_else(|| step["answers"][0].as_str().unwrap());
    let pool = DescriptorPool::decode(pitr_proto::FILE_DESCRIPTOR_SET).unwrap();
    let descriptor = pool.get_message_by_name(message).unwrap();
    let parsed = DynamicMessage::parse_text_format(descriptor, text).unwrap();
    parsed.transcode_to().unwrap()
}

/// The table of the store that was recorded.
fn as_recorded() -> Arc<FlushTables> {
    let told: SubscribeFlushEventResponse = recorded(
        "SubscribeFlushEvent stream",
        "logbackup.SubscribeFlushEventResponse",
    );
    let tables = Arc::new(FlushTables::default());
    tables.load("svc", 7, &[EncodedRange::ALL]);
    let ids = [10u64, 6, 4, 2, 8];
    let mut lines: Vec<_> = told
        .events
        .iter()
        .zip(ids)
        .map(|(event, id)| line(id, 5, &event.start_key, &event.end_key, event.checkpoint))
        .collect();
    lines.sort_by_key(|line| line.region.id);
    tables.replace("svc", 7, &flushed(lines));
    tables
}

#[test]
fn regions_are_answered_as_a_real_store_answers_them() {
    use pitr_proto::logbackup::GetLastFlushTsOfRegionResponse as Answer;
    let tables = as_recorded();
    let by_id = |mut answers: Vec<RegionCheckpoint>| {
        answers.sort_by_key(|answer| answer.region.map(|r| r.id));
        answers
    };
    for (step, regions) in [
        ("last flush", vec![(4, 5), (6, 5), (8, 5), (10, 5), (2, 5)]),
        (
            "last flush, wrong epoch and unknown region",
            vec![(4, 999), (99_999, 1)],
        ),
    ] {
        let expect: Answer = recorded(step, "logbackup.GetLastFlushTSOfRegionResponse");
        let ours = tables.last_flush(asked(&regions), None);
        assert_eq!(by_id(ours), by_id(expect.checkpoints), "{step}");
    }
}

#[test]
fn a_subscriber_hears_what_a_real_store_tells_at_once() {
    let tables = as_recorded();
    let told: SubscribeFlushEventResponse = recorded(
        "SubscribeFlushEvent stream",
        "logbackup.SubscribeFlushEventResponse",
    );
    let sorted = |mut events: Vec<FlushEvent>| {
        events.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        events
    };
    let heard = events(&mut tables.subscribe(None));
    assert_eq!(sorted(heard), sorted(told.events));
}

#[test]
fn a_region_that_is_asked_for_twice_is_answered_once() {
    let tables = as_recorded();
    assert_eq!(tables.last_flush(asked(&[(4, 5), (4, 5)]), None).len(), 1);
}

#[test]
fn every_flush_replaces_the_table_and_is_told_in_chunks() {
    let tables = Arc::new(FlushTables::default());
    tables.load("t", 7, &[EncodedRange::ALL]);
    let mut listener = tables.subscribe(None);
    assert!(events(&mut listener).is_empty());
    let bound = |n: u64| n.to_be_bytes();
    let regions = |from: u64, to: u64, ts| {
        let one = |n| line(n, 1, &bound(n), &bound(n + 1), ts);
        flushed((from..to).map(one).collect())
    };
    tables.replace("t", 7, &regions(1, 2601, 50));
    assert_eq!(events(&mut listener).len(), 2600);
    tables.replace("t", 7, &regions(1, 3, 60));
    assert_eq!(events(&mut listener).len(), 2);
    // What was not tailed since the flush before is not known any more.
    assert_eq!(answers(&tables, &[(2, 1), (9, 1)], None), [(2, 60), (9, 0)]);
}

#[test]
fn of_two_versions_of_a_region_the_newer_one_is_asked_for_and_both_are_told() {
    let tables = Arc::new(FlushTables::default());
    tables.load("t", 7, &[EncodedRange::ALL]);
    let mut listener = tables.subscribe(None);
    let lines = vec![line(4, 1, b"a", b"z", 50), line(4, 2, b"a", b"m", 60)];
    tables.replace("t", 7, &flushed(lines));
    assert_eq!(answers(&tables, &[(4, 2)], None), [(4, 60)]);
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 0)]);
    assert_eq!(events(&mut listener).len(), 2);
}

#[test]
fn a_task_that_is_registered_anew_does_not_inherit_what_the_old_one_flushed() {
    let tables = Arc::new(FlushTables::default());
    tables.load("t", 7, &[EncodedRange::ALL]);
    tables.replace("t", 7, &flushed(vec![line(4, 1, b"", b"", 50)]));
    tables.load("t", 7, &[EncodedRange::ALL]);
    assert_eq!(
        answers(&tables, &[(4, 1)], None),
        [(4, 50)],
        "another session of it"
    );
    tables.load("t", 9, &[EncodedRange::ALL]);
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 0)]);
    // The last words of the old session.
    tables.replace("t", 7, &flushed(vec![line(4, 1, b"", b"", 60)]));
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 0)]);
    tables.replace("t", 9, &flushed(vec![line(4, 1, b"", b"", 20)]));
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 20)]);
    tables.forget("t");
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 0)]);
}

#[test]
fn a_region_of_two_tasks_tells_of_each_its_own_part_and_of_both_the_smaller_ts() {
    let tables = Arc::new(FlushTables::default());
    tables.load("a", 7, &[range(b"a", b"m")]);
    tables.load("b", 9, &[range(b"m", b"z")]);
    tables.replace("a", 7, &flushed(vec![line(4, 1, b"", b"", 50)]));
    // The other task has keys there and says nothing yet.
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 0)]);
    assert_eq!(answers(&tables, &[(4, 1)], Some(7)), [(4, 50)]);
    assert_eq!(answers(&tables, &[(4, 1)], Some(9)), [(4, 0)]);
    tables.replace("b", 9, &flushed(vec![line(4, 1, b"", b"", 30)]));
    assert_eq!(answers(&tables, &[(4, 1)], None), [(4, 30)]);
    assert_eq!(answers(&tables, &[(4, 1)], Some(7)), [(4, 50)]);
    let told = |of| {
        let events = events(&mut tables.subscribe(of)).into_iter();
        let told = events.map(|e| (e.start_key, e.end_key, e.checkpoint));
        told.collect::<Vec<_>>()
    };
    let (a, b) = (("a".into(), "m".into(), 50), ("m".into(), "z".into(), 30));
    assert_eq!(told(Some(7)), std::slice::from_ref(&a));
    assert_eq!(told(Some(9)), std::slice::from_ref(&b));
    assert_eq!(told(None), [a, b]);
    assert_eq!(told(Some(1)), []);
}

#[test]
fn a_subscriber_that_does_not_read_costs_one_table_and_hears_the_newest_of_each_task() {
    let tables = Arc::new(FlushTables::default());
    tables.load("a", 7, &[range(b"a", b"m")]);
    tables.load("b", 9, &[range(b"m", b"z")]);
    let lines = |ts| flushed(vec![line(4, 1, b"", b"", ts); 1025]);
    let (mut slow, mut other) = (tables.subscribe(None), tables.subscribe(Some(9)));
    tables.replace("a", 7, &lines(1));
    let begun = slow.pending().unwrap().events;
    assert_eq!((begun.len(), begun[0].checkpoint), (1024, 1));
    let first = Arc::downgrade(&slow.events);
    tables.replace("b", 9, &lines(2));
    let replaced = Arc::downgrade(&tables.after(1, None).unwrap().1);
    for ts in 3..2000 {
        let (task, registered) = [("a", 7), ("b", 9)][ts as usize % 2];
        tables.replace(task, registered, &lines(ts));
    }
    assert!(replaced.upgrade().is_none(), "nobody was being sent it");
    // The rest of what was begun, then the newest of each, in their order.
    let heard: Vec<u64> = events(&mut slow).iter().map(|e| e.checkpoint).collect();
    let expect = [vec![1], vec![1998; 1025], vec![1999; 1025]].concat();
    assert_eq!(heard, expect);
    assert!(first.upgrade().is_none());
    let heard = events(&mut other);
    assert!(heard.len() == 1025 && heard.iter().all(|e| e.checkpoint == 1999));
    assert!(slow.pending().is_none() && other.pending().is_none());
}

#[tokio::test]
async fn a_subscriber_is_woken_by_the_next_flush() {
    let tables = Arc::new(FlushTables::default());
    tables.load("t", 7, &[EncodedRange::ALL]);
    let mut listener = tables.subscribe(None);
    let flush = async {
        tokio::task::yield_now().await;
        tables.replace("t", 7, &flushed(vec![]));
        tokio::task::yield_now().await;
        tables.replace("t", 7, &flushed(vec![line(4, 1, b"", b"", 50)]));
    };
    let (heard, ()) = tokio::join!(listener.next(), flush);
    assert_eq!(heard.events[0].checkpoint, 50, "not of the empty one");
}
