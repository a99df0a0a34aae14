//! Cloud URLs as BR reads them (pingcap/tidb `br/pkg/storage/parse.go`): `scheme://bucket/prefix`
//! and options in the query; `_` in an option's name is `-`, case does not matter, and `+` in a value
//! is a plus sign, because secret keys hold one.
//!
//! Stricter than BR in one way: an option that nobody knows is an error, since a mistyped `sse` would
//! otherwise write objects in the clear.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use pitr_proto::backup::storage_backend::Backend;
use pitr_proto::backup::{AzureBlobStorage, AzureCustomerKey, Gcs, S3};

use super::CloudLocation;
use crate::Result;
use crate::error::{Context, StorageErrorKind};

const S3_OPTIONS: [&str; 16] = [
    "access-key",
    "acl",
    "endpoint",
    "external-id",
    "force-path-style",
    "object-lock-enabled",
    "profile",
    "provider",
    "region",
    "role-arn",
    "secret-access-key",
    "session-token",
    "sse",
    "sse-kms-key-id",
    "storage-class",
    "use-accelerate-endpoint",
];
const GCS_OPTIONS: [&str; 4] = [
    "credentials-file",
    "endpoint",
    "predefined-acl",
    "storage-class",
];
const AZURE_OPTIONS: [&str; 7] = [
    "access-tier",
    "account-key",
    "account-name",
    "encryption-key",
    "encryption-scope",
    "endpoint",
    "sas-token",
];

/// The options of one URL, taken out one by one.
struct Options(BTreeMap<String, String>);

type Read<T> = std::result::Result<T, String>;

/// Reads what follows `scheme://`; `None` if the scheme is no cloud's.
pub(crate) fn parse(
    scheme: &str,
    rest: &str,
    context: Context<'_>,
) -> Option<Result<CloudLocation>> {
    let read: fn(&str, &str) -> Read<Backend> = match scheme {
        "s3" => s3,
        "gcs" | "gs" => gcs,
        "azure" | "azblob" => azure,
        _ => return None,
    };
    let place = read_place(rest, read)
        .map_err(|why| context.fail(StorageErrorKind::InvalidConfig, why))
        .and_then(|backend| CloudLocation::from_backend(&backend));
    Some(place)
}

fn read_place(rest: &str, read: fn(&str, &str) -> Read<Backend>) -> Read<Backend> {
    if rest.contains('#') {
        return Err("write '#' as %23".into());
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    read(place, query)
}

fn bucket_and_prefix(place: &str) -> Read<(String, String)> {
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    // A key with a slash in it ends up in both parts.
    if place.contains('@') && bucket.contains([':', '@']) {
        return Err("credentials are options, not a user before the bucket".into());
    }
    let prefix = decode(prefix.trim_matches('/'), "prefix")?;
    Ok((bucket.to_owned(), prefix))
}

fn s3(place: &str, query: &str) -> Read<Backend> {
    let (bucket, prefix) = bucket_and_prefix(place)?;
    let mut options = Options::read(query, &S3_OPTIONS)?;
    let provider = options.text("provider");
    let given = options.flag("force-path-style")?;
    if options.flag("use-accelerate-endpoint")? == Some(true) {
        return Err("use-accelerate-endpoint is not supported: give the bucket's endpoint".into());
    }
    // BR's rule: these two know no path style.
    let hosted = matches!(provider.as_str(), "alibaba" | "netease");
    Ok(Backend::S3(S3 {
        bucket,
        prefix,
        endpoint: options.text("endpoint").trim_end_matches('/').to_owned(),
        region: options.text("region"),
        storage_class: options.text("storage-class"),
        sse: options.text("sse"),
        sse_kms_key_id: options.text("sse-kms-key-id"),
        acl: options.text("acl"),
        access_key: options.text("access-key"),
        secret_access_key: options.text("secret-access-key"),
        session_token: options.text("session-token"),
        force_path_style: given.unwrap_or(true) && !hosted,
        role_arn: options.text("role-arn"),
        external_id: options.text("external-id"),
        object_lock_enabled: options.flag("object-lock-enabled")?.unwrap_or(false),
        profile: options.text("profile"),
        provider,
    }))
}

fn gcs(place: &str, query: &str) -> Read<Backend> {
    let (bucket, prefix) = bucket_and_prefix(place)?;
    let mut options = Options::read(query, &GCS_OPTIONS)?;
    let file = options.text("credentials-file");
    let credentials_blob = if file.is_empty() {
        String::new()
    } else {
        std::fs::read_to_string(&file)
            .map_err(|error| format!("cannot read the credentials-file {file}: {error}"))?
    };
    Ok(Backend::Gcs(Gcs {
        bucket,
        prefix,
        endpoint: options.text("endpoint"),
        storage_class: options.text("storage-class"),
        predefined_acl: options.text("predefined-acl"),
        credentials_blob,
    }))
}

fn azure(place: &str, query: &str) -> Read<Backend> {
    let (bucket, prefix) = bucket_and_prefix(place)?;
    let mut options = Options::read(query, &AZURE_OPTIONS)?;
    let customer_key = options.text("encryption-key");
    Ok(Backend::AzureBlobStorage(AzureBlobStorage {
        bucket,
        prefix,
        endpoint: options.text("endpoint").trim_end_matches('/').to_owned(),
        storage_class: options.text("access-tier"),
        account_name: options.text("account-name"),
        shared_key: options.text("account-key"),
        access_sig: options.text("sas-token"),
        encryption_scope: options.text("encryption-scope"),
        // Refused by the check that follows; its content is never needed.
        encryption_key: (!customer_key.is_empty()).then(AzureCustomerKey::default),
    }))
}

impl Options {
    fn read(query: &str, known: &[&str]) -> Read<Self> {
        let mut found = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, "query")?.to_lowercase().replace('_', "-");
            if !known.contains(&key.as_str()) {
                return Err(unknown(&key, known));
            }
            let value = decode(value, &key)?;
            if value.chars().any(char::is_control) {
                return Err(format!("control characters in {key}"));
            }
            if found.insert(key.clone(), value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(Self(found))
    }

    fn text(&mut self, key: &str) -> String {
        self.0.remove(key).unwrap_or_default()
    }

    fn flag(&mut self, key: &str) -> Read<Option<bool>> {
        match self.0.remove(key).map(|value| value.to_lowercase()) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                "true" | "1" | "t" => Ok(Some(true)),
                "false" | "0" | "f" => Ok(Some(false)),
                _ => Err(format!("{key} is true or false")),
            },
        }
    }
}

/// Names the nearest option. The unknown one is shown only if it looks like one: a secret with an
/// unescaped '&' ends up here.
fn unknown(key: &str, known: &[&str]) -> String {
    let distance = |option: &&&str| strsim::damerau_levenshtein(key, option);
    let nearest = known.iter().min_by_key(distance).unwrap_or(&"endpoint");
    if strsim::damerau_levenshtein(key, nearest) <= 4 {
        format!("unknown option; did you mean {nearest}?")
    } else {
        format!("unknown option; known ones are {}", known.join(", "))
    }
}

fn decode(text: &str, what: &str) -> Read<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| format!("the {what} is not UTF-8"))?;
    Ok(decoded.into_owned())
}
