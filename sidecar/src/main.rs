//! `tikv-pitr`: see `cli`.

use std::process::ExitCode;

/// Memory that is freed goes back to the system within seconds: the arenas of glibc keep it, and
/// then the size of the process says nothing of the budget.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pitr_sidecar::allocator::return_memory_soon();
    pitr_sidecar::cli::main()
}
