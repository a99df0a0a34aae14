//! A directory served as an S3 bucket, for what no directory can do: wait, refuse, break. It checks no
//! signature (the storage's own tests do) and is tactless: its error pages repeat what was sent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use crate::system::wait_until;

/// What no output may hold.
pub const SECRETS: [&str; 3] = ["AKIDcanary42", "secret+canary42/x", "token-canary42"];

/// What happens to requests.
#[derive(Clone, Debug, Default)]
struct Plan {
    /// Method and a part of the target: such requests wait.
    hold: Option<(&'static str, String)>,
    /// The same: such requests are answered with a status; only the n-th if a number is given.
    fail: Option<(&'static str, String, u16, Option<usize>)>,
}

#[derive(Default)]
struct State {
    plan: Plan,
    /// Requests that wait now.
    held: usize,
    /// Requests that `fail` looked at.
    matched: usize,
    puts: usize,
}

/// A bucket until dropped (its thread ends with the process).
#[derive(Clone)]
pub struct Bucket {
    shared: Arc<(Mutex<State>, Condvar)>,
    address: String,
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Bucket {
    /// Serves a directory.
    pub fn of(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bucket = Bucket {
            shared: Arc::default(),
            address: listener.local_addr().unwrap().to_string(),
        };
        let (server, root) = (bucket.clone(), dir.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, root) = (server.clone(), root.clone());
                std::thread::spawn(move || server.serve(stream.unwrap(), &root));
            }
        });
        bucket
    }

    /// The bucket with credentials in the URL.
    pub fn url(&self) -> String {
        let [id, key, token] = SECRETS;
        format!(
            "s3://bucket?endpoint=http://{}&access-key={id}&secret-access-key={key}\
             &session-token={token}",
            self.address
        )
    }

    /// The bucket as messages and results show it.
    pub fn shown(&self) -> String {
        format!("s3://bucket?endpoint=http://{}", self.address)
    }

    /// Another bucket of the same server: there is none.
    pub fn missing(&self) -> String {
        self.url().replace("//bucket", "//no-such-bucket")
    }

    /// Lets requests wait whose target has this part.
    pub fn hold(&self, method: &'static str, part: &str) {
        self.shared.0.lock().unwrap().plan.hold = Some((method, part.to_owned()));
    }

    /// Lets everything go on, and waits until it does.
    pub fn release(&self) {
        self.shared.0.lock().unwrap().plan.hold = None;
        self.shared.1.notify_all();
        wait_until("nothing is held any more", || {
            self.shared.0.lock().unwrap().held == 0
        });
    }

    /// Waits until so many requests wait.
    #[track_caller]
    pub fn wait_held(&self, count: usize) {
        wait_until("requests are held", || {
            self.shared.0.lock().unwrap().held >= count
        });
    }

    /// Answers requests with a status.
    pub fn fail(&self, method: &'static str, part: &str, status: u16) {
        self.plan_failure(method, part, status, None);
    }

    /// Answers only the n-th request (from 0) with a status.
    pub fn fail_nth(&self, method: &'static str, status: u16, nth: usize) {
        self.plan_failure(method, "", status, Some(nth));
    }

    fn plan_failure(&self, method: &'static str, part: &str, status: u16, nth: Option<usize>) {
        let mut state = self.shared.0.lock().unwrap();
        state.matched = 0;
        state.plan.fail = Some((method, part.to_owned(), status, nth));
    }

    /// Ends all failures.
    pub fn mend(&self) {
        self.shared.0.lock().unwrap().plan.fail = None;
    }

    /// How many writes came so far.
    pub fn puts(&self) -> usize {
        self.shared.0.lock().unwrap().puts
    }

    fn serve(&self, stream: TcpStream, root: &Path) {
        let Some(request) = read_request(&stream) else {
            return;
        };
        let status = self.wait_and_judge(&request);
        let (status, headers, body) = match status {
            Some(status) => (status, String::new(), tactless(&request)),
            None => answer(&request, root),
        };
        let head = format!(
            "HTTP/1.1 {status} Such\r\ncontent-length: {}\r\nconnection: close\r\n\
             etag: \"1\"\r\nlast-modified: Sun, 22 Nov 2026 02:00:00 GMT\r\n{headers}\r\n",
            body.len()
        );
        let mut stream = stream;
        // Callers that were killed do not care.
        let _ = stream.write_all(head.as_bytes());
        if request.method != "HEAD" {
            let _ = stream.write_all(&body);
        }
    }

