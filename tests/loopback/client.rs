//! A client over rustls and hyper that keeps its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS12;
use rustls::{ClientConfig, NamedGroup, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Farm, backend_saw};

/// After this long a request on loopback is not on its way any more.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Version of HTTP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Http {
    One,
    Two,
}

/// A client of the host `shop`; it remembers sessions, like a browser.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    http: Http,
}

/// One connection, ready for requests.
pub enum Connection {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// The page came; further requests may follow on the connection.
    Page,
    /// The page came, and with it the news that the connection ends.
    LastPage,
    /// The request was not served, for the connection had ended in good order before.
    NotSent,
    /// The request was sent and got no page.
    Lost(String),
}

impl Client {
    pub fn new(farm: &Farm, http: Http) -> Self {
        Self::with(tls_config(farm, rustls::DEFAULT_VERSIONS), http)
    }

    /// One that resumes by session id only, and offers the newest that it was given again and again.
    pub fn by_session_id(farm: &Farm) -> Self {
        let mut tls = tls_config(farm, &[&TLS12]);
        let newest = Arc::new(NewestSession::default());
        tls.resumption = Resumption::store(newest).tls12_resumption(Tls12Resumption::SessionIdOnly);
        Self::with(tls, Http::One)
    }

    fn with(mut tls: ClientConfig, http: Http) -> Self {
        tls.alpn_protocols = match http {
            Http::One => vec![b"http/1.1".to_vec()],
            Http::Two => vec![b"h2".to_vec()],
        };
        Self {
            tls: TlsConnector::from(Arc::new(tls)),
            http,
        }
    }

    /// A TLS connection without a word of HTTP.
    pub async fn tls(&self, proxy: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(proxy).await?;
        let name = "shop.test".try_into().expect("a name");
        self.tls.connect(name, tcp).await
    }

    pub async fn connect(&self, proxy: SocketAddr) -> io::Result<Connection> {
        let io = TokioIo::new(self.tls(proxy).await?);
        Ok(match self.http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                Connection::One(sender)
            }
            Http::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(io::Error::other)?;
                tokio::spawn(connection);
                Connection::Two(sender)
            }
        })
    }
}

/// The TLS side of a client that trusts the farm's authority.
pub fn tls_config(farm: &Farm, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(farm.ca_file()).expect("a certificate");
    roots.add(authority).expect("an authority");
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The session that was given last, however often it was refused since.
#[derive(Debug, Default)]
struct NewestSession(Mutex<Option<Tls12ClientSessionValue>>);

impl ClientSessionStore for NewestSession {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {}

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

impl Connection {
    /// Asks for a page of its own.
    pub async fn ask(&mut self) -> Answer {
        static PAGES: AtomicU64 = AtomicU64::new(0);
        let path = format!("/page-{}", PAGES.fetch_add(1, Ordering::Relaxed));
        let request = |uri: &str| {
            Request::get(uri)
                .header("host", "shop.test")
                .body(Empty::new())
                .expect("valid")
        };
        let response = match self {
            Self::One(sender) => {
                if sender.ready().await.is_err() {
                    return Answer::NotSent;
                }
                sender.try_send_request(request(&path)).await
            }
            Self::Two(sender) => {
                if sender.ready().await.is_err() {
                    return Answer::NotSent;
                }
                let request = request(&format!("https://shop.test{path}"));
                // hyper's client sometimes forgets a request that meets a GOAWAY; the backend knows whether it was sent.
                match timeout(FORGOTTEN, sender.try_send_request(request)).await {
                    Ok(response) => response,
                    Err(_) if backend_saw(&path) => {
                        return Answer::Lost("no answer although the backend gave one".into());
                    }
                    Err(_) => return Answer::NotSent,
                }
            }
        };
        match response {
            Ok(response) => page(response, &path).await,
            Err(mut error) => match error.take_message() {
                Some(_) => Answer::NotSent,
                None => unanswered(&error.into_error()),
            },
        }
    }
}

/// A graceful GOAWAY names the last stream that is served; a later one was not looked at and belongs on another
/// connection (RFC 9113 section 6.8).
fn unanswered(error: &hyper::Error) -> Answer {
    let error = format!("{error:?}");
    if error.contains("GoAway(b\"\", NO_ERROR, Remote)") {
        Answer::NotSent
    } else {
        Answer::Lost(error)
    }
}

async fn page(response: Response<Incoming>, path: &str) -> Answer {
    let status = response.status();
    let last = response
        .headers()
        .get("connection")
        .is_some_and(|value| value == "close");
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Answer::Lost(format!("{error:?}")),
    };
    let is_page = status == 200 && *body == *format!("page of {path}").as_bytes();
    match (is_page, last) {
        (true, false) => Answer::Page,
        (true, true) => Answer::LastPage,
        (false, _) => Answer::Lost(format!("status {status}")),
    }
}
