//! An embedder that runs everything on its own thread: shards are stepped, names are counted.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pitr_env::{Random, Spawn, Step, Worker};
use pitr_format::{EncodedRange, Ts};
use pitr_observer::{Env, Flusher, FlusherConfig, Observer, ObserverConfig, SendError};
use pitr_storage::open_url;
use uuid::Uuid;

use crate::support::{batch, env, region, resolved, row, started};

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Stepped {
    workers: Mutex<Vec<Box<dyn Worker>>>,
    jobs: Mutex<VecDeque<Job>>,
}

impl Stepped {
    /// Every worker and job goes on for as long as there is something to do.
    fn run_all(&self) {
        for worker in self.workers.lock().iter_mut() {
            while worker.step() == Step::Worked {}
        }
        loop {
            // Taken out first: a job may start another one.
            let job = self.jobs.lock().pop_front();
            match job {
                Some(job) => job(),
                None => return,
            }
        }
    }

    /// Drives a future that waits for nothing but workers and jobs.
    fn drive<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.run_all();
        }
        panic!("the future waits for something else");
    }
}

impl Spawn for Stepped {
    fn worker(&self, _name: String, worker: Box<dyn Worker>) -> io::Result<()> {
        self.workers.lock().push(worker);
        Ok(())
    }

    fn blocking(&self, work: Job) -> io::Result<()> {
        self.jobs.lock().push_back(work);
        Ok(())
    }
}

struct Counted(AtomicU64);

impl Random for Counted {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(9, self.0.fetch_add(1, Ordering::Relaxed))
    }
}

fn embedded() -> (Arc<Stepped>, Env) {
    let spawner = Arc::new(Stepped::default());
    let env = Env {
        spawner: spawner.clone(),
        random: Arc::new(Counted(AtomicU64::new(1))),
        ..env()
    };
    (spawner, env)
}

#[test]
fn equal_events_in_an_equal_environment_give_equal_objects_without_a_thread() {
    let objects = || {
        let (spawner, env) = embedded();
        let observer =
            Observer::start(ObserverConfig::default(), env.clone(), [EncodedRange::ALL]).unwrap();
        for sub in 1..=4 {
            observer
                .try_send(started(sub, region(sub, EncodedRange::ALL), 1))
                .unwrap();
            observer
                .try_send(batch(sub, vec![row(&[sub as u8], 5), row(b"k", 10 + sub)]))
                .unwrap();
            observer.try_send(resolved(sub, 20)).unwrap();
        }
        let storage = open_url("memory://").unwrap();
        spawner.drive(async {
            let config = FlusherConfig::new(1);
            let mut flusher = Flusher::open(storage.clone(), config, &env).await.unwrap();
            let mut generation = observer.seal().await.unwrap();
            let proof = flusher.flush(&mut generation, Ts::new(30)).await.unwrap();
            assert!(proof.progress().iter().all(|claim| claim.ts == Ts::new(20)));
            let mut objects = Vec::new();
            for object in storage.list("").await.unwrap() {
                let bytes = storage.get(&object.path).await.unwrap();
                objects.push((object.path, bytes));
            }
            objects
        })
    };
    let first = objects();
    assert!(
        first
            .iter()
            .any(|(path, _)| path.contains("-0000-000000000001.log"))
    );
    assert_eq!(first, objects());
}

#[test]
fn a_seal_lies_behind_the_events_that_were_queued_before_it() {
    let (spawner, env) = embedded();
    let config = ObserverConfig {
        shards: 1,
        queue_events: 2,
        ..ObserverConfig::default()
    };
    let observer = Observer::start(config, env, [EncodedRange::ALL]).unwrap();
    observer
        .try_send(started(1, region(1, EncodedRange::ALL), 1))
        .unwrap();
    observer.try_send(batch(1, vec![row(b"a", 5)])).unwrap();
    // The queue is full for events and for the seal alike; the seal waits for room.
    let refused = observer.try_send(resolved(1, 9)).unwrap_err();
    assert!(matches!(refused, SendError::Full(_)));
    let generation = spawner.drive(observer.seal()).unwrap();
    assert_eq!(generation.slices()[0].info.number_of_entries, 1);
    assert_eq!(generation.live_min(), Some(Ts::new(1)));
}

#[test]
fn workers_are_over_when_the_last_handle_is_gone() {
    let (spawner, env) = embedded();
    let observer = Observer::start(ObserverConfig::default(), env, [EncodedRange::ALL]).unwrap();
    // Who is over is dropped, as its thread would end.
    let step = || {
        let mut workers = spawner.workers.lock();
        workers.retain_mut(|worker| worker.step() != Step::Over);
        workers.len()
    };
    let running = step();
    assert!(running > 2, "shards and encoders");
    drop(observer);
    // The shards first, then the encoders that they fed.
    step();
    assert_eq!(step(), 0);
}
