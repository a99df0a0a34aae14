//! Servers of three clouds' protocols on free ports: what every one of them needs. They keep objects
//! in memory, check who asks as the clouds do, answer listings in small pages, and fail or lie on
//! request, so that the suite can be seen to find it.
//!
//! Written from the public references of the protocols, not from the client under test.

pub mod azure;
pub mod gcs;
pub mod s3;
pub mod signing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use pitr_storage::cloud::{CloudOptions, Secret};
use pitr_storage::{Location, SharedStorage};

pub const BUCKET: &str = "bucket";
/// Small, so that a few objects need several pages.
pub const PAGE: usize = 3;
/// When every object was written.
pub const WRITTEN: &str = "Sun, 22 Nov 2026 02:00:00 GMT";

/// Whose protocol a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    S3,
    Gcs,
    Azure,
}

pub const DIALECTS: [Dialect; 3] = [Dialect::S3, Dialect::Gcs, Dialect::Azure];

/// What a backend could get wrong, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A conditional write replaces what is there.
    ConditionIgnored,
    /// A range begins one byte late; its headers are right.
    RangeShifted,
    /// A range holds one byte too few; its headers are right for that.
    RangeCut,
    /// Every page of a listing but the first begins one object late.
    PageBorderLost,
    /// Deleting answers well and does nothing.
    DeleteForgotten,
    /// An object of parts ends before its last one.
    LastPartLost,
    /// The parts of an object are joined in another order.
    PartsSwapped,
    /// Sizes are one too large in listings.
    SizesWrong,
    /// An escaped percent sign in a name is taken for an escape.
    NamesDecodedTwice,
    /// A write of an empty object is dropped.
    EmptyForgotten,
    /// An object that is replaced keeps its old bytes.
    ReplacementForgotten,
}

pub const MISTAKES: [Mistake; 11] = [
    Mistake::ConditionIgnored,
    Mistake::RangeShifted,
    Mistake::RangeCut,
    Mistake::PageBorderLost,
    Mistake::DeleteForgotten,
    Mistake::LastPartLost,
    Mistake::PartsSwapped,
    Mistake::SizesWrong,
    Mistake::NamesDecodedTwice,
    Mistake::EmptyForgotten,
    Mistake::ReplacementForgotten,
];

/// How requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing is done, and this is the answer.
    Status(u16),
    /// It is done, and this is the answer.
    AfterEffect(u16),
    /// It is done, and no answer comes.
    Silence,
    /// The answer's body breaks off in the middle.
    Cut,
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    /// As sent, without the query.
    pub path: String,
    /// As sent.
    pub raw_query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Parameters as sent, in that order.
    pub fn raw_pairs(&self) -> Vec<(&str, &str)> {
        let pairs = self.raw_query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.collect()
    }

    /// A parameter, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let pairs = self.raw_pairs();
        let found = pairs.iter().find(|(key, _)| decode(key) == name);
        // A plus sign is a blank in a query as HTML forms write it, and clients escape it.
        found.map(|(_, value)| decode(&value.replace('+', " ")))
    }

    /// Path and query.
    pub fn target(&self) -> String {
        match &*self.raw_query {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        }
    }
}

/// What a server keeps.
#[derive(Default)]
pub struct Model {
    objects: BTreeMap<String, (Bytes, u64)>,
    /// Parts by upload, then by number or id.
    pub uploads: BTreeMap<String, BTreeMap<String, Bytes>>,
    counter: u64,
    seen: Vec<Asked>,
    fault: Option<(Vec<Method>, Trouble, u32)>,
    mistake: Option<Mistake>,
    /// The answer to each deletion of an Azure batch instead of doing it.
    pub batch_status: Option<u16>,
}

impl Model {
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Writes an object; false if it had to be new and is not.
    pub fn put(&mut self, key: &str, data: Bytes, must_be_new: bool) -> bool {
        let exists = self.objects.contains_key(key);
        if must_be_new && exists && !self.makes(Mistake::ConditionIgnored) {
            return false;
        }
        let dropped = data.is_empty() && self.makes(Mistake::EmptyForgotten)
            || exists && self.makes(Mistake::ReplacementForgotten);
        if !dropped {
            let tag = self.next();
            self.objects.insert(key.to_owned(), (data, tag));
        }
        true
    }

