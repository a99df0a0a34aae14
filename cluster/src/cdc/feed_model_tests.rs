//! The feed with several subscriptions at once: however the store mixes their events and cuts them
//! into messages, each subscription sees what it would see alone, and nothing of one that is over.

use pitr_proto::cdcpb::event::{Entries, LogType, Row, row::OpType};
use pitr_proto::cdcpb::{ChangeDataEvent, Event, event};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

const CLUSTER: u64 = 42;

/// What the store says about one region, in its order.
#[derive(Clone, Debug)]
enum Said {
    /// Versions (key, start ts, length of the value) that go through prewrite and commit.
    Commits(Vec<(u8, u64, usize)>),
    Committed(u8, u64, usize),
    Initialized,
    Resolved(u64),
}

fn any_said() -> impl Strategy<Value = Vec<Said>> {
    let len = || prop_oneof![1..30usize, 250..260usize, Just(60_000usize)];
    let one = (any::<u8>(), 1..1_000u64, len());
    let said = prop_oneof![
        4 => proptest::collection::vec(one.clone(), 1..5).prop_map(Said::Commits),
        2 => one.prop_map(|(key, ts, len)| Said::Committed(key, ts, len)),
        2 => (1..2_000u64).prop_map(Said::Resolved),
    ];
    let said = proptest::collection::vec(said, 0..12);
    (said, any::<prop::sample::Index>()).prop_map(|(mut said, at)| {
        for (number, said) in (1..).zip(&mut said) {
            make_regular(said, number);
        }
        let at = at.index(said.len() + 1);
        said.insert(at, Said::Initialized);
        said
    })
}

/// Every transaction has a start ts of its own and locks a key once.
fn make_regular(said: &mut Said, number: u64) {
    match said {
        Said::Commits(versions) => {
            versions.sort_unstable();
            versions.dedup_by_key(|(key, ..)| *key);
            for (_, ts, _) in versions {
                *ts += number * 1_000;
            }
        }
        Said::Committed(_, ts, _) => *ts += number * 1_000,
        Said::Initialized | Said::Resolved(_) => {}
    }
}

fn row(kind: LogType, key: u8, ts: u64, len: usize) -> Row {
    let commits = matches!(kind, LogType::Commit | LogType::Committed);
    let short = if kind == LogType::Commit && len > 255 {
        0
    } else {
        len
    };
    Row {
        start_ts: ts * 10,
        commit_ts: if commits { ts * 10 + 5 } else { 0 },
        r#type: kind as i32,
        op_type: OpType::Put as i32,
        key: vec![key].into(),
        value: vec![key ^ 0x55; short].into(),
        old_value: vec![9; 40].into(),
        ..Default::default()
    }
}

/// The events of a region as the store sends them under a request id.
fn events(region_id: u64, request_id: u64, said: &[Said]) -> Vec<Event> {
    let entries = |entries: Vec<Row>| event::Event::Entries(Entries { entries });
    let mut bodies = Vec::new();
    for said in said {
        match said {
            Said::Commits(versions) => {
                let of = |kind| {
                    let rows = versions
                        .iter()
                        .map(|(key, ts, len)| row(kind, *key, *ts, *len));
                    entries(rows.collect())
                };
                bodies.extend([of(LogType::Prewrite), of(LogType::Commit)]);
            }
            Said::Committed(key, ts, len) => {
                bodies.push(entries(vec![row(LogType::Committed, *key, *ts, *len)]));
            }
            Said::Initialized => bodies.push(entries(vec![row(LogType::Initialized, 0, 0, 0)])),
            Said::Resolved(ts) => bodies.push(event::Event::ResolvedTs(*ts)),
        }
    }
    let event = |body| Event {
        region_id,
        request_id,
        event: Some(body),
        ..Default::default()
    };
    bodies.into_iter().map(event).collect()
}

fn subscription(id: u64, region_id: u64) -> Subscription {
    Subscription {
        id: SubId(id),
        region: metapb::Region {
            id: region_id,
            ..Default::default()
        },
        checkpoint_ts: Ts::new(1),
        wanted: [EncodedRange::ALL].into(),
        alone: false,
    }
}

