//! Batches on disk come back as they were.

use pitr_format::{Cf, KvRecord, OpKind};

use super::*;

fn batch(seed: usize, records: usize) -> RecordBatch {
    let record = |n: usize| KvRecord {
        cf: if n.is_multiple_of(2) {
            Cf::Default
        } else {
            Cf::Write
        },
        op: if n.is_multiple_of(3) {
            OpKind::Delete
        } else {
            OpKind::Put
        },
        key: vec![seed as u8; n % 40].into(),
        value: vec![n as u8; (seed * n) % 5000].into(),
    };
    let records: Vec<_> = (0..records).map(record).collect();
    RecordBatch::of(&records).unwrap()
}

#[test]
fn batches_of_any_size_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 1 << 30).unwrap();
    let mut parking = Parking::new(Some(spill.clone()));
    let batches: Vec<_> = (0..60).map(|n| batch(n, n * 3)).collect();
    let parked: Vec<_> = batches.iter().map(|b| parking.park(b).unwrap()).collect();
    assert!(spill.used() > 1 << 20);
    for (parked, batch) in parked.into_iter().zip(&batches) {
        assert_eq!(&parked.read().unwrap(), batch);
    }
    drop(parking);
    assert_eq!(spill.used(), 0, "what was read gives its disk space back");
}

#[test]
fn without_a_directory_nothing_is_taken() {
    assert!(Parking::new(None).park(&batch(1, 5)).is_none());
}

#[test]
fn what_is_cut_is_found() {
    let mut bytes = Vec::new();
    encode(&batch(3, 5), &mut bytes);
    let len = bytes.len();
    let lot = Arc::new(Lot(Mutex::new(Place::Open(bytes))));
    let parts = [0..5, 0..len - 1, 0..len + 1, 1..len, 8..len, 0..len];
    for range in parts {
        let lot = lot.clone();
        let whole = range == (0..len);
        let found = Parked { lot, range }.read();
        assert_eq!(found.is_ok(), whole);
    }
}