    /// Waits as long as the plan says; the status to fail with, if it says so.
    fn wait_and_judge(&self, request: &Request) -> Option<u16> {
        let meets = |method: &str, part: &str| {
            (method == "*" || request.method == method) && request.target.contains(part)
        };
        let (lock, changed) = &*self.shared;
        let mut state = lock.lock().unwrap();
        state.puts += usize::from(request.method == "PUT");
        state.held += 1;
        while matches!(&state.plan.hold, Some((method, part)) if meets(method, part)) {
            state = changed.wait(state).unwrap();
        }
        state.held -= 1;
        let (method, part, status, nth) = state.plan.fail.clone()?;
        if !meets(method, &part) {
            return None;
        }
        state.matched += 1;
        let now = nth.is_none_or(|nth| state.matched == nth + 1);
        now.then_some(status)
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length");
    let mut body = vec![0; length.map_or(0, |text| text.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        target,
        headers,
        body,
    })
}

fn tactless(request: &Request) -> Vec<u8> {
    let said = format!("{} {:?} {SECRETS:?}", request.target, request.headers);
    format!("<Error><Code>Trouble</Code><Message>{said}</Message></Error>").into_bytes()
}

type Answer = (u16, String, Vec<u8>);

fn answer(request: &Request, root: &Path) -> Answer {
    let (path, query) = request
        .target
        .split_once('?')
        .unwrap_or((&request.target, ""));
    let Some(key) = path.strip_prefix("/bucket") else {
        return (404, String::new(), tactless(request));
    };
    let key = unescape(key.trim_start_matches('/'));
    if key.is_empty() {
        return (200, String::new(), listing(root, query));
    }
    let file = root.join(&key);
    match request.method.as_str() {
        "PUT" if request.headers.contains_key("if-none-match") && file.exists() => {
            (412, String::new(), tactless(request))
        }
        "PUT" => {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &request.body).unwrap();
            (200, String::new(), Vec::new())
        }
        "DELETE" => {
            // Removing nothing is well.
            let _ = fs::remove_file(&file);
            (204, String::new(), Vec::new())
        }
        _ => match fs::read(&file) {
            Ok(data) => part_of(request, data),
            Err(_) => (404, String::new(), tactless(request)),
        },
    }
}

fn part_of(request: &Request, data: Vec<u8>) -> Answer {
    let range = request.headers.get("range");
    let range = range.and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let Some((first, last)) = range else {
        return (200, String::new(), data);
    };
    let first: usize = first.parse().unwrap();
    let last = last
        .parse()
        .unwrap_or(usize::MAX)
        .min(data.len().saturating_sub(1));
    if first > last {
        return (416, String::new(), Vec::new());
    }
    let header = format!("content-range: bytes {first}-{last}/{}\r\n", data.len());
    (206, header, data[first..=last].to_vec())
}

fn listing(root: &Path, query: &str) -> Vec<u8> {
    let prefix = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("prefix="));
    let prefix = unescape(prefix.unwrap_or_default());
    let mut dirs: Vec<PathBuf> = vec![root.to_owned()];
    let mut xml = String::from("<ListBucketResult>");
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let key = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if key.starts_with(&prefix) {
                let size = entry.metadata().unwrap().len();
                xml += &format!(
                    "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"1\"</ETag>\
                     <LastModified>2026-11-22T02:00:00.000Z</LastModified></Contents>"
                );
            }
        }
    }
    (xml + "</ListBucketResult>").into_bytes()
}

/// Names here are ASCII.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        let (digits, after) = after.split_at(2);
        out.push_str(before);
        out.push(char::from(u8::from_str_radix(digits, 16).unwrap()));
        rest = after;
    }
    out + rest
}
