//! One core for everything that is compared.
//!
//! A limit runs on one thread, a path on several. On a machine whose processors are threads of one
//! core, a path on two of them takes half as much CPU time again for the same work, and the ratio would
//! tell of the machine. So the measured process keeps to one processor, and the sender of a
//! change stream to the others.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::Result;

fn allowed() -> Result<CpuSet> {
    Ok(sched_getaffinity(None::<Pid>)?)
}

/// Keeps this thread, and the threads and processes that it starts, to one processor.
pub fn keep_to_one() -> Result<()> {
    let (all, mut one) = (allowed()?, CpuSet::new());
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu));
    first.into_iter().for_each(|cpu| one.set(cpu));
    Ok(sched_setaffinity(None::<Pid>, &one)?)
}

/// Leaves the processor that the measuring process keeps to; without another one it is shared.
pub fn leave() -> Result<()> {
    let (taken, mut others) = (allowed()?, CpuSet::new());
    let free = (0..CpuSet::MAX_CPU).filter(|cpu| !taken.is_set(*cpu));
    free.for_each(|cpu| others.set(cpu));
    // Refused if none of these exists.
    let _ = sched_setaffinity(None::<Pid>, &others);
    Ok(())
}
