//! Whatever happens to the slices of a shard on their way, the same records come out, and they are
//! described in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_format::record::RecordIter;
use pitr_format::slice::{SliceBuilder, SliceId, verify_slice};
use pitr_format::{Cf, EncodedKey, KvRecord, OpKind, RecordBatch, Ts};
use pitr_proto::backup::DataFileInfo;
use prometheus::IntGauge;
use proptest::prelude::*;

use super::{Closed, Place, StoredSlice, Tools};
use crate::pressure::Pressure;
use crate::slices::{CLOSE_AT, CLOSE_SHORT_AT, OpenSlices};

#[derive(Clone, Debug)]
enum Op {
    /// A record of this region with a value of this size.
    Append(u64, usize),
    /// Memory is short: the larger half is closed.
    CloseHalf,
    /// Closed slices are compressed.
    Store,
    /// Something else takes the memory: all that is stored must go to disk.
    Spill,
    /// A generation ends.
    Seal,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (0u64..4, 0usize..400).prop_map(|(region, size)| Op::Append(region, size)),
        10 => (0u64..2, 20_000usize..200_000).prop_map(|(region, size)| Op::Append(region, size)),
        2 => Just(Op::CloseHalf),
        2 => Just(Op::Store),
        2 => Just(Op::Spill),
        1 => Just(Op::Seal),
    ]
}

fn record(n: usize, size: usize) -> KvRecord {
    let value: Vec<u8> = (0..size).map(|at| (at / 7 * (n + 3)) as u8).collect();
    KvRecord {
        cf: Cf::Default,
        op: OpKind::Put,
        key: EncodedKey::encode(&(n as u64 * 7919 % 1000).to_be_bytes())
            .at(Ts::new(n as u64 + 1))
            .into_bytes(),
        value: value.into(),
    }
}

/// What is known of all records of one key together.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    count: i64,
    crc64xor: u64,
    length: u64,
    ts: Option<(u64, u64)>,
    keys: Option<(Bytes, Bytes)>,
    min_begin_ts: Option<u64>,
    resolved: u64,
}

impl Sum {
    fn add(&mut self, info: &DataFileInfo, stored: &[u8]) {
        assert_eq!(info.range_length, stored.len() as u64);
        let plain = verify_slice(info, stored, 1 << 30).unwrap();
        for record in RecordIter::new(&plain) {
            let (key, value) = record.unwrap();
            self.records.push((key.to_vec(), value.to_vec()));
        }
        self.count += info.number_of_entries;
        self.crc64xor ^= info.crc64xor;
        self.length += info.length;
        let (min, max) = self.ts.unwrap_or((u64::MAX, 0));
        self.ts = Some((min.min(info.min_ts), max.max(info.max_ts)));
        let (first, last) = (info.start_key.clone(), info.end_key.clone());
        let (first, last) = match self.keys.take() {
            Some((a, b)) => (a.min(first), b.max(last)),
            None => (first, last),
        };
        self.keys = Some((first, last));
        let begin = info.min_begin_ts_in_default_cf;
        self.min_begin_ts = Some(self.min_begin_ts.map_or(begin, |min| min.min(begin)));
        self.resolved = self.resolved.max(info.resolved_ts);
    }
}

fn stored_bytes(slice: &StoredSlice) -> (Vec<u8>, bool) {
    match slice.body.place() {
        Place::Memory(pieces) => (pieces.pieces.concat(), false),
        Place::Disk(extent) => (extent.read().unwrap().to_vec(), true),
    }
}

fn sums(slices: &[StoredSlice]) -> (BTreeMap<SliceId, Sum>, usize) {
    let mut sums = BTreeMap::<SliceId, Sum>::new();
    let mut on_disk = 0;
    for slice in slices {
        let (bytes, spilled) = stored_bytes(slice);
        on_disk += usize::from(spilled);
        sums.entry(slice.id).or_default().add(&slice.info, &bytes);
    }
    (sums, on_disk)
}

/// The shard with everything around it, on one thread.
struct Shard {
    budget: Arc<MemoryBudget>,
    tools: Tools,
    pressure: Pressure,
    open: OpenSlices,
    stored: Vec<StoredSlice>,
}

impl Shard {
    fn store(&mut self, closed: Closed) {
        let slice = closed.store(&mut self.tools).unwrap();
        self.pressure.stored(&slice.body);
        self.stored.push(slice);
    }

