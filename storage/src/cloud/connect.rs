//! A place and the caller's options become a client of `object_store`. Called by
//! [`super::storage::CloudStorage::open`].
//!
//! What the place names wins over the options; without either, the clouds' own ways are tried at the
//! first request (instance metadata, workload identity).

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use pitr_proto::backup::storage_backend::Backend;
use pitr_proto::backup::{AzureBlobStorage, Gcs, S3};

use super::{CloudLocation, CloudOptions, Secret};

type Store = Arc<dyn ObjectStore>;
type Built = object_store::Result<Store>;

/// A client, and what must never be shown.
pub(super) struct Connection {
    pub(super) store: Store,
    pub(super) secrets: Vec<Secret>,
    /// For each object that is written; empty = the bucket's default.
    pub(super) storage_class: String,
}

/// Everything of `options` that could show up in a message.
pub(super) fn secrets_of(place: &CloudLocation, options: &CloudOptions) -> Vec<Secret> {
    let mut secrets = place.secrets();
    let given = [
        &options.s3_access_key,
        &options.s3_secret_access_key,
        &options.s3_session_token,
        &options.gcs_credentials,
        &options.azure_key,
        &options.azure_sas,
    ];
    secrets.extend(given.into_iter().flatten().cloned());
    secrets
}

/// Builds the client; the caller takes care of what an error may show.
pub(super) fn connect(
    place: &CloudLocation,
    options: &CloudOptions,
) -> object_store::Result<Connection> {
    let (store, prefix, storage_class) = match &place.0 {
        Backend::S3(s3) => (aws(s3, options)?, &s3.prefix, &s3.storage_class),
        Backend::Gcs(gcs) => (google(gcs, options)?, &gcs.prefix, &gcs.storage_class),
        Backend::AzureBlobStorage(azure) => (
            microsoft(azure, options)?,
            &azure.prefix,
            &azure.storage_class,
        ),
        _ => {
            return Err(object_store::Error::NotSupported {
                source: "no cloud storage".into(),
            });
        }
    };
    let prefix = Path::parse(prefix.trim_matches('/'))?;
    let store: Store = if prefix.is_root() {
        store
    } else {
        Arc::new(PrefixStore::new(store, prefix))
    };
    Ok(Connection {
        store,
        secrets: secrets_of(place, options),
        storage_class: storage_class.clone(),
    })
}

fn aws(s3: &S3, options: &CloudOptions) -> Built {
    let region = if s3.region.is_empty() {
        options.s3_region.as_deref().unwrap_or("us-east-1")
    } else {
        &s3.region
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(region)
        .with_virtual_hosted_style_request(!s3.force_path_style)
        // One request an object is what every compatible server understands.
        .with_disable_bulk_delete(true)
        .with_client_options(client_options(&s3.endpoint, options))
        .with_retry(retries(options));
    if !s3.endpoint.is_empty() {
        builder = builder.with_endpoint(s3_endpoint(s3));
    }
    let encryption = [
        ("aws_server_side_encryption", &s3.sse),
        ("aws_sse_kms_key_id", &s3.sse_kms_key_id),
    ];
    for (key, value) in encryption {
        if !value.is_empty() {
            builder = builder.with_config(key.parse::<AmazonS3ConfigKey>()?, value);
        }
    }
    if !s3.access_key.is_empty() {
        builder = builder
            .with_access_key_id(&s3.access_key)
            .with_secret_access_key(&s3.secret_access_key);
        if !s3.session_token.is_empty() {
            builder = builder.with_token(&s3.session_token);
        }
    } else if let (Some(id), Some(key)) = (&options.s3_access_key, &options.s3_secret_access_key) {
        builder = builder
            .with_access_key_id(id.reveal())
            .with_secret_access_key(key.reveal());
        if let Some(token) = &options.s3_session_token {
            builder = builder.with_token(token.reveal());
        }
    }
    Ok(Arc::new(builder.build()?))
}

/// `object_store` wants the bucket in the host itself where paths do not begin with it, and no slash
/// at the end.
fn s3_endpoint(s3: &S3) -> String {
    let endpoint = s3.endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if !s3.force_path_style => {
            format!("{scheme}://{}.{host}", s3.bucket)
        }
        _ => endpoint.to_owned(),
    }
}

fn google(gcs: &Gcs, options: &CloudOptions) -> Built {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&gcs.bucket)
        .with_client_options(client_options(&gcs.endpoint, options))
        .with_retry(retries(options));
    if !gcs.endpoint.is_empty() {
        // BR's endpoint is that of the JSON API; this client speaks the XML API beside it.
        let base = gcs.endpoint.trim_end_matches('/');
        builder = builder.with_base_url(base.strip_suffix("/storage/v1").unwrap_or(base));
    }
    if !gcs.credentials_blob.is_empty() {
        builder = builder.with_service_account_key(&gcs.credentials_blob);
    } else if let Some(blob) = &options.gcs_credentials {
        builder = builder.with_service_account_key(blob.reveal());
    }
    Ok(Arc::new(builder.build()?))
}

fn microsoft(azure: &AzureBlobStorage, options: &CloudOptions) -> Built {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(&azure.bucket)
        .with_client_options(client_options(&azure.endpoint, options))
        .with_retry(retries(options));
    if !azure.account_name.is_empty() {
        builder = builder.with_account(&azure.account_name);
    } else if let Some(account) = &options.azure_account {
        builder = builder.with_account(account);
    }
    if !azure.endpoint.is_empty() {
        builder = builder.with_endpoint(azure.endpoint.trim_end_matches('/').to_owned());
    }
    let own = !azure.shared_key.is_empty() || !azure.access_sig.is_empty();
    let given = |own_value: &str, offered: &Option<Secret>| {
        if own {
            (!own_value.is_empty()).then(|| own_value.to_owned())
        } else {
            offered.as_ref().map(|secret| secret.reveal().to_owned())
        }
    };
    if let Some(sas) = given(&azure.access_sig, &options.azure_sas) {
        let sas = sas.trim_start_matches('?').to_owned();
        builder = builder.with_config(AzureConfigKey::SasKey, sas);
    } else if let Some(key) = given(&azure.shared_key, &options.azure_key) {
        builder = builder.with_access_key(key);
    }
    Ok(Arc::new(builder.build()?))
}

fn client_options(endpoint: &str, options: &CloudOptions) -> ClientOptions {
    ClientOptions::new()
        // Only where the endpoint says so.
        .with_allow_http(endpoint.starts_with("http://"))
        .with_timeout(options.request_timeout)
        .with_connect_timeout(options.connect_timeout)
}

fn retries(options: &CloudOptions) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: std::time::Duration::from_secs(10),
            ..Default::default()
        },
        max_retries: options.max_retries,
        retry_timeout: options.retry_timeout,
    }
}
