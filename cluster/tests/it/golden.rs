//! What a real store sent through `EventFeedV2` becomes, byte for byte, what its own log backup
//! archived for the same time: the `P` and `D` write records and the default puts they refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use pitr_cluster::cdc::{CdcEvent, CdcOptions, EndKind, Feed, SubId, Subscription};
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedKey, EncodedRange, OpKind, Ts, VersionedKey};
use pitr_proto::cdcpb::ChangeDataEvent;
use pitr_proto::metapb;
use prost::Message;

/// `(cf, encoded versioned key, value)`.
type Record = (Cf, Vec<u8>, Vec<u8>);

fn unzip(folder: &str, name: &str) -> Vec<u8> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
    let file = std::fs::File::open(format!("{root}/{folder}/{name}")).unwrap();
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// The archive's records that a change stream can and must give.
fn archived(folder: &str) -> BTreeSet<Record> {
    let text = String::from_utf8(unzip(folder, "records.tsv.gz")).unwrap();
    let mut writes = BTreeSet::new();
    let mut defaults = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    for line in text.lines() {
        let [cf, op, key, ts, value] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        if op != "put" {
            continue;
        }
        let encoded = EncodedKey::encode(&unhex(key));
        let at = |ts: Ts| encoded.at(ts).into_bytes().to_vec();
        let key = at(Ts::new(ts.parse().unwrap()));
        let value = unhex(value);
        if cf == "default" {
            defaults.insert(key, value);
            continue;
        }
        let write = WriteRecord::parse(&Bytes::from(value.clone())).unwrap();
        match write.kind {
            WriteType::Put if write.short_value.is_none() => {
                wanted.insert(at(write.start_ts));
            }
            WriteType::Put | WriteType::Delete => {}
            WriteType::Lock | WriteType::Rollback => continue,
        }
        writes.insert((Cf::Write, key, value));
    }
    let defaults = defaults.into_iter().filter(|(key, _)| wanted.contains(key));
    writes.extend(defaults.map(|(key, value)| (Cf::Default, key, value)));
    writes
}

/// What came out of a recorded stream.
#[derive(Default)]
struct Replayed {
    records: BTreeSet<Record>,
    ended: BTreeMap<EndKind, usize>,
    named_regions: BTreeSet<u64>,
    subscribed_regions: BTreeSet<u64>,
    initialized: usize,
    resolved: BTreeMap<SubId, Ts>,
    memory: usize,
}

/// Feeds a recorded stream; each pair of request and region of it is a subscription of its own,
/// under the request id that the feed chose.
fn replay(folder: &str, wanted: &[EncodedRange]) -> Replayed {
    let wanted: Arc<[EncodedRange]> = wanted.into();
    let bytes = unzip(folder, "cdc-events.bin.gz");
    let mut rest = &bytes[..];
    let mut feed = Feed::new(7, &CdcOptions::default());
    let mut pairs = BTreeMap::new();
    let mut out = Replayed::default();
    let mut events = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (message, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
        rest = tail;
        let mut message = ChangeDataEvent::decode(Bytes::copy_from_slice(message)).unwrap();
        for event in &mut message.events {
            let next = SubId(pairs.len() as u64 + 1);
            let pair = (event.request_id, event.region_id);
            event.request_id = *pairs.entry(pair).or_insert_with(|| {
                out.subscribed_regions.insert(event.region_id);
                register(&mut feed, next, event.region_id, &wanted)
            });
        }
        // A batch of resolved ts names regions that may have different incarnations here.
        let resolved = message.resolved_ts.take();
        let mut messages = vec![message];
        if let Some(resolved) = resolved {
            for region in resolved.regions {
                if let Some(request_id) = pairs.get(&(resolved.request_id, region)) {
                    let resolved = pitr_proto::cdcpb::ResolvedTs {
                        regions: vec![region],
                        ts: resolved.ts,
                        request_id: *request_id,
                    };
                    messages.push(ChangeDataEvent {
                        events: Vec::new(),
                        resolved_ts: Some(resolved),
                    });
                }
            }
        }
        for message in messages {
            let bytes = message.encode_to_vec().into();
            feed.on_message(&bytes, &mut events).unwrap();
        }
        events.drain(..).for_each(|event| out.take(event));
    }
    assert!(rest.is_empty());
    out.memory = feed.memory();
    out
}

