//! The queue against a plain list, under any order of pushes, pops and purges, with memory and
//! disk of any size: what the user gets is what was accepted, in its order, without holes.

use pitr_budget::spill::SpillDir;
use pitr_format::{Cf, KvRecord, OpKind, RecordBatch, Ts};
use proptest::prelude::*;

use super::super::{EndKind, EndReason};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Records(u64, usize),
    Initialized(u64),
    Resolved(Vec<u64>),
    Ended(u64),
    Pop,
    Purge(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let sub = 1..5u64;
    let size = prop_oneof![0..100usize, 1000..3000usize];
    prop_oneof![
        8 => (sub.clone(), size).prop_map(|(sub, size)| Op::Records(sub, size)),
        1 => sub.clone().prop_map(Op::Initialized),
        3 => proptest::collection::vec(sub.clone(), 1..4).prop_map(Op::Resolved),
        1 => sub.clone().prop_map(Op::Ended),
        8 => Just(Op::Pop),
        1 => sub.prop_map(Op::Purge),
    ]
}

/// An event as text; records by their number.
fn show(event: &CdcEvent) -> String {
    match event {
        CdcEvent::Records { sub, records } => {
            let bytes = records.plain_len();
            let first = records.iter().next().unwrap();
            let number = u64::from_be_bytes(first.key.try_into().unwrap());
            format!("rows {} #{number} {bytes}", sub.0)
        }
        CdcEvent::Initialized { sub } => format!("init {}", sub.0),
        CdcEvent::Resolved { subs, ts } => format!("resolved {subs:?} {ts}"),
        CdcEvent::Ended { sub, .. } => format!("ended {}", sub.0),
        CdcEvent::Disconnected { .. } => "gone".to_owned(),
    }
}

fn records(sub: u64, number: u64, size: usize) -> CdcEvent {
    let record = |value: Vec<u8>| KvRecord {
        cf: if size.is_multiple_of(2) {
            Cf::Write
        } else {
            Cf::Default
        },
        op: OpKind::Put,
        key: number.to_be_bytes().to_vec().into(),
        value: value.into(),
    };
    let records = [record(vec![number as u8; size]), record(vec![1; size / 3])];
    CdcEvent::Records {
        sub: SubId(sub),
        records: RecordBatch::of(&records).unwrap(),
    }
}

/// The list that the queue is compared with.
#[derive(Default)]
struct Model {
    events: VecDeque<CdcEvent>,
}

impl Model {
    fn purge(&mut self, victim: SubId) {
        let mut kept = VecDeque::new();
        for mut event in self.events.drain(..) {
            let stays = match &mut event {
                CdcEvent::Records { sub, .. } | CdcEvent::Initialized { sub } => *sub != victim,
                CdcEvent::Resolved { subs, .. } => {
                    subs.retain(|sub| *sub != victim);
                    !subs.is_empty()
                }
                CdcEvent::Ended { .. } | CdcEvent::Disconnected { .. } => true,
            };
            if stays {
                kept.push_back(event);
            }
        }
        self.events = kept;
    }

    /// The next event; resolved ts that the queue had no room for are passed over.
    fn pop_like(&mut self, found: &CdcEvent) -> Option<String> {
        loop {
            let event = self.events.pop_front()?;
            let left_out =
                matches!(event, CdcEvent::Resolved { .. }) && show(&event) != show(found);
            if !left_out {
                return Some(show(&event));
            }
        }
    }
}

fn pop(queue: &EventQueue) -> Option<CdcEvent> {
    let event = queue.inner.lock().take();
    if event.is_some() {
        queue.taken.fetch_add(1, Ordering::Relaxed);
    }
    event
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_user_gets_what_was_accepted_in_its_order_whatever_waited_on_disk(
        ops in proptest::collection::vec(any_op(), 1..120),
        limit in prop_oneof![Just(usize::MAX), 2_000..30_000usize],
        disk in prop_oneof![Just(None), Just(Some(1u64 << 30)), Just(Some(150_000))],
        others in prop_oneof![Just(0u64), 0..900_000u64],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let spill = disk.map(|quota| SpillDir::open(dir.path(), quota).unwrap());
        let budget = MemoryBudget::new(1_000_000);
        let _others = budget.try_reserve(others).unwrap();
        let queue = EventQueue::new(limit, budget.clone(), spill);
        let mut model = Model::default();
        let mut ts = 0;
        for (number, op) in (0..).zip(ops) {
            let event = match op {
                Op::Records(sub, size) => records(sub, number, size),
                Op::Initialized(sub) => CdcEvent::Initialized { sub: SubId(sub) },
                Op::Resolved(subs) => {
                    ts += 1;
                    let subs = subs.into_iter().map(SubId).collect();
                    CdcEvent::Resolved { subs, ts: Ts::new(ts) }
                }
                Op::Ended(sub) => CdcEvent::Ended {
                    sub: SubId(sub),
                    reason: EndReason::new(EndKind::Overrun, ""),
                },
                Op::Pop => {
                    let found = pop(&queue);
                    if let Some(found) = &found {
                        prop_assert_eq!(model.pop_like(found), Some(show(found)));
                    }
                    continue;
                }
                Op::Purge(victim) => {
                    queue.purge(SubId(victim));
                    model.purge(SubId(victim));
                    continue;
                }
            };
            match queue.try_push(event.clone()) {
                Ok(()) => model.events.push_back(event),
                Err(back) => {
                    let is_records = matches!(back, CdcEvent::Records { .. });
                    prop_assert!(is_records, "only records come back");
                    prop_assert_eq!(show(&back), show(&event), "as it was given");
                }
            }
            let load = queue.load();
            prop_assert!(budget.used() >= others, "what others hold is not touched");
            // One event of any size may stand alone.
            let is_records = |event: &&CdcEvent| matches!(event, CdcEvent::Records { .. });
            let alone = model.events.iter().filter(is_records).count() <= 1;
            prop_assert!(load.memory <= limit || alone, "{load:?}");
        }
        while let Some(found) = pop(&queue) {
            prop_assert_eq!(model.pop_like(&found), Some(show(&found)));
        }
        let rest = model.events.iter().filter(|e| !matches!(e, CdcEvent::Resolved { .. }));
        prop_assert_eq!(rest.map(show).collect::<Vec<_>>(), Vec::<String>::new());
        prop_assert_eq!(queue.load(), Load::default());
        prop_assert_eq!(budget.used(), others, "everything was given back");
    }

    #[test]
    fn who_is_given_back_holds_much_and_is_the_newest_of_those(
        held in proptest::collection::vec(1..40_000usize, 1..6),
        waits in 0..8usize,
        size in 1..40_000usize,
    ) {
        let queue = EventQueue::new(usize::MAX, MemoryBudget::new(1 << 30), None);
        for (sub, bytes) in (1..).zip(&held) {
            queue.try_push(records(sub, sub, *bytes)).unwrap();
        }
        let waits = SubId(waits as u64 + 1);
        let mut all: BTreeMap<SubId, usize> = queue.inner.lock().held.clone();
        *all.entry(waits).or_insert(0) += size;
        let most = all.values().copied().max().unwrap();
        let newest = all.iter().rev().find(|(_, held)| **held * 2 >= most).unwrap();
        prop_assert_eq!(queue.victim(waits, size), *newest.0);
    }
}
