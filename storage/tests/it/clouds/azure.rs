//! Azure Blob Storage's REST API (learn.microsoft.com/rest/api/storageservices): Put Blob, Put Block,
//! Put Block List, Get Blob, List Blobs, Blob Batch. Requests carry a shared key's signature or the
//! parameters of a shared access signature. Accounts stand in the path, as in Azurite.

use std::fmt::Write as _;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::signing::verify_shared_key;
use super::{
    Asked, BUCKET, CloudServer, Model, Refused, WRITTEN, elements, escape, key_of, refuse,
};

pub const ACCOUNT: &str = "account";
/// As a portal hands it out.
pub const SAS: &str = "sv=2023-11-03&ss=b&srt=sco&sp=rwdl&sig=c2lnQ2FuYXJ5NDJ%2Bk";

/// The account's key.
pub fn key() -> String {
    BASE64_STANDARD.encode("canary42 canary42 canary42 canary42")
}

pub fn url(endpoint: &str, prefix: &str, more: &str) -> String {
    let key = key();
    format!(
        "azure://{BUCKET}/{prefix}?endpoint={endpoint}/{ACCOUNT}&account-name={ACCOUNT}\
         &account-key={key}{more}"
    )
}

pub fn answer(server: &CloudServer, model: &mut Model, asked: &Asked) -> Result<Response, Refused> {
    authorize(asked).map_err(|why| (403, why))?;
    let Some(path) = asked.path.strip_prefix(&format!("/{ACCOUNT}/")) else {
        return refuse(400, "InvalidUri");
    };
    let (container, key) = key_of(model, path);
    if container != BUCKET {
        return refuse(404, "ContainerNotFound");
    }
    let comp = asked.query("comp").unwrap_or_default();
    if asked.query("restype").as_deref() == Some("container") {
        return match comp.as_str() {
            "list" => Ok(list(model, asked)),
            "batch" => batch(server, model, asked),
            _ => refuse(400, "InvalidQueryParameterValue"),
        };
    }
    match (asked.method.as_str(), comp.as_str()) {
        ("PUT", "block") => block(model, asked, &key),
        ("PUT", "blocklist") => block_list(model, asked, &key),
        ("PUT", "") => {
            if asked.header("x-ms-blob-type") != "BlockBlob" {
                return refuse(400, "MissingRequiredHeader");
            }
            match model.put(
                &key,
                asked.body.clone(),
                asked.header("if-none-match") == "*",
            ) {
                true => Ok((StatusCode::CREATED, model.tag()).into_response()),
                // What Put Blob answers to `If-None-Match: *`.
                false => refuse(409, "BlobAlreadyExists"),
            }
        }
        ("GET" | "HEAD", "") => model
            .read(&key, asked)
            .map_or(refuse(404, "BlobNotFound"), Ok),
        _ => refuse(405, "UnsupportedHttpVerb"),
    }
}

fn authorize(asked: &Asked) -> Result<(), String> {
    if asked.header("x-ms-version").is_empty() {
        return Err("x-ms-version is missing".to_owned());
    }
    if asked.query("sig").is_none() {
        return verify_shared_key(ACCOUNT, &key(), asked);
    }
    let sent: Vec<_> = asked.raw_pairs();
    let wanted = SAS.split('&').map(|pair| pair.split_once('=').unwrap());
    for (name, value) in wanted {
        let plain = super::decode(value);
        if asked.query(name).as_ref() != Some(&plain) {
            return Err(format!(
                "{name} of the signature is not as it was given: {sent:?}"
            ));
        }
    }
    Ok(())
}

fn block(model: &mut Model, asked: &Asked, key: &str) -> Result<Response, Refused> {
    let id = asked.query("blockid").unwrap_or_default();
    if !BASE64_STANDARD
        .decode(&id)
        .is_ok_and(|bytes| bytes.len() <= 64)
    {
        return refuse(400, "InvalidBlockId");
    }
    let blocks = model.uploads.entry(key.to_owned()).or_default();
    if blocks.keys().any(|other| other.len() != id.len()) {
        return refuse(400, "InvalidBlobOrBlock");
    }
    blocks.insert(id, asked.body.clone());
    Ok(StatusCode::CREATED.into_response())
}

