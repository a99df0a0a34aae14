//! The sorter against a sorted set, and its positions.

use std::collections::BTreeSet;

use pitr_budget::MemoryBudget;
use proptest::prelude::*;

use super::*;

fn sorter(dir: &Path, memory: usize, fan_in: usize) -> Sorter {
    let floor = MemoryBudget::new(u64::MAX).nothing();
    Sorter::new(dir, "test", SortOptions { memory, fan_in }, floor)
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: Vec<u8>,
    tag: Tag,
    value: Vec<u8>,
}

fn rest(mut stream: MergeStream<'_>) -> (Vec<Entry>, Duplicates) {
    let mut out = Vec::new();
    while let Some(EntryRef { key, tag, value }) = stream.peek() {
        out.push(Entry {
            key: key.to_vec(),
            tag,
            value: value.to_vec(),
        });
        stream.advance().unwrap();
    }
    (out, stream.duplicates())
}

fn all(sorted: &Sorted) -> (Vec<Entry>, Duplicates) {
    let (out, between_runs) = rest(sorted.stream().unwrap());
    let mut duplicates = sorted.duplicates();
    duplicates.add(between_runs);
    (out, duplicates)
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let tag = prop_oneof![Just(Tag::Reference), Just(Tag::Value)];
    let key = prop_oneof![
        prop::collection::vec(0u8..3, 0..4),
        // Behind a common prefix, around the 8 bytes that are compared first.
        prop::collection::vec(0u8..2, 0..12).prop_map(|rest| [&b"same"[..], &rest].concat()),
    ];
    let value = prop::collection::vec(any::<u8>(), 0..3);
    let entry = (key, tag, value).prop_map(|(key, tag, value)| Entry { key, tag, value });
    prop::collection::vec(entry, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A memory bound of 1 byte spills every entry, so all of spill, merge passes and the final
    /// merge run; a large one keeps the buffer in memory.
    #[test]
    fn the_stream_is_the_sorted_set_of_what_went_in(
        input in entries(),
        spills in any::<bool>(),
        fan_in in 2usize..6,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = sorter(dir.path(), if spills { 1 } else { 1 << 30 }, fan_in);
        for e in &input {
            sorter.push(&e.key, e.tag, &e.value).unwrap();
        }
        let sorted = sorter.finish().unwrap();
        let (out, duplicates) = all(&sorted);
        let model: Vec<Entry> = input.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        prop_assert_eq!(&out, &model);
        let of = |tag| input.iter().filter(|e| e.tag == tag).count() as u64
            - model.iter().filter(|e| e.tag == tag).count() as u64;
        prop_assert_eq!(duplicates.references, of(Tag::Reference));
        prop_assert_eq!(duplicates.values, of(Tag::Value));
    }

    #[test]
    fn a_stream_continues_from_any_position(input in entries(), spills in any::<bool>(), at in 0usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = sorter(dir.path(), if spills { 300 } else { 1 << 30 }, 64);
        for e in &input {
            sorter.push(&e.key, e.tag, &e.value).unwrap();
        }
        let sorted = sorter.finish().unwrap();
        let (out, _) = all(&sorted);
        let at = at.min(out.len());
        let mut stream = sorted.stream().unwrap();
        for _ in 0..at {
            stream.advance().unwrap();
        }
        let (again, _) = rest(sorted.stream_from(&stream.position()).unwrap());
        prop_assert_eq!(&again[..], &out[at..]);
    }
}

#[test]
fn merge_passes_remove_the_runs_they_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut sorter = sorter(dir.path(), 1, 4);
    for i in 0..50u32 {
        sorter.push(&i.to_be_bytes(), Tag::Value, b"v").unwrap();
    }
    let sorted = sorter.finish().unwrap();
    assert!(std::fs::read_dir(dir.path()).unwrap().count() <= 4);
    assert_eq!(all(&sorted).0.len(), 50);
}

#[test]
fn a_run_that_was_cut_is_an_error_not_an_early_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut sorter = sorter(dir.path(), 1, 4);
    sorter.push(b"key", Tag::Value, b"value").unwrap();
    sorter.push(b"later", Tag::Value, b"value").unwrap();
    let sorted = sorter.finish().unwrap();
    let path = dir.path().join("test-0.run");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = sorted.stream().err().unwrap();
    assert!(error.to_string().contains("test-0.run"), "{error}");
}

#[test]
fn entries_in_memory_are_reserved_until_the_run_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let budget = MemoryBudget::new(64 << 20);
    let mut sorter = Sorter::new(dir.path(), "test", SortOptions::default(), budget.nothing());
    for i in 0..30u32 {
        let value = vec![7; 100 << 10];
        sorter.push(&i.to_be_bytes(), Tag::Value, &value).unwrap();
    }
    assert!(budget.used() >= 3 << 20, "{}", budget.used());
    let sorted = sorter.finish().unwrap();
    assert!(budget.used() >= 3 << 20, "{}", budget.used());
    assert_eq!(all(&sorted).0.len(), 30);
    drop(sorted);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_sorter_works_on_with_its_floor_when_others_hold_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let budget = MemoryBudget::new(8 << 20);
    let floor = budget.try_reserve(FLOOR).unwrap();
    let mut sorter = Sorter::new(dir.path(), "test", SortOptions::default(), floor);
    let value = vec![7; 900 << 10];
    for i in 0..3u8 {
        sorter.push(&[i], Tag::Value, &value).unwrap();
    }
    let _others = budget.try_reserve((8 << 20) - budget.used()).unwrap();
    for i in 3..9u8 {
        sorter.push(&[i], Tag::Value, &value).unwrap();
    }
    let larger_than_the_floor = vec![8; FLOOR as usize];
    sorter
        .push(&[9], Tag::Value, &larger_than_the_floor)
        .unwrap();
    sorter.push(&[10], Tag::Value, &value).unwrap();
    assert_eq!(budget.peak(), 8 << 20, "never more than there is");
    assert_eq!(all(&sorter.finish().unwrap()).0.len(), 11);
}
