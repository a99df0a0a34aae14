//! SIGINT and SIGTERM for verbs that have something to put back in order before they end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::codes::Code;
use crate::failure::Failure;

/// Both signals, from [`Interrupt::listen`] on: they no longer end the process by themselves.
pub struct Interrupt {
    term: Signal,
    int: Signal,
}

impl Interrupt {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(|e| Failure::from_error(Code::Internal, &e));
        Ok(Interrupt {
            term: of(SignalKind::terminate())?,
            int: of(SignalKind::interrupt())?,
        })
    }

    /// Waits for either.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
