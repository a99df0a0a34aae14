//! A client that writes all the time and waits for PD where it must.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::system::{Client, Cluster};

/// Keys that are written over and over.
const KEYS: usize = 400;

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Load {
    /// Starts it.
    pub fn start(cluster: &Cluster) -> Self {
        let client = Client::of(cluster);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                let key = format!("load/{:04}", written * 7 % KEYS);
                // Short and long values, and a delete now and then.
                let value = vec![written as u8; 1 + written * 37 % 900];
                let value = (written % 11 != 10).then_some(value);
                client.write(&[(key, value)]);
                written += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            written
        });
        Load { stop, thread }
    }

    /// Ends it; how many transactions were committed. Fails if one failed.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
