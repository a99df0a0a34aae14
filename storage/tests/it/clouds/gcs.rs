//! Google Cloud Storage's XML API (cloud.google.com/storage/docs/xml-api), with the self-signed tokens
//! of a service account (RFC 7519, RS256; developers.google.com/identity/protocols/oauth2/service-account,
//! "authorization without OAuth"): the server knows the account's public key.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

use super::{Asked, BUCKET, Model, Refused, key_of, refuse, s3};

const EMAIL: &str = "pitr@canary42.iam.example";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The file that such an account gets, and what the server knows of it.
struct Account {
    file: String,
    private: String,
    public: Vec<u8>,
}

fn account() -> &'static Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let private = BASE64_STANDARD.encode(der.as_ref());
        let file = format!(
            "{{\"type\": \"service_account\", \"private_key_id\": \"key-1\", \
             \"client_email\": \"{EMAIL}\", \"private_key\": \
             \"-----BEGIN PRIVATE KEY-----\\n{private}\\n-----END PRIVATE KEY-----\\n\"}}"
        );
        Account {
            file,
            private,
            public: pair.public_key().as_ref().to_vec(),
        }
    })
}

/// The JSON file of the account.
pub fn account_key() -> &'static str {
    &account().file
}

pub fn secrets() -> Vec<String> {
    vec![account().private.clone()]
}

pub fn answer(model: &mut Model, asked: &Asked) -> Result<Response, Refused> {
    verify_token(asked).map_err(|why| (401, why.to_owned()))?;
    let (bucket, key) = key_of(model, &asked.path);
    if bucket != BUCKET {
        return refuse(404, "NoSuchBucket");
    }
    if key.is_empty() {
        return Ok(s3::list(model, asked));
    }
    s3::parts_or_object(model, asked, &key)
}

fn verify_token(asked: &Asked) -> Result<(), &'static str> {
    let token = asked.header("authorization").strip_prefix("Bearer ");
    let token = token.ok_or("no token")?;
    let (message, signature) = token.rsplit_once('.').ok_or("no signature")?;
    let (header, claims) = message.split_once('.').ok_or("no claims")?;
    let bytes = |text: &str| {
        BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| "not base64url")
    };
    let text = |part: &str| bytes(part).map(|b| String::from_utf8_lossy(&b).into_owned());
    if !text(header)?.contains("\"alg\":\"RS256\"") {
        return Err("another algorithm");
    }
    let claims = text(claims)?;
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &account().public);
    let verified = public.verify(message.as_bytes(), &bytes(signature)?);
    verified.map_err(|_| "the signature is not that of the account")?;
    if !claims.contains(EMAIL) || !claims.contains(SCOPE) {
        return Err("another account or scope");
    }
    let number = |name: &str| -> Option<u64> {
        let rest = claims.split(&format!("\"{name}\":")).nth(1)?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    match (number("iat"), number("exp")) {
        (Some(from), Some(to)) if from <= now + 5 && now < to && to - from <= 3600 => Ok(()),
        _ => Err("the token is not of now, or lives longer than an hour"),
    }
}
