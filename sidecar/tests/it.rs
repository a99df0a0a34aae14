//! What the verbs promise: exit codes, messages, and the whole way from a store to an archive and
//! back, against the playground.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// That of the binary, for the server that runs inside of this one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[path = "it/archive_verbs.rs"]
mod archive_verbs;
#[path = "it/archives.rs"]
mod archives;
#[path = "it/broken_archives.rs"]
mod broken_archives;
#[path = "it/bucket.rs"]
mod bucket;
#[path = "it/builtin.rs"]
mod builtin;
#[path = "it/command.rs"]
mod command;
#[path = "it/coordination.rs"]
mod coordination;
#[path = "it/fence.rs"]
mod fence;
#[path = "it/fronts.rs"]
mod fronts;
#[path = "it/gc.rs"]
mod gc;
#[path = "it/juicefs.rs"]
mod juicefs;
#[path = "it/locks.rs"]
mod locks;
#[path = "it/memory/mod.rs"]
mod memory;
#[path = "it/misuse.rs"]
mod misuse;
#[path = "it/over_http.rs"]
mod over_http;
#[path = "it/parsing.rs"]
mod parsing;
#[path = "it/pauses.rs"]
mod pauses;
#[path = "../../interop/pd_servers.rs"]
mod pd_servers;
#[path = "it/phantoms.rs"]
mod phantoms;
#[path = "it/real_pd/mod.rs"]
mod real_pd;
#[path = "it/recovery.rs"]
mod recovery;
#[path = "it/refusals.rs"]
mod refusals;
#[path = "it/rounds/mod.rs"]
mod rounds;
#[path = "it/seats.rs"]
mod seats;
#[path = "it/serve_refusals.rs"]
mod serve_refusals;
#[path = "it/signals.rs"]
mod signals;
#[path = "it/sizes.rs"]
mod sizes;
#[path = "it/speed_test.rs"]
mod speed_test;
#[path = "it/status.rs"]
mod status;
#[path = "it/stores.rs"]
mod stores;
#[path = "it/surfaces.rs"]
mod surfaces;
#[path = "it/system.rs"]
mod system;
#[path = "it/tasks.rs"]
mod tasks;
#[path = "it/tls.rs"]
mod tls;
#[path = "it/troubles.rs"]
mod troubles;
#[path = "it/whole_way.rs"]
mod whole_way;
#[path = "it/without_cluster.rs"]
mod without_cluster;
