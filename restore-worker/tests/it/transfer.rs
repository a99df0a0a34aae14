//! `Download`: what can be wrong with an object, and what a process leaves that is killed at any
//! step of a transfer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use pitr_budget::MemoryBudget;
use pitr_env::SystemRandom;
use pitr_format::{Cf, EncodedKey};
use pitr_proto::backup::CipherInfo;
use pitr_proto::import_sstpb::import_sst_server::ImportSst;
use pitr_proto::import_sstpb::{DownloadRequest, Range, RewriteRule, SstMeta};
use pitr_restore_worker::service::ImportLimits;
use pitr_restore_worker::sst::rocks::RocksSstFactory;
use pitr_restore_worker::sst::{SstFactory, SstWriter, Tables};
use proptest::prelude::*;

use super::desk::{Desk, rule};
use super::environment::{TestClock, Threads};
use super::service::EPOCH;
use super::synthetic::short;

const ROWS: u32 = 3_000;

/// A table of [`ROWS`] write records.
fn table(value: &'static str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let factory = RocksSstFactory::default();
    let mut writer = SstWriter::create(&factory, &SystemRandom, dir.path(), Cf::Write).unwrap();
    for i in 0..ROWS {
        let record = short(format!("row-{i:06}").as_bytes(), 1, 10, value);
        writer.put(&record.key, &record.value).unwrap();
    }
    std::fs::read(writer.finish().unwrap().path).unwrap()
}

fn output(uuid: u8) -> SstMeta {
    SstMeta {
        uuid: vec![uuid; 16].into(),
        cf_name: "write".to_owned(),
        region_id: 4,
        region_epoch: Some(EPOCH),
        ..SstMeta::default()
    }
}

fn request(desk: &Desk, name: &str) -> DownloadRequest {
    DownloadRequest {
        name: name.to_owned(),
        sst: Some(output(1)),
        storage_backend: Some(desk.backend()),
        ..DownloadRequest::default()
    }
}

/// What a finished download of [`output`] 1 leaves.
fn finished() -> [Vec<String>; 3] {
    let name = "01010101-0101-0101-0101-010101010101_4_1_5_write_2.sst";
    [vec![name.to_owned(), format!("{name}.sum")], vec![], vec![]]
}

const NOTHING: [Vec<String>; 3] = [Vec::new(), Vec::new(), Vec::new()];

#[tokio::test]
async fn an_object_that_is_not_what_the_request_says_is_refused_and_leaves_nothing() {
    let desk = Desk::new();
    let bytes = table("v");
    desk.object("a.sst", &bytes);
    type Edit = fn(&mut DownloadRequest);
    let edits: [(Edit, &str); 5] = [
        (
            |r| r.name = "absent.sst".to_owned(),
            "No such file or directory",
        ),
        (|r| r.sst.as_mut().unwrap().length = 7, "expected 7"),
        (
            |r| r.sst.as_mut().unwrap().total_kvs = u64::from(ROWS) + 1,
            "3000 entries, but the request says 3001",
        ),
        (
            |r| r.rewrite_rule = Some(rule(b"no key begins so", b"")),
            "wrong prefix",
        ),
        (
            |r| {
                r.cipher_info = Some(CipherInfo {
                    cipher_type: 4,
                    cipher_key: vec![1; 32].into(),
                });
            },
            "the IV of the file is not 16 bytes long",
        ),
    ];
    for (edit, words) in edits {
        let mut bad = request(&desk, "a.sst");
        edit(&mut bad);
        let answer = desk.download(bad).await;
        let error = match answer {
            Err(error) => error,
            // No key of the object has the old prefix, and without a new one nothing is asked for.
            Ok(answer) if words == "wrong prefix" && answer.is_empty => continue,
            Ok(answer) => panic!("{words}: {answer:?}"),
        };
        assert!(error.contains(words), "{error}");
        assert_eq!(desk.files(), NOTHING, "{words}");
        assert_eq!(desk.budget.used(), 0);
    }
    let mut right = request(&desk, "a.sst");
    let sst = right.sst.as_mut().unwrap();
    (sst.length, sst.total_kvs) = (bytes.len() as u64, u64::from(ROWS));
    let answer = desk.download(right).await.unwrap();
    assert_eq!(
        (answer.crc32, answer.length),
        (crc32fast::hash(&bytes), bytes.len() as u64)
    );
    assert_eq!(desk.files(), finished());
}

