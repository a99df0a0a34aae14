//! The feed against what a real store answered (`change-data-transcript.json`), and its rules for
//! request ids and bounds.

use std::collections::BTreeSet;

use pitr_budget::MemoryBudget;
use pitr_format::Class;
use pitr_proto::cdcpb::ChangeDataEvent;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;

const CLUSTER: u64 = 7_710_820_221_953_284_083;

fn new_feed() -> Feed {
    Feed::new(CLUSTER, &CdcOptions::default())
}

fn feed_in(feed: &mut Feed, message: ChangeDataEvent, out: &mut Vec<CdcEvent>) {
    feed.on_message(&message.encode_to_vec().into(), out)
        .unwrap();
}

fn parse<T: Message + Default>(name: &str, text: &str) -> T {
    let pool = DescriptorPool::decode(pitr_proto::FILE_DESCRIPTOR_SET).unwrap();
    let descriptor = pool.get_message_by_name(name).unwrap();
    let message = DynamicMessage::parse_text_format(descriptor, text).unwrap();
    T::decode(&message.encode_to_vec()[..]).unwrap()
}

/// Requests and answers of a recorded step.
fn step(name: &str) -> (Vec<ChangeDataRequest>, Vec<ChangeDataEvent>) {
    let all = include_str!("../../../tests/golden/change-data-transcript.json");
    let all: serde_json::Value = serde_json::from_str(all).unwrap();
    let steps = all.as_array().unwrap();
    let step = steps.iter().find(|s| s["step"] == name).unwrap();
    let texts = |field: &str| -> Vec<String> {
        let list = step[field].as_array().unwrap();
        list.iter()
            .map(|t| t.as_str().unwrap().to_owned())
            .collect()
    };
    (
        texts("requests")
            .iter()
            .map(|t| parse("cdcpb.ChangeDataRequest", t))
            .collect(),
        texts("answers")
            .iter()
            .map(|t| parse("cdcpb.ChangeDataEvent", t))
            .collect(),
    )
}

fn subscription(id: u64, region_id: u64, start: &[u8], end: &[u8]) -> Subscription {
    Subscription {
        id: SubId(id),
        region: metapb::Region {
            id: region_id,
            start_key: Bytes::copy_from_slice(start),
            end_key: Bytes::copy_from_slice(end),
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version: 5,
            }),
            ..Default::default()
        },
        checkpoint_ts: Ts::new(1),
        wanted: [EncodedRange::ALL].into(),
        alone: false,
    }
}

/// Subscribes as the step did, feeds its answers, and shows what came out.
fn play(name: &str) -> (Feed, Vec<String>) {
    let (requests, mut answers) = step(name);
    let mut feed = new_feed();
    let mut ours = BTreeMap::new();
    for (id, request) in (1..).zip(&requests) {
        let (start, end) = (&request.start_key, &request.end_key);
        assert!(feed.subscribe(subscription(id, request.region_id, start, end)));
        let sent = feed.next_request().unwrap();
        assert_eq!(
            sent.header,
            request.header.clone().map(|h| cdcpb::Header {
                cluster_id: CLUSTER,
                ..h
            })
        );
        ours.insert(request.request_id, sent.request_id);
    }
    let mut out = Vec::new();
    for answer in &mut answers {
        for event in &mut answer.events {
            event.request_id = ours[&event.request_id];
        }
        if let Some(resolved) = &mut answer.resolved_ts {
            resolved.request_id = ours[&resolved.request_id];
        }
        feed_in(&mut feed, answer.clone(), &mut out);
    }
    let shown = out.iter().map(show).collect();
    (feed, shown)
}

fn show(event: &CdcEvent) -> String {
    match event {
        CdcEvent::Records { sub, records } => format!("{} rows {}", sub.0, records.len()),
        CdcEvent::Initialized { sub } => format!("{} init", sub.0),
        CdcEvent::Resolved { subs, .. } => format!("{} resolved", subs[0].0),
        CdcEvent::Ended { sub, reason } => format!("{} {:?}", sub.0, reason.kind),
        CdcEvent::Disconnected { .. } => "gone".into(),
    }
}

