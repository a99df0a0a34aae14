//! Addresses and gRPC channels: one place that knows URL forms, time-outs, keepalive and windows.
//!
//! Whether TLS is spoken is a matter of the certificates that are given, as with PD's own clients,
//! not of the address: with them every address is dialled by TLS, also one written `http://`; without
//! them an `https` address is refused rather than spoken to in the clear. Used by every client of
//! this crate.

use std::time::Duration;

use pitr_format::Class;
use tonic::transport::{Channel, Endpoint};

use crate::tls::Security;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// An address that cannot be dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address:?}: {reason}")]
pub struct AddressError {
    /// What was given.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

impl AddressError {
    /// A wrong address stays wrong.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Brings `host:port` and `http://host:port/` to the form `http://host:port`, or `https://host:port`
/// where there are certificates. PD reports URLs, stores report bare addresses.
pub fn normalize(security: &Security, address: &str) -> Result<String, AddressError> {
    let refuse = |reason: &str| AddressError {
        address: address.to_owned(),
        reason: reason.to_owned(),
    };
    let trimmed = address.trim();
    let host = match trimmed.split_once("://") {
        Some(("https", _)) if !security.is_on() => {
            return Err(refuse(
                "TLS needs certificates: ca, cert and key (of `[security]`, or `--ca --cert --key`)",
            ));
        }
        Some(("http" | "https", host)) => host,
        Some(_) => return Err(refuse("expected http://host:port or https://host:port")),
        None => trimmed,
    };
    let host = host.trim_end_matches('/');
    let normalized = format!("{}://{host}", security.scheme());
    let url = url::Url::parse(&normalized).map_err(|e| refuse(&e.to_string()))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(refuse("host is missing"));
    }
    Ok(normalized)
}

/// Channel to a PD member. PD's embedded etcd enforces "at most one ping in 5 s, none without
/// streams", hence no pings while idle.
pub(crate) fn pd_channel(security: &Security, url: &str) -> Result<Channel, AddressError> {
    let endpoint = endpoint(security, url)?.keep_alive_while_idle(false);
    Ok(endpoint.connect_with_connector_lazy(security.grpc(CONNECT_TIMEOUT)))
}

/// Channel to a TiKV store, with the windows and keepalive that TiCDC uses or better.
pub fn store_channel(security: &Security, url: &str) -> Result<Channel, AddressError> {
    let endpoint = endpoint(security, url)?
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(endpoint.connect_with_connector_lazy(security.grpc(CONNECT_TIMEOUT)))
}

fn endpoint(security: &Security, url: &str) -> Result<Endpoint, AddressError> {
    let url = normalize(security, url)?;
    Ok(Endpoint::from_shared(url.clone())
        .map_err(|e| AddressError {
            address: url,
            reason: e.to_string(),
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT))
}

/// One line for a status, with the transport's cause that `Display` of a status leaves out.
pub(crate) fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(address: &str) -> Result<String, AddressError> {
        normalize(&Security::default(), address)
    }

    #[test]
    fn bare_addresses_and_urls_come_to_one_form() {
        for given in [
            "127.0.0.1:2379",
            "http://127.0.0.1:2379",
            "http://127.0.0.1:2379/",
        ] {
            assert_eq!(plain(given).unwrap(), "http://127.0.0.1:2379");
        }
        assert_eq!(plain("pd-0.pd:2379").unwrap(), "http://pd-0.pd:2379");
    }

    #[test]
    fn an_https_address_is_refused_instead_of_being_spoken_to_in_the_clear() {
        let error = plain("https://pd:2379").unwrap_err();
        assert!(error.to_string().contains("--ca"), "{error}");
        assert_eq!(error.class(), Class::Permanent);
        for wrong in ["", "local:///tmp", "http://", "://pd:1"] {
            assert!(plain(wrong).is_err(), "{wrong:?}");
        }
    }
}