#[tokio::test]
async fn a_table_that_is_damaged_anywhere_never_gets_a_name() {
    let desk = Desk::new();
    let good = table("value");
    let flipped = (0..good.len() - 53).step_by(good.len() / 7).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        bad
    });
    let cut = [0, 1, good.len() / 3, good.len() - 1].map(|len| good[..len].to_vec());
    for bad in flipped.chain(cut) {
        desk.object("a.sst", &bad);
        let error = desk.download(request(&desk, "a.sst")).await.unwrap_err();
        assert!(error.starts_with("Cannot read local://"), "{error}");
        assert_eq!(desk.files(), NOTHING);
    }
    desk.object("a.sst", &good);
    desk.download(request(&desk, "a.sst")).await.unwrap();
    assert_eq!(desk.files(), finished());
}

#[tokio::test]
async fn keys_that_are_no_data_keys_are_refused() {
    let desk = Desk::new();
    let path = desk.dir.path().join("storage/a.sst");
    let factory = RocksSstFactory::default();
    let mut builder = factory.create(&path).unwrap();
    builder.put(b"akey", b"value").unwrap();
    builder.finish().unwrap();
    let error = desk.download(request(&desk, "a.sst")).await.unwrap_err();
    assert!(error.contains("is no data key"), "{error}");
    assert_eq!(desk.files(), NOTHING);
}

#[tokio::test]
async fn an_encrypted_table_needs_its_own_key_and_its_own_iv() {
    let desk = Desk::new();
    let good = table("value");
    let (key, iv) = ([3; 32], [4; 16]);
    let mut stored = good.clone();
    Ctr128BE::<Aes256>::new_from_slices(&key, &iv)
        .unwrap()
        .apply_keystream(&mut stored);
    desk.object("a.sst", &stored);
    let with = |key: [u8; 32], iv: [u8; 16]| {
        let mut encrypted = request(&desk, "a.sst");
        encrypted.cipher_info = Some(CipherInfo {
            cipher_type: 4,
            cipher_key: key.to_vec().into(),
        });
        encrypted.sst.as_mut().unwrap().cipher_iv = iv.to_vec().into();
        encrypted
    };
    for wrong in [
        with([7; 32], iv),
        with(key, [7; 16]),
        request(&desk, "a.sst"),
    ] {
        let error = desk.download(wrong).await.unwrap_err();
        assert!(error.starts_with("Cannot read"), "{error}");
        assert_eq!(desk.files(), NOTHING);
    }
    let answer = desk.download(with(key, iv)).await.unwrap();
    assert_eq!(
        answer.crc32,
        crc32fast::hash(&good),
        "it lies there decrypted"
    );
}

#[tokio::test]
async fn a_file_that_is_there_is_not_fetched_again_and_belongs_to_its_request() {
    let desk = Desk::new();
    desk.object("a.sst", &table("value"));
    desk.object("b.sst", &table("value"));
    let first = desk.download(request(&desk, "a.sst")).await.unwrap();
    let (work, object) = (desk.threads.done(), desk.dir.path().join("storage/a.sst"));
    std::fs::remove_file(object).unwrap();
    assert_eq!(desk.download(request(&desk, "a.sst")).await, Ok(first));
    assert_eq!(
        desk.threads.done(),
        work + 1,
        "it was only compared with its record"
    );
    let error = desk.download(request(&desk, "b.sst")).await.unwrap_err();
    assert!(error.starts_with("MisMatchRequest"), "{error}");
}

#[tokio::test]
async fn the_same_download_twice_at_once_is_one_transfer() {
    let desk = Desk::new();
    desk.object("a.sst", &table("value"));
    let (one, two) = tokio::join!(
        desk.download(request(&desk, "a.sst")),
        desk.download(request(&desk, "a.sst")),
    );
    assert_eq!(one.unwrap(), two.unwrap());
    let alone = Desk::new();
    alone.object("a.sst", &table("value"));
    alone.download(request(&alone, "a.sst")).await.unwrap();
    assert_eq!(desk.threads.done(), alone.threads.done() + 1);
    assert_eq!(desk.files(), finished());
}

