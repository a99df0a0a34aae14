//! Keeps credentials out of what people see. BR's storage URLs carry them in the query
//! (`s3://bucket/prefix?secret-access-key=…`), other tools in the user part.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

/// Longer words of a backend are cut: a whole error page helps nobody.
const MAX_DETAIL: usize = 800;

/// A text that no `Debug` shows.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for whoever has to send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redacted")
    }
}

/// Words of a client, without secrets: known ones are replaced in every spelling that requests and
/// answers use, and URLs lose their user and their query, where signatures are.
pub fn scrub(text: &str, secrets: &[Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        for spelling in spellings(&secret.0) {
            text = text.replace(&spelling, "redacted");
        }
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        let ends = |c: char| c.is_whitespace() || "\"'<>(){}[],".contains(c);
        let (url, after) = url.split_at(url.find(ends).unwrap_or(url.len()));
        let place = url.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        clean.push_str(before);
        clean.push_str(authority.rsplit('@').next().unwrap_or_default());
        clean.push_str(path);
        rest = after;
    }
    clean.push_str(rest);
    let mut clean = without_tokens(&clean);
    if clean.len() > MAX_DETAIL {
        let mut end = MAX_DETAIL;
        while !clean.is_char_boundary(end) {
            end -= 1;
        }
        clean.truncate(end);
        clean.push('…');
    }
    clean
}

/// What stands before something that is made of a secret, and good for requests for a while.
const BEFORE_TOKENS: [&str; 4] = ["Bearer ", "SharedKey ", "Signature=", "sig="];

/// A server's error page may repeat the request: tokens and signatures are taken out.
fn without_tokens(text: &str) -> String {
    let mut text = text.to_owned();
    for mark in BEFORE_TOKENS {
        let ends = |c: char| c.is_whitespace() || "\"'<>,;&".contains(c);
        let hide =
            |part: &str| format!("redacted{}", &part[part.find(ends).unwrap_or(part.len())..]);
        let mut parts = text.split(mark);
        let first = parts.next().unwrap_or_default().to_owned();
        text = parts.fold(first, |clean, part| clean + mark + &hide(part));
    }
    text
}

/// The ways in which a secret is written. Very short ones are left out: a replaced "a" makes every
/// message unreadable and protects nothing.
fn spellings(secret: &str) -> Vec<String> {
    let mut all = vec![secret.to_owned()];
    all.push(utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string());
    all.extend(
        url::form_urlencoded::byte_serialize(secret.as_bytes())
            .map(str::to_owned)
            .reduce(|a, b| a + &b),
    );
    all.push(percent_decode_str(secret).decode_utf8_lossy().into_owned());
    all.push(secret.escape_debug().to_string());
    // A blob of JSON, or a token of pairs: its long parts are secrets of their own.
    let parts = secret
        .split(['"', '&', '=', '\n', '\\'])
        .filter(|part| part.len() >= 12);
    all.extend(parts.map(str::to_owned));
    all.retain(|spelling| spelling.len() >= 4);
    // Longest first, so that no part is left of a longer spelling.
    all.sort_by_key(|spelling| std::cmp::Reverse(spelling.len()));
    all
}

/// Query parameters whose values are no secret; everything else is hidden, so that a parameter
/// nobody thought of does not leak.
const HARMLESS: [&str; 8] = [
    "access-tier",
    "account-name",
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
            // A value that is itself a URL with a query could hold anything.
            let shown = HARMLESS.contains(&key.as_ref()) && !value.contains(['@', '?', '&']);
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
    fn what_a_request_was_signed_with_is_not_repeated() {
        let said = "you sent Authorization: Bearer ey.J0.eXA, then SharedKey acc:c2ln; \
                    Signature=f0e8bd</Message> and sig=c2ln%3D&se=1";
        assert_eq!(
            scrub(said, &[]),
            "you sent Authorization: Bearer redacted, then SharedKey redacted; \
             Signature=redacted</Message> and sig=redacted&se=1"
        );
        assert_eq!(scrub("Bearer tokens: none", &[]), "Bearer redacted none");
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
