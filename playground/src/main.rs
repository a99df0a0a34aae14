//! `tikv-pitr-playground`: PD and one or several TiKV stores in one process, for demos and tests.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pitr_cluster::tls::TlsConfig;
use pitr_playground::{Playground, PlaygroundConfig, StoreAddress, certificates};
use tokio::signal::unix::{SignalKind, signal};

/// A PD and one or several TiKV stores in one process, for demos and tests. There is no raft: every
/// region has a peer on every store, and each command is written to all running stores in one order.
/// Never for production.
#[derive(Debug, Parser)]
#[command(name = "tikv-pitr-playground", version)]
struct Arguments {
    /// Where everything is kept; created if missing.
    #[arg(long)]
    data_dir: PathBuf,
    /// URLs of a real PD, separated by commas: the stores register there, and the playground's own PD
    /// and etcd are off.
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with_all = ["pd_addr", "cluster_id", "gc_states"])]
    pd: Vec<String>,
    /// Address of the playground's own PD and etcd; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:2379")]
    pd_addr: SocketAddr,
    /// Number of stores, each with its own database and address.
    #[arg(long, default_value_t = 1, value_name = "N")]
    stores: usize,
    /// Address of the store, further ones on the ports above; port 0 takes free ones.
    #[arg(long, default_value = "127.0.0.1:20160")]
    store_addr: SocketAddr,
    /// Address of the store's HTTP status (/status, /config, /metrics), further ones on the ports above;
    /// port 0 takes free ones.
    #[arg(long, default_value = "127.0.0.1:0")]
    status_addr: SocketAddr,
    /// Status address that PD is told of a store, for a front before it; once for each store, in their
    /// order, "" for the store's own.
    #[arg(long, value_name = "ADDR")]
    advertise_status_addr: Vec<String>,
    /// Peer address that PD is told of a store; as above. A store's own is left empty, as with TiKV.
    #[arg(long, value_name = "ADDR")]
    advertise_peer_addr: Vec<String>,
    /// Address for commands over HTTP, none if left out: GET /regions, GET /stores,
    /// POST /regions/ID/leader/STORE, /regions/ID/split?key=HEX (a user key), /regions/ID/merge/TARGET,
    /// /stores/ID/stop, …/crash, …/start.
    #[arg(long)]
    admin_addr: Option<SocketAddr>,
    /// Cluster id of a new data directory; random if left out.
    #[arg(long)]
    cluster_id: Option<u64>,
    /// The playground's own PD serves the GC states API (barriers, txn safe point) as PD does from
    /// 9.0.0-beta.2 on; else it is a classic PD, with service safe points only.
    #[arg(long)]
    gc_states: bool,
    /// Speak TLS with the certificates in this directory: ca.pem, cert.pem and key.pem, for every host
    /// name and address of this machine's loopback. They are made, valid for a month, if none are there.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Common name of clients whose calls the stores answer, with --tls-dir; once for each. Every one if
    /// left out. PD and the status addresses serve every client with a certificate, as the real ones.
    #[arg(long, value_name = "NAME", requires = "tls_dir")]
    cert_allowed_cn: Vec<String>,
    /// Milliseconds between resolved timestamps, 50 or more.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    resolved_ts_interval: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tikv-pitr-playground: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let waiting = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tls = match &arguments.tls_dir {
        Some(dir) => Some(TlsConfig {
            cert_allowed_cn: arguments.cert_allowed_cn,
            ..certificates::in_directory(dir)?
        }),
        None => None,
    };
    let playground = Playground::start(PlaygroundConfig {
        real_pd: arguments.pd,
        pd_addr: arguments.pd_addr,
        stores: arguments.stores,
        store_addr: arguments.store_addr,
        admin_addr: arguments.admin_addr,
        status_addr: Some(arguments.status_addr),
        advertise_status_addrs: arguments.advertise_status_addr,
        advertise_peer_addrs: arguments.advertise_peer_addr,
        cluster_id: arguments.cluster_id,
        gc_states: arguments.gc_states,
        resolved_ts_interval: Duration::from_millis(arguments.resolved_ts_interval),
        tls,
        ..PlaygroundConfig::new(arguments.data_dir)
    })?;
    let stop = waiting.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        announce(&playground)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok::<(), std::io::Error>(())
    });
    playground.shutdown();
    Ok(stop?)
}

/// One line of JSON: who reads it knows that the playground serves, and where.
fn announce(playground: &Playground) -> std::io::Result<()> {
    let store = |of: StoreAddress| serde_json::json!({ "id": of.id, "store_addr": of.store, "status_addr": of.status });
    let stores: Vec<_> = playground.addresses().into_iter().map(store).collect();
    let line = serde_json::json!({
        "pd_addr": playground.pd_addr(),
        "store_addr": playground.store_addr(),
        "status_addr": playground.status_addr(),
        "cluster_id": playground.cluster_id(),
        "stores": stores,
        "admin_addr": playground.admin_addr(),
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