    /// Whether there was one.
    pub fn delete(&mut self, key: &str) -> bool {
        match self.makes(Mistake::DeleteForgotten) {
            true => self.objects.contains_key(key),
            false => self.objects.remove(key).is_some(),
        }
    }

    /// Puts an object together from its parts, in the order given.
    pub fn join(&mut self, key: &str, mut parts: Vec<Bytes>) {
        if self.makes(Mistake::LastPartLost) {
            parts.pop();
        }
        if self.makes(Mistake::PartsSwapped) {
            parts.reverse();
        }
        self.put(key, parts.concat().into(), false);
    }

    /// One page of a listing: names, sizes, tags; and the mark of the next page.
    pub fn page(&self, prefix: &str, after: &str) -> (Vec<(String, usize, u64)>, Option<String>) {
        let skip = usize::from(!after.is_empty() && self.makes(Mistake::PageBorderLost));
        let wrong = usize::from(self.makes(Mistake::SizesWrong));
        let objects = self.objects.iter();
        let found = objects.filter(|(key, _)| key.starts_with(prefix) && &***key > after);
        let mut found = found
            .skip(skip)
            .map(|(key, (data, tag))| (key.clone(), data.len() + wrong, *tag));
        let page: Vec<_> = found.by_ref().take(PAGE).collect();
        let more = found.next().is_some();
        let last = page.last().map(|(key, ..)| key.clone());
        (page, last.filter(|_| more))
    }

    /// The answer to a GET or HEAD, whole or a range; `None` if there is no such object.
    pub fn read(&self, key: &str, asked: &Asked) -> Option<Response> {
        let (data, tag) = self.objects.get(key)?;
        let about = [
            ("etag", format!("\"{tag}\"")),
            ("last-modified", WRITTEN.to_owned()),
        ];
        let range = asked.header("range").strip_prefix("bytes=");
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return Some((about, data.clone()).into_response());
        };
        let first: usize = first.parse().unwrap();
        if first >= data.len() {
            return Some(StatusCode::RANGE_NOT_SATISFIABLE.into_response());
        }
        let mut last = last.parse().unwrap_or(usize::MAX).min(data.len() - 1);
        let mut part = data.slice(first..=last);
        if self.makes(Mistake::RangeShifted) && last + 1 < data.len() {
            part = data.slice(first + 1..=last + 1);
        }
        if self.makes(Mistake::RangeCut) && part.len() > 1 {
            last -= 1;
            part.truncate(last + 1 - first);
        }
        let shown = format!("bytes {first}-{last}/{}", data.len());
        let status = StatusCode::PARTIAL_CONTENT;
        Some((status, about, [("content-range", shown)], part).into_response())
    }

    /// The tag that a write is answered with.
    pub fn tag(&self) -> [(&'static str, String); 1] {
        [("etag", format!("\"{}\"", self.counter))]
    }
}

/// A server that runs until the test ends.
#[derive(Clone)]
pub struct CloudServer {
    pub dialect: Dialect,
    pub endpoint: String,
    model: Arc<Mutex<Model>>,
}

impl CloudServer {
    pub async fn start(dialect: Dialect) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            dialect,
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            model: Arc::default(),
        };
        let app = Router::new().fallback(handle).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Where a prefix of the bucket is; `more` begins with `&`.
    pub fn url(&self, prefix: &str, more: &str) -> String {
        let endpoint = &self.endpoint;
        match self.dialect {
            Dialect::S3 => s3::url(endpoint, prefix, more),
            Dialect::Gcs => format!("gcs://{BUCKET}/{prefix}?endpoint={endpoint}{more}"),
            Dialect::Azure => azure::url(endpoint, prefix, more),
        }
    }

    /// Opens a prefix of the bucket as somebody who may.
    pub fn open(&self, prefix: &str) -> SharedStorage {
        self.open_with(&self.url(prefix, ""), impatient())
    }

    /// Opens another URL, or with another patience.
    pub fn open_with(&self, url: &str, options: CloudOptions) -> SharedStorage {
        let options = CloudOptions {
            gcs_credentials: Some(Secret::new(gcs::account_key().to_owned())),
            ..options
        };
        Location::parse(url).unwrap().open(&options).unwrap()
    }

    /// Lets the next requests of these methods fail.
    pub fn fail(&self, methods: &[Method], trouble: Trouble, times: u32) {
        self.model().fault = Some((methods.to_vec(), trouble, times));
    }

    pub fn make(&self, mistake: Mistake) {
        self.model().mistake = Some(mistake);
    }

    /// Answers each deletion of an Azure batch so.
    pub fn refuse_deletions(&self, status: u16) {
        self.model().batch_status = Some(status);
    }

    pub fn seen(&self) -> Vec<Asked> {
        self.model().seen.clone()
    }

    /// How many requests came since the last call.
    pub fn requests(&self) -> usize {
        std::mem::take(&mut self.model().seen).len()
    }

    pub fn keys(&self) -> Vec<String> {
        self.model().objects.keys().cloned().collect()
    }

    pub fn unfinished_uploads(&self) -> usize {
        self.model().uploads.len()
    }

    /// Everything that no message may show.
    pub fn secrets(&self) -> Vec<String> {
        match self.dialect {
            Dialect::S3 => vec![s3::KEY_ID.to_owned(), s3::SECRET.to_owned()],
            Dialect::Gcs => gcs::secrets(),
            Dialect::Azure => vec![azure::key()],
        }
    }
}

