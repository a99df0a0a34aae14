//! S3's protocol as its public API reference has it: path-style requests, PutObject, GetObject,
//! HeadObject, ListObjectsV2, DeleteObject, CreateMultipartUpload and its companions. Every request
//! must carry a good signature of version 4.

use std::fmt::Write as _;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::signing::{Key, verify_v4};
use super::{Asked, BUCKET, CloudServer, Model, Refused, decode, elements, escape, key_of, refuse};

pub const KEY_ID: &str = "AKIDcanary42";
pub const SECRET: &str = "top+secret/canary42";

pub fn url(endpoint: &str, prefix: &str, more: &str) -> String {
    format!(
        "s3://{BUCKET}/{prefix}?endpoint={endpoint}&access-key={KEY_ID}\
         &secret-access-key={SECRET}{more}"
    )
}

pub fn answer(_: &CloudServer, model: &mut Model, asked: &Asked) -> Result<Response, Refused> {
    let key = Key {
        id: KEY_ID,
        secret: SECRET,
        region: "us-east-1",
    };
    verify_v4(&key, asked).map_err(|why| (403, why))?;
    let (bucket, key) = key_of(model, &asked.path);
    if bucket != BUCKET {
        return refuse(404, "NoSuchBucket");
    }
    if key.is_empty() {
        return Ok(list(model, asked));
    }
    parts_or_object(model, asked, &key)
}

/// Objects and uploads: the XML API of Google speaks the same.
pub fn parts_or_object(model: &mut Model, asked: &Asked, key: &str) -> Result<Response, Refused> {
    if let Some(id) = asked.query("uploadId") {
        return part(model, asked, key, &id);
    }
    match asked.method.as_str() {
        "POST" if asked.query("uploads").is_some() => {
            let id = format!("upload-{}", model.next());
            model.uploads.insert(id.clone(), Default::default());
            let xml = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            );
            Ok(xml.into_response())
        }
        "PUT" => {
            let must_be_new = asked.header("if-none-match") == "*"
                || asked.header("x-goog-if-generation-match") == "0";
            match model.put(key, asked.body.clone(), must_be_new) {
                true => Ok((model.tag(), "").into_response()),
                false => refuse(412, "PreconditionFailed"),
            }
        }
        "DELETE" => {
            let there = model.delete(key);
            // Amazon's deletion of nothing is well; Google's is not found.
            match there || !asked.header("authorization").starts_with("Bearer ") {
                true => Ok(StatusCode::NO_CONTENT.into_response()),
                false => refuse(404, "NoSuchKey"),
            }
        }
        "GET" | "HEAD" => model.read(key, asked).map_or(refuse(404, "NoSuchKey"), Ok),
        _ => refuse(405, "MethodNotAllowed"),
    }
}

fn part(model: &mut Model, asked: &Asked, key: &str, id: &str) -> Result<Response, Refused> {
    let Some(parts) = model.uploads.get_mut(id) else {
        return refuse(404, "NoSuchUpload");
    };
    match asked.method.as_str() {
        "PUT" => {
            let number = asked.query("partNumber").unwrap_or_default();
            let tag = format!("\"part-{number}\"");
            parts.insert(number, asked.body.clone());
            Ok(([("etag", tag)], "").into_response())
        }
        "DELETE" => {
            model.uploads.remove(id);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => {
            let xml = String::from_utf8_lossy(&asked.body).into_owned();
            let (numbers, tags) = (elements(&xml, "PartNumber"), elements(&xml, "ETag"));
            let mut whole = Vec::new();
            for (number, tag) in numbers.iter().zip(&tags) {
                match parts.get(number) {
                    Some(data) if *tag == format!("\"part-{number}\"") => whole.push(data.clone()),
                    _ => return refuse(400, "InvalidPart"),
                }
            }
            let last = whole.len().saturating_sub(1);
            if whole.iter().take(last).any(|part| part.len() < 5 << 20) {
                return refuse(400, "EntityTooSmall");
            }
            if !numbers.is_sorted_by_key(|number| number.parse::<u32>().unwrap_or(0)) {
                return refuse(400, "InvalidPartOrder");
            }
            model.uploads.remove(id);
            model.join(key, whole);
            let xml = "<CompleteMultipartUploadResult><ETag>\"e\"</ETag>\
                       </CompleteMultipartUploadResult>";
            Ok(xml.into_response())
        }
    }
}

/// ListObjectsV2; Google's has the same form.
pub fn list(model: &Model, asked: &Asked) -> Response {
    assert_eq!(asked.query("list-type").as_deref(), Some("2"));
    let prefix = asked.query("prefix").unwrap_or_default();
    let after = asked.query("continuation-token").unwrap_or_default();
    let (page, next) = model.page(&prefix, &decode(&after));
    let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    for (key, size, tag) in page {
        write!(
            xml,
            "<Contents><Key>{}</Key><Size>{size}</Size><ETag>\"{tag}\"</ETag>\
             <LastModified>2026-11-22T02:00:00.000Z</LastModified></Contents>",
            escape(&key),
        )
        .unwrap();
    }
    if let Some(next) = next {
        // Opaque to the client, with characters that must be escaped on the way back.
        let token =
            percent_encoding::utf8_percent_encode(&next, percent_encoding::NON_ALPHANUMERIC);
        write!(
            xml,
            "<NextContinuationToken>{token}</NextContinuationToken>"
        )
        .unwrap();
    }
    xml.push_str("</ListBucketResult>");
    xml.into_response()
}
