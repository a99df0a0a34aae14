//! Following the global checkpoint of one task: list, watch, and all over again on any break.
//!
//! The watch is only a bell: the value is always read together with the registration that it is
//! for, in one transaction, so that the checkpoint of a task that was registered anew under the same
//! name is never taken for that of the old one.

use std::time::Duration;

use pitr_format::Ts;
use pitr_proto::etcdserverpb::response_op::Response;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::registry::parse_ts;
use super::{TaskError, TaskRegistry, keys};
use crate::backoff::Backoff;
use crate::etcd::{compare, op};

/// How long a watch may be silent before the value is read anyway.
const REREAD: Duration = Duration::from_secs(30);

impl TaskRegistry {
    /// Follows `central_global` of the task that was registered at this revision, on the current
    /// runtime, until the receiver is dropped. The channel closes when that registration is gone.
    pub fn follow_global(&self, name: &str, registered: i64) -> watch::Receiver<Option<Ts>> {
        let (sender, receiver) = watch::channel(None);
        let (registry, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3), 17);
            loop {
                let followed = tokio::select! {
                    followed = follow(&registry, &name, registered, &sender, &mut backoff) => followed,
                    () = sender.closed() => return,
                };
                match followed {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(task = name, %error, "reading the checkpoint again")
                    }
                }
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }

    /// The global checkpoint of the task that was registered at this revision, and the revision it
    /// was read at; nothing if that registration is gone.
    async fn global_of(
        &self,
        name: &str,
        registered: i64,
    ) -> Result<Option<(Option<Ts>, i64)>, TaskError> {
        let same = compare::unchanged(keys::info(name), registered);
        let read = op::get(keys::global_checkpoint(name));
        let answer = self.etcd().txn(vec![same], vec![read]).await?;
        if !answer.succeeded {
            return Ok(None);
        }
        let found = answer.responses.into_iter().next();
        let kv = match found.and_then(|op| op.response) {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let ts = kv.as_ref().map(parse_ts).transpose()?;
        Ok(Some((ts, answer.revision)))
    }
}

/// `Ok` when the registration is gone, an error when anything breaks.
async fn follow(
    registry: &TaskRegistry,
    name: &str,
    registered: i64,
    told: &watch::Sender<Option<Ts>>,
    backoff: &mut Backoff,
) -> Result<(), TaskError> {
    let Some((mut global, revision)) = registry.global_of(name, registered).await? else {
        return Ok(());
    };
    let key = keys::global_checkpoint(name);
    let etcd = registry.etcd();
    let mut bell = etcd.watch_prefix(key.as_bytes(), revision + 1).await?;
    loop {
        backoff.reset();
        told.send_if_modified(|known| {
            let rises = global > *known;
            if rises {
                *known = global;
            }
            rises
        });
        if let Ok(rung) = timeout(REREAD, bell.next()).await {
            rung?;
        }
        match registry.global_of(name, registered).await? {
            Some((ts, _)) => global = ts,
            None => return Ok(()),
        }
    }
}
