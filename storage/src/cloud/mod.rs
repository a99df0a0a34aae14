//! Archives in object stores: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure
//! Blob Storage.
//!
//! A place is held as the message that a task in PD carries (`backup.S3`, `backup.GCS`,
//! `backup.AzureBlobStorage`), because that is what BR, TiKV and this project hand to each other:
//! [`url`] makes it from a URL with BR's parameters, [`connect`] opens it, [`storage`] keeps the
//! promises of [`crate::Storage`] on it. Environment variables are the binary's business: it passes
//! what it found as [`CloudOptions`], which fill what the place leaves open.
//!
//! Invariant: no secret of a place or of the options is in any `Debug`, `Display` or error
//! ([`crate::redact`]).

#[cfg(feature = "cloud")]
mod connect;
mod params;
#[cfg(feature = "cloud")]
mod storage;
mod url;

use std::fmt;
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use pitr_proto::backup::StorageBackend;
use pitr_proto::backup::storage_backend::Backend;

pub use crate::redact::Secret;
pub(crate) use url::parse;

use crate::error::{Context, StorageErrorKind};
use crate::location::IN_PATH;
use crate::{Result, SharedStorage};

/// What the caller's environment offers, and how patient requests are. Credentials are used where
/// the place has none of its own.
#[derive(Clone, Debug)]
pub struct CloudOptions {
    /// `AWS_ACCESS_KEY_ID` and the two that belong to it.
    pub s3_access_key: Option<Secret>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub s3_secret_access_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`.
    pub s3_session_token: Option<Secret>,
    /// `AWS_REGION`.
    pub s3_region: Option<String>,
    /// The content of the file that `GOOGLE_APPLICATION_CREDENTIALS` names.
    pub gcs_credentials: Option<Secret>,
    /// `AZURE_STORAGE_ACCOUNT`.
    pub azure_account: Option<String>,
    /// `AZURE_STORAGE_KEY`.
    pub azure_key: Option<Secret>,
    /// `AZURE_STORAGE_SAS_TOKEN`.
    pub azure_sas: Option<Secret>,
    /// One request, from the first byte sent to the last one received.
    pub request_timeout: Duration,
    /// Only its connection.
    pub connect_timeout: Duration,
    /// How often a request is repeated that failed for throttling, a server error or a broken
    /// connection; the delays between grow from 100 ms to 10 s.
    pub max_retries: usize,
    /// No repetition begins later than this after the first attempt.
    pub retry_timeout: Duration,
}

impl Default for CloudOptions {
    fn default() -> Self {
        Self {
            s3_access_key: None,
            s3_secret_access_key: None,
            s3_session_token: None,
            s3_region: None,
            gcs_credentials: None,
            azure_account: None,
            azure_key: None,
            azure_sas: None,
            request_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(10),
            max_retries: 5,
            retry_timeout: Duration::from_secs(60),
        }
    }
}

/// A bucket or container, a prefix in it, and how it is reached.
#[derive(Clone, PartialEq)]
pub struct CloudLocation(Backend);

impl fmt::Debug for CloudLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloudLocation({})", self.uri())
    }
}

impl CloudLocation {
    /// Takes the message of a task over; local directories are none of a cloud's.
    pub(crate) fn from_backend(backend: &Backend) -> Result<Self> {
        let place = Self(backend.clone());
        let uri = place.uri();
        let context = Context {
            action: "open",
            path: "",
            uri: &uri,
        };
        place.check().map_err(|why| {
            let why = crate::redact::scrub(&why, &place.secrets());
            context.fail(StorageErrorKind::InvalidConfig, why)
        })?;
        Ok(place)
    }

    /// The message for a task, with the credentials that the URL named.
    pub(crate) fn to_backend(&self) -> StorageBackend {
        StorageBackend {
            backend: Some(self.0.clone()),
        }
    }

    /// Scheme, bucket, prefix and endpoint.
    pub fn uri(&self) -> String {
        let (scheme, bucket, prefix, endpoint) = match &self.0 {
            Backend::S3(s3) => ("s3", &s3.bucket, &s3.prefix, &s3.endpoint),
            Backend::Gcs(gcs) => ("gcs", &gcs.bucket, &gcs.prefix, &gcs.endpoint),
            Backend::AzureBlobStorage(azure) => {
                ("azure", &azure.bucket, &azure.prefix, &azure.endpoint)
            }
            _ => return "(no cloud storage)".to_owned(),
        };
        let mut uri = format!("{scheme}://{}", utf8_percent_encode(bucket, IN_PATH));
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() {
            uri.push('/');
            uri.extend(utf8_percent_encode(prefix, IN_PATH));
        }
        if !endpoint.is_empty() {
            uri.push_str("?endpoint=");
            uri.push_str(&crate::redact::scrub(&without_user(endpoint), &[]));
        }
        uri
    }

    /// Opens it. Nothing is sent: whether the bucket exists shows at the first call.
    #[cfg(feature = "cloud")]
    pub(crate) fn open(&self, options: &CloudOptions) -> Result<SharedStorage> {
        storage::CloudStorage::open(self, options)
    }

    /// A build without the clients of clouds reads and writes their places, and opens none.
    #[cfg(not(feature = "cloud"))]
    pub(crate) fn open(&self, _: &CloudOptions) -> Result<SharedStorage> {
        let uri = self.uri();
        let context = Context {
            action: "open",
            path: "",
            uri: &uri,
        };
        let why = "this build has no cloud storages: it needs the feature `cloud`";
        Err(context.fail(StorageErrorKind::InvalidConfig, why))
    }

    fn secrets(&self) -> Vec<Secret> {
        let all = match &self.0 {
            Backend::S3(s3) => vec![&s3.access_key, &s3.secret_access_key, &s3.session_token],
            Backend::Gcs(gcs) => vec![&gcs.credentials_blob],
            Backend::AzureBlobStorage(azure) => vec![&azure.shared_key, &azure.access_sig],
            _ => Vec::new(),
        };
        all.into_iter().cloned().map(Secret::new).collect()
    }

    /// Refuses what this build would not do as asked.
    fn check(&self) -> std::result::Result<(), String> {
        match &self.0 {
            Backend::S3(s3) => params::check_s3(s3),
            Backend::Gcs(gcs) => params::check_gcs(gcs),
            Backend::AzureBlobStorage(azure) => params::check_azure(azure),
            _ => Err("this is no cloud storage".to_owned()),
        }
    }
}

/// An endpoint with a user is refused, and the refusal names it: without what stands before the host,
/// which may hold any character.
fn without_user(endpoint: &str) -> String {
    match (endpoint.rsplit_once('@'), endpoint.split_once("://")) {
        (Some((_, host)), Some((scheme, _))) => format!("{scheme}://{host}"),
        (Some((_, host)), None) => host.to_owned(),
        (None, _) => endpoint.to_owned(),
    }
}
