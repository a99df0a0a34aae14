//! Keeps GC away from what a task still has to read: sets the safepoints of [`super::guard`] and
//! reads back what really holds. A service safepoint is a floor for *later* GC rounds only, and
//! some clients (JuiceFS up to 1.4.1) move GC past all of them, so the effective GC safepoint is
//! the truth, not our own.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::pd::PdError;
use pitr_format::Ts;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Context, guard};

/// How often the effective GC safepoint is read.
const POLL: Duration = Duration::from_secs(10);
/// Attempts to release the safepoint of a task that is gone; it expires by itself anyway.
const RELEASE_ATTEMPTS: u32 = 3;

/// Sets the safepoint of a task whose checkpoint is `global`; gives the effective GC safepoint.
pub(super) async fn hold(context: &Context, task: &str, global: Ts) -> Result<Ts, PdError> {
    let pd = &context.cluster.pd;
    let point = guard::to_hold(task, context.store_id, global);
    let min = pd.hold_gc(&point.id, point.ttl, point.ts).await?;
    if min > point.ts {
        // PD ignores a value behind its minimum; whether history is lost shows below.
        tracing::warn!(id = point.id, asked = %point.ts, %min, "PD did not take the safepoint");
    }
    let effective = pd.gc_safe_point().await?;
    context
        .board
        .task(task, |status| status.gc_safe_point = Some(effective.get()));
    Ok(effective)
}

/// Removes the safepoint of a task that is gone.
pub(super) async fn release(context: &Context, task: &str) {
    let id = guard::store_service(task, context.store_id);
    for attempt in 1..=RELEASE_ATTEMPTS {
        let pd = &context.cluster.pd;
        match pd.release_gc(&id).await {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!(id, attempt, %error, "safepoint stays until it expires");
            }
        }
    }
}

/// Follows the checkpoint of a task with its safepoint until the sender of `globals` is gone.
pub(super) async fn keep(context: Arc<Context>, task: String, mut globals: watch::Receiver<Ts>) {
    let mut renewed = Instant::now();
    let mut behind = false;
    loop {
        // Not more often than the poll, however fast the checkpoint moves.
        sleep(POLL).await;
        let quiet = guard::REFRESH_EVERY
            .saturating_sub(renewed.elapsed())
            .min(POLL);
        let moved = match timeout(quiet, globals.changed()).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => return,
            Err(_) => false,
        };
        let global = *globals.borrow_and_update();
        let due = moved || renewed.elapsed() >= guard::REFRESH_EVERY;
        let effective = match due {
            true => hold(&context, &task, global).await,
            false => context.cluster.pd.gc_safe_point().await,
        };
        match effective {
            Ok(effective) => {
                if due {
                    renewed = Instant::now();
                }
                if effective > global && !behind {
                    // Live subscriptions go on; one that has to scan again reports the gap.
                    tracing::error!(task, %global, gc_safe_point = %effective,
                        "GC passed the checkpoint: a restart or region move now loses history");
                }
                behind = effective > global;
                context.metrics.show_gc_margin(&task, global, effective);
                let ts = effective.get();
                context
                    .board
                    .task(&task, |status| status.gc_safe_point = Some(ts));
            }
            Err(error) => tracing::warn!(task, %error, "safepoints were not renewed"),
        }
    }
}
