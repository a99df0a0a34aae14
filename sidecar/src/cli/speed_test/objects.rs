//! Calls to a storage with temporary objects: latency with small ones, throughput with large ones,
//! one call at a time. Whatever is read is compared with what was written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pitr_storage::SharedStorage;
use schemars::JsonSchema;
use serde::Serialize;

use super::machine;
use crate::codes::Code;
use crate::failure::Failure;

/// Bytes of a small object: about a meta of a quiet store.
const SMALL_BYTES: usize = 4 << 10;
/// Large objects.
const LARGE_OBJECTS: u32 = 4;
/// Listings.
const LISTINGS: u32 = 8;

/// What is to be done.
#[derive(Debug)]
pub struct Workload {
    /// Beginning of the names of all objects.
    pub prefix: String,
    /// Number of small objects.
    pub small: u32,
    /// Bytes of a large object.
    pub large_bytes: u64,
    /// Speed of the machine's memory copy, MB/s.
    pub memory_copy: f64,
}

/// What was measured.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Measured {
    /// Writing small objects.
    pub put: Latency,
    /// Reading small objects.
    pub get: Latency,
    /// Listing all of them.
    pub list: Latency,
    /// Removing small objects.
    pub delete: Latency,
    /// Writing large objects, one after the other.
    pub put_large: Speed,
    /// Reading large objects, one after the other.
    pub get_large: Speed,
}

/// Times of calls.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Latency {
    /// Number of calls.
    pub calls: u64,
    /// Half of them took at most that, ms.
    pub p50_ms: f64,
    /// 99 % of them took at most that, ms.
    pub p99_ms: f64,
    /// The slowest, ms.
    pub max_ms: f64,
}

/// Bytes in time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Speed {
    /// Bytes moved.
    pub bytes: u64,
    /// Megabytes (10^6) a second.
    pub mb_per_second: f64,
    /// The same as a part of the machine's memory copy.
    pub of_memory_copy: f64,
}

/// Does the work; ends between two calls when `stop` is set. Leaves large objects behind.
pub async fn measure(
    storage: &SharedStorage,
    workload: &Workload,
    stop: &AtomicBool,
) -> Result<Measured, Failure> {
    let small = Bytes::from(machine::sample(SMALL_BYTES, 2));
    let name = |number: u32| format!("{}small-{number:07}", workload.prefix);
    let (mut put, mut get, mut list, mut delete) = (vec![], vec![], vec![], vec![]);
    for number in 0..workload.small {
        let (path, data) = (name(number), small.clone().into());
        timed(&mut put, stop, storage.put(&path, data)).await?;
    }
    for number in 0..workload.small {
        let path = name(number);
        let found = timed(&mut get, stop, storage.get(&path)).await?;
        same(storage, &path, &small, &found)?;
    }
    for _ in 0..LISTINGS {
        let found = timed(&mut list, stop, storage.list(&workload.prefix)).await?;
        if found.len() as u64 != u64::from(workload.small) {
            let what = format!(
                "the storage lists {} of {} objects",
                found.len(),
                workload.small
            );
            return Err(unfaithful(storage, &workload.prefix, what));
        }
    }
    for number in 0..workload.small {
        timed(&mut delete, stop, storage.delete(&name(number))).await?;
    }
    let (put_large, get_large) = measure_large(storage, workload, stop).await?;
    Ok(Measured {
        put: latency(put),
        get: latency(get),
        list: latency(list),
        delete: latency(delete),
        put_large,
        get_large,
    })
}

async fn measure_large(
    storage: &SharedStorage,
    workload: &Workload,
    stop: &AtomicBool,
) -> Result<(Speed, Speed), Failure> {
    let large = Bytes::from(machine::sample(workload.large_bytes as usize, 3));
    let name = |number: u32| format!("{}large-{number}", workload.prefix);
    let (mut put, mut get) = (vec![], vec![]);
    for number in 0..LARGE_OBJECTS {
        let (path, data) = (name(number), large.clone().into());
        timed(&mut put, stop, storage.put(&path, data)).await?;
    }
    for number in 0..LARGE_OBJECTS {
        let path = name(number);
        let found = timed(&mut get, stop, storage.get(&path)).await?;
        same(storage, &path, &large, &found)?;
    }
    let speed = |times: &[Duration]| {
        let bytes = workload.large_bytes * u64::from(LARGE_OBJECTS);
        let seconds = times.iter().sum::<Duration>().as_secs_f64().max(1e-9);
        let mb_per_second = bytes as f64 / 1e6 / seconds;
        Speed {
            bytes,
            mb_per_second,
            of_memory_copy: mb_per_second / workload.memory_copy.max(1e-9),
        }
    };
    Ok((speed(&put), speed(&get)))
}

