//! What a real TiKV was asked and answered, translated to this cluster: other ids of regions and
//! peers, other epochs, and timestamps of today in the same relation to each other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use bytes::Bytes;
use pitr_proto::metapb::Region;
use prost::Message;
use prost_reflect::text_format::FormatOptions;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage, Value,
};
use serde::Deserialize;

use super::system::System;

/// First timestamp of the recording.
const RECORDED_FROM: u64 = 470_631_121_564_729_344;
/// All of the recording lies below.
const RECORDED_TO: u64 = 470_640_000_000_000_000;
/// Start keys (hex of the encoded form) of the recorded regions, and their ids and peers.
const RECORDED_REGIONS: [(&str, u64, u64); 5] = [
    ("", 4, 5),
    ("7200000000000000fb", 6, 7),
    ("7200000100000000fb", 8, 9),
    ("7800000000000000fb", 10, 11),
    ("7800000100000000fb", 2, 3),
];
const RECORDED_VERSION: u64 = 5;
const RECORDED_STORE: u64 = 1;
const RECORDED_CLUSTER: u64 = 7_710_820_221_953_284_083;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(pitr_proto::FILE_DESCRIPTOR_SET).expect("descriptors"));

/// One unary call of the recording.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    pub step: String,
    #[serde(default)]
    pub rpc: String,
    #[serde(default)]
    pub request: String,
    #[serde(default)]
    pub answer: String,
}

/// Where the recordings are.
pub fn golden(name: &str) -> PathBuf {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden"));
    root.join(name).canonicalize().expect(name)
}

