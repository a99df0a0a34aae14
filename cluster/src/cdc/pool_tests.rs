//! What the pool promises about memory.

use super::*;

fn keep(pool: &mut Pool, keys: usize, values: usize) -> Result<Arc<Block>, NoRoom> {
    let (mut of_key, mut of_value) = (Layout::default(), Layout::default());
    of_key.place(keys);
    of_value.place(values);
    pool.keep(of_key, of_value, |to_keys, to_values| {
        to_keys.resize(keys, 1);
        to_values.resize(values, 2);
    })
}

fn pool(budget: &Arc<MemoryBudget>, limit: u64) -> Pool {
    Pool::new(budget.clone(), None, limit)
}

#[test]
fn what_is_kept_is_reserved_until_the_last_user_of_its_bytes_is_gone() {
    let budget = MemoryBudget::new(1 << 20);
    let mut pool = pool(&budget, 1 << 20);
    let block = keep(&mut pool, 100, 5000).unwrap();
    assert!(budget.used() >= 5100);
    let whole = Span { at: 0, len: 5000 };
    let value = pool.value(&block, whole, &mut Vec::new()).unwrap().unwrap();
    drop(block);
    assert_eq!((budget.used(), pool.bytes()), (5000, 5000));
    drop(value);
    assert_eq!((budget.used(), pool.bytes()), (0, 0));
}

#[test]
fn the_share_and_the_budget_both_refuse() {
    let budget = MemoryBudget::new(100_000);
    let mut pool = pool(&budget, 10_000);
    let kept = keep(&mut pool, 10, 6000).unwrap();
    assert!(keep(&mut pool, 10, 6000).is_err(), "the share");
    drop(kept);
    let others = budget.try_reserve(95_000).unwrap();
    let refused = keep(&mut pool, 10, 6000).unwrap_err();
    assert!(refused.to_string().contains("budget"), "{refused}");
    assert_eq!(budget.used(), 95_000, "a refusal leaves nothing reserved");
    drop(others);
    assert!(
        keep(&mut pool, 10, 60_000).is_ok(),
        "one of any size if nothing else is kept"
    );
}

#[test]
fn dead_candidates_do_not_pile_up_behind_one_that_lives_long() {
    let dir = tempfile::tempdir().unwrap();
    let spill = SpillDir::open(dir.path(), 1 << 20).unwrap();
    let budget = MemoryBudget::new(1 << 30);
    let mut pool = Pool::new(budget, Some(spill), 1 << 30);
    let long_lived = keep(&mut pool, 10, 500).unwrap();
    for _ in 0..100_000 {
        drop(keep(&mut pool, 10, 500).unwrap());
    }
    assert!(pool.candidates.len() <= SWEEP);
    drop(long_lived);
}