fn without_resolved(shown: Vec<String>) -> Vec<String> {
    let keep = |text: &String| !text.ends_with("resolved");
    shown.into_iter().filter(keep).collect()
}

#[test]
fn an_idle_region_is_initialized_and_then_resolved_again_and_again() {
    let (_, shown) = play("register, idle region");
    assert_eq!(shown[..2], ["1 init", "1 resolved"]);
    assert_eq!(shown.len(), 5);
}

#[test]
fn the_initial_scan_gives_its_committed_versions_before_initialized() {
    let (_, shown) = play("initial scan from 1");
    assert_eq!(shown[..3], ["1 rows 6", "1 init", "1 resolved"]);
}

#[test]
fn live_rows_of_every_kind_give_the_committed_ones_only() {
    let (feed, shown) = play("live writes");
    // kv/long = default + write, kv/live, the delete of kv/a; then the 1PC put.
    let expected = ["1 init", "1 rows 4", "1 rows 1"];
    assert_eq!(without_resolved(shown), expected);
    assert_eq!(feed.held(), 0);
}

#[test]
fn a_lock_that_is_not_finished_stays_in_memory_and_resolved_ts_goes_on_at_its_start() {
    let (feed, shown) = play("lock holds the resolved ts");
    assert_eq!(shown.len(), 6);
    assert!(feed.memory() > 0);
    assert_eq!(feed.victim(), Some(SubId(1)));
}

#[test]
fn two_subscriptions_of_one_region_are_kept_apart() {
    let (feed, shown) = play("two request ids, one region");
    assert_eq!(shown[..4], ["1 init", "2 init", "1 resolved", "2 resolved"]);
    assert_eq!(feed.len(), 2);
}

#[test]
fn the_recorded_errors_end_the_subscription_with_their_kind() {
    for (name, kind) in [
        ("stale epoch", "1 EpochNotMatch"),
        ("future epoch", "1 EpochNotMatch"),
        ("unknown region", "1 RegionNotFound"),
        ("wrong cluster id", "1 ClusterIdMismatch"),
        ("deregister", "1 RegionNotFound"),
    ] {
        let (requests, answers) = step(name);
        let mut feed = new_feed();
        let region_id = requests[0].region_id;
        feed.subscribe(subscription(1, region_id, b"", b""));
        let mut out = Vec::new();
        for mut answer in answers {
            answer.events.iter_mut().for_each(|e| e.request_id = 1);
            feed_in(&mut feed, answer, &mut out);
        }
        let shown: Vec<_> = out.iter().map(show).collect();
        assert_eq!(shown, [kind], "{name}");
        assert!(feed.is_empty());
        let CdcEvent::Ended { reason, .. } = &out[0] else {
            panic!("{name}")
        };
        if kind.contains("Epoch") {
            assert_eq!(reason.regions[0].region_epoch.unwrap().version, 5);
        }
        if kind.contains("Cluster") {
            assert_eq!(reason.class(), Class::Permanent);
        }
    }
}

#[test]
fn without_initialized_no_resolved_ts_gets_through() {
    let mut feed = new_feed();
    feed.subscribe(subscription(1, 4, b"", b""));
    let resolved = parse(
        "cdcpb.ChangeDataEvent",
        "resolved_ts { regions: 4 ts: 9 request_id: 1 }",
    );
    let mut out = Vec::new();
    feed_in(&mut feed, resolved, &mut out);
    assert!(out.is_empty());
}

#[test]
fn a_region_that_registers_again_takes_a_new_request_id_and_late_events_are_dropped() {
    let mut feed = new_feed();
    let ids = |feed: &mut Feed, sub, region| {
        feed.subscribe(subscription(sub, region, b"", b""));
        feed.next_request().unwrap().request_id
    };
    assert_eq!(ids(&mut feed, 1, 4), 1);
    assert_eq!(
        ids(&mut feed, 2, 6),
        1,
        "regions that never failed share an id"
    );
    let mut out = Vec::new();
    let error = "events { region_id: 4 request_id: 1 error { region_not_found { region_id: 4 } } }";
    feed_in(&mut feed, parse("cdcpb.ChangeDataEvent", error), &mut out);
    assert_eq!(ids(&mut feed, 3, 4), 2);
    let late = "events { region_id: 4 request_id: 1 entries { entries { type: INITIALIZED } } }";
    feed_in(&mut feed, parse("cdcpb.ChangeDataEvent", late), &mut out);
    assert_eq!(out.len(), 1, "only the end of the first");
    let fresh = "events { region_id: 4 request_id: 2 entries { entries { type: INITIALIZED } } }";
    feed_in(&mut feed, parse("cdcpb.ChangeDataEvent", fresh), &mut out);
    assert_eq!(show(&out[1]), "3 init");
}

