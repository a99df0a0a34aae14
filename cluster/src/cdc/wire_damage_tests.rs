//! The reader in place against bytes that are cut, changed, repeated or written in another valid
//! way. The generated decoder is the judge: what it takes we take with the same meaning, and
//! nothing is ever read from behind the end of a field.

use pitr_proto::cdcpb::event::Entries;
use pitr_proto::cdcpb::{ChangeDataEvent, Event as Decoded, ResolvedTs, event};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message as _;

use super::*;

/// A varint as another encoder may write it: with `extra` bytes that say nothing.
fn padded(mut number: u64, extra: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    for _ in 0..extra {
        *out.last_mut().unwrap() |= 0x80;
        out.push(0);
    }
    out
}

fn read(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut cursor = Cursor::new(bytes, 0);
    let number = cursor.varint()?;
    Ok((number, cursor.at))
}

/// Numbers around each length that a varint can have.
fn numbers() -> Vec<u64> {
    let bits = (0..64).map(|bit| 1u64 << bit);
    let around = bits.flat_map(|n| [n - 1, n, n + 1, n | n >> 1]);
    around.chain([u64::MAX, 446_850_000_000_000_001]).collect()
}

#[test]
fn a_number_of_any_length_reads_the_same_at_the_end_of_the_bytes_and_before_others() {
    for number in numbers() {
        let plain = padded(number, 0);
        for tail in 0..12 {
            let mut bytes = plain.clone();
            bytes.extend(std::iter::repeat_n(0xFF, tail));
            assert_eq!(read(&bytes), Ok((number, plain.len())), "{number} + {tail}");
        }
    }
}

#[test]
fn a_number_that_is_written_too_long_is_still_the_number() {
    for number in numbers() {
        let len = padded(number, 0).len();
        for extra in 0..=10 - len {
            let bytes = padded(number, extra);
            assert_eq!(
                read(&bytes),
                Ok((number, len + extra)),
                "{number} + {extra}"
            );
        }
    }
}

#[test]
fn a_number_that_is_cut_or_has_more_than_ten_bytes_is_refused() {
    for number in numbers() {
        let bytes = padded(number, 0);
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "{number} cut at {len}");
        }
    }
    for len in 10..20 {
        assert!(read(&vec![0x80; len]).is_err());
        assert!(read(&vec![0xFF; len]).is_err());
    }
}

fn sample_row(seed: u64) -> event::Row {
    let bytes = |len: u64| Bytes::from(vec![seed as u8 | 0x80; (len % 400) as usize]);
    event::Row {
        start_ts: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        commit_ts: seed << (seed % 60),
        r#type: (seed % 6) as i32,
        op_type: (seed % 3) as i32,
        key: bytes(seed % 50),
        value: bytes(seed * 31),
        old_value: bytes(seed * 7),
        expire_ts_unix_secs: seed,
        txn_source: seed % 2,
        generation: seed % 5,
    }
}

fn sample(seeds: &[u64]) -> ChangeDataEvent {
    let body = |seed: u64| match seed % 7 {
        0 => event::Event::ResolvedTs(seed),
        1 => event::Event::Admin(event::Admin::default()),
        2 => event::Event::Error(cdcpb::Error {
            region_not_found: Some(Default::default()),
            ..Default::default()
        }),
        _ => event::Event::Entries(Entries {
            entries: (seed..seed + seed % 4).map(sample_row).collect(),
        }),
    };
    let event = |seed: &u64| Decoded {
        region_id: seed % 1000,
        request_id: seed % 3,
        index: *seed,
        event: Some(body(*seed)),
    };
    ChangeDataEvent {
        events: seeds.iter().map(event).collect(),
        resolved_ts: seeds.len().is_multiple_of(2).then(|| ResolvedTs {
            regions: seeds.to_vec(),
            ts: 400,
            request_id: 1,
        }),
    }
}