    fn store_closed(&mut self) {
        let closed: Vec<_> = self.open.take_closed().collect();
        for (slice, bytes) in closed {
            let held = self.budget.try_reserve(bytes);
            self.store(Closed { slice, held });
        }
    }

    fn spill(&self) {
        let rest = self.budget.limit() - self.budget.used();
        let _others = self.budget.try_reserve(rest);
        self.pressure.relieve();
    }

    /// Ends a generation; what it holds, oldest first.
    fn seal(&mut self) -> Vec<StoredSlice> {
        for (slice, bytes) in self.open.seal().into_slices() {
            let held = self.budget.try_reserve(bytes);
            self.store(Closed { slice, held });
        }
        std::mem::take(&mut self.stored)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn closing_and_spilling_change_nothing_of_the_records(
        ops in proptest::collection::vec(op(), 1..120),
        short in any::<bool>(),
        quota in prop_oneof![Just(0u64), Just(300_000), Just(1 << 30)],
    ) {
        let temp = tempfile::tempdir().unwrap();
        let dir = SpillDir::open(temp.path(), quota).unwrap();
        let budget = MemoryBudget::new(64 << 20);
        let gauge = IntGauge::new("disk", "disk").unwrap();
        let mut shard = Shard {
            tools: Tools::new(Arc::clone(&budget)),
            pressure: Pressure::new(Arc::clone(&budget), Some(Arc::clone(&dir)), gauge),
            budget,
            open: OpenSlices::new(1 << 20),
            stored: Vec::new(),
        };
        let mut simple = BTreeMap::<SliceId, SliceBuilder>::new();
        let ops = ops.into_iter().chain([Op::Seal]).enumerate();
        for (n, op) in ops {
            match op {
                Op::Append(region_id, size) => {
                    let record = record(n, size);
                    let resolved = Ts::new(n as u64 / 2);
                    let close_at = if short { CLOSE_SHORT_AT } else { CLOSE_AT };
                    shard.open.append(region_id, resolved, RecordBatch::of([&record]).unwrap().iter().next().unwrap(), close_at).unwrap();
                    let id = SliceId {
                        table_id: 0,
                        region_id,
                        cf: record.cf,
                        op: record.op,
                        is_meta: false,
                    };
                    let slice = simple.entry(id).or_insert_with(|| SliceBuilder::new(id));
                    slice.append(RecordBatch::of([&record]).unwrap().iter().next().unwrap()).unwrap();
                    slice.note_resolved(resolved);
                }
                Op::CloseHalf => shard.open.close_larger_half(),
                Op::Store => shard.store_closed(),
                Op::Spill => shard.spill(),
                Op::Seal => {
                    let slices = shard.seal();
                    shard.spill();
                    let (found, on_disk) = sums(&slices);
                    let expect: BTreeMap<_, _> = std::mem::take(&mut simple)
                        .into_iter()
                        .map(|(id, slice)| {
                            let (sealed, mut sum) = (slice.seal().unwrap(), Sum::default());
                            sum.add(&sealed.info, &sealed.stored);
                            (id, sum)
                        })
                        .collect();
                    prop_assert_eq!(found, expect);
                    prop_assert!(quota < 1 << 20 || on_disk == slices.len());
                    prop_assert!(dir.used() <= quota);
                }
            }
        }
        shard.tools.rest();
        prop_assert_eq!(shard.budget.used(), 0);
        shard.pressure.next_file();
        prop_assert_eq!(dir.used(), 0);
    }
}

#[test]
fn what_is_being_uploaded_stays_in_memory() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path(), 1 << 20).unwrap();
    let mut open = OpenSlices::new(1 << 20);
    open.append(
        1,
        Ts::ZERO,
        RecordBatch::of([&record(1, 10)])
            .unwrap()
            .iter()
            .next()
            .unwrap(),
        CLOSE_AT,
    )
    .unwrap();
    let (slice, _) = open.seal().into_slices().next().unwrap();
    let closed = Closed { slice, held: None };
    let slice = closed.store(&mut Tools::unlimited()).unwrap();
    let mut file = dir.create().unwrap();
    let reader = slice.body.place();
    assert_eq!(slice.body.spill(&mut file).unwrap(), 0);
    assert!(slice.body.in_memory());
    drop(reader);
    assert_eq!(
        slice.body.spill(&mut file).unwrap(),
        slice.info.range_length
    );
    assert!(!slice.body.in_memory());
    assert_eq!(
        slice.body.spill(&mut file).unwrap(),
        0,
        "it is there already"
    );
    assert_eq!(dir.used(), slice.info.range_length);
}
