//! Import mode: on when a driver asks for it, off when it says so or does not ask again within
//! 10 minutes (tikv/tikv `components/sst_importer/src/import_mode.rs`).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::host::ImportHost;

/// How long a switch holds.
const HOLDS: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Mode {
    until: Mutex<Option<Instant>>,
}

impl Mode {
    /// Switches, or renews; the host hears of changes only.
    pub(super) fn switch<H: ImportHost>(&self, import: bool, host: &H) {
        let mut until = self.until.lock();
        if import != until.is_some() {
            host.import_mode(import);
        }
        *until = import.then(|| Instant::now() + HOLDS);
    }

    /// Ends the mode when its time is over.
    pub(super) fn tick<H: ImportHost>(&self, host: &H) {
        let mut until = self.until.lock();
        if until.is_some_and(|until| Instant::now() >= until) {
            *until = None;
            host.import_mode(false);
        }
    }
}