async fn timed<T>(
    times: &mut Vec<Duration>,
    stop: &AtomicBool,
    call: impl Future<Output = pitr_storage::Result<T>>,
) -> Result<T, Failure> {
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new(Code::Interrupted, "interrupted"));
    }
    let began = Instant::now();
    let answer = call.await?;
    times.push(began.elapsed());
    Ok(answer)
}

fn same(storage: &SharedStorage, path: &str, put: &Bytes, got: &Bytes) -> Result<(), Failure> {
    match put == got {
        true => Ok(()),
        false => {
            let what = "the storage gave back other bytes than were written".to_owned();
            Err(unfaithful(storage, path, what))
        }
    }
}

fn unfaithful(storage: &SharedStorage, path: &str, what: String) -> Failure {
    Failure::new(Code::ArchiveDamaged, what)
        .at(format!("{path} in {}", storage.uri()))
        .effect("an archive in this storage could not be trusted")
        .action("find out what changes or hides objects; use another storage")
}

/// Names of all objects that begin so; a storage that does not exist yet has none.
pub async fn listed(storage: &SharedStorage, prefix: &str) -> Result<Vec<String>, Failure> {
    match storage.list(prefix).await {
        Ok(objects) => Ok(objects.into_iter().map(|object| object.path).collect()),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Removes these objects.
pub async fn remove(storage: &SharedStorage, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        storage.delete(path).await?;
    }
    Ok(())
}

/// Removes every object whose name begins so.
pub async fn clean(storage: &SharedStorage, prefix: &str) -> Result<(), Failure> {
    remove(storage, &listed(storage, prefix).await?).await
}

fn latency(mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let at = |part: f64| {
        let last = times.len().saturating_sub(1);
        let index = (last as f64 * part).round() as usize;
        times
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    Latency {
        calls: times.len() as u64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            prefix: format!("{}test/", super::super::PREFIX),
            small: 5,
            large_bytes: 1 << 16,
            memory_copy: 1000.0,
        }
    }

    #[tokio::test]
    async fn everything_is_measured_and_cleaning_leaves_what_is_not_ours() {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let other = Bytes::from_static(b"x");
        storage.put("backupmeta", other.into()).await.unwrap();
        let workload = workload();
        let measured = measure(&storage, &workload, &AtomicBool::new(false)).await;
        let measured = measured.unwrap();
        assert_eq!((measured.put.calls, measured.list.calls), (5, 8));
        assert_eq!(measured.get_large.bytes, 4 << 16);
        clean(&storage, &workload.prefix).await.unwrap();
        let left = listed(&storage, "").await.unwrap();
        assert_eq!(left, ["backupmeta"]);
    }

    #[tokio::test]
    async fn a_stop_ends_the_work_before_the_next_call() {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let stopped = measure(&storage, &workload(), &AtomicBool::new(true)).await;
        assert_eq!(stopped.unwrap_err().code, Code::Interrupted);
        assert!(listed(&storage, "").await.unwrap().is_empty());
    }

    #[test]
    fn other_bytes_than_were_written_are_damage() {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let (put, got) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        assert!(same(&storage, "p", &put, &put).is_ok());
        let failure = same(&storage, "p", &put, &got).unwrap_err();
        assert_eq!(failure.code, Code::ArchiveDamaged);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times = (1..=101).rev().map(Duration::from_millis).collect();
        let found = latency(times);
        assert_eq!(
            (found.p50_ms, found.p99_ms, found.max_ms),
            (51.0, 100.0, 101.0)
        );
        assert_eq!(latency(Vec::new()).max_ms, 0.0);
    }
}
