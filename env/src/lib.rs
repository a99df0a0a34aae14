//! What a library of ours takes from the process it lives in: time, threads and randomness.
//!
//! `observer` and `restore-worker` call no clock, start no thread and draw no random number on
//! their own; they ask these traits. An embedder implements them over what its process has, the
//! simulation over a seed. [`SystemClock`], [`SystemSpawner`] and [`SystemRandom`] are those of an
//! ordinary process, and the only place where the libraries may touch the system (clippy's
//! `disallowed-methods` refuses it elsewhere).

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod clock;
mod random;
mod spawn;

pub use clock::{Clock, Sleep, SystemClock};
pub use random::{Random, SystemRandom};
pub use spawn::{Spawn, Step, SystemSpawner, Worker, unblock};
