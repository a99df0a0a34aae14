//! `[security]`, with TiKV's item names: the certificates of a cluster with TLS.

use std::path::PathBuf;

use pitr_cluster::tls::{Security, TlsConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::failure::Failure;

/// One triple of files for everything, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct SecurityConfig {
    /// The CA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_path: Option<PathBuf>,
    /// Our certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_path: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_path: Option<PathBuf>,
    /// Common names of clients that are served.
    pub cert_allowed_cn: Vec<String>,
    /// The name in the certificates of servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
}

impl SecurityConfig {
    /// The triple, if there is one.
    pub fn tls(&self) -> Option<TlsConfig> {
        Some(TlsConfig {
            ca_path: self.ca_path.clone()?,
            cert_path: self.cert_path.clone()?,
            key_path: self.key_path.clone()?,
            cert_allowed_cn: self.cert_allowed_cn.clone(),
            domain_name: self.domain_name.clone(),
        })
    }

    /// Reads the files.
    pub fn load(&self) -> Result<Security, Failure> {
        match self.tls() {
            Some(config) => Ok(Security::load(config)?),
            None => Ok(Security::default()),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let paths = [
            ("security.ca-path", &self.ca_path),
            ("security.cert-path", &self.cert_path),
            ("security.key-path", &self.key_path),
        ];
        let lacks = paths.iter().find(|(_, path)| path.is_none());
        let given = paths.iter().any(|(_, path)| path.is_some());
        let (key, rule) = match lacks {
            None => return Ok(()),
            Some((key, _)) if given => (
                *key,
                "the CA, the certificate and its key are needed together",
            ),
            Some(_) if !self.cert_allowed_cn.is_empty() => (
                "security.cert-allowed-cn",
                "means nothing without certificates: give `security.ca-path`, `cert-path` and `key-path`",
            ),
            Some(_) if self.domain_name.is_some() => (
                "security.domain-name",
                "means nothing without certificates: give `security.ca-path`, `cert-path` and `key-path`",
            ),
            Some(_) => return Ok(()),
        };
        let value = match key {
            "security.cert-allowed-cn" => format!("{:?}", self.cert_allowed_cn),
            "security.domain-name" => self.domain_name.clone().unwrap_or_default(),
            _ => "none".to_owned(),
        };
        Err(ConfigError::Value { key, value, rule })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(lines: &str) -> Result<Config, String> {
        let text = format!("pd-endpoints = [\"a:1\"]\nstore-id = 1\n[security]\n{lines}");
        Config::parse(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_three_files_are_given_together_or_not_at_all() {
        let (ca, cert, key) = (
            "ca-path = \"a\"\n",
            "cert-path = \"b\"\n",
            "key-path = \"c\"\n",
        );
        assert_eq!(parse("").unwrap().security.tls(), None);
        let all = parse(&format!("{ca}{cert}{key}")).unwrap().security.tls();
        assert_eq!(all.unwrap().key_path.to_str(), Some("c"));
        for (given, lacks) in [
            (format!("{ca}{cert}"), "security.key-path"),
            (format!("{ca}{key}"), "security.cert-path"),
            (format!("{cert}{key}"), "security.ca-path"),
            (ca.to_owned(), "security.cert-path"),
        ] {
            let error = parse(&given).unwrap_err();
            assert!(
                error.contains(lacks) && error.contains("together"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_only_means_something_with_certificates_is_refused_without() {
        for (line, key) in [
            ("cert-allowed-cn = [\"tikv\"]", "security.cert-allowed-cn"),
            ("domain-name = \"tikv\"", "security.domain-name"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(key) && error.contains("tikv"), "{error}");
        }
    }
}