/// What each subscription saw: records one by one, and the marks between them.
fn seen(events: Vec<CdcEvent>) -> BTreeMap<SubId, Vec<String>> {
    let mut seen: BTreeMap<SubId, Vec<String>> = BTreeMap::new();
    for event in events {
        match event {
            CdcEvent::Records { sub, records } => {
                let show = |r: pitr_format::RecordRef<'_>| {
                    format!(
                        "{:?} {:?} {}+{:?}",
                        r.cf,
                        r.key,
                        r.value.len(),
                        r.value.last()
                    )
                };
                seen.entry(sub)
                    .or_default()
                    .extend(records.iter().map(show));
            }
            CdcEvent::Initialized { sub } => seen.entry(sub).or_default().push("init".into()),
            CdcEvent::Resolved { subs, ts } => {
                for sub in subs {
                    seen.entry(sub).or_default().push(format!("resolved {ts}"));
                }
            }
            CdcEvent::Ended { sub, reason } => {
                seen.entry(sub)
                    .or_default()
                    .push(format!("{:?}", reason.kind));
            }
            CdcEvent::Disconnected { .. } => panic!("the feed knows no stream"),
        }
    }
    seen
}

fn give(feed: &mut Feed, events: Vec<Event>, out: &mut Vec<CdcEvent>) {
    let message = ChangeDataEvent {
        events,
        resolved_ts: None,
    };
    feed.on_message(&message.encode_to_vec().into(), out)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn each_subscription_sees_what_it_would_see_alone(
        regions in proptest::collection::vec(any_said(), 1..4),
        order in proptest::collection::vec((any::<prop::sample::Index>(), 1..6usize), 1..40),
    ) {
        let mut together = Feed::new(CLUSTER, &CdcOptions::default());
        let mut alone = BTreeMap::new();
        let mut queues: Vec<VecDeque<Event>> = Vec::new();
        for (id, said) in (1..).zip(&regions) {
            let mut feed = Feed::new(CLUSTER, &CdcOptions::default());
            let mut out = Vec::new();
            feed.subscribe(subscription(id, id));
            for event in events(id, 1, said) {
                give(&mut feed, vec![event], &mut out);
            }
            prop_assert_eq!(feed.held(), 0, "everything was committed");
            alone.extend(seen(out));
            together.subscribe(subscription(id, id));
            queues.push(events(id, 1, said).into());
        }
        let mut out = Vec::new();
        let mut order = order.iter().cycle();
        while queues.iter().any(|queue| !queue.is_empty()) {
            let mut message = Vec::new();
            for _ in 0..order.next().unwrap().1 {
                let left: Vec<_> = (0..queues.len()).filter(|q| !queues[*q].is_empty()).collect();
                if !left.is_empty() {
                    let from = left[order.next().unwrap().0.index(left.len())];
                    message.extend(queues[from].pop_front());
                }
            }
            give(&mut together, message, &mut out);
        }
        prop_assert_eq!(seen(out), alone);
        prop_assert_eq!(together.held(), 0);
    }

    #[test]
    fn nothing_is_told_of_a_subscription_that_is_over_and_its_memory_is_free(
        first in any_said(),
        second in any_said(),
        cut in any::<prop::sample::Index>(),
    ) {
        let options = CdcOptions::default();
        let mut feed = Feed::new(CLUSTER, &options);
        let mut out = Vec::new();
        feed.subscribe(subscription(1, 4));
        let old = events(4, 1, &first);
        let cut = cut.index(old.len() + 1);
        give(&mut feed, old[..cut].to_vec(), &mut out);
        prop_assert!(feed.unsubscribe(SubId(1)));
        prop_assert!(!feed.unsubscribe(SubId(1)));
        drop(std::mem::take(&mut out));
        prop_assert_eq!((feed.held(), feed.memory()), (0, 0));
        prop_assert_eq!(options.budget.used(), 0, "nothing is kept for it");

        feed.subscribe(subscription(2, 4));
        let mut alone = Feed::new(CLUSTER, &CdcOptions::default());
        let mut expected = Vec::new();
        alone.subscribe(subscription(2, 4));
        // What was still on its way of the old one comes among the events of the new one.
        let mut late: VecDeque<_> = old[cut..].iter().cloned().collect();
        for (new, plain) in events(4, 2, &second).into_iter().zip(events(4, 1, &second)) {
            give(&mut alone, vec![plain], &mut expected);
            let both = late.pop_front().into_iter().chain([new]);
            give(&mut feed, both.collect(), &mut out);
        }
        prop_assert_eq!(seen(out), seen(expected));
    }
}
