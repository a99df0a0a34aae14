//! Following the registry: list → diff → watch, and all over again on any break.
//!
//! The watch is only a bell: what changed is always found by comparing two lists, so that no
//! lost, repeated or reordered event can leave a task loaded that is gone. A silent watch is
//! covered by a list every few minutes.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::registry::Snapshot;
use super::{Task, TaskError, TaskRegistry, keys};
use crate::backoff::Backoff;

/// How long a watch may be silent before the list is read anyway.
const RELIST: Duration = Duration::from_secs(180);
/// Events that may wait for the receiver; the follower waits when it is full.
const EVENTS: usize = 64;

/// A change of the registry.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// A task appeared; it may be paused.
    Added(Task),
    /// A task is gone, or was replaced (then `Added` follows).
    Removed(String),
    /// A pause key appeared.
    Paused(String),
    /// The pause key is gone.
    Resumed(Task),
    /// The registry cannot be read at the moment; what is loaded stays loaded.
    Disconnected(String),
}

impl TaskRegistry {
    /// Starts a follower on the current runtime. It ends when the receiver is dropped.
    pub fn events(&self) -> mpsc::Receiver<TaskEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        tokio::spawn(follow(self.clone(), sender));
        receiver
    }
}

async fn follow(registry: TaskRegistry, events: mpsc::Sender<TaskEvent>) {
    let mut known = Snapshot::default();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), 5);
    while !events.is_closed() {
        let error = tokio::select! {
            () = events.closed() => return,
            end = follow_once(&registry, &mut known, &mut backoff, &events) => match end {
                Ok(()) => return,
                Err(error) => error,
            },
        };
        tracing::info!(%error, "listing the tasks again");
        let told = events
            .send(TaskEvent::Disconnected(error.to_string()))
            .await;
        if told.is_err() {
            return;
        }
        tokio::select! {
            () = events.closed() => return,
            () = sleep(backoff.next_delay()) => {}
        }
    }
}

/// Lists, reports the differences, watches; returns with an error when anything breaks, with
/// `Ok` when nobody listens any more.
async fn follow_once(
    registry: &TaskRegistry,
    known: &mut Snapshot,
    backoff: &mut Backoff,
    events: &mpsc::Sender<TaskEvent>,
) -> Result<(), TaskError> {
    let mut list = registry.snapshot().await?;
    let from = list.revision + 1;
    let mut infos = registry
        .etcd()
        .watch_prefix(keys::INFO.as_bytes(), from)
        .await?;
    let mut pauses = registry
        .etcd()
        .watch_prefix(keys::PAUSE.as_bytes(), from)
        .await?;
    loop {
        for event in differences(known, &list) {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        *known = list;
        backoff.reset();
        let rung = timeout(RELIST, async {
            tokio::select! {
                batch = infos.next() => batch,
                batch = pauses.next() => batch,
            }
        });
        if let Ok(batch) = rung.await {
            batch?;
        }
        list = registry.snapshot().await?;
    }
}

/// What leads from one list to the next.
fn differences(before: &Snapshot, after: &Snapshot) -> Vec<TaskEvent> {
    let mut events = Vec::new();
    for (name, (_, registered)) in &before.tasks {
        let same = after
            .tasks
            .get(name)
            .is_some_and(|(_, at)| at == registered);
        if !same {
            events.push(TaskEvent::Removed(name.clone()));
        }
    }
    for (name, (task, registered)) in &after.tasks {
        let old = before.tasks.get(name);
        match old.filter(|(_, at)| at == registered) {
            None => events.push(TaskEvent::Added(task.clone())),
            Some((old, _)) => match (old.paused, task.paused) {
                (false, true) => events.push(TaskEvent::Paused(name.clone())),
                (true, false) => events.push(TaskEvent::Resumed(task.clone())),
                _ => {}
            },
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(tasks: &[(&str, bool, i64)]) -> Snapshot {
        let task = |name: &str, paused| Task {
            name: name.to_owned(),
            info: Default::default(),
            ranges: Vec::new(),
            paused,
        };
        Snapshot {
            tasks: tasks
                .iter()
                .map(|(name, paused, at)| ((*name).to_owned(), (task(name, *paused), *at)))
                .collect(),
            revision: 0,
        }
    }

    fn between(before: &[(&str, bool, i64)], after: &[(&str, bool, i64)]) -> Vec<String> {
        differences(&snapshot(before), &snapshot(after))
            .into_iter()
            .map(|event| match event {
                TaskEvent::Added(task) => format!("+{} {}", task.name, task.paused),
                TaskEvent::Removed(name) => format!("-{name}"),
                TaskEvent::Paused(name) => format!("pause {name}"),
                TaskEvent::Resumed(task) => format!("resume {}", task.name),
                TaskEvent::Disconnected(text) => text,
            })
            .collect()
    }

    #[test]
    fn the_difference_of_two_lists_is_what_happened_between_them() {
        let a = [("a", false, 1)];
        assert_eq!(between(&[], &a), ["+a false"]);
        assert_eq!(between(&[], &[("a", true, 1)]), ["+a true"]);
        assert_eq!(between(&a, &[]), ["-a"]);
        assert_eq!(between(&a, &[("a", true, 1)]), ["pause a"]);
        assert_eq!(between(&[("a", true, 1)], &a), ["resume a"]);
        assert_eq!(between(&a, &a), Vec::<String>::new());
    }

    #[test]
    fn a_task_registered_again_under_its_name_is_unloaded_first() {
        let events = between(&[("a", false, 1)], &[("a", false, 9)]);
        assert_eq!(events, ["-a", "+a false"]);
    }
}
