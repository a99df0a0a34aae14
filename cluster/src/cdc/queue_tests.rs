//! Order, room and victims of the queue.

use bytes::Bytes;
use pitr_format::{Cf, KvRecord, OpKind, RecordBatch, RecordRef, Ts};

use super::super::{EndKind, EndReason};
use super::*;

fn records(sub: u64, bytes: usize) -> CdcEvent {
    CdcEvent::Records {
        sub: SubId(sub),
        records: RecordBatch::of([&KvRecord {
            cf: Cf::Write,
            op: OpKind::Put,
            key: Bytes::new(),
            value: Bytes::from(vec![sub as u8; bytes]),
        }])
        .unwrap(),
    }
}

fn resolved(subs: &[u64]) -> CdcEvent {
    CdcEvent::Resolved {
        subs: subs.iter().map(|s| SubId(*s)).collect(),
        ts: Ts::new(9),
    }
}

fn queue(limit: usize) -> EventQueue {
    EventQueue::new(limit, MemoryBudget::new(1 << 30), None)
}

fn drain(queue: &EventQueue) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(event) = queue.inner.lock().take() {
        out.push(match event {
            CdcEvent::Records { sub, records } => {
                let whole = |r: RecordRef<'_>| r.value.iter().all(|b| u64::from(*b) == sub.0);
                assert!(records.iter().all(whole));
                format!("rows {}", sub.0)
            }
            CdcEvent::Initialized { sub } => format!("init {}", sub.0),
            CdcEvent::Resolved { subs, .. } => format!("resolved {subs:?}"),
            CdcEvent::Ended { sub, .. } => format!("end {}", sub.0),
            CdcEvent::Disconnected { .. } => "gone".into(),
        });
    }
    assert_eq!(queue.load(), Load::default());
    assert!(queue.inner.lock().held.is_empty());
    assert_eq!(queue.budget.used(), 0);
    out
}

#[test]
fn a_full_queue_gives_records_back_and_takes_them_when_a_subscription_left() {
    let queue = queue(10_000);
    queue.try_push(records(1, 4000)).unwrap();
    queue
        .try_push(CdcEvent::Initialized { sub: SubId(2) })
        .unwrap();
    queue.try_push(records(2, 4000)).unwrap();
    queue.try_push(resolved(&[1, 2])).unwrap();
    queue.try_push(resolved(&[2])).unwrap();
    let back = queue.try_push(records(1, 4000)).unwrap_err();
    let victim = queue.victim(SubId(1), charge(&back));
    assert_eq!(
        victim,
        SubId(2),
        "the newest that holds at least half of the most"
    );
    queue.purge(victim);
    queue.try_push(back).unwrap();
    assert_eq!(drain(&queue), ["rows 1", "resolved [SubId(1)]", "rows 1"]);
}

#[test]
fn one_that_holds_little_is_not_given_back_for_one_that_holds_much() {
    let queue = queue(100_000);
    for (sub, bytes) in [(1, 30_000), (2, 40_000), (3, 500), (4, 700)] {
        queue.try_push(records(sub, bytes)).unwrap();
    }
    assert_eq!(queue.victim(SubId(4), 1000), SubId(2));
    assert_eq!(
        queue.victim(SubId(9), 60_000),
        SubId(9),
        "who waits counts with it"
    );
    assert_eq!(queue.victim(SubId(1), 40_000), SubId(2));
}

#[test]
fn a_budget_that_others_use_refuses_as_a_full_queue_does() {
    let budget = MemoryBudget::new(10_000);
    let queue = EventQueue::new(8000, budget.clone(), None);
    let others = budget.try_reserve(9000).unwrap();
    let back = queue.try_push(records(1, 2000)).unwrap_err();
    drop(others);
    queue.try_push(back).unwrap();
    assert!(budget.used() >= 2000);
    assert_eq!(drain(&queue), ["rows 1"]);
}

#[test]
fn a_full_queue_drops_resolved_ts_but_never_an_end() {
    let queue = queue(1000);
    queue.try_push(records(1, 800)).unwrap();
    queue.try_push(resolved(&[1])).unwrap();
    let reason = EndReason::new(EndKind::Unknown, "");
    let sub = SubId(1);
    queue.try_push(CdcEvent::Ended { sub, reason }).unwrap();
    assert_eq!(drain(&queue), ["rows 1", "end 1"]);
}

#[test]
fn what_does_not_fit_into_memory_waits_on_disk_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 1 << 20).unwrap();
    let queue = EventQueue::new(55_000, MemoryBudget::new(1 << 30), Some(spill.clone()));
    let mut expected = Vec::new();
    for round in 0..40 {
        let sub = round % 3 + 1;
        queue.try_push(records(sub, 20_000)).unwrap();
        expected.push(format!("rows {sub}"));
        if round == 20 {
            queue.try_push(resolved(&[1, 2, 3])).unwrap();
            expected.push("resolved [SubId(1), SubId(2), SubId(3)]".to_owned());
        }
        assert!(queue.load().memory <= 55_000);
    }
    assert!(queue.load().disk > 700_000 && spill.used() > 600_000);
    assert_eq!(drain(&queue), expected);
}

#[test]
fn a_full_disk_refuses_and_a_purge_frees_it() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 200_000).unwrap();
    let queue = EventQueue::new(30_000, MemoryBudget::new(1 << 30), Some(spill.clone()));
    let mut accepted = 0;
    let refused = loop {
        match queue.try_push(records(accepted % 2 + 1, 10_000)) {
            Ok(()) => accepted += 1,
            Err(event) => break event,
        }
    };
    assert!((20..40).contains(&accepted), "{accepted}");
    let CdcEvent::Records { sub, .. } = &refused else {
        unreachable!()
    };
    let victim = queue.victim(*sub, charge(&refused));
    assert_eq!(victim, SubId(2));
    queue.purge(victim);
    let left = drain(&queue);
    assert!(left.iter().all(|shown| shown == "rows 1"), "{left:?}");
    assert_eq!(left.len() as u64, accepted.div_ceil(2));
}

#[tokio::test]
async fn what_is_damaged_on_disk_ends_the_queue_instead_of_leaving_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 1 << 20).unwrap();
    let queue = EventQueue::new(30_000, MemoryBudget::new(1 << 30), Some(spill));
    for _ in 0..20 {
        queue.try_push(records(1, 20_000)).unwrap();
    }
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let zeros = vec![0; std::fs::metadata(&path).unwrap().len() as usize];
        std::fs::write(path, zeros).unwrap();
    }
    let mut popped = 0;
    while queue.pop().await.is_some() {
        popped += 1;
    }
    assert!((1..20).contains(&popped), "{popped}");
    queue.try_push(records(1, 20_000)).unwrap();
    assert!(queue.pop().await.is_none(), "it stays closed");
}

#[tokio::test]
async fn a_closed_queue_delivers_the_rest_and_then_ends() {
    let queue = queue(1000);
    queue.try_push(records(1, 8)).unwrap();
    queue.close();
    assert!(queue.pop().await.is_some());
    assert!(queue.pop().await.is_none());
}
