//! Import mode: on when a driver asks for it, off when it says so or does not ask again within
//! 10 minutes (tikv/tikv `components/sst_importer/src/import_mode.rs`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_env::Clock;

use super::host::ImportHost;

/// How long a switch holds.
const HOLDS: Duration = Duration::from_secs(600);

pub(super) struct Mode {
    clock: Arc<dyn Clock>,
    /// A moment of the clock.
    until: Mutex<Option<Duration>>,
}

impl Mode {
    /// Normal mode.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let until = Mutex::new(None);
        Mode { clock, until }
    }

    /// Switches, or renews; the host hears of changes only.
    pub(super) fn switch<H: ImportHost>(&self, import: bool, host: &H) {
        let mut until = self.until.lock();
        if import != until.is_some() {
            host.import_mode(import);
        }
        *until = import.then(|| self.clock.now() + HOLDS);
    }

    /// Ends the mode when its time is over.
    pub(super) fn tick<H: ImportHost>(&self, host: &H) {
        let mut until = self.until.lock();
        if until.is_some_and(|until| self.clock.now() >= until) {
            *until = None;
            host.import_mode(false);
        }
    }
}
