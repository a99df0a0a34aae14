//! Reads pages over HTTP: the status of a running sidecar, for the verb `status`, and a store's
//! configuration.
//!
//! Whatever answers at the address may be anything: time and size are bounded, and what is not the
//! page that was asked for is a failure.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pitr_cluster::net::normalize;
use pitr_cluster::tls::Security;
use tokio::time::timeout;

use super::SidecarStatus;
use crate::codes::Code;
use crate::failure::{self, Failure};

/// Longest time for the whole exchange.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer that is read; a page has some hundred bytes a task.
const LARGEST: usize = 1 << 20;

/// Asks the sidecar at `address` (`host:port`) for its page.
pub async fn status(security: &Security, address: &str) -> Result<SidecarStatus, Failure> {
    let silent = |why: String| {
        Failure::new(
            Code::SidecarSilent,
            format!("the sidecar does not answer: {why}"),
        )
        .at(address)
    };
    let page = get(security, address, "/status.json").await;
    parse(&page.map_err(silent)?).map_err(silent)
}

/// The body of the page at `path`; else why there is none.
pub(crate) async fn get(security: &Security, address: &str, path: &str) -> Result<Bytes, String> {
    match timeout(PATIENCE, exchange(security, address, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("nothing within {} s", PATIENCE.as_secs())),
    }
}

async fn exchange(security: &Security, address: &str, path: &str) -> Result<Bytes, String> {
    let host = normalize(security, address).map_err(|error| error.to_string())?;
    let request = Request::get(format!("{host}{path}")).body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let client = Client::builder(TokioExecutor::new()).build(security.http(PATIENCE));
    let answer = client.request(request).await;
    let answer = answer.map_err(|error| failure::chain(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("status {}", answer.status()));
    }
    let body = to_bytes(Body::new(answer.into_body()), LARGEST).await;
    body.map_err(|error| failure::chain(&error))
}

fn parse(page: &[u8]) -> Result<SidecarStatus, String> {
    serde_json::from_slice(page)
        .map_err(|error| format!("what answers is no sidecar, its page cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What is made of an answer that arrives as these bytes.
    async fn told(answer: Vec<u8>) -> Result<SidecarStatus, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await;
            // Whoever has read enough may hang up.
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        });
        let told = status(&Security::default(), &address).await;
        server.abort();
        told
    }

    #[tokio::test]
    async fn only_a_whole_page_of_a_sidecar_is_taken() {
        let page = serde_json::to_string(&SidecarStatus::default()).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", page.len());
        let good = format!("{head}{page}");
        assert_eq!(
            told(good.clone().into()).await.unwrap(),
            SidecarStatus::default()
        );
        for wrong in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            "SSH-2.0-OpenSSH_9\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]",
            &good[..good.len() - 1],
        ] {
            let failure = told(wrong.into()).await.unwrap_err();
            assert_eq!(failure.code, Code::SidecarSilent, "{wrong:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; LARGEST + 1]].concat();
        assert!(told(endless).await.is_err());
        assert!(parse(b"\xFF\xFE").is_err());
    }

    #[tokio::test]
    async fn nobody_there_and_one_that_hangs_are_both_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Accepted by the system, never answered.
        let hangs = status(&Security::default(), &address).await.unwrap_err();
        assert_eq!(hangs.code, Code::SidecarSilent);
        assert!(hangs.what.contains("within 3 s"), "{hangs}");
        drop(listener);
        let gone = status(&Security::default(), &address).await.unwrap_err();
        assert_eq!((gone.code, gone.place), (Code::SidecarSilent, address));
    }
}
