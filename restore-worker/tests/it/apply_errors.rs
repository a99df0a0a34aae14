//! Everything that can be wrong with an `Apply`, one thing at a time: the answer names it in words
//! that BR and our driver understand, and nothing reaches the engine.

use std::sync::Arc;

use aes::{Aes128, Aes192, Aes256};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use pitr_budget::MemoryBudget;
use pitr_proto::backup::CipherInfo;
use pitr_proto::encryptionpb::file_encryption_info::Mode;
use pitr_proto::encryptionpb::{FileEncryptionInfo, PlainTextDataKey};
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::{ApplyRequest, KvMeta};
use pitr_restore_worker::service::ImportLimits;
use sha2::{Digest, Sha256};

use super::desk::{Desk, epoch_not_match, sealed};
use super::synthetic::short;

fn records() -> Vec<pitr_format::KvRecord> {
    (0..50u8)
        .map(|i| short(&[b'k', i], 1, 10, "some value that repeats"))
        .collect()
}

/// A desk with one good slice.
fn desk() -> (Desk, KvMeta) {
    let desk = Desk::new();
    let meta = desk.slice("good.log", &records());
    (desk, meta)
}

/// The refusal of a request that must not change anything.
async fn refusal(desk: &Desk, metas: &[KvMeta]) -> String {
    let error = desk.apply(metas).await.unwrap_err();
    assert!(
        desk.host.engine.records().is_empty(),
        "nothing is written: {error}"
    );
    assert!(desk.host.writes.lock().is_empty());
    error
}

