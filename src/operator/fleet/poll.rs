//! Polls proxies for their status: `GET /status` on the admin port of each pod.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::api::ports;
use crate::report::ProxyReport;

/// Time limit for a poll.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// Maximum number of concurrent polls per farm.
const CONCURRENCY: usize = 64;

/// Maximum size of a report in bytes: enough for a hundred hosts with four certificates and long names each.
const MOST_BYTES: usize = 1 << 20;

/// Why a poll failed.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("failed to connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("request failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("unexpected HTTP status {0}")]
    Code(StatusCode),
    #[error("response truncated or too large: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("failed to parse the report: {0}")]
    Report(#[from] serde_json::Error),
    #[error("timed out after {} s", TIME_LIMIT.as_secs())]
    Timeout,
}

/// Polls all `proxies`. Returns each key with its report, or None if the poll failed or timed out.
pub(crate) async fn poll<K>(proxies: Vec<(K, IpAddr)>) -> Vec<(K, Option<ProxyReport>)> {
    stream::iter(proxies)
        .map(|(key, address)| async move {
            let answer = timeout(TIME_LIMIT, report(SocketAddr::new(address, ports::ADMIN.1))).await;
            let report = answer.unwrap_or(Err(PollError::Timeout));
            if let Err(error) = &report {
                debug!(%address, %error, "failed to get a proxy's status");
            }
            (key, report.ok())
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await
}

async fn report(address: SocketAddr) -> Result<ProxyReport, PollError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status")
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("a fixed request with an address in it is valid");
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(PollError::Code(response.status()));
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        Ok(body.map_err(PollError::Body)?.to_bytes())
    };
    tokio::pin!(exchange, connection);
    // The connection does the I/O, so poll both until the exchange is over; a connection that ends cleanly first is not
    // an error.
    let body = tokio::select! {
        body = &mut exchange => body?,
        ended = &mut connection => {
            ended?;
            exchange.await?
        }
    };
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn asked(answer: Vec<u8>) -> Result<ProxyReport, PollError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.expect("read");
            assert!(request[..length].starts_with(b"GET /status HTTP/1.1\r\n"));
            // The client may close the connection on an answer that is too large.
            let _ = stream.write_all(&answer).await;
        };
        tokio::join!(report(address), server).0
    }

    fn response(head: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    #[tokio::test]
    async fn a_report_is_read() {
        let mut sent = ProxyReport {
            ready: true,
            ..ProxyReport::default()
        };
        sent.ring.generation = Some(7);
        let body = serde_json::to_vec(&sent).expect("serializes");
        assert_eq!(asked(response("200 OK", &body)).await.expect("a report"), sent);
    }

    #[tokio::test]
    async fn answers_other_than_a_report_are_rejected() {
        assert!(matches!(
            asked(response("503 Busy", b"{}")).await,
            Err(PollError::Code(_))
        ));
        assert!(matches!(
            asked(response("200 OK", b"hello")).await,
            Err(PollError::Report(_))
        ));
        assert!(matches!(
            asked(b"garbage\r\n\r\n".to_vec()).await,
            Err(PollError::Http(_))
        ));
        let large = vec![b' '; MOST_BYTES + 1];
        assert!(matches!(
            asked(response("200 OK", &large)).await,
            Err(PollError::Body(_))
        ));
    }
}
