//! Makes PD content with one peer per store: its `max-replicas` becomes the number of stores.
//!
//! With another number PD would take every region for sick: it would neither split nor merge any, and ask
//! for peers to be added (to stores that do not exist) or removed. The setting has no gRPC call, only a page
//! of the HTTP interface, and can be changed only after the bootstrap; PD keeps it. A PD that refuses, for
//! example because somebody has written placement rules, is left as it is: what it asks for then is left
//! undone (`operators`).
//! Source: tikv/pd `server/api/config.go`, `server/server.go` (`SetReplicationConfig`).

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pitr_cluster::net::normalize;
use pitr_cluster::tls::Security;
use tokio::time::timeout;

/// For one member.
const LIMIT: Duration = Duration::from_secs(3);
/// An answer is a line or two.
const LONGEST_ANSWER: usize = 64 << 10;

/// Asks one member after the other until one obeys; any of them passes it on to the leader. The error is
/// what the last one said.
pub(super) async fn set(
    urls: &[String],
    security: &Security,
    replicas: usize,
) -> Result<(), String> {
    let mut last = "PD has no URL".to_owned();
    for url in urls {
        let asked = timeout(LIMIT, set_at(url, security, replicas)).await;
        match asked.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}"))) {
            Ok(()) => return Ok(()),
            Err(error) => last = format!("{url}: {error}"),
        }
    }
    Err(last)
}

async fn set_at(url: &str, security: &Security, replicas: usize) -> Result<(), String> {
    let url = normalize(security, url).map_err(|error| error.to_string())?;
    let body = format!("{{\"replication.max-replicas\": {replicas}}}");
    let request = Request::post(format!("{url}/pd/api/v1/config"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|error| error.to_string())?;
    let client = Client::builder(TokioExecutor::new()).build(security.http(LIMIT));
    let answer = client.request(request).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status() == StatusCode::OK {
        return Ok(());
    }
    let said = to_bytes(Body::new(answer.into_body()), LONGEST_ANSWER).await;
    let said = said.map_err(|error| error.to_string())?;
    Err(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A member that says one thing; what it was asked.
    async fn member(says: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(says.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (url, asked)
    }

    #[tokio::test]
    async fn the_first_member_that_obeys_is_enough_and_a_refusal_is_told_in_its_words() {
        let (sick, _) = member("HTTP/1.0 503 Service Unavailable\r\n\r\nno leader").await;
        let (well, asked) = member("HTTP/1.0 200 OK\r\n\r\n\"The config is updated.\"").await;
        set(&[sick, well], &Security::default(), 3).await.unwrap();
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("POST /pd/api/v1/config "), "{asked}");
        assert!(
            asked.ends_with("\r\n\r\n{\"replication.max-replicas\": 3}"),
            "{asked}"
        );
        let (sick, _) = member("HTTP/1.0 500 Oops\r\n\r\nupdate the rule instead").await;
        let refused = set(&[sick], &Security::default(), 3).await.unwrap_err();
        assert!(refused.ends_with("update the rule instead"), "{refused}");
        assert!(set(&[], &Security::default(), 3).await.is_err());
    }
}
