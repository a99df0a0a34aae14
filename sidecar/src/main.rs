//! `tikv-pitr`: see `cli`.

use std::process::ExitCode;

use tikv_jemalloc_ctl::{Access as _, AsName as _};

/// Memory that is freed goes back to the system within seconds: the arenas of glibc keep it, and
/// then the size of the process says nothing of the budget.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lets a thread of the allocator give freed pages back after a second instead of ten, also when
/// the process is idle. A refusal changes nothing but the size of the process.
fn return_memory_soon() {
    let _ = tikv_jemalloc_ctl::background_thread::write(true);
    for decay in [
        &b"arena.0.dirty_decay_ms\0"[..],
        b"arenas.dirty_decay_ms\0",
        b"arena.0.muzzy_decay_ms\0",
        b"arenas.muzzy_decay_ms\0",
    ] {
        let _ = decay.name().write(1000_isize);
    }
}

fn main() -> ExitCode {
    return_memory_soon();
    pitr_sidecar::cli::main()
}
