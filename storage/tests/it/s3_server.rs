//! A stand-in for an S3 server, for tests of our wiring: path-style requests, objects, ranges,
//! conditional creation, listings in pages, multi-part uploads. Its rules are those of the public S3
//! API reference (PutObject, GetObject, HeadObject, ListObjectsV2, DeleteObject, CreateMultipartUpload
//! and its companions). It checks that requests are signed with the expected key id, not the signature.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};

pub const BUCKET: &str = "bucket";
pub const KEY_ID: &str = "AKIDcanary42";
/// Small, so that a few objects need several pages.
const PAGE: usize = 3;

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// Path and query as sent.
    pub target: String,
    pub headers: HeaderMap,
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    next_upload: u32,
    seen: Vec<Seen>,
    /// Requests that are answered with this status, and how many.
    fail: Option<(Method, StatusCode, u32)>,
}

#[derive(Clone, Default)]
pub struct S3Server {
    model: Arc<Mutex<Model>>,
    pub endpoint: String,
}

impl S3Server {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Self {
            endpoint,
            ..Self::default()
        };
        let app = Router::new().fallback(handle).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    pub fn url(&self, prefix: &str, more: &str) -> String {
        let endpoint = &self.endpoint;
        format!(
            "s3://{BUCKET}/{prefix}?endpoint={endpoint}&access-key={KEY_ID}\
             &secret-access-key=top+secret/canary42{more}"
        )
    }

    pub fn fail(&self, method: Method, status: StatusCode, times: u32) {
        self.model.lock().unwrap().fail = Some((method, status, times));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.model.lock().unwrap().seen.clone()
    }

    pub fn keys(&self) -> Vec<String> {
        self.model.lock().unwrap().objects.keys().cloned().collect()
    }

    pub fn unfinished_uploads(&self) -> usize {
        self.model.lock().unwrap().uploads.len()
    }
}

fn problem(status: StatusCode, code: &str) -> Response {
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the server says \
         {KEY_ID}</Message></Error>"
    );
    (status, text).into_response()
}

async fn handle(State(server): State<S3Server>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let mut model = server.model.lock().unwrap();
    model.seen.push(Seen {
        method: parts.method.clone(),
        target: parts.uri.to_string(),
        headers: parts.headers.clone(),
    });
    if let Some((method, status, times)) = &mut model.fail
        && *method == parts.method
        && *times > 0
    {
        *times -= 1;
        return problem(*status, "SlowDown");
    }
    let signed = parts
        .headers
        .get("authorization")
        .and_then(|h| h.to_str().ok());
    let credential = format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/");
    if !signed.is_some_and(|text| text.starts_with(&credential)) {
        return problem(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let path = percent_decode(parts.uri.path());
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (percent_decode(key), percent_decode(value)))
        .collect();
    let path = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    if bucket != BUCKET {
        return problem(StatusCode::NOT_FOUND, "NoSuchBucket");
    }
    if key.is_empty() {
        return list(&model, &query);
    }
    answer(&mut model, &parts.method, key, &query, &parts.headers, body)
}

fn percent_decode(text: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(text);
    decoded.decode_utf8().unwrap().into_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn list(model: &Model, query: &BTreeMap<String, String>) -> Response {
    assert_eq!(query["list-type"], "2");
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let mut found = model
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    let mut last = "";
    for (key, data) in found.by_ref().take(PAGE) {
        last = key;
        write!(
            xml,
            "<Contents><Key>{}</Key><Size>{}</Size><ETag>\"e\"</ETag>\
             <LastModified>2026-11-22T02:00:00.000Z</LastModified></Contents>",
            escape(key),
            data.len()
        )
        .unwrap();
    }
    if found.next().is_some() {
        write!(
            xml,
            "<NextContinuationToken>{}</NextContinuationToken>",
            escape(last)
        )
        .unwrap();
    }
    xml.push_str("</ListBucketResult>");
    xml.into_response()
}

fn answer(
    model: &mut Model,
    method: &Method,
    key: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let tag = [
        ("etag", "\"e\""),
        ("last-modified", "Sun, 22 Nov 2026 02:00:00 GMT"),
    ];
    if let Some(id) = query.get("uploadId") {
        return upload_part(model, method, key, id, query, body);
    }
    if query.contains_key("uploads") {
        model.next_upload += 1;
        let id = format!("upload-{}", model.next_upload);
        model.uploads.insert(id.clone(), BTreeMap::new());
        let xml = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
             </InitiateMultipartUploadResult>"
        );
        return xml.into_response();
    }
    match method.as_str() {
        "PUT" => {
            let create = headers
                .get("if-none-match")
                .is_some_and(|value| value == "*");
            if create && model.objects.contains_key(key) {
                return problem(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            model.objects.insert(key.to_owned(), body);
            (tag, "").into_response()
        }
        "DELETE" => {
            model.objects.remove(key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => match model.objects.get(key) {
            None => problem(StatusCode::NOT_FOUND, "NoSuchKey"),
            Some(data) => read(data.clone(), headers),
        },
    }
}

fn read(data: Bytes, headers: &HeaderMap) -> Response {
    let tag = [
        ("etag", "\"e\""),
        ("last-modified", "Sun, 22 Nov 2026 02:00:00 GMT"),
    ];
    let range = headers.get("range").and_then(|value| value.to_str().ok());
    let Some(range) = range.and_then(|value| value.strip_prefix("bytes=")) else {
        return (tag, data).into_response();
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    if first >= data.len() {
        return problem(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    }
    let last = last.parse().unwrap_or(usize::MAX).min(data.len() - 1);
    let shown = format!("bytes {first}-{last}/{}", data.len());
    let part = data.slice(first..=last);
    (
        StatusCode::PARTIAL_CONTENT,
        tag,
        [("content-range", shown)],
        part,
    )
        .into_response()
}

fn upload_part(
    model: &mut Model,
    method: &Method,
    key: &str,
    id: &str,
    query: &BTreeMap<String, String>,
    body: Bytes,
) -> Response {
    let Some(parts) = model.uploads.get_mut(id) else {
        return problem(StatusCode::NOT_FOUND, "NoSuchUpload");
    };
    match method.as_str() {
        "PUT" => {
            parts.insert(query["partNumber"].parse().unwrap(), body);
            ([("etag", "\"p\"")], "").into_response()
        }
        "DELETE" => {
            model.uploads.remove(id);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => {
            let small = |part: &Bytes| part.len() < 5 << 20;
            let last = parts.len().saturating_sub(1);
            if parts.values().take(last).any(small) {
                return problem(StatusCode::BAD_REQUEST, "EntityTooSmall");
            }
            let whole: Vec<u8> = parts.values().flatten().copied().collect();
            model.uploads.remove(id);
            model.objects.insert(key.to_owned(), whole.into());
            "<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>"
                .into_response()
        }
    }
}