fn register(feed: &mut Feed, id: SubId, region_id: u64, wanted: &Arc<[EncodedRange]>) -> u64 {
    let region = metapb::Region {
        id: region_id,
        ..Default::default()
    };
    assert!(feed.subscribe(Subscription {
        id,
        region,
        checkpoint_ts: Ts::new(1),
        wanted: wanted.clone(),
        alone: false,
    }));
    feed.next_request().unwrap().request_id
}

impl Replayed {
    fn take(&mut self, event: CdcEvent) {
        match event {
            CdcEvent::Records { sub, records } => {
                let resolved = self.resolved.get(&sub).copied().unwrap_or(Ts::ZERO);
                for record in &records {
                    assert_eq!(record.op, OpKind::Put);
                    let key = VersionedKey::from_bytes(Bytes::copy_from_slice(record.key)).unwrap();
                    assert!(
                        record.cf == Cf::Default || key.ts() > resolved,
                        "a commit at or below the resolved ts"
                    );
                    self.records
                        .insert((record.cf, record.key.to_vec(), record.value.to_vec()));
                }
            }
            CdcEvent::Initialized { .. } => self.initialized += 1,
            CdcEvent::Resolved { subs, ts } => {
                for sub in subs {
                    let before = self.resolved.insert(sub, ts);
                    assert!(before.is_none_or(|b| b <= ts), "resolved ts went back");
                }
            }
            CdcEvent::Ended { reason, .. } => {
                *self.ended.entry(reason.kind).or_default() += 1;
                let ids = reason.regions.iter().map(|region| region.id);
                self.named_regions.extend(ids);
            }
            CdcEvent::Disconnected { .. } => unreachable!(),
        }
    }
}

fn assert_same(ours: &BTreeSet<Record>, archived: &BTreeSet<Record>) {
    let (missing, extra) = (archived.difference(ours), ours.difference(archived));
    assert_eq!((missing.count(), extra.count()), (0, 0), "(missing, extra)");
}

#[test]
fn the_stream_of_log_basic_becomes_exactly_the_records_of_its_archive() {
    let out = replay("log-basic", &[EncodedRange::ALL]);
    let archived = archived("log-basic");
    let write = |r: &&Record| r.0 == Cf::Write;
    assert!(archived.iter().filter(write).count() > 2000);
    assert!(archived.iter().any(|r| r.0 == Cf::Default));
    assert_same(&out.records, &archived);
    // The region with transactional keys under `r` fails again and again.
    assert_eq!(out.ended, [(EndKind::RegionNotFound, 2)].into());
    assert_eq!(out.initialized, 11);
}

#[test]
fn the_stream_of_log_splits_with_scans_splits_and_repeats_becomes_its_archive() {
    let out = replay("log-splits", &[EncodedRange::ALL]);
    assert_same(&out.records, &archived("log-splits"));
    assert!(out.ended[&EndKind::EpochNotMatch] >= 4);
    for region in &out.named_regions {
        assert!(out.subscribed_regions.contains(region), "{region}");
    }
    // What was rolled back without a row is all that may be left.
    assert!(out.memory < 64 << 10, "{}", out.memory);
}

#[test]
fn only_the_rows_of_the_task_are_taken() {
    let key = |raw: &[u8]| EncodedKey::encode(raw).into_bytes();
    let ranges = [
        EncodedRange::new(key(b"m"), key(b"n")),
        EncodedRange::new(key(b"u"), key(b"w")),
    ];
    let out = replay("log-basic", &ranges);
    let wanted: BTreeSet<Record> = archived("log-basic")
        .into_iter()
        .filter(|(_, key, _)| ranges.iter().any(|range| range.contains(key)))
        .collect();
    assert!(!wanted.is_empty());
    assert_same(&out.records, &wanted);
}
