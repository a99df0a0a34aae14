//! Flushes that somebody asked for, on their way to the sessions that make them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Orders that wait at one task; one flush answers all of them.
const WAITING: usize = 64;

/// Asks for a flush; the answer is what came of it.
pub type FlushOrder = oneshot::Sender<Result<(), String>>;

/// The tasks that are loaded.
#[derive(Debug, Default)]
pub struct FlushOrders(Mutex<BTreeMap<String, mpsc::Sender<FlushOrder>>>);

impl FlushOrders {
    /// A task is loaded; who runs it answers what comes here.
    pub fn open(&self, task: &str) -> mpsc::Receiver<FlushOrder> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.0.lock().insert(task.to_owned(), sender);
        receiver
    }

    /// A task is unloaded.
    pub fn close(&self, task: &str) {
        self.0.lock().remove(task);
    }

    /// Flushes every loaded task and says what came of each.
    pub async fn flush_all(&self) -> Vec<(String, Result<(), String>)> {
        let tasks = self.0.lock().clone();
        let mut waiting = Vec::with_capacity(tasks.len());
        for (task, orders) in tasks {
            let (order, answer) = oneshot::channel();
            let placed = orders.try_send(order).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => "too many flushes are asked for at once",
                mpsc::error::TrySendError::Closed(_) => "the task is being unloaded",
            });
            waiting.push((task, placed.map(|()| answer)));
        }
        let mut results = Vec::with_capacity(waiting.len());
        for (task, placed) in waiting {
            let result = match placed {
                Ok(answer) => answer
                    .await
                    .unwrap_or_else(|_| Err("the task was unloaded before the flush".to_owned())),
                Err(why) => Err(why.to_owned()),
            };
            results.push((task, result));
        }
        results
    }
}

/// Answers every order that waits.
pub fn answer_all(
    orders: &mut mpsc::Receiver<FlushOrder>,
    first: FlushOrder,
    result: Result<(), String>,
) {
    let mut next = Some(first);
    while let Some(order) = next {
        // Who asked may be gone.
        let _ = order.send(result.clone());
        next = orders.try_recv().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_task_nothing_is_flushed_and_the_list_is_empty() {
        let orders = FlushOrders::default();
        assert_eq!(orders.flush_all().await, []);
        drop(orders.open("t"));
        orders.close("t");
        assert_eq!(orders.flush_all().await, []);
    }

    #[tokio::test]
    async fn one_flush_answers_all_who_wait_with_what_came_of_it() {
        let orders = FlushOrders::default();
        let mut inbox = orders.open("t");
        let (first, second, ()) = tokio::join!(orders.flush_all(), orders.flush_all(), async {
            let order = inbox.recv().await.unwrap();
            // Both have placed theirs: they were polled first.
            answer_all(&mut inbox, order, Err("the bucket is full".to_owned()));
        });
        let expect = [("t".to_owned(), Err("the bucket is full".to_owned()))];
        assert_eq!((first, second), (expect.to_vec(), expect.to_vec()));
    }

    #[tokio::test]
    async fn a_task_that_goes_away_fails_its_order_and_no_other() {
        let orders = FlushOrders::default();
        let (gone, mut stays) = (orders.open("a"), orders.open("b"));
        drop(gone);
        let (results, ()) = tokio::join!(orders.flush_all(), async {
            let order = stays.recv().await.unwrap();
            answer_all(&mut stays, order, Ok(()));
        });
        assert_eq!(results[0].1, Err("the task is being unloaded".to_owned()));
        assert_eq!(results[1], ("b".to_owned(), Ok(())));
    }
}
