//! The reader in place against the generated decoder.

use pitr_proto::cdcpb::event::Entries;
use pitr_proto::cdcpb::{ChangeDataEvent, Event as Decoded, ResolvedTs, event};
use proptest::prelude::*;

use super::*;

fn any_row() -> impl Strategy<Value = event::Row> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    (
        (any::<u64>(), any::<u64>(), 0..7i32, 0..4i32),
        (bytes(), bytes(), bytes()),
        (any::<u64>(), any::<u64>(), any::<u64>()),
    )
        .prop_map(
            |((start_ts, commit_ts, kind, op_type), bytes, numbers)| event::Row {
                start_ts,
                commit_ts,
                r#type: kind,
                op_type,
                key: bytes.0.into(),
                value: bytes.1.into(),
                old_value: bytes.2.into(),
                expire_ts_unix_secs: numbers.0,
                txn_source: numbers.1,
                generation: numbers.2,
            },
        )
}

fn any_event() -> impl Strategy<Value = Decoded> {
    let rows = proptest::collection::vec(any_row(), 0..5);
    (any::<u64>(), any::<u64>(), any::<u64>(), rows).prop_map(
        |(region_id, request_id, index, entries)| Decoded {
            region_id,
            request_id,
            index,
            event: Some(event::Event::Entries(Entries { entries })),
        },
    )
}

fn rows_of(entries: &Bytes) -> Vec<event::Row> {
    let mut at = 0;
    let mut rows = Vec::new();
    while let Some(row) = next_row(entries, &mut at).unwrap() {
        rows.push(event::Row {
            start_ts: row.start_ts,
            commit_ts: row.commit_ts,
            r#type: row.kind,
            op_type: row.op,
            key: entries.slice(row.key),
            value: entries.slice(row.value),
            txn_source: row.txn_source,
            generation: row.generation,
            ..Default::default()
        });
    }
    rows
}

fn needed(row: &event::Row) -> event::Row {
    event::Row {
        old_value: Bytes::new(),
        expire_ts_unix_secs: 0,
        ..row.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_reads_as_the_generated_decoder_reads_it(
        events in proptest::collection::vec(any_event(), 0..4),
        resolved in proptest::option::of((proptest::collection::vec(any::<u64>(), 0..5), any::<u64>())),
    ) {
        let message = ChangeDataEvent {
            events,
            resolved_ts: resolved.map(|(regions, ts)| ResolvedTs { regions, ts, request_id: 3 }),
        };
        let parsed = parse(&message.encode_to_vec().into()).unwrap();
        prop_assert_eq!(parsed.resolved, message.resolved_ts);
        prop_assert_eq!(parsed.events.len(), message.events.len());
        for (ours, theirs) in parsed.events.iter().zip(&message.events) {
            prop_assert_eq!((ours.region_id, ours.request_id), (theirs.region_id, theirs.request_id));
            let Some(event::Event::Entries(entries)) = &theirs.event else { unreachable!() };
            let expected: Vec<_> = entries.entries.iter().map(needed).collect();
            match &ours.body {
                Body::Rows(bytes) => prop_assert_eq!(rows_of(bytes), expected),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = parse(&bytes);
        let mut at = 0;
        while let Ok(Some(_)) = next_row(&bytes, &mut at) {}
    }
}

#[test]
fn a_message_that_is_cut_is_refused_wherever_it_is_cut() {
    let row = event::Row {
        key: Bytes::from_static(b"key"),
        start_ts: 300,
        ..Default::default()
    };
    let entries = Entries { entries: vec![row] }.encode_to_vec();
    for end in 1..entries.len() {
        assert!(next_row(&entries[..end], &mut 0).is_err(), "cut at {end}");
    }
    // A field of fixed width in the place of the key is not the key.
    let mut at = 0;
    let odd = next_row(&[0x0A, 5, 0x2D, 1, 2, 3, 4], &mut at)
        .unwrap()
        .unwrap();
    assert_eq!((odd, at), (Row::default(), 7));
}

#[test]
fn errors_and_kinds_that_nobody_sends_are_told_apart() {
    let event = |body| Decoded {
        region_id: 4,
        request_id: 2,
        event: Some(body),
        ..Default::default()
    };
    let error = cdcpb::Error {
        congested: Some(cdcpb::Congested { region_id: 4 }),
        ..Default::default()
    };
    let message = ChangeDataEvent {
        events: vec![
            event(event::Event::Error(error.clone())),
            event(event::Event::ResolvedTs(9)),
            event(event::Event::Admin(Default::default())),
            Decoded::default(),
        ],
        resolved_ts: None,
    };
    let parsed = parse(&message.encode_to_vec().into()).unwrap();
    let bodies: Vec<_> = parsed.events.into_iter().map(|event| event.body).collect();
    assert!(matches!(&bodies[0], Body::Error(found) if **found == error));
    assert!(matches!(bodies[1], Body::Resolved(9)));
    assert!(matches!(bodies[2..], [Body::Other, Body::Other]));
}
