//! Reads the status page of a running sidecar. Used by the verb `status`.
//!
//! Whatever answers at the address may be anything: time and size are bounded, and what is not the
//! page of a sidecar is a failure.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::SidecarStatus;
use crate::codes::Code;
use crate::failure::Failure;

/// Longest time for the whole exchange.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer that is read; a page has some hundred bytes a task.
const LARGEST: u64 = 1 << 20;

/// Asks the sidecar at `address` (`host:port`) for its page.
pub async fn status(address: &str) -> Result<SidecarStatus, Failure> {
    let silent = |why: String| {
        Failure::new(
            Code::SidecarSilent,
            format!("the sidecar does not answer: {why}"),
        )
        .at(address)
    };
    let answer = match timeout(PATIENCE, get(address, "/status.json")).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(silent(error.to_string())),
        Err(_) => return Err(silent(format!("nothing within {} s", PATIENCE.as_secs()))),
    };
    parse(&answer).map_err(silent)
}

/// HTTP/1.0, so that the answer ends with the connection and comes in one piece.
pub(crate) async fn get(address: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<SidecarStatus, String> {
    let text = std::str::from_utf8(answer).map_err(|_| "what answers is no sidecar".to_owned())?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err("the answer is cut off, or what answers is no sidecar".to_owned());
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !head.starts_with("HTTP/1.") || status != "200" {
        return Err(format!("what answers is no sidecar (status {status:?})"));
    }
    serde_json::from_str(body).map_err(|error| format!("its page cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_page_of_a_sidecar_is_taken() {
        let page = serde_json::to_string(&SidecarStatus::default()).unwrap();
        let good = format!("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n{page}");
        assert_eq!(parse(good.as_bytes()), Ok(SidecarStatus::default()));
        for wrong in [
            "",
            "HTTP/1.0 200 OK\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n{}",
            "SSH-2.0-OpenSSH_9\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n{}",
            "HTTP/1.0 200 OK\r\n\r\n[1]",
            &good[..good.len() - 1],
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(parse(b"\xFF\xFE").is_err());
    }

    #[tokio::test]
    async fn nobody_there_and_one_that_hangs_are_both_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Accepted by the system, never answered.
        let hangs = status(&address).await.unwrap_err();
        assert_eq!(hangs.code, Code::SidecarSilent);
        assert!(hangs.what.contains("within 3 s"), "{hangs}");
        drop(listener);
        let gone = status(&address).await.unwrap_err();
        assert_eq!((gone.code, gone.place), (Code::SidecarSilent, address));
    }
}