/// Runs `work` until the environment holds back a piece of it, as if the process were killed then;
/// what it gave if it came to its end before.
async fn until_killed<T>(threads: &Threads, work: impl Future<Output = T>) -> Option<T> {
    let mut work = Box::pin(work);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = tokio::time::sleep(Duration::from_millis(1)), if threads.stopped() => {
                // A killed process runs no destructors.
                std::mem::forget(work);
                return None;
            }
            () = tokio::time::sleep(Duration::from_millis(1)), if !threads.stopped() => {}
        }
    }
}

/// A download that renames its keys, so that a new table is written.
fn renaming(desk: &Desk) -> DownloadRequest {
    let (old, new) = (&b"row-"[..], &b"renamed/"[..]);
    let mut request = request(desk, "a.sst");
    request.rewrite_rule = Some(rule(old, new));
    request.request_type = 1;
    request
}

#[tokio::test]
async fn after_a_kill_at_any_step_the_same_request_comes_to_the_same_end() {
    let bytes = table("value");
    let whole = Desk::new();
    whole.object("a.sst", &bytes);
    let wanted = whole.download(renaming(&whole)).await.unwrap();
    let records = records_of(&whole, &whole.files()[0][0]);
    assert_eq!(records.len(), ROWS as usize);
    let steps = whole.threads.done();
    assert!(steps >= 4, "open, look, write, sync, make: {steps}");
    for step in 0..steps {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("storage")).unwrap();
        let killed = Desk::reopened(dir, Threads::until(step));
        killed.object("a.sst", &bytes);
        let answer = until_killed(&killed.threads, killed.download(renaming(&killed))).await;
        assert_eq!(answer, None, "step {step} of {steps}");
        let Desk { dir, .. } = killed;
        let again = Desk::reopened(dir, Threads::endless());
        let [_, temp, _] = again.files();
        assert_eq!(
            temp,
            Vec::<String>::new(),
            "what was in the making is gone at the start"
        );
        let answer = again.download(renaming(&again)).await.unwrap();
        assert_eq!(answer.range, wanted.range, "killed before step {step}");
        assert_eq!(again.files(), finished());
        // Tables of equal records differ in the time of their making.
        let file = &again.files()[0][0];
        assert!(
            records_of(&again, file) == records,
            "killed before step {step}"
        );
    }
}