/// Reads a recording.
pub fn load<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(golden(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

/// The method `service/name`, or nothing if our part of the wire does not have it.
pub fn method(service: &str, name: &str) -> Option<MethodDescriptor> {
    let service = POOL.get_service_by_name(service).expect("service");
    service.methods().find(|m| m.name() == name)
}

/// The message type of that name.
pub fn message(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).expect("message")
}

/// Reads the text format.
pub fn parse(descriptor: &MessageDescriptor, text: &str) -> DynamicMessage {
    DynamicMessage::parse_text_format(descriptor.clone(), text)
        .unwrap_or_else(|e| panic!("{}: {e}: {text}", descriptor.full_name()))
}

/// What stands for what.
pub struct Translation {
    /// Recorded region id to ours, with our leader peer.
    regions: BTreeMap<u64, Region>,
    /// Recorded peer to region.
    peers: BTreeMap<u64, u64>,
    /// Ours minus recorded.
    version_delta: u64,
    store_id: u64,
    cluster_id: u64,
    /// Recorded timestamps that stand for one of today.
    times: BTreeMap<u64, u64>,
    keep_times: bool,
}

impl Translation {
    /// Splits the one region of a new store as the recorded store was split. A batch split raises
    /// the version of every region it makes by the number of new ones.
    pub async fn prepare(system: &System) -> Translation {
        let before = system.regions().await;
        assert_eq!(before.len(), 1, "a new store has one region");
        system
            .split(&[b"r\0\0\0", b"r\0\0\x01", b"x\0\0\0", b"x\0\0\x01"])
            .await;
        let ours = system.regions().await;
        assert_eq!(ours.len(), RECORDED_REGIONS.len());
        let version = before[0].region_epoch.expect("epoch").version + 4;
        let mut regions = BTreeMap::new();
        let mut peers = BTreeMap::new();
        for (region, (start, id, peer)) in ours.iter().zip(RECORDED_REGIONS) {
            assert_eq!(hex::encode(&region.start_key), start);
            assert_eq!(region.region_epoch.expect("epoch").version, version);
            regions.insert(id, region.clone());
            peers.insert(peer, id);
        }
        Translation {
            version_delta: version.wrapping_sub(RECORDED_VERSION),
            store_id: ours[0].peers[0].store_id,
            cluster_id: system.cluster_id,
            regions,
            peers,
            times: BTreeMap::new(),
            keep_times: false,
        }
    }

    /// For recordings that speak about stored data: timestamps stay what they are.
    pub fn keep_times(mut self) -> Translation {
        self.keep_times = true;
        self
    }

    /// Our region in place of the recorded one.
    pub fn region(&self, recorded: u64) -> &Region {
        &self.regions[&recorded]
    }

    /// The timestamp that stands for a recorded one, if it was used.
    pub fn time(&self, recorded: u64) -> Option<u64> {
        self.times.get(&recorded).copied()
    }

    /// Lets a recorded timestamp stand for one of today.
    pub fn set_time(&mut self, recorded: u64, ours: u64) {
        self.times.insert(recorded, ours);
    }

    /// Every recorded timestamp of a message that stands for nothing yet, ascending.
    pub fn new_times(&self, message: &DynamicMessage) -> Vec<u64> {
        let mut found = Vec::new();
        walk(message, &mut |value| {
            if is_recorded_time(value) && !self.times.contains_key(&value) {
                found.push(value);
            }
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Puts our ids, epochs and timestamps in place of the recorded ones.
    pub fn apply(&self, message: &mut DynamicMessage) {
        let name = message.descriptor().full_name().to_owned();
        let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
        for field in fields {
            let value = message.get_field_mut(&field);
            match value {
                Value::U64(number) => {
                    *number = self.number(&name, field.name(), *number);
                }
                Value::Message(inner) => self.apply(inner),
                Value::List(items) => {
                    for item in items {
                        match item {
                            Value::U64(number) => {
                                *number = self.number(&name, field.name(), *number);
                            }
                            Value::Message(inner) => self.apply(inner),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn number(&self, message: &str, field: &str, number: u64) -> u64 {
        match (message, field) {
            (_, "region_id") | ("metapb.Region", "id") | ("cdcpb.ResolvedTs", "regions") => {
                self.regions.get(&number).map_or(number, |r| r.id)
            }
            ("metapb.RegionEpoch", "version") => number.wrapping_add(self.version_delta),
            ("metapb.Peer", "id") => self
                .peers
                .get(&number)
                .map_or(number, |r| self.regions[r].peers[0].id),
            (_, "store_id" | "request_store_id" | "actual_store_id") if number != 0 => {
                number - RECORDED_STORE + self.store_id
            }
            (_, "cluster_id" | "current") if number == RECORDED_CLUSTER => self.cluster_id,
            _ if self.keep_times => number,
            _ => self.times.get(&number).copied().unwrap_or(number),
        }
    }
}

fn is_recorded_time(value: u64) -> bool {
    (RECORDED_FROM..RECORDED_TO).contains(&value)
}

fn walk(message: &DynamicMessage, visit: &mut dyn FnMut(u64)) {
    for (_, value) in message.fields() {
        let items = match value {
            Value::List(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for item in items {
            match item {
                Value::U64(number) => visit(*number),
                Value::Message(inner) => walk(inner, visit),
                _ => {}
            }
        }
    }
}

/// Takes out what may differ: free text (only whether there is one stays) and timing details.
fn normalise(message: &mut DynamicMessage) {
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        if matches!(
            field.name(),
            "exec_details_v2" | "duration_to_last_update_ms"
        ) {
            message.clear_field(&field);
            continue;
        }
        let free_text = matches!(field.name(), "retryable" | "abort" | "message" | "reason");
        match message.get_field_mut(&field) {
            Value::String(text) if free_text && !text.is_empty() => "text".clone_into(text),
            Value::Message(inner) => normalise(inner),
            Value::List(items) => {
                for item in items {
                    if let Value::Message(inner) = item {
                        normalise(inner);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The comparable text of an answer.
pub fn comparable(descriptor: &MessageDescriptor, bytes: Bytes) -> String {
    let mut message = DynamicMessage::decode(descriptor.clone(), bytes).expect("decodes");
    normalise(&mut message);
    message.to_text_format_with_options(&FormatOptions::new().pretty(false))
}

/// The comparable text of a recorded answer in our terms.
pub fn expected(translation: &Translation, descriptor: &MessageDescriptor, text: &str) -> String {
    let mut message = parse(descriptor, text);
    translation.apply(&mut message);
    comparable(descriptor, message.encode_to_vec().into())
}
