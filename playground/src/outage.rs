//! Stores that leave and come back on command.
//!
//! A store that is stopped hands its regions over first; one that crashes takes its connections down
//! while it leads, and its regions have no leader until that is done. Its database stays open in the
//! process, but nothing reads or writes it until the store starts again and has caught up. There is
//! no quorum: one running store serves everything.

use pitr_format::Class;
use pitr_restore_worker::engine::EngineError;

use crate::assembly::Parts;
use crate::node::StartError;
use crate::realpd::RealPdError;

/// Why a store does not leave or come back.
#[derive(Debug, thiserror::Error)]
pub enum OutageError {
    /// No such store.
    #[error("store {0} does not exist")]
    Unknown(u64),
    /// It is down already.
    #[error("store {0} is down already")]
    Down(u64),
    /// It runs already.
    #[error("store {0} runs already")]
    Running(u64),
    /// It cannot catch up.
    #[error("the store cannot catch up: {0}")]
    Engine(#[from] EngineError),
    /// The real PD does not learn of it.
    #[error("the store cannot come back: {0}")]
    RealPd(#[from] RealPdError),
    /// It cannot serve.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl OutageError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            OutageError::Unknown(_) => Class::Permanent,
            OutageError::Down(_) | OutageError::Running(_) => Class::Refresh,
            OutageError::Engine(error) => error.class(),
            OutageError::RealPd(error) => error.class(),
            OutageError::Start(error) => error.class(),
        }
    }
}

impl Parts {
    /// Leaders first, then the connections.
    pub(crate) fn stop_store(&self, store_id: u64) -> Result<(), OutageError> {
        let _alone = self.outages.lock();
        let server = self.server(store_id)?;
        if !server.store().is_up() {
            return Err(OutageError::Down(store_id));
        }
        server.store().leave();
        server.store().elect();
        server.end();
        Ok(())
    }

    /// Connections first; the leaders move when they are gone.
    pub(crate) fn crash_store(&self, store_id: u64) -> Result<(), OutageError> {
        let _alone = self.outages.lock();
        let server = self.server(store_id)?;
        if !server.store().is_up() {
            return Err(OutageError::Down(store_id));
        }
        server.end();
        server.store().leave();
        server.store().elect();
        Ok(())
    }

    /// Catches up, then serves at the old addresses.
    pub(crate) fn start_store(&self, store_id: u64) -> Result<(), OutageError> {
        let _alone = self.outages.lock();
        let server = self.server(store_id)?;
        if server.store().is_up() {
            return Err(OutageError::Running(store_id));
        }
        let listeners = Parts::listen_again(server.address())?;
        server.prepare()?;
        // As TiKV, it does not come back without PD.
        server.announce()?;
        let missed = server.store().rejoin()?;
        tracing::info!(store = store_id, missed, "a store is back");
        server.start(listeners)?;
        server.store().elect();
        Ok(())
    }
}
