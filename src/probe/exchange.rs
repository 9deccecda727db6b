//! One connection to one proxy: handshake, a small request, and the sessions that the proxy issues.
//!
//! The request is needed for TLS 1.3 tickets: they are sent after the handshake, in the same stream as the response, so
//! they have arrived once the response has.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use serde::{Serialize, Serializer};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::replay::resumes_replay;
use super::session::{Clients, Mechanism, Session, SessionSlot};
use super::sighting::Sighting;

/// Maximum number of bytes read of a response body.
const LONGEST_BODY: usize = 1024 * 1024;

/// Settings for connections.
pub(super) struct Exchanger {
    /// TLS configurations, shared by all connections.
    pub(super) clients: Clients,
    /// Path of the request.
    pub(super) path: PathAndQuery,
    /// Time limit for one connection, from its first packet to the end of the response.
    pub(super) timeout: Duration,
}

/// Result of a successful connection.
pub(super) struct Exchanged {
    /// Whether the proxy resumed the session that was offered.
    pub(super) resumed: bool,
    /// Response and timing.
    pub(super) answer: HandshakeAnswer,
    /// The sessions that this proxy issued.
    pub(super) sessions: Vec<Session>,
    /// The ClientHello that was sent, as records.
    pub(super) hello: Vec<u8>,
}

/// Response and timing of a connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeAnswer {
    /// Status of the HTTP response.
    pub http_status: u16,
    /// Duration from the ClientHello to the end of the TLS handshake.
    #[serde(rename = "handshakeSeconds", serialize_with = "seconds")]
    pub handshake: Duration,
}

/// Why a connection failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Connecting by TCP failed.
    #[error("failed to connect: {0}")]
    Connect(String),
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
    /// The response is missing or incomplete.
    #[error("request failed: {0}")]
    Request(String),
}

impl HandshakeAnswer {
    /// Whether the status is a server error (RFC 9110 section 15.6).
    pub fn is_server_error(&self) -> bool {
        self.http_status >= 500
    }
}

impl Failure {
    /// Whether it failed before the request was sent.
    pub fn is_before_request(&self) -> bool {
        !matches!(self, Self::Request(_))
    }
}

impl Exchanger {
    /// Connects to `address` with the SNI `server_name`, offers `session` if there is one, and sends a request.
    pub(super) async fn exchange(
        &self,
        address: SocketAddr,
        server_name: &ServerName<'static>,
        mechanism: Mechanism,
        session: Option<Session>,
    ) -> Result<Exchanged, Failure> {
        let deadline = Instant::now() + self.timeout;
        let slot = SessionSlot::offering(session);
        let config = self.clients.for_connection(mechanism, &slot);

        let tcp = within(deadline, Failure::Connect, TcpStream::connect(address)).await?;
        tcp.set_nodelay(true)
            .map_err(|error| Failure::Connect(error.to_string()))?;
        let begun = Instant::now();
        let connecting = TlsConnector::from(config).connect(server_name.clone(), Sighting::new(tcp));
        let tls = within(deadline, Failure::Handshake, connecting).await?;
        let handshake = begun.elapsed();
        let (stream, connection) = tls.get_ref();
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        // A TLS 1.2 session that came without a ticket is resumed by its id.
        let issued = mechanism != Mechanism::Tls12Ticket || stream.saw_ticket();
        let hello = stream.hello().to_vec();

        let http_status = within(deadline, Failure::Request, self.request(tls, server_name)).await?;
        Ok(Exchanged {
            resumed,
            answer: HandshakeAnswer {
                http_status,
                handshake,
            },
            sessions: if issued { slot.take_received() } else { Vec::new() },
            hello,
        })
    }

    /// Sends a recorded ClientHello again, byte for byte, and returns whether the proxy resumes its session.
    pub(super) async fn replay(&self, address: SocketAddr, hello: &[u8]) -> Result<bool, Failure> {
        let deadline = Instant::now() + self.timeout;
        let tcp = within(deadline, Failure::Connect, TcpStream::connect(address)).await?;
        within(deadline, Failure::Handshake, resumes_replay(tcp, hello)).await
    }

    /// Sends one request, reads the response to its end and closes the connection.
    async fn request(
        &self,
        tls: TlsStream<Sighting<TcpStream>>,
        server_name: &ServerName<'static>,
    ) -> Result<u16, hyper::Error> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let mut request = http::Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.path.clone().into();
        let headers = request.headers_mut();
        if let Ok(host) = server_name.to_str().parse() {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, http::HeaderValue::from_static("tlsfarm-probe"));
        headers.insert(CONNECTION, http::HeaderValue::from_static("close"));
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let mut body = response.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame?.data_ref().map_or(0, Bytes::len);
                if length > LONGEST_BODY {
                    break;
                }
            }
            Ok(status)
        };
        // Errors of the connection arrive at the request too.
        let (answer, _) = futures::join!(answer, connection);
        answer
    }
}

/// Waits for one phase of a connection until `deadline`.
async fn within<T, E: std::error::Error>(
    deadline: Instant,
    failure: fn(String) -> Failure,
    phase: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, phase).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(failure(with_causes(&error))),
        Err(_) => Err(failure("timed out".into())),
    }
}

/// Formats an error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Serializes a duration as a number of seconds.
pub(super) fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
