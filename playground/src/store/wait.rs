//! Who waits for which lock, so that a pessimistic lock request can wait instead of fail.
//!
//! A waiter registers under the store's write lock, right after it saw the lock; the removal of
//! a lock wakes under the same write lock. So no wake-up can be lost. Because the table knows
//! every waiting transaction of the (single) store, a cycle of waits is found at registration:
//! a transaction waits for at most a handful of keys, so following the edges is cheap.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::Ts;
use tokio::sync::oneshot;

/// One transaction waits for another on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// Start ts of the one that waits.
    pub waiter: Ts,
    /// Start ts of the one that holds the lock.
    pub holder: Ts,
    /// User key.
    pub key: Bytes,
}

/// All waits. Entries leave when woken or when the waiter drops its ticket.
#[derive(Default)]
pub(super) struct WaitTable {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    /// By encoded key, then by order of arrival.
    by_key: BTreeMap<Bytes, BTreeMap<u64, Waiter>>,
}

struct Waiter {
    wait: Wait,
    wake: oneshot::Sender<()>,
}

/// A place in the table.
pub(super) struct Ticket {
    encoded: Bytes,
    id: u64,
    woken: oneshot::Receiver<()>,
}

impl WaitTable {
    /// Registers a wait, or reports the cycle that it would close: the waits from the holder back
    /// to the waiter, in order.
    pub fn register(&self, encoded: Bytes, wait: Wait) -> Result<Ticket, Vec<Wait>> {
        let mut inner = self.inner.lock();
        if let Some(cycle) = inner.path(wait.holder, wait.waiter) {
            return Err(cycle);
        }
        let (wake, woken) = oneshot::channel();
        inner.next_id += 1;
        let id = inner.next_id;
        inner
            .by_key
            .entry(encoded.clone())
            .or_default()
            .insert(id, Waiter { wait, wake });
        Ok(Ticket { encoded, id, woken })
    }

    /// The lock on an encoded key is gone.
    pub fn wake(&self, encoded: &[u8]) {
        let entries = self.inner.lock().by_key.remove(encoded);
        for entry in entries.unwrap_or_default().into_values() {
            // The waiter may have given up in this moment.
            let _ = entry.wake.send(());
        }
    }

    /// Everybody has to look again.
    pub fn wake_all(&self) {
        let all = std::mem::take(&mut self.inner.lock().by_key);
        for entry in all.into_values().flat_map(BTreeMap::into_values) {
            let _ = entry.wake.send(());
        }
    }

    /// Waits until woken or until the time is over (false), then leaves the table.
    pub async fn wait(&self, ticket: Ticket, timeout: std::time::Duration) -> bool {
        let place = Place {
            table: self,
            encoded: ticket.encoded,
            id: ticket.id,
        };
        let woken = tokio::time::timeout(timeout, ticket.woken).await;
        drop(place);
        woken.is_ok()
    }
}

/// Gives the place back also when the waiting future is dropped (a client that went away).
struct Place<'a> {
    table: &'a WaitTable,
    encoded: Bytes,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.table.inner.lock();
        if let Some(entries) = inner.by_key.get_mut(&self.encoded) {
            entries.remove(&self.id);
            if entries.is_empty() {
                inner.by_key.remove(&self.encoded);
            }
        }
    }
}

impl Inner {
    /// The waits that lead from one transaction to another, if any do.
    fn path(&self, from: Ts, to: Ts) -> Option<Vec<Wait>> {
        let mut reached: BTreeMap<Ts, Option<Wait>> = BTreeMap::from([(from, None)]);
        let mut todo = vec![from];
        while let Some(at) = todo.pop() {
            if at == to {
                break;
            }
            let entries = self.by_key.values().flat_map(|e| e.values());
            for wait in entries.map(|e| &e.wait).filter(|w| w.waiter == at) {
                if let Entry::Vacant(place) = reached.entry(wait.holder) {
                    place.insert(Some(wait.clone()));
                    todo.push(wait.holder);
                }
            }
        }
        let mut chain = Vec::new();
        let mut at = to;
        while at != from {
            let wait = reached.get(&at)?.clone()?;
            at = wait.waiter;
            chain.push(wait);
        }
        chain.reverse();
        Some(chain)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wait(waiter: u64, holder: u64, key: &'static str) -> Wait {
        Wait {
            waiter: Ts::new(waiter),
            holder: Ts::new(holder),
            key: key.into(),
        }
    }

    #[tokio::test]
    async fn a_removed_lock_wakes_all_who_wait_for_it_and_nobody_else() {
        let table = WaitTable::default();
        let first = table.register("a".into(), wait(2, 1, "a")).unwrap();
        let second = table.register("a".into(), wait(3, 1, "a")).unwrap();
        let other = table.register("b".into(), wait(4, 1, "b")).unwrap();
        table.wake(b"a");
        let short = Duration::from_millis(20);
        assert!(table.wait(first, short).await);
        assert!(table.wait(second, short).await);
        assert!(!table.wait(other, short).await);
        assert!(table.inner.lock().by_key.is_empty(), "everyone left");
    }

    #[tokio::test]
    async fn a_wait_that_would_close_a_cycle_is_refused_with_the_cycle() {
        let table = WaitTable::default();
        let _second = table.register("b".into(), wait(2, 3, "b")).unwrap();
        let _third = table.register("c".into(), wait(3, 1, "c")).unwrap();
        let cycle = table.register("a".into(), wait(1, 2, "a")).err().unwrap();
        assert_eq!(cycle, [wait(2, 3, "b"), wait(3, 1, "c")]);
        assert!(table.register("d".into(), wait(4, 2, "d")).is_ok());
    }
}
