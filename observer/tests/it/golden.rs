//! Records that a real TiKV logged go through the whole observer and come out as the same set.

use std::io::Read;

use flate2::read::GzDecoder;
use pitr_format::key::split_versioned;
use pitr_format::{Cf, EncodedKey, EncodedRange, KvRecord, OpKind, Ts};
use pitr_observer::{Flusher, FlusherConfig, Observer, ObserverConfig, SendError, SourceEvent};
use pitr_storage::open_url;

use crate::support::{Archive, batch, env, region, resolved, started};

const STORE: u64 = 1;

fn golden(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/../tests/golden/log-basic/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).unwrap()
}

/// Put records of both column families, as `records.tsv.gz` has them.
fn records() -> Vec<KvRecord> {
    let mut text = String::new();
    let bytes = golden("records.tsv.gz");
    GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .unwrap();
    let unhex = |hex: &str| -> Vec<u8> {
        let digits: Vec<_> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    };
    text.lines()
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let ts = Ts::new(fields[3].parse().unwrap());
            KvRecord {
                cf: Cf::parse(fields[0]).unwrap(),
                op: if fields[1] == "put" {
                    OpKind::Put
                } else {
                    OpKind::Delete
                },
                key: EncodedKey::encode(&unhex(fields[2])).at(ts).into_bytes(),
                value: unhex(fields.get(4).unwrap_or(&"")).into(),
            }
        })
        .collect()
}

/// The bounds of the five regions at the end (from `times-and-regions.json`).
fn regions() -> Vec<(u64, EncodedRange)> {
    let json: serde_json::Value =
        serde_json::from_slice(&golden("times-and-regions.json")).unwrap();
    let bound = |text: &serde_json::Value| {
        let hex = text.as_str().unwrap();
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
            .collect::<Vec<_>>()
    };
    let list = json["regions"].as_array().unwrap();
    list.iter()
        .map(|r| {
            let range = EncodedRange::new(bound(&r["start"]), bound(&r["end"]));
            (r["id"].as_u64().unwrap(), range)
        })
        .collect()
}

async fn send(observer: &pitr_observer::ObserverHandle, event: SourceEvent) {
    if let Err(SendError::Closed) = observer.send(event).await {
        panic!("closed");
    }
}

fn sorted(mut records: Vec<KvRecord>) -> Vec<KvRecord> {
    records.sort_by(|a, b| (a.cf, &a.key, &a.value).cmp(&(b.cf, &b.key, &b.value)));
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_real_store_come_out_as_the_same_multiset() {
    let all = records();
    assert_eq!(all.len(), 3543);
    let config = ObserverConfig {
        queue_events: 8,
        slice_limit: 50_000,
        ..ObserverConfig::default()
    };
    let observer = Observer::start(config, env(), [EncodedRange::ALL]).unwrap();
    let storage = open_url("memory://").unwrap();
    let config = FlusherConfig {
        merge_limit: 100_000,
        ..FlusherConfig::new(STORE)
    };
    let mut flusher = Flusher::open(storage.clone(), config, &env())
        .await
        .unwrap();
    // By ts, in three flushes, each region's rows through its own subscription.
    let mut by_ts = all.clone();
    by_ts.sort_by_key(|record| split_versioned(&record.key).unwrap().1);
    for (sub, (id, range)) in regions().into_iter().enumerate() {
        send(&observer, started(sub as u64, region(id, range), 1)).await;
    }
    for (flush, part) in by_ts.chunks(1200).enumerate() {
        let last = split_versioned(&part[part.len() - 1].key).unwrap().1;
        for (sub, (_, range)) in regions().into_iter().enumerate() {
            let inside = part.iter().filter(|record| range.contains(&record.key));
            for rows in inside.cloned().collect::<Vec<_>>().chunks(64) {
                send(&observer, batch(sub as u64, rows.to_vec())).await;
            }
            send(&observer, resolved(sub as u64, last.get() - 1)).await;
        }
        let mut generation = observer.seal().await.unwrap();
        let proof = flusher
            .flush(&mut generation, Ts::new(flush as u64))
            .await
            .unwrap();
        let claims: Vec<_> = proof.progress().iter().map(|p| p.ts).collect();
        assert_eq!(claims, [last.prev(); 5]);
    }
    let archive = Archive::read(&storage).await;
    assert!(archive.unreferenced.is_empty());
    assert_eq!(archive.metas.len(), 3);
    assert_eq!(sorted(archive.records), sorted(all));
}