/// Gives up soon.
pub fn impatient() -> CloudOptions {
    CloudOptions {
        max_retries: 2,
        retry_timeout: Duration::from_secs(5),
        ..CloudOptions::default()
    }
}

async fn handle(State(server): State<CloudServer>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let asked = Asked {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        raw_query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: to_bytes(body, 64 << 20).await.unwrap(),
    };
    let (answer, trouble) = {
        let mut model = server.model();
        model.seen.push(asked.clone());
        let trouble = match &mut model.fault {
            Some((methods, trouble, times)) if methods.contains(&asked.method) && *times > 0 => {
                *times -= 1;
                Some(*trouble)
            }
            _ => None,
        };
        let answer = match trouble {
            Some(Trouble::Status(status)) => problem(&server, &asked, status, "ServerBusy"),
            _ => answer(&server, &mut model, &asked),
        };
        (answer, trouble)
    };
    match trouble {
        Some(Trouble::AfterEffect(status)) => problem(&server, &asked, status, "InternalError"),
        Some(Trouble::Silence) => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            answer
        }
        Some(Trouble::Cut) => cut(answer).await,
        _ => answer,
    }
}

fn answer(server: &CloudServer, model: &mut Model, asked: &Asked) -> Response {
    let answered = match server.dialect {
        Dialect::S3 => s3::answer(server, model, asked),
        Dialect::Gcs => gcs::answer(model, asked),
        Dialect::Azure => azure::answer(server, model, asked),
    };
    answered.unwrap_or_else(|(status, code)| problem(server, asked, status, &code))
}

/// The same answer, of which half a body arrives.
async fn cut(answer: Response) -> Response {
    let (mut parts, body) = answer.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    parts.headers.insert("content-length", body.len().into());
    let half = body.slice(..body.len() / 2);
    let pieces = stream::iter([Ok(half), Err(std::io::Error::other("cut"))]);
    Response::from_parts(parts, Body::from_stream(pieces))
}

/// A refusal: status and the protocol's word for it.
pub type Refused = (u16, String);

pub fn refuse<T>(status: u16, code: &str) -> Result<T, Refused> {
    Err((status, code.to_owned()))
}

/// An error page as tactless as real ones: it repeats what was sent, and the key of the caller.
fn problem(server: &CloudServer, asked: &Asked, status: u16, code: &str) -> Response {
    let (target, sent) = (asked.target(), asked.header("authorization"));
    let known = server.secrets().join(" ");
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the server says {known} to \
         {target} with {sent}</Message></Error>"
    );
    (StatusCode::from_u16(status).unwrap(), text).into_response()
}

pub fn decode(text: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(text);
    decoded.decode_utf8().unwrap().into_owned()
}

/// The object that a path names, after its first part.
pub fn key_of(model: &Model, path: &str) -> (String, String) {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let key = decode(key);
    match model.makes(Mistake::NamesDecodedTwice) {
        true => (bucket.to_owned(), decode(&key)),
        false => (bucket.to_owned(), key),
    }
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// The texts of all elements of one name, in order. The documents here nest no two of a name.
pub fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(&open).skip(1);
    let texts = parts.map(|part| part.split(&close).next().unwrap_or_default());
    texts.map(|text| text.replace("&quot;", "\"")).collect()
}