#[tokio::test]
async fn a_part_is_gone_on_with_unless_the_object_is_another_one_by_now() {
    let (old, new) = (table("value"), table("another value"));
    assert_ne!(old.len(), new.len());
    let part = |desk: &Desk| {
        let [_, _, parts] = desk.files();
        assert_eq!(parts.len(), 1);
        desk.dir.path().join("import/.partial").join(&parts[0])
    };
    let interrupted = async || {
        let (clock, budget) = (TestClock::default(), MemoryBudget::new(64 << 20));
        let (dir, limits) = (tempfile::tempdir().unwrap(), ImportLimits::default());
        let desk = Desk::build(dir, Threads::endless(), clock.clone(), budget, limits);
        desk.object("a.sst", &old);
        desk.limit_speed(16 << 10, "", 0).await;
        let download = desk.download(request(&desk, "a.sst"));
        tokio::select! {
            answer = download => panic!("{answer:?}"),
            // Time for one or two pieces of 4 KiB, and no more.
            () = async {
                for _ in 0..8 {
                    clock.pass(Duration::from_millis(50));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            } => {}
        }
        desk
    };
    let desk = interrupted().await;
    let have = std::fs::metadata(part(&desk)).unwrap().len();
    assert!(
        0 < have && have < old.len() as u64,
        "{have} of {}",
        old.len()
    );
    assert_eq!(desk.budget.used(), 0, "whoever was cancelled holds nothing");
    // What is there is taken as it is: only the rest comes from the object.
    let mut object = old.clone();
    object[..have as usize].fill(0);
    desk.object("a.sst", &object);
    let Desk { dir, .. } = desk;
    let desk = Desk::reopened(dir, Threads::endless());
    let answer = desk.download(request(&desk, "a.sst")).await.unwrap();
    assert_eq!(answer.crc32, crc32fast::hash(&old));

    let desk = interrupted().await;
    desk.object("a.sst", &new);
    let Desk { dir, .. } = desk;
    let desk = Desk::reopened(dir, Threads::endless());
    let answer = desk.download(request(&desk, "a.sst")).await.unwrap();
    assert_eq!(answer.crc32, crc32fast::hash(&new));
    let [files, _, parts] = desk.files();
    assert_eq!(
        (files.len(), parts.len()),
        (2, 1),
        "the old part waits for the sweep"
    );
}

#[tokio::test]
async fn a_torn_part_is_thrown_away_and_the_object_fetched_once_more() {
    let bytes = table("value");
    let torn: [fn(&Path, &[u8]); 4] = [
        |part, bytes| std::fs::write(part, vec![0; bytes.len() / 2]).unwrap(),
        |part, bytes| std::fs::write(part, vec![0; bytes.len()]).unwrap(),
        |part, bytes| std::fs::write(part, [bytes, b"more"].concat()).unwrap(),
        |part, _| std::fs::write(part, b"").unwrap(),
    ];
    for tear in torn {
        // A kill before the table is made leaves the whole object as a part.
        let whole = Desk::new();
        whole.object("a.sst", &bytes);
        whole.download(request(&whole, "a.sst")).await.unwrap();
        let last = whole.threads.done() - 1;
        let killed = Desk::reopened(tempfile::tempdir().unwrap(), Threads::until(last));
        killed.object("a.sst", &bytes);
        let download = killed.download(request(&killed, "a.sst"));
        assert_eq!(until_killed(&killed.threads, download).await, None);
        let [_, _, parts] = killed.files();
        tear(
            &killed.dir.path().join("import/.partial").join(&parts[0]),
            &bytes,
        );
        let Desk { dir, .. } = killed;
        let desk = Desk::reopened(dir, Threads::endless());
        let answer = desk.download(request(&desk, "a.sst")).await.unwrap();
        assert_eq!(answer.crc32, crc32fast::hash(&bytes));
        assert_eq!(desk.files(), finished());
    }
}

#[tokio::test]
async fn a_limit_of_speed_sets_the_time_of_a_transfer_and_without_one_none_passes() {
    let bytes = table("value");
    let seconds = async |limits: &[(u64, &str, u64)]| {
        let desk = Desk::new();
        desk.object("a.sst", &bytes);
        for (limit, task, ttl) in limits {
            desk.limit_speed(*limit, task, *ttl).await;
        }
        let began = pitr_env::Clock::now(&desk.clock);
        desk.download(request(&desk, "a.sst")).await.unwrap();
        (pitr_env::Clock::now(&desk.clock) - began).as_secs_f64()
    };
    let size = bytes.len() as f64;
    let rate = bytes.len() as u64 / 10;
    let takes = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.2, "{found} {wanted}");
    takes(seconds(&[]).await, 0.0);
    takes(seconds(&[(rate, "", 0)]).await, size / rate as f64);
    takes(
        seconds(&[(rate, "slow", 60), (2 * rate, "", 0)]).await,
        size / rate as f64,
    );
    takes(seconds(&[(rate, "", 0), (0, "", 0)]).await, 0.0);
    // The slow task's limit ends after four seconds, then the other one holds.
    let rest = size - 4.0 * rate as f64;
    takes(
        seconds(&[(rate, "slow", 4), (2 * rate, "", 0)]).await,
        4.0 + rest / (2 * rate) as f64,
    );
}

