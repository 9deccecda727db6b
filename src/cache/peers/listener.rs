//! The port for peers: TLS connections of those that can show a peer's certificate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::Error as TlsError;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::metrics::{PeerMetrics, PeerRefusal};
use super::tls::PeerTls;

/// Most handshakes at a time.
const MOST_HANDSHAKES: usize = 64;

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// After how long without traffic the system asks whether the peer is still there. Peers send something each second.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Accepts peers for ever and serves each in a local task of its own.
pub(crate) async fn accept<C: Future<Output = ()> + 'static>(
    listener: TcpListener,
    tls: Arc<PeerTls>,
    metrics: PeerMetrics,
    serve: impl Fn(TlsStream<TcpStream>) -> C + Clone + 'static,
) {
    let room = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "peers cannot be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            metrics.refused(PeerRefusal::TooMany);
            continue;
        };
        let (tls, metrics, serve) = (Arc::clone(&tls), metrics.clone(), serve.clone());
        spawn_local(async move {
            let outcome = handshake(stream, &tls).await;
            drop(place);
            match outcome {
                Ok(stream) => {
                    metrics.accepted();
                    serve(stream).await;
                }
                Err(refusal) => {
                    metrics.refused(refusal);
                    debug!(?refusal, "a connection to the port for peers was refused");
                }
            }
        });
    }
}

async fn handshake(stream: TcpStream, tls: &PeerTls) -> Result<TlsStream<TcpStream>, PeerRefusal> {
    let config = tls.server().ok_or(PeerRefusal::NotReady)?;
    prepare(&stream).map_err(|_| PeerRefusal::Closed)?;
    match timeout(HANDSHAKE_TIME, TlsAcceptor::from(config).accept(stream)).await {
        Ok(outcome) => outcome.map_err(|error| refusal(&error)),
        Err(_) => Err(PeerRefusal::Timeout),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn refusal(error: &io::Error) -> PeerRefusal {
    match error.get_ref().and_then(|source| source.downcast_ref()) {
        Some(TlsError::NoCertificatesPresented) => PeerRefusal::NoCertificate,
        Some(TlsError::InvalidCertificate(_)) => PeerRefusal::WrongCertificate,
        Some(TlsError::AlertReceived(_)) => PeerRefusal::Alert,
        Some(_) => PeerRefusal::Incompatible,
        None => PeerRefusal::Closed,
    }
}
