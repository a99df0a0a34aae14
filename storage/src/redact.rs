//! Keeps credentials out of what people see. BR's storage URLs carry them in the query
//! (`s3://bucket/prefix?secret-access-key=…`), other tools in the user part.

use url::Url;

/// Query parameters whose values are no secret; everything else is hidden, so that a parameter
/// nobody thought of does not leak.
const HARMLESS: [&str; 6] = [
    "endpoint",
    "region",
    "force-path-style",
    "provider",
    "storage-class",
    "sse",
];

/// The URL with user, password and all query values but known harmless ones hidden. What is not a
/// URL is cut after its scheme, because nobody can say where its secrets are.
pub fn redact_url(url: &str) -> String {
    if !url.contains("://") {
        // A path. It has no place for a secret.
        return url.to_owned();
    }
    let Ok(mut parsed) = Url::parse(url) else {
        let scheme = url.split("://").next().unwrap_or_default();
        return format!("{scheme}://(unreadable)");
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // Fails only for URLs without a host, which have no user part.
        let _ = parsed.set_username("redacted");
        let _ = parsed.set_password(None);
    }
    parsed.set_fragment(None);
    let query = parsed
        .query_pairs()
        .map(|(key, value)| {
            let shown = HARMLESS.contains(&key.as_ref()) && !value.contains('@');
            (
                key.into_owned(),
                if shown {
                    value.into_owned()
                } else {
                    "redacted".to_owned()
                },
            )
        })
        .collect::<Vec<_>>();
    if !query.is_empty() {
        parsed.query_pairs_mut().clear().extend_pairs(query);
    }
    parsed.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_stay_and_credentials_go() {
        assert_eq!(
            redact_url(
                "s3://bucket/dir?endpoint=http://minio:9000&access-key=AKIA&secret-access-key=s3cr%2Ft#x"
            ),
            "s3://bucket/dir?endpoint=http%3A%2F%2Fminio%3A9000&access-key=redacted&secret-access-key=redacted"
        );
        assert_eq!(
            redact_url("s3://key:secret@bucket/dir"),
            "s3://redacted@bucket/dir"
        );
        assert_eq!(redact_url("local:///archive"), "local:///archive");
        assert_eq!(redact_url("/archive dir"), "/archive dir");
    }

    #[test]
    fn an_unreadable_url_shows_only_its_scheme() {
        assert_eq!(redact_url("s3://[bad?secret=canary"), "s3://(unreadable)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_secret_never_survives_in_any_secret_place(
            key in "[a-z-]{1,12}",
            place in 0..4usize,
        ) {
            prop_assume!(!HARMLESS.contains(&key.as_str()));
            let url = match place {
                0 => format!("s3://b/p?{key}=canary42"),
                1 => format!("s3://b/p?region=x&{key}=canary42&z=1"),
                2 => format!("s3://canary42@b/p?{key}=1"),
                _ => "s3://u:canary42@b/p#canary42".to_owned(),
            };
            prop_assert!(!redact_url(&url).contains("canary42"));
        }
    }
}
