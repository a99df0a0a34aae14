//! Is the restored cluster the source at that moment? Compared pair by pair and version by
//! version, not by digests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::Op;

use super::archive::Archive;
use super::client::Client;
use super::load::Write;
use super::rows;
use super::source::Source;
use super::target::Target;

/// A value that is short when it is printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Bytes);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crc = pitr_format::digest::crc64(&self.0);
        write!(f, "{} bytes, crc {crc:x}", self.0.len())
    }
}

/// Versions of a key: commit ts to start ts and value (`None` = deleted).
type History = BTreeMap<u64, (u64, Option<Value>)>;

/// Restores the archive to its end into a new cluster and compares that with the source at the
/// same ts. Gives that ts.
pub async fn restored_equals_source(
    archive: &Archive,
    source: &Source,
    confirmed: &[Write],
) -> u64 {
    let target = Target::start();
    let report = target.restore(&archive.url()).json();
    assert_eq!(report["verified"], true, "{report}");
    let latest = report["restored"]["tso"].as_u64().unwrap();
    let begin = report["start"]["tso"].as_u64().unwrap();
    let at = Ts::new(latest);
    let one = Client::connect(&source.pd()).await;
    let other = Client::connect(&target.pd()).await;
    let (wanted, found) = (pairs(&one, at).await, pairs(&other, at).await);
    same("pairs", &wanted, &found);
    // Nothing newer than the restored ts may be there either.
    let now = other.now().await.unwrap();
    same("pairs seen later", &wanted, &pairs(&other, now).await);
    let window = begin + 1..=latest;
    for key in rows::keys() {
        let wanted: History = history(&one, &key).await;
        let wanted = wanted.range(window.clone()).map(|(k, v)| (*k, v.clone()));
        let found = history(&other, &key).await;
        same(&format!("versions of {key:?}"), &wanted.collect(), &found);
        let missing = confirmed.iter().find(|write| {
            let value = write.value.clone().map(Value);
            write.key == key
                && window.contains(&write.commit.get())
                && found.get(&write.commit.get()) != Some(&(write.start.get(), value))
        });
        assert!(missing.is_none(), "confirmed, not restored: {missing:?}");
    }
    println!("restored {} pairs at {latest}", wanted.len());
    latest
}

async fn pairs(client: &Client, at: Ts) -> BTreeMap<Bytes, Value> {
    let mut found = BTreeMap::new();
    let mut scan = client.reader().scan(Bytes::new(), Bytes::new(), at);
    while let Some(page) = scan.next_page().await.unwrap() {
        found.extend(page.into_iter().map(|(key, value)| (key, Value(value))));
    }
    found
}

async fn history(client: &Client, key: &Bytes) -> History {
    let info = client.history(key).await.unwrap();
    let long = |start| info.values.iter().find(|value| value.start_ts == start);
    let writes = info.writes.iter().filter_map(|write| {
        let value = match write.r#type() {
            Op::Del => None,
            Op::Put if write.short_value.is_empty() => Some(Value(
                long(write.start_ts).map_or(Bytes::new(), |v| v.value.clone()),
            )),
            Op::Put => Some(Value(write.short_value.clone())),
            // Locks and rollbacks are no versions.
            _ => return None,
        };
        Some((write.commit_ts, (write.start_ts, value)))
    });
    writes.collect()
}

#[track_caller]
fn same<K: Ord + fmt::Debug, V: PartialEq + fmt::Debug>(
    what: &str,
    wanted: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) {
    let keys: BTreeSet<&K> = wanted.keys().chain(found.keys()).collect();
    let different: Vec<String> = keys
        .into_iter()
        .filter(|key| wanted.get(key) != found.get(key))
        .map(|key| {
            format!(
                "{key:?}: source {:?}, target {:?}",
                wanted.get(key),
                found.get(key)
            )
        })
        .collect();
    let some = &different[..different.len().min(10)];
    assert!(
        some.is_empty(),
        "{what}, {} differ:\n{}",
        different.len(),
        some.join("\n")
    );
}