fn block_list(model: &mut Model, asked: &Asked, key: &str) -> Result<Response, Refused> {
    let xml = String::from_utf8_lossy(&asked.body).into_owned();
    let blocks = model.uploads.remove(key).unwrap_or_default();
    let wanted = elements(&xml, "Uncommitted");
    let parts: Option<Vec<Bytes>> = wanted.iter().map(|id| blocks.get(id).cloned()).collect();
    let Some(parts) = parts.filter(|_| !wanted.is_empty()) else {
        return refuse(400, "InvalidBlockList");
    };
    model.join(key, parts);
    Ok((StatusCode::CREATED, model.tag()).into_response())
}

fn list(model: &Model, asked: &Asked) -> Response {
    let prefix = asked.query("prefix").unwrap_or_default();
    let marker = asked.query("marker").unwrap_or_default();
    let (page, next) = model.page(&prefix, &marker);
    let mut xml = String::from("<?xml version=\"1.0\"?><EnumerationResults><Blobs>");
    for (key, size, tag) in page {
        write!(
            xml,
            "<Blob><Name>{}</Name><Properties><Last-Modified>{WRITTEN}</Last-Modified>\
             <Etag>{tag}</Etag><Content-Length>{size}</Content-Length>\
             <Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
            escape(&key),
        )
        .unwrap();
    }
    let next = escape(&next.unwrap_or_default());
    write!(
        xml,
        "</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
    )
    .unwrap();
    xml.into_response()
}

/// A batch of deletions, each signed by itself; the answer has one part for each.
fn batch(server: &CloudServer, model: &mut Model, asked: &Asked) -> Result<Response, Refused> {
    let kind = asked.header("content-type");
    let Some(boundary) = kind.strip_prefix("multipart/mixed; boundary=") else {
        return refuse(400, "InvalidHeaderValue");
    };
    let body = String::from_utf8_lossy(&asked.body).into_owned();
    let mark = format!("--{boundary}");
    let mut answer = String::new();
    for part in body
        .split(&mark)
        .skip(1)
        .filter(|part| !part.starts_with("--"))
    {
        let Some((id, inner)) = deletion(server, part) else {
            return refuse(400, "InvalidInput");
        };
        let (container, key) = key_of(
            model,
            inner.path.strip_prefix(&format!("/{ACCOUNT}/")).unwrap(),
        );
        let allowed = authorize(&inner).is_ok() && container == BUCKET;
        let status = match model.batch_status {
            Some(status) => status,
            None if !allowed => 403,
            None => [404, 202][usize::from(model.delete(&key))],
        };
        let word = StatusCode::from_u16(status).unwrap();
        let word = word.canonical_reason().unwrap_or("Other");
        write!(
            answer,
            "--answer\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\n\
             HTTP/1.1 {status} {word}\r\nx-ms-version: 2023-11-03\r\n\r\n"
        )
        .unwrap();
    }
    answer.push_str("--answer--\r\n");
    let kind = [("content-type", "multipart/mixed; boundary=answer")];
    Ok((StatusCode::ACCEPTED, kind, answer).into_response())
}

/// The request in one part of a batch, and its id.
fn deletion(server: &CloudServer, part: &str) -> Option<(String, Asked)> {
    let (head, inner) = part.split_once("\r\n\r\n")?;
    let id = head
        .split("Content-ID: ")
        .nth(1)?
        .lines()
        .next()?
        .to_owned();
    let mut lines = inner.lines();
    let target = lines
        .next()?
        .strip_prefix("DELETE ")?
        .strip_suffix(" HTTP/1.1")?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let name: HeaderName = name.to_ascii_lowercase().parse().ok()?;
        headers.append(name, HeaderValue::from_str(value).ok()?);
    }
    let host = server.endpoint.strip_prefix("http://")?;
    headers.insert("host", HeaderValue::from_str(host).ok()?);
    let asked = Asked {
        method: Method::DELETE,
        path: path.to_owned(),
        raw_query: query.to_owned(),
        headers,
        body: Bytes::new(),
    };
    Some((id, asked))
}