#[tokio::test]
async fn the_range_of_the_answer_is_that_of_the_keys_and_a_part_of_a_table_can_be_asked_for() {
    let desk = Desk::new();
    desk.object("a.sst", &table("value"));
    let mut part = request(&desk, "a.sst");
    let bound = |row: u32| EncodedKey::encode(format!("row-{row:06}").as_bytes()).into_bytes();
    let sst = part.sst.as_mut().unwrap();
    sst.range = Some(Range {
        start: bound(100),
        end: bound(200),
    });
    sst.end_key_exclusive = true;
    let range = desk.download(part).await.unwrap().range.unwrap();
    let key = |row: u32| short(format!("row-{row:06}").as_bytes(), 1, 10, "").key;
    assert_eq!((range.start, range.end), (key(100), key(199)));
}

#[tokio::test]
async fn downloads_wait_for_memory_and_say_busy_when_none_comes() {
    let budget = MemoryBudget::new(1 << 20);
    let desk = Desk::with(Arc::clone(&budget), ImportLimits::default());
    desk.object("a.sst", &table("value"));
    let others = budget.try_reserve(1 << 20).unwrap();
    let began = pitr_env::Clock::now(&desk.clock);
    let error = desk.download(request(&desk, "a.sst")).await.unwrap_err();
    assert_eq!(error, "resource is not enough memory is limited");
    let waited = pitr_env::Clock::now(&desk.clock) - began;
    assert!(waited >= Duration::from_secs(10), "{waited:?}");
    drop(others);
    desk.download(request(&desk, "a.sst")).await.unwrap();
    assert_eq!((desk.files(), budget.used()), (finished(), 0));
}

/// A table of these write records, in key order.
fn table_of(records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let factory = RocksSstFactory::default();
    let mut writer = SstWriter::create(&factory, &SystemRandom, dir.path(), Cf::Write).unwrap();
    for (key, value) in records {
        writer.put(key, value).unwrap();
    }
    std::fs::read(writer.finish().unwrap().path).unwrap()
}

/// The records of a finished file.
fn records_of(desk: &Desk, file: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = desk.dir.path().join("import").join(file);
    let scratch = desk.dir.path().join("scratch");
    let table = Tables::rocks().reader.open(&path, &scratch).unwrap();
    let pairs = table.scan().map(Result::unwrap);
    pairs
        .map(|(key, value)| (key[1..].to_vec(), value.to_vec()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_batch_is_the_union_of_its_objects_in_the_window_of_its_rule(
        rows in prop::collection::vec((0u8..30, 1u64..40, 1u8..8), 1..80),
        (after, before) in (0u64..40, 0u64..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap().block_on(async {
            let desk = Desk::new();
            // Each row lies in the objects that its bits name; equal rows have equal values.
            let mut objects = vec![BTreeMap::new(); 3];
            let mut wanted = BTreeMap::new();
            for (row, ts, bits) in rows {
                let record = short(&[b'r', row], 1, ts, "value");
                let (key, value) = (record.key.to_vec(), record.value.to_vec());
                for (bit, object) in objects.iter_mut().enumerate() {
                    if bits >> bit & 1 == 1 {
                        object.insert(key.clone(), value.clone());
                    }
                }
                if (after == 0 || ts <= after) && ts >= before {
                    wanted.insert(key, value);
                }
            }
            let mut batch = request(&desk, "");
            for (number, object) in objects.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
                let name = format!("{number}.sst");
                desk.object(&name, &table_of(object));
                batch.ssts.insert(name, output(1));
            }
            batch.rewrite_rule = Some(RewriteRule {
                ignore_after_timestamp: after,
                ignore_before_timestamp: before,
                ..RewriteRule::default()
            });
            let answer = desk.service.batch_download(tonic::Request::new(batch)).await;
            let answer = answer.unwrap().into_inner();
            assert_eq!(answer.error, None);
            assert_eq!(answer.is_empty, wanted.is_empty());
            let [files, temp, parts] = desk.files();
            assert!(temp.is_empty() && parts.is_empty());
            if let Some(range) = answer.range {
                assert_eq!(records_of(&desk, &files[0]), wanted);
                let (first, last) = (wanted.keys().next(), wanted.keys().next_back());
                assert_eq!((&range.start[..], &range.end[..]), (&first.unwrap()[..], &last.unwrap()[..]));
            }
        });
    }
}