/// What we use of a message; the same from both readers.
#[derive(Debug, PartialEq)]
enum Meaning {
    Rows(u64, u64, Vec<event::Row>),
    Error(u64, u64, Box<cdcpb::Error>),
    Resolved(u64, u64, u64),
    Nothing(u64, u64),
}

fn ours(message: &Bytes) -> Result<(Vec<Meaning>, Option<ResolvedTs>), WireError> {
    let parsed = parse(message)?;
    let mut meanings = Vec::new();
    for event in parsed.events {
        let (region, request) = (event.region_id, event.request_id);
        meanings.push(match event.body {
            Body::Rows(entries) => {
                let (mut at, mut rows) = (0, Vec::new());
                while let Some(row) = next_row(&entries, &mut at)? {
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
                Meaning::Rows(region, request, rows)
            }
            Body::Error(error) => Meaning::Error(region, request, error),
            Body::Resolved(ts) => Meaning::Resolved(region, request, ts),
            Body::Other => Meaning::Nothing(region, request),
        });
    }
    Ok((meanings, parsed.resolved))
}

fn theirs(message: ChangeDataEvent) -> (Vec<Meaning>, Option<ResolvedTs>) {
    let needed = |row: event::Row| event::Row {
        old_value: Bytes::new(),
        expire_ts_unix_secs: 0,
        ..row
    };
    let meaning = |event: Decoded| {
        let (region, request) = (event.region_id, event.request_id);
        match event.event {
            Some(event::Event::Entries(entries)) => {
                let rows = entries.entries.into_iter().map(needed);
                Meaning::Rows(region, request, rows.collect())
            }
            Some(event::Event::Error(error)) => Meaning::Error(region, request, Box::new(error)),
            Some(event::Event::ResolvedTs(ts)) => Meaning::Resolved(region, request, ts),
            _ => Meaning::Nothing(region, request),
        }
    };
    let meanings = message.events.into_iter().map(meaning);
    (meanings.collect(), message.resolved_ts)
}

/// Constructs that we refuse and the generated decoder takes: no store makes them.
fn is_known_difference(error: &WireError) -> bool {
    // Parts of one list in two places; groups, which proto3 does not have.
    ["rows twice in one event", "a field of unknown type"].contains(&error.0)
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let message = Bytes::copy_from_slice(bytes);
    let Ok(decoded) = ChangeDataEvent::decode(bytes) else {
        // Nothing to compare with, but it must not panic.
        let _ = ours(&message);
        return Ok(());
    };
    match ours(&message) {
        Ok(found) => prop_assert_eq!(found, theirs(decoded)),
        Err(error) => prop_assert!(is_known_difference(&error), "{error}"),
    }
    Ok(())
}

fn seeds() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(0..10_000u64, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_cut_anywhere_means_what_the_generated_decoder_says_or_is_refused(
        seeds in seeds(),
        end in any::<Index>(),
    ) {
        let bytes = sample(&seeds).encode_to_vec();
        check(&bytes[..end.index(bytes.len() + 1)])?;
    }

    #[test]
    fn changed_bytes_mean_what_the_generated_decoder_says_or_are_refused(
        seeds in seeds(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = sample(&seeds).encode_to_vec();
        prop_assume!(!bytes.is_empty());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&bytes)?;
    }

    #[test]
    fn fields_that_a_later_version_adds_are_stepped_over(
        seed in 3..10_000u64,
        number in 11..2_000u64,
        value in proptest::collection::vec(any::<u8>(), 0..300),
        shape in 0..4u8,
    ) {
        let mut field = padded(number << 3 | [0, 1, 2, 5][shape as usize], 0);
        match shape {
            0 => field.extend(padded(seed, 0)),
            1 => field.extend([9; 8]),
            2 => {
                field.extend(padded(value.len() as u64, 0));
                field.extend(&value);
            }
            _ => field.extend([9; 4]),
        }
        let row = sample_row(seed);
        let with_field = |mut bytes: Vec<u8>| {
            bytes.extend(&field);
            bytes.splice(0..0, field.iter().copied());
            bytes
        };
        let wrap = |bytes: Vec<u8>, tag: u8| {
            let mut out = vec![tag];
            out.extend(padded(bytes.len() as u64, 0));
            out.extend(bytes);
            out
        };
        let rows = with_field(wrap(with_field(row.encode_to_vec()), 0x0A));
        let event = with_field(wrap(rows, 0x1A));
        let message = Bytes::from(with_field(wrap(event, 0x0A)));
        let (meanings, resolved) = ours(&message).unwrap();
        let row = event::Row { old_value: Bytes::new(), expire_ts_unix_secs: 0, ..row };
        prop_assert_eq!(meanings, [Meaning::Rows(0, 0, vec![row])]);
        prop_assert_eq!(resolved, None);
    }

    #[test]
    fn a_field_that_comes_twice_counts_as_it_came_last(first in 0..10_000u64, second in 0..10_000u64) {
        let (first, second) = (sample_row(first), sample_row(second));
        let mut both = first.encode_to_vec();
        both.extend(second.encode_to_vec());
        let decoded = event::Row::decode(&both[..]).unwrap();
        let entries = Entries { entries: vec![decoded] };
        let mut bytes = vec![0x0A];
        bytes.extend(padded(both.len() as u64, 0));
        bytes.extend(both);
        let found = next_row(&bytes, &mut 0).unwrap().unwrap();
        let row = &entries.entries[0];
        prop_assert_eq!((found.start_ts, found.commit_ts), (row.start_ts, row.commit_ts));
        prop_assert_eq!(&bytes[found.key], &row.key[..]);
        prop_assert_eq!(&bytes[found.value], &row.value[..]);
    }
}

#[test]
fn a_length_that_reaches_behind_its_message_is_refused_although_bytes_are_there() {
    // Two rows; the key of the first one claims a byte of the second.
    let row = |key_len: u8| vec![0x0A, 4, 0x2A, key_len, b'a', b'b'];
    let good = [row(2), row(2)].concat();
    let mut at = 0;
    assert_eq!(next_row(&good, &mut at).unwrap().unwrap().key, 4..6);
    let bad = [row(3), row(2)].concat();
    assert!(next_row(&bad, &mut 0).is_err());
    // The same one level up: an event that claims bytes of its successor.
    let event = |len: u8| vec![0x0A, len, 0x08, 5];
    assert!(parse(&Bytes::from([event(2), event(2)].concat())).is_ok());
    assert!(parse(&Bytes::from([event(3), event(2)].concat())).is_err());
    // A length near the largest number.
    let mut huge = vec![0x0A];
    huge.extend(padded(u64::MAX, 0));
    assert!(parse(&Bytes::from(huge)).is_err());
}

#[test]
fn an_event_that_holds_several_bodies_is_what_came_last_but_rows_are_never_joined() {
    let entries = Entries {
        entries: vec![sample_row(9)],
    };
    let rows = {
        let bytes = entries.encode_to_vec();
        let mut out = vec![0x1A];
        out.extend(padded(bytes.len() as u64, 0));
        out.extend(bytes);
        out
    };
    let resolved = vec![0x30, 9];
    let message = |parts: &[&[u8]]| {
        let event = parts.concat();
        let mut out = vec![0x0A];
        out.extend(padded(event.len() as u64, 0));
        out.extend(event);
        parse(&out.into()).map(|mut message| message.events.remove(0).body)
    };
    assert!(matches!(message(&[&rows]), Ok(Body::Rows(_))));
    assert!(matches!(message(&[&resolved, &rows]), Ok(Body::Rows(_))));
    assert!(matches!(
        message(&[&rows, &resolved]),
        Ok(Body::Resolved(9))
    ));
    assert!(message(&[&rows, &rows]).is_err());
}
