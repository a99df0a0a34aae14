//! Signatures of requests, checked from the clouds' public rules: Amazon's version 4
//! (docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html) and Azure's shared key
//! (learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key). HMAC is RFC 2104.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::{Asked, decode};

/// Everything but the unreserved characters of RFC 3986.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const IN_PATH: &AsciiSet = &STRICT.remove(b'/');

/// What the server knows of a caller.
pub struct Key<'a> {
    pub id: &'a str,
    pub secret: &'a str,
    pub region: &'a str,
}

pub fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    match key.len() > block.len() {
        true => block[..32].copy_from_slice(&Sha256::digest(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::digest([&pad(0x36)[..], message].concat());
    Sha256::digest([&pad(0x5c)[..], &inner[..]].concat()).into()
}

/// Whether a request of now is signed by this key.
pub fn verify_v4(key: &Key<'_>, asked: &Asked) -> Result<(), String> {
    verify_v4_at(
        key,
        asked,
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
}

fn verify_v4_at(key: &Key<'_>, asked: &Asked, now: u64) -> Result<(), String> {
    let header = asked.header("authorization");
    let fields = header
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("another scheme")?;
    let field = |name: &str| -> Result<&str, String> {
        let mut fields = fields.split(',').map(str::trim);
        let found = fields.find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        found.ok_or(format!("{name} is missing"))
    };
    let time = asked.header("x-amz-date");
    let date = time.get(..8).ok_or("x-amz-date is missing")?;
    let age = seconds_of(time)
        .ok_or("x-amz-date is no time")?
        .abs_diff(now);
    if age > 15 * 60 {
        return Err(format!("RequestTimeTooSkewed: {age} s"));
    }
    let scope = format!("{date}/{}/s3/aws4_request", key.region);
    if field("Credential")? != format!("{}/{scope}", key.id) {
        return Err("another key, day or region".to_owned());
    }
    let signed: Vec<&str> = field("SignedHeaders")?.split(';').collect();
    must_be_signed(asked, &signed)?;
    let digest = asked.header("x-amz-content-sha256");
    if digest != "UNSIGNED-PAYLOAD" && digest != hex::encode(Sha256::digest(&asked.body)) {
        return Err("XAmzContentSHA256Mismatch".to_owned());
    }
    let canonical = canonical_request(asked, &signed, digest);
    let hashed = hex::encode(Sha256::digest(canonical.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
    let mut secret = format!("AWS4{}", key.secret).into_bytes();
    for step in [date, key.region, "s3", "aws4_request"] {
        secret = hmac(&secret, step.as_bytes()).to_vec();
    }
    match field("Signature")? == hex::encode(hmac(&secret, to_sign.as_bytes())) {
        true => Ok(()),
        false => Err(format!("SignatureDoesNotMatch: {canonical}")),
    }
}

/// `host`, every `x-amz-*` header, and `content-md5`; sorted and without repetition.
fn must_be_signed(asked: &Asked, signed: &[&str]) -> Result<(), String> {
    if !signed.is_sorted_by(|a, b| a < b) {
        return Err("the signed headers are not sorted".to_owned());
    }
    let names = asked.headers.keys().map(|name| name.as_str());
    let needed = names.filter(|n| n.starts_with("x-amz-") || ["host", "content-md5"].contains(n));
    for name in needed {
        if !signed.contains(&name) {
            return Err(format!("{name} is not signed"));
        }
    }
    match signed.contains(&"host") {
        true => Ok(()),
        false => Err("host is not signed".to_owned()),
    }
}

fn canonical_request(asked: &Asked, signed: &[&str], digest: &str) -> String {
    let path = utf8_percent_encode(&decode(&asked.path), IN_PATH).to_string();
    // A plus sign is a blank in a query; servers sign it as one.
    let plain = |text: &str| decode(&text.replace('+', " "));
    let encode = |text: &str| utf8_percent_encode(&plain(text), STRICT).to_string();
    let pairs = asked.raw_pairs();
    let mut query: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    query.sort();
    let one_blank = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let headers: String = signed
        .iter()
        .map(|name| format!("{name}:{}\n", one_blank(asked.header(name))))
        .collect();
    format!(
        "{}\n{path}\n{}\n{headers}\n{}\n{digest}",
        asked.method,
        query.join("&"),
        signed.join(";")
    )
}

/// Seconds since 1970 of `20130524T000000Z`.
fn seconds_of(time: &str) -> Option<u64> {
    let digits: String = time.chars().filter(char::is_ascii_digit).collect();
    let part = |range: std::ops::Range<usize>| digits.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let years: u64 = (1970..year).map(|y| 365 + u64::from(leap(y))).sum();
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let months: u64 = lengths.iter().take(usize::try_from(month).ok()? - 1).sum();
    let days = years + months + day - 1;
    Some(days * 86_400 + part(8..10)? * 3600 + part(10..12)? * 60 + part(12..14)?)
}

/// Whether a request is signed with the account's key (base64).
pub fn verify_shared_key(account: &str, key: &str, asked: &Asked) -> Result<(), String> {
    let dated = !asked.header("x-ms-date").is_empty();
    if !dated && asked.header("date").is_empty() {
        return Err("neither date nor x-ms-date".to_owned());
    }
    let length = asked.header("content-length");
    let mut text = format!("{}\n", asked.method);
    for name in ["content-encoding", "content-language"] {
        text += &format!("{}\n", asked.header(name));
    }
    text += &format!("{}\n", if length == "0" { "" } else { length });
    for name in ["content-md5", "content-type"] {
        text += &format!("{}\n", asked.header(name));
    }
    text += &format!("{}\n", if dated { "" } else { asked.header("date") });
    let conditions = [
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ];
    for name in conditions {
        text += &format!("{}\n", asked.header(name));
    }
    let mut named: Vec<_> = asked.headers.keys().map(|name| name.as_str()).collect();
    named.retain(|name| name.starts_with("x-ms-"));
    named.sort_unstable();
    for name in named {
        text += &format!("{name}:{}\n", asked.header(name).trim());
    }
    text += &format!("/{account}{}", asked.path);
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in asked.raw_pairs() {
        let values = values.entry(decode(name).to_lowercase()).or_default();
        values.push(decode(&value.replace('+', " ")));
    }
    for (name, mut values) in values {
        values.sort();
        text += &format!("\n{name}:{}", values.join(","));
    }
    let key = BASE64_STANDARD
        .decode(key)
        .map_err(|_| "the key is not base64")?;
    let signature = BASE64_STANDARD.encode(hmac(&key, text.as_bytes()));
    match asked.header("authorization") == format!("SharedKey {account}:{signature}") {
        true => Ok(()),
        false => Err(format!("AuthenticationFailed: the server signed {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::http::{HeaderMap, HeaderValue, Method};

    use super::*;

    const EXAMPLE: Key<'_> = Key {
        id: "AKIAIOSFODNN7EXAMPLE",
        secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        region: "us-east-1",
    };
    /// 2013-05-24, the day of Amazon's examples.
    const DAY: u64 = 1_369_353_600;

    /// "GET Object" of Amazon's page.
    fn example() -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            (
                "x-amz-content-sha256",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            ("x-amz-date", "20130524T000000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/\
                 aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=\
                 f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Asked {
            method: Method::GET,
            path: "/test.txt".to_owned(),
            raw_query: String::new(),
            headers,
            body: Bytes::new(),
        }
    }

    #[test]
    fn the_hash_is_that_of_rfc_4231() {
        let long = [0xaa; 131];
        for (key, message, expected) in [
            (
                &[0x0b; 20][..],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &long,
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex::encode(hmac(key, message)), expected);
        }
    }

    #[test]
    fn amazons_example_is_accepted_and_nothing_of_it_may_change() {
        verify_v4_at(&EXAMPLE, &example(), DAY + 60).unwrap();
        let change = |change: fn(&mut Asked)| {
            let mut asked = example();
            change(&mut asked);
            verify_v4_at(&EXAMPLE, &asked, DAY).unwrap_err()
        };
        change(|a| a.method = Method::PUT);
        change(|a| a.path = "/test.tx".to_owned());
        change(|a| a.raw_query = "x=1".to_owned());
        change(|a| a.body = Bytes::from_static(b"x"));
        for (name, value) in [
            ("range", "bytes=0-8"),
            ("host", "other.s3.amazonaws.com"),
            ("x-amz-date", "20130524T000001Z"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("x-amz-storage-class", "GLACIER"),
        ] {
            let mut asked = example();
            asked.headers.insert(name, HeaderValue::from_static(value));
            verify_v4_at(&EXAMPLE, &asked, DAY).unwrap_err();
        }
        verify_v4_at(&EXAMPLE, &example(), DAY + 16 * 60).unwrap_err();
        let other = Key {
            secret: "other",
            ..EXAMPLE
        };
        verify_v4_at(&other, &example(), DAY).unwrap_err();
    }
}
