//! Listener for peers: accepts TLS connections with a valid peer certificate.

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

/// Maximum number of concurrent TLS handshakes.
const MOST_HANDSHAKES: usize = 64;

/// Time limit for a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// TCP keepalive time. Peers send a request at least once a second.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Accepts peer connections until cancelled and serves each in its own local task.
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
                debug!(%error, "failed to accept a peer connection");
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
                    debug!(?refusal, "refused a peer connection");
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
