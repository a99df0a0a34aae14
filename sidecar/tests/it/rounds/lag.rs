//! How far the archive is behind PD's time when nothing goes wrong.

use std::time::{Duration, Instant};

use pitr_format::Ts;

use super::archive::Archive;
use super::client::Client;
use super::load::Load;
use super::sidecar::{INTERVAL, Sidecar};
use super::source::Source;
use super::{seed, wait_until};

/// How long the steady state is looked at.
const STEADY: Duration = Duration::from_secs(15);
/// What may come on top of the flush interval.
const ALLOWED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak_the_checkpoint_follows_the_clock_under_load() {
    let seed = seed("lag");
    let source = Source::start();
    let archive = Archive::start(&source);
    let load = Load::start(&source, seed).await;
    let sidecar = Sidecar::start(&source);
    wait_until("the first checkpoint", async || archive.latest().is_some()).await;
    let client = Client::connect(&source.pd()).await;
    let mut lags = Vec::new();
    let began = Instant::now();
    while began.elapsed() < STEADY {
        let latest = Ts::new(archive.latest().unwrap()).physical_ms();
        let now = client.now().await.unwrap().physical_ms();
        lags.push(Duration::from_millis(now.saturating_sub(latest)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    load.stop().await;
    sidecar.stop();
    lags.sort();
    let (median, largest) = (lags[lags.len() / 2], lags[lags.len() - 1]);
    println!("lag: median {median:?}, largest {largest:?}");
    assert!(largest < INTERVAL + ALLOWED, "largest lag {largest:?}");
}