#[test]
fn who_is_to_be_told_alone_shares_its_request_id_with_nobody() {
    let mut feed = new_feed();
    let mut ids = BTreeSet::new();
    for id in 1..=6 {
        let alone = id > 3;
        let asked = Subscription {
            alone,
            ..subscription(id, 10 + id % 3, b"", b"")
        };
        assert!(feed.subscribe(asked));
        let request_id = feed.next_request().unwrap().request_id;
        match alone {
            true => assert!(ids.insert(request_id), "{request_id}"),
            false => assert_eq!(request_id, 1),
        }
    }
    assert!(!ids.contains(&1) && ids.len() == 3);
}

#[test]
fn a_duplicate_answer_or_rows_that_do_not_fit_end_the_subscription_on_both_sides() {
    for event in [
        "events { region_id: 4 request_id: 1 error { duplicate_request { region_id: 4 } } }",
        "events { region_id: 4 request_id: 1 entries {
            entries { type: INITIALIZED }
            entries { type: COMMIT op_type: PUT key: 'k' start_ts: 1 commit_ts: 2 } } }",
    ] {
        let mut feed = new_feed();
        feed.subscribe(subscription(1, 4, b"", b""));
        feed.next_request().unwrap();
        let mut out = Vec::new();
        feed_in(&mut feed, parse("cdcpb.ChangeDataEvent", event), &mut out);
        assert!(
            matches!(out.last(), Some(CdcEvent::Ended { .. })),
            "{out:?}"
        );
        let sent = feed.next_request().unwrap();
        assert_eq!((sent.region_id, sent.request_id), (4, 1));
        assert!(matches!(sent.request, Some(Request::Deregister(_))));
        assert!(feed.is_empty() && feed.held() == 0 && feed.memory() == 0);
    }
}

#[test]
fn both_bounds_are_sent_or_none() {
    let key = |raw: &[u8]| EncodedKey::encode(raw).into_bytes();
    let region = EncodedRange::new(key(b"b"), key(b"y"));
    let all = [EncodedRange::ALL];
    assert_eq!(register_bounds(&region, &all), (key(b"b"), key(b"y")));
    let two = [
        EncodedRange::new(key(b"m"), key(b"n")),
        EncodedRange::new(key(b"t"), key(b"u")),
    ];
    assert_eq!(register_bounds(&region, &two), (key(b"m"), key(b"u")));
    let none = (Bytes::new(), Bytes::new());
    let last = EncodedRange::new(key(b"b"), Bytes::new());
    assert_eq!(register_bounds(&last, &all), none);
    let odd = EncodedRange::new(key(b"b"), Bytes::from_static(b"raw"));
    assert_eq!(register_bounds(&odd, &all), none);
    // Without bounds the store counts the locks of all of the region.
    let first = [EncodedRange::new(Bytes::new(), key(b"m"))];
    let from_zero = EncodedRange::new(Bytes::new(), key(b"y"));
    assert_eq!(registered_range(&from_zero, &first), from_zero);
    let part = EncodedRange::new(key(b"m"), key(b"u"));
    assert_eq!(registered_range(&region, &two), part);
}

#[test]
fn a_broken_stream_ends_all_and_the_next_one_starts_clean() {
    let mut feed = new_feed();
    feed.subscribe(subscription(1, 4, b"", b""));
    feed.subscribe(subscription(2, 6, b"", b""));
    assert_eq!(feed.disconnect(), [SubId(1), SubId(2)]);
    assert!(feed.is_empty() && !feed.has_request());
    assert!(feed.subscribe(subscription(3, 4, b"", b"")));
    assert!(
        !feed.subscribe(subscription(3, 6, b"", b"")),
        "the id lives"
    );
}

