//! Which settings of a place this build can honour. Whatever it cannot honour is refused: an object
//! that is written with another protection than asked for is worse than none.
//!
//! Called for places from URLs and for those from tasks alike.

use pitr_proto::backup::{AzureBlobStorage, Gcs, S3};

type Checked = Result<(), String>;

/// See [`super::CloudLocation::from_backend`].
pub(super) fn check_s3(s3: &S3) -> Checked {
    check_place(&s3.bucket, &s3.prefix, &s3.endpoint)?;
    if s3.access_key.is_empty() != s3.secret_access_key.is_empty() {
        return Err("access-key and secret-access-key are given together or not at all".into());
    }
    if !s3.session_token.is_empty() && s3.access_key.is_empty() {
        return Err("session-token needs access-key and secret-access-key".into());
    }
    if !s3.role_arn.is_empty() || !s3.external_id.is_empty() {
        return Err(
            "role-arn and external-id are not supported: this program assumes no role; give it the \
             temporary keys of the role (access-key, secret-access-key, session-token)"
                .into(),
        );
    }
    if !s3.profile.is_empty() {
        return Err("profile is not supported: give the keys of the profile".into());
    }
    if !matches!(s3.acl.as_str(), "" | "private") {
        return Err(
            "acl is not supported, except private: set the object ownership of the bucket".into(),
        );
    }
    match (s3.sse.as_str(), s3.sse_kms_key_id.is_empty()) {
        ("" | "AES256", true) | ("aws:kms" | "aws:kms:dsse", _) => {}
        ("" | "AES256", false) => return Err("sse-kms-key-id needs sse=aws:kms".into()),
        (_, _) => return Err("sse is AES256, aws:kms or aws:kms:dsse".into()),
    }
    if s3.object_lock_enabled {
        return Err("object lock is not supported: use a bucket without it".into());
    }
    Ok(())
}

/// See [`super::CloudLocation::from_backend`].
pub(super) fn check_gcs(gcs: &Gcs) -> Checked {
    check_place(&gcs.bucket, &gcs.prefix, &gcs.endpoint)?;
    if !gcs.predefined_acl.is_empty() {
        return Err("predefined-acl is not supported: set it as the bucket's default".into());
    }
    Ok(())
}

/// See [`super::CloudLocation::from_backend`].
pub(super) fn check_azure(azure: &AzureBlobStorage) -> Checked {
    check_place(&azure.bucket, &azure.prefix, &azure.endpoint)?;
    if !azure.shared_key.is_empty() && azure.account_name.is_empty() {
        return Err("account-key needs account-name".into());
    }
    if !azure.encryption_scope.is_empty() {
        return Err(
            "encryption-scope is not supported: set it as the default of the container".into(),
        );
    }
    if azure.encryption_key.is_some() {
        return Err(
            "encryption-key is not supported: use an encryption scope or account key".into(),
        );
    }
    Ok(())
}

fn check_place(bucket: &str, prefix: &str, endpoint: &str) -> Checked {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if bucket.is_empty() || !bucket.chars().all(plain) {
        return Err("the bucket's name has letters, digits, '-', '_' and '.' only".into());
    }
    let prefix = prefix.trim_matches('/');
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && prefix.split('/').any(bad) {
        return Err("the prefix has no empty part and no '.' or '..'".into());
    }
    if prefix.chars().any(char::is_control) || prefix.contains('\\') {
        return Err("the prefix has no control characters and no backslashes".into());
    }
    if endpoint.is_empty() {
        return Ok(());
    }
    let Ok(url) = ::url::Url::parse(endpoint) else {
        return Err("endpoint is not a URL; write it with http:// or https://".into());
    };
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("endpoint is an http:// or https:// URL with a host".into());
    }
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user || url.query().is_some() || url.fragment().is_some() {
        return Err("endpoint has no user, no query and no fragment".into());
    }
    Ok(())
}
