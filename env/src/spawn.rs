//! Threads of a process: workers that stay, and blocking pieces of work that end.

use std::io;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What a worker did in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more.
    Worked,
    /// Nothing: it waits for a message.
    Idle,
    /// Nothing will ever come again.
    Over,
}

/// Work that stays for as long as its owner, fed through a bounded queue. It can be run on a thread
/// of its own, or be driven step by step by somebody who wants to decide who works when.
pub trait Worker: Send {
    /// Takes at most one message and does what it asks for. Never waits.
    fn step(&mut self) -> Step;

    /// Waits for messages and does what they ask for, until nothing can come any more.
    fn run(self: Box<Self>);
}

/// Starts work. Who implements it decides on which thread; order is kept within one worker only.
pub trait Spawn: Send + Sync {
    /// Starts a worker under a name. Its owner ends it by dropping what feeds it.
    fn worker(&self, name: String, worker: Box<dyn Worker>) -> io::Result<()>;

    /// Starts a piece of work that may take the processor or a disk for a while, so not the thread
    /// that polls futures. It may be dropped without having run; who waits for it sees that.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// Runs `work` by [`Spawn::blocking`] and waits for what it returns. An error means that it could
/// not be started, panicked, or was dropped without having run to its end.
pub async fn unblock<T: Send + 'static>(
    spawner: &dyn Spawn,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    spawner.blocking(Box::new(move || {
        // Nobody waits any more: then nobody misses the result.
        let _ = done.send(work());
    }))?;
    let dropped = |_| io::Error::other("a piece of work ended without a result");
    result.await.map_err(dropped)
}

/// A thread of its own for each worker; blocking work in the pool of the tokio runtime in whose
/// context it is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSpawner;

impl Spawn for SystemSpawner {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn worker(&self, name: String, worker: Box<dyn Worker>) -> io::Result<()> {
        thread::Builder::new()
            .name(name)
            .spawn(move || worker.run())
            .map(drop)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        drop(runtime.spawn_blocking(work));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Doubler {
        inbox: Receiver<u32>,
        out: Sender<u32>,
    }

    impl Worker for Doubler {
        fn step(&mut self) -> Step {
            match self.inbox.try_recv() {
                Ok(number) => {
                    self.out.send(number * 2).unwrap();
                    Step::Worked
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => Step::Idle,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => Step::Over,
            }
        }

        fn run(self: Box<Self>) {
            for number in self.inbox {
                self.out.send(number * 2).unwrap();
            }
        }
    }

    #[test]
    fn a_worker_runs_until_its_feeder_is_gone() {
        let (feed, inbox) = channel();
        let (out, results) = channel();
        let worker = Box::new(Doubler { inbox, out });
        SystemSpawner.worker("doubler".to_owned(), worker).unwrap();
        feed.send(4).unwrap();
        drop(feed);
        assert_eq!(results.iter().collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn blocking_work_outside_of_a_runtime_is_an_error_and_no_panic() {
        assert!(SystemSpawner.blocking(Box::new(|| ())).is_err());
    }

    #[tokio::test]
    async fn a_result_comes_back_and_a_panic_is_told_as_an_error() {
        assert_eq!(unblock(&SystemSpawner, || 6 * 7).await.unwrap(), 42);
        let lost = unblock(&SystemSpawner, || -> u32 { panic!("on purpose") }).await;
        assert!(lost.is_err());
    }
}