/// An event with one row per value, all of one transaction.
fn rows(region_id: u64, kind: &str, start: u64, values: &[Vec<u8>]) -> ChangeDataEvent {
    let row = |(n, value): (usize, &Vec<u8>)| cdcpb::event::Row {
        start_ts: start,
        commit_ts: start + 1,
        r#type: cdcpb::event::LogType::from_str_name(kind).unwrap() as i32,
        op_type: 1,
        key: format!("{region_id}/{n}").into(),
        value: value.clone().into(),
        ..Default::default()
    };
    let entries = values.iter().enumerate().map(row).collect();
    ChangeDataEvent {
        events: vec![cdcpb::Event {
            region_id,
            request_id: 1,
            event: Some(cdcpb::event::Event::Entries(cdcpb::event::Entries {
                entries,
            })),
            ..Default::default()
        }],
        resolved_ts: None,
    }
}

#[test]
fn the_newest_that_holds_much_is_given_back_for_a_transaction_that_does_not_fit() {
    let options = CdcOptions {
        prewrite_limit: 100_000,
        ..CdcOptions::new(MemoryBudget::new(1 << 30), None)
    };
    let mut feed = Feed::new(CLUSTER, &options);
    for region in 1..=4 {
        feed.subscribe(subscription(region, region, b"", b""));
    }
    let mut out = Vec::new();
    // The second holds most, the third nearly as much, the fourth next to nothing.
    for (region, bytes) in [(1, 3000), (2, 40_000), (3, 35_000), (4, 100)] {
        let event = rows(region, "PREWRITE", 10, &[vec![1; bytes]]);
        feed_in(&mut feed, event, &mut out);
    }
    assert!(out.is_empty());
    feed_in(
        &mut feed,
        rows(1, "PREWRITE", 20, &[vec![1; 30_000]]),
        &mut out,
    );
    let [CdcEvent::Ended { sub, reason }] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!((*sub, reason.kind), (SubId(3), EndKind::LargeTransaction));
    assert_eq!(reason.class(), Class::Retry);
    assert!(feed.has(SubId(1)) && feed.memory() <= 100_000);
    // The one that asked for room still has both of its rows.
    out.clear();
    let done = "events { region_id: 1 request_id: 1 entries { entries { type: INITIALIZED } } }";
    feed_in(&mut feed, parse("cdcpb.ChangeDataEvent", done), &mut out);
    feed_in(&mut feed, rows(1, "COMMIT", 20, &[vec![]]), &mut out);
    assert_eq!(
        out.iter().map(show).collect::<Vec<_>>(),
        ["1 init", "1 rows 2"]
    );
}

#[test]
fn a_message_is_worked_off_in_steps_of_bounded_size_and_keeps_its_order() {
    let mut feed = new_feed();
    feed.subscribe(subscription(1, 4, b"", b""));
    feed.subscribe(subscription(2, 6, b"", b""));
    let values = vec![vec![7; 100_000]; 40];
    let mut message = rows(4, "COMMITTED", 10, &values);
    message
        .events
        .extend(rows(6, "COMMITTED", 10, &[vec![1; 5]]).events);
    message
        .events
        .extend(rows(6, "COMMITTED", 20, &[vec![1; 5]]).events);
    feed.take(&message.encode_to_vec().into()).unwrap();
    let (mut steps, mut out) = (0, Vec::new());
    let mut more = true;
    while more {
        let before = out.len();
        more = feed.step(&mut out);
        let bytes = out[before..].iter().map(|event| match event {
            CdcEvent::Records { records, .. } => records.plain_len(),
            _ => 0,
        });
        assert!(bytes.sum::<usize>() < BATCH_BYTES + 110_000);
        steps += 1;
    }
    assert!(steps > 10);
    let last = out.last().map(show).unwrap();
    assert_eq!(
        last, "2 rows 2",
        "events of one subscription in a row are told together"
    );
}

#[test]
fn bytes_that_are_no_message_are_an_error_of_the_stream() {
    let mut feed = new_feed();
    let refused = feed.take(&Bytes::from_static(b"\x0a\xff"));
    assert!(refused.is_err());
}
