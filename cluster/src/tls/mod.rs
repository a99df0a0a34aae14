//! Mutual TLS with one triple of files for everything: PD, its etcd, the stores, their status
//! addresses, and what this process serves itself.
//!
//! As in TiKV (`components/security`) both sides show a certificate of one authority, a triple is
//! given whole or not at all, and changed files hold from the next connection on, while those that
//! stand go on. The files are looked at when a connection begins, at most once a second; what cannot
//! be used (half written, a key of another certificate) is told once, and the last good triple stays.

mod connect;
mod files;
mod listen;
mod peer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;

pub use connect::{Connector, HandshakeError};
pub use files::TlsError;
pub use listen::{ClientName, Listener, ServerStream};

use files::{Files, Loaded};

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// From this many days before its end on, a certificate is warned about.
const ENDS_SOON: i64 = 14;

/// Where the triple is, and what of the other side is asked beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates of the authorities that sign the other side's, PEM.
    pub ca_path: PathBuf,
    /// Our certificate with its chain, PEM.
    pub cert_path: PathBuf,
    /// The key of our certificate, PEM, not encrypted.
    pub key_path: PathBuf,
    /// Common names of clients that are served; every one if empty.
    pub cert_allowed_cn: Vec<String>,
    /// The name that servers' certificates must have, in place of the host that is dialled.
    pub domain_name: Option<String>,
}

/// Whether connections are encrypted, and with what; cheap to share. The default is plaintext.
#[derive(Clone, Default)]
pub struct Security(Option<Arc<Credentials>>);

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(credentials) => write!(f, "Security({:?})", credentials.config),
            None => write!(f, "Security(plaintext)"),
        }
    }
}

/// How the triple stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When our certificate ends, in seconds since 1970.
    pub not_after: i64,
    /// How often changed files were taken since the start.
    pub reloads: u64,
    /// Why the files that are there now are not used.
    pub complaint: Option<String>,
}

/// The files and what was made of them last.
struct Credentials {
    config: TlsConfig,
    state: Mutex<State>,
}

struct State {
    files: Files,
    loaded: Arc<Loaded>,
    looked: Instant,
    reloads: u64,
    complaint: Option<String>,
}

impl Security {
    /// Reads the triple. A certificate that has ended is taken: whoever is dialled says so.
    pub fn load(config: TlsConfig) -> Result<Self, TlsError> {
        let files = Files::read(&config)?;
        let loaded = Arc::new(Loaded::parse(&files, &config)?);
        warn_of_end(&config, &loaded);
        Ok(Security(Some(Arc::new(Credentials {
            config,
            state: Mutex::new(State {
                files,
                loaded,
                looked: Instant::now(),
                reloads: 0,
                complaint: None,
            }),
        }))))
    }

    /// Whether connections are encrypted.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        match self.is_on() {
            true => "https",
            false => "http",
        }
    }

    /// Looks at the files as a new connection would; `None` in plaintext.
    pub fn standing(&self) -> Option<Standing> {
        let credentials = self.0.as_ref()?;
        let loaded = credentials.current();
        let state = credentials.state.lock();
        Some(Standing {
            not_after: loaded.not_after,
            reloads: state.reloads,
            complaint: state.complaint.clone(),
        })
    }
}

impl Credentials {
    /// What a connection that begins now uses.
    fn current(&self) -> Arc<Loaded> {
        let mut state = self.state.lock();
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            self.look(&mut state);
        }
        state.loaded.clone()
    }

    fn look(&self, state: &mut State) {
        let complaint = match Files::read(&self.config) {
            Ok(files) if files == state.files => None,
            Ok(files) => match Loaded::parse(&files, &self.config) {
                Ok(loaded) => {
                    tracing::info!(cert = %self.config.cert_path.display(), "changed certificates are used from now on");
                    warn_of_end(&self.config, &loaded);
                    state.files = files;
                    state.loaded = Arc::new(loaded);
                    state.reloads += 1;
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = &complaint
            && state.complaint != complaint
        {
            tracing::warn!(
                reason,
                "the certificates in use stay: the new ones cannot be used"
            );
        }
        state.complaint = complaint;
    }
}

impl Standing {
    /// Whether our certificate ends within two weeks, or has ended.
    pub fn ends_soon(&self) -> bool {
        days_left(self.not_after) < ENDS_SOON
    }
}

/// Whole days from now to a moment in seconds since 1970; negative: it is over.
fn days_left(end: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    });
    end.saturating_sub(now).div_euclid(24 * 3600)
}

fn warn_of_end(config: &TlsConfig, loaded: &Loaded) {
    let days = days_left(loaded.not_after);
    if days < ENDS_SOON {
        let cert = config.cert_path.display();
        tracing::warn!(%cert, days, "our certificate ends soon, or has ended");
    }
}
