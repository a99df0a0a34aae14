//! Settings of the allocator that the binary chooses. They are here so that a test that runs the
//! server in a process of its own measures what the binary would take.

use tikv_jemalloc_ctl::{Access as _, AsName as _};

/// Milliseconds after which freed pages go back: rows come and go at hundreds of megabytes a second,
/// and what waits here counts for the size of the process.
const DECAY_MS: isize = 200;

/// Lets a thread of the allocator give freed pages back soon instead of after ten seconds, also when
/// the process is idle. A refusal changes nothing but the size of the process.
pub fn return_memory_soon() {
    let _ = tikv_jemalloc_ctl::background_thread::write(true);
    for decay in [
        &b"arena.0.dirty_decay_ms\0"[..],
        b"arenas.dirty_decay_ms\0",
        b"arena.0.muzzy_decay_ms\0",
        b"arenas.muzzy_decay_ms\0",
    ] {
        let _ = decay.name().write(DECAY_MS);
    }
}