#[tokio::test]
async fn the_object_and_its_storage_are_named_when_it_cannot_be_read() {
    let (desk, good) = desk();
    let missing = KvMeta {
        name: "v1/absent.log".to_owned(),
        ..good.clone()
    };
    let whole = KvMeta {
        range_length: 0,
        ..missing.clone()
    };
    for missing in [missing, whole] {
        let error = refusal(&desk, &[good.clone(), missing]).await;
        assert!(error.starts_with("Cannot read local://"), "{error}");
        assert!(
            error.contains("storage/v1/absent.log into memory: "),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_object_that_ends_inside_of_the_slice_is_refused_wherever_it_ends() {
    let (desk, good) = desk();
    let object = desk.read_object("good.log");
    let end = 6 + good.range_length as usize;
    for len in [0, 3, 6, 7, end / 2, end - 1] {
        desk.object("good.log", &object[..len]);
        let error = refusal(&desk, std::slice::from_ref(&good)).await;
        assert!(error.starts_with("Cannot read"), "{len}: {error}");
    }
    desk.object("good.log", &object[..end]);
    assert!(desk.apply(&[good]).await.is_ok());
}

#[tokio::test]
async fn a_compressed_slice_that_was_cut_or_is_longer_than_it_says_is_refused() {
    let (desk, good) = desk();
    assert_eq!(good.compression_type, 3, "zstd");
    type Edit = fn(&mut KvMeta);
    let edits: [(Edit, &str); 7] = [
        (|m| m.range_length -= 1, "the end of the stream"),
        (|m| m.range_length += 6, "bytes behind it"),
        (|m| m.range_offset += 1, "the beginning of the stream"),
        (|m| m.length -= 1, "more plaintext than said"),
        (|m| m.length += 1, "less plaintext than said"),
        (|m| m.length = 1 << 20, "much less plaintext than said"),
        (|m| m.compression_type = 0, "taken as it is stored"),
    ];
    for (edit, what) in edits {
        let mut meta = good.clone();
        edit(&mut meta);
        let error = refusal(&desk, &[meta]).await;
        assert!(error.starts_with("Cannot read"), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_stream_that_expands_beyond_what_was_announced_is_not_expanded() {
    let budget = MemoryBudget::new(8 << 20);
    let desk = Desk::with(Arc::clone(&budget), ImportLimits::default());
    let bomb = zstd::encode_all(&vec![0; 256 << 20][..], 1).unwrap();
    desk.object("bomb.log", &bomb);
    let meta = KvMeta {
        name: "bomb.log".to_owned(),
        length: 1_000,
        cf: "write".to_owned(),
        compression_type: 3,
        restore_ts: u64::MAX,
        ..KvMeta::default()
    };
    let error = refusal(&desk, std::slice::from_ref(&meta)).await;
    assert!(error.starts_with("Cannot read"), "{error}");
    assert!(budget.peak() < 4 << 20, "{}", budget.peak());
    let without_length = KvMeta { length: 0, ..meta };
    let error = refusal(&desk, &[without_length]).await;
    assert_eq!(error, "bad format a compressed slice without its length");
}

#[tokio::test]
async fn a_digest_that_differs_names_both() {
    let (desk, good) = desk();
    let wrong = KvMeta {
        sha256: vec![0xAB; 32].into(),
        ..good.clone()
    };
    let error = refusal(&desk, &[wrong]).await;
    let words = format!(
        "plaintext file checksums do not match, expect: {}, calculate: {}",
        "ab".repeat(32),
        hex::encode(&good.sha256)
    );
    assert!(error.ends_with(&words), "{error}");
    let short_digest = KvMeta {
        sha256: good.sha256.slice(..31),
        ..good
    };
    refusal(&desk, &[short_digest]).await;
}

#[tokio::test]
async fn events_that_are_cut_or_malformed_are_refused_and_never_a_panic() {
    let desk = Desk::new();
    let whole = sealed(&records()[..1]);
    let plain = zstd::decode_all(&whole.stored[..]).unwrap();
    let meta = |bytes: &[u8]| {
        desk.object("a.log", bytes);
        KvMeta {
            name: "a.log".to_owned(),
            length: bytes.len() as u64,
            cf: "write".to_owned(),
            restore_ts: u64::MAX,
            ..KvMeta::default()
        }
    };
    for len in 1..plain.len() {
        let error = refusal(&desk, &[meta(&plain[..len])]).await;
        assert!(error.starts_with("Cannot read"), "{len}: {error}");
    }
    let mut huge_key = plain.clone();
    huge_key[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let keys_without_ts = [1u8, 0, 0, 0, b'k', 0, 0, 0, 0];
    for bytes in [&huge_key[..], &keys_without_ts] {
        let error = desk.apply(&[meta(bytes)]).await.unwrap_err();
        assert!(error.starts_with("Cannot read"), "{error}");
    }
    assert!(desk.host.engine.records().is_empty());
    assert!(desk.apply(&[meta(&plain)]).await.is_ok());
}

#[tokio::test]
async fn one_bad_slice_among_good_ones_keeps_all_of_them_out() {
    let (desk, good) = desk();
    type Edit = fn(&mut KvMeta);
    let edits: [Edit; 4] = [
        |m| m.sha256 = vec![1; 32].into(),
        |m| m.name = "absent".to_owned(),
        |m| m.cf = "lock".to_owned(),
        |m| m.compression_type = 2,
    ];
    for edit in edits {
        for place in 0..3 {
            let mut metas = vec![good.clone(); 3];
            edit(&mut metas[place]);
            refusal(&desk, &metas).await;
        }
    }
}

#[tokio::test]
async fn compressions_that_tikv_does_not_read_are_refused_in_its_words() {
    let (desk, good) = desk();
    for (compression_type, name) in [(1, "Lz4"), (2, "Snappy"), (99, "99")] {
        let meta = KvMeta {
            compression_type,
            ..good.clone()
        };
        let words = format!("the compression type is unimplemented, compression type id {name}");
        assert_eq!(refusal(&desk, &[meta]).await, words);
    }
}

#[tokio::test]
async fn the_region_is_asked_before_an_object_is_read_and_its_answer_is_passed_on() {
    let desk = Desk::new();
    let absent = KvMeta {
        name: "absent".to_owned(),
        cf: "write".to_owned(),
        ..KvMeta::default()
    };
    let not_leader = errorpb::Error {
        message: "peer is not leader".to_owned(),
        not_leader: Some(errorpb::NotLeader {
            region_id: 4,
            leader: None,
        }),
        ..errorpb::Error::default()
    };
    let not_found = errorpb::Error {
        message: "region 4 not found".to_owned(),
        region_not_found: Some(errorpb::RegionNotFound { region_id: 4 }),
        ..errorpb::Error::default()
    };
    for region_error in [not_leader, not_found, epoch_not_match()] {
        *desk.host.refusal.lock() = Some(region_error.clone());
        let error = desk
            .send(desk.request(std::slice::from_ref(&absent)))
            .await
            .error
            .unwrap();
        let words = format!("failed to complete raft command: {}", region_error.message);
        assert_eq!(error.message, words);
        assert_eq!(error.store_error, Some(region_error));
    }
    assert_eq!(desk.threads.done(), 0, "nothing was read");
}

#[tokio::test]
async fn a_request_for_another_store_is_told_which_store_this_is() {
    let (desk, good) = desk();
    let mut request = desk.request(&[good]);
    request
        .context
        .as_mut()
        .unwrap()
        .peer
        .as_mut()
        .unwrap()
        .store_id = 9;
    let error = desk.send(request).await.error.unwrap().store_error.unwrap();
    let told = error.store_not_match.unwrap();
    assert_eq!((told.request_store_id, told.actual_store_id), (9, 1));
}

#[tokio::test]
async fn a_failure_that_no_repetition_mends_has_no_store_error() {
    let (desk, good) = desk();
    let mut metas = [good.clone(), good.clone(), good];
    metas[0].name = "absent".to_owned();
    metas[1].sha256 = vec![1; 32].into();
    metas[2].cf = "raft".to_owned();
    for meta in metas {
        let error = desk.send(desk.request(&[meta])).await.error.unwrap();
        assert_eq!(error.store_error, None, "{}", error.message);
    }
}

#[tokio::test]
async fn a_request_without_memory_gets_the_text_on_which_br_waits_and_later_succeeds() {
    let budget = MemoryBudget::new(1 << 20);
    let desk = Desk::with(Arc::clone(&budget), ImportLimits::default());
    let meta = desk.slice("a", &records());
    let others = budget.try_reserve(1 << 20).unwrap();
    for _ in 0..3 {
        let error = desk
            .send(desk.request(std::slice::from_ref(&meta)))
            .await
            .error
            .unwrap();
        assert_eq!(error.message, "resource is not enough memory is limited");
        let store_error = error.store_error.unwrap();
        assert_eq!(store_error.message, "memory is limited");
        let busy = store_error.server_is_busy.unwrap();
        assert!(busy.backoff_ms > 0);
        assert_eq!(budget.used(), 1 << 20, "a refusal holds nothing");
    }
    drop(others);
    desk.apply(&[meta]).await.unwrap();
    assert!(budget.peak() <= 1 << 20);
}

#[tokio::test]
async fn a_failed_request_holds_no_memory_afterwards() {
    let (desk, good) = desk();
    let missing = KvMeta {
        name: "absent".to_owned(),
        ..good.clone()
    };
    let lies = KvMeta {
        sha256: vec![1; 32].into(),
        ..good.clone()
    };
    for bad in [missing, lies] {
        refusal(&desk, &[bad]).await;
        assert_eq!(desk.budget.used(), 0);
    }
    desk.apply(&[good]).await.unwrap();
    let cached = desk.budget.used();
    assert!(
        0 < cached && cached < 1 << 20,
        "the slice stays for other regions: {cached}"
    );
}

const IV: [u8; 16] = [9; 16];

fn encrypt<C: KeyIvInit + StreamCipher>(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    C::new_from_slices(key, &IV)
        .unwrap()
        .apply_keystream(&mut out);
    out
}

/// The good slice encrypted, and a request with `key` for it.
fn encrypted(desk: &Desk, method: i32, key: &[u8], asked_with: &[u8]) -> ApplyRequest {
    let sealed = sealed(&records());
    let stored = match method {
        2 => encrypt::<Ctr128BE<Aes128>>(key, &sealed.stored),
        3 => encrypt::<Ctr128BE<Aes192>>(key, &sealed.stored),
        _ => encrypt::<Ctr128BE<Aes256>>(key, &sealed.stored),
    };
    desk.object("secret.log", &stored);
    let mut request = desk.request(&[KvMeta {
        name: "secret.log".to_owned(),
        length: sealed.info.length,
        range_length: stored.len() as u64,
        cf: "write".to_owned(),
        compression_type: 3,
        restore_ts: u64::MAX,
        sha256: sealed.info.sha256,
        file_encryption_info: Some(FileEncryptionInfo {
            mode: Some(Mode::PlainTextDataKey(PlainTextDataKey::default())),
            file_iv: IV.to_vec().into(),
            checksum: Sha256::digest(&stored).to_vec().into(),
            ..FileEncryptionInfo::default()
        }),
        ..KvMeta::default()
    }]);
    request.cipher_info = Some(CipherInfo {
        cipher_type: method,
        cipher_key: asked_with.to_vec().into(),
    });
    request
}

#[tokio::test]
async fn an_encrypted_slice_needs_its_key_and_with_another_one_nothing_is_written() {
    for (method, len) in [(2, 16), (3, 24), (4, 32)] {
        let (key, wrong) = (vec![5; len], vec![6; len]);
        let desk = Desk::new();
        let other_key = encrypted(&desk, method, &key, &wrong);
        let error = desk.send(other_key.clone()).await.error.unwrap().message;
        assert!(error.starts_with("Cannot read"), "{error}");
        let mut without_digests = other_key;
        without_digests.metas[0].sha256.clear();
        let info = without_digests.metas[0]
            .file_encryption_info
            .as_mut()
            .unwrap();
        info.checksum.clear();
        let error = desk.send(without_digests).await.error.unwrap().message;
        assert!(
            error.starts_with("Cannot read"),
            "noise is no zstd stream: {error}"
        );
        let mut other_iv = encrypted(&desk, method, &key, &key);
        let info = other_iv.metas[0].file_encryption_info.as_mut().unwrap();
        info.file_iv = vec![8; 16].into();
        let error = desk.send(other_iv).await.error.unwrap().message;
        assert!(error.starts_with("Cannot read"), "{error}");
        assert!(desk.host.engine.records().is_empty());

        let right = desk.send(encrypted(&desk, method, &key, &key)).await;
        assert_eq!(right.error, None);
        assert_eq!(desk.seen().len(), 50);
    }
}

#[tokio::test]
async fn the_digest_of_the_encrypted_bytes_is_compared_even_when_the_plaintext_is_right() {
    let desk = Desk::new();
    let mut request = encrypted(&desk, 4, &[5; 32], &[5; 32]);
    let info = request.metas[0].file_encryption_info.as_mut().unwrap();
    info.checksum = vec![1; 32].into();
    let error = desk.send(request).await.error.unwrap().message;
    assert!(
        error.contains("encrypted file checksums do not match"),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_that_is_missing_or_of_a_wrong_kind_is_refused_by_name_without_a_read() {
    let desk = Desk::new();
    type Edit = fn(&mut ApplyRequest);
    let edits: [(Edit, &str); 5] = [
        (|r| r.cipher_info = None, "no key"),
        (
            |r| r.cipher_info.as_mut().unwrap().cipher_type = 1,
            "no key",
        ),
        (
            |r| r.cipher_info.as_mut().unwrap().cipher_key.truncate(16),
            "16 bytes",
        ),
        (|r| r.cipher_info.as_mut().unwrap().cipher_type = 5, "SM4"),
        (
            |r| {
                let info = r.metas[0].file_encryption_info.as_mut().unwrap();
                info.mode = Some(Mode::MasterKeyBased(Default::default()));
            },
            "master key",
        ),
    ];
    for (edit, words) in edits {
        let mut request = encrypted(&desk, 4, &[5; 32], &[5; 32]);
        edit(&mut request);
        let error = desk.send(request).await.error.unwrap().message;
        assert!(
            error.starts_with("encryption: ") && error.contains(words),
            "{error}"
        );
    }
    assert_eq!(desk.threads.done(), 0);
}

#[tokio::test]
async fn a_key_without_a_timestamp_is_found_before_the_keys_in_front_of_it_are_written() {
    let limits = ImportLimits {
        write_bytes: 1,
        ..ImportLimits::default()
    };
    let desk = Desk::with(MemoryBudget::new(64 << 20), limits);
    let good = &records()[0];
    let events = [
        (good.key.to_vec(), good.value.to_vec()),
        (b"short".to_vec(), b"v".to_vec()),
    ];
    let error = refusal(&desk, &[desk.plain("a.log", "write", &events)]).await;
    assert!(error.starts_with("Cannot read"), "{error}");
}
