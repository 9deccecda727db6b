//! Runs one TLS handshake within a time limit: reads the ClientHello, selects the host, and continues with rustls.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::{Error as TlsError, ServerConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::client_hello::{Alert, ClientHello, ClientHelloReader, Progress, fatal_alert, refusal};
use super::stream::{HandshakeError, TlsStream};
use crate::proxy::control::snapshot::{ServedName, Snapshot};
use crate::proxy::host::{ConnectionTls, Host};
use crate::proxy::listen::linger::Lingering;
use crate::proxy::metrics::{HandshakeFailure, ProxyMetrics};
use crate::proxy::resume::session_cache::{Cached, SessionCache};
use crate::proxy::resume::tickets::SharedKeys;

/// Runs the handshake of a connection. On failure, an alert has been sent if required, and the failure has been
/// counted. The result contains the host selected by the server name.
pub(crate) async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    client: IpAddr,
    snapshot: &Snapshot,
    keys: &Arc<SharedKeys>,
    cache: &SessionCache,
    metrics: &ProxyMetrics,
) -> Option<(TlsStream<IO>, Arc<Host>)> {
    let deadline = Instant::now() + snapshot.config.timeouts.handshake.as_std();
    let accepting = try_accept(io, client, snapshot, keys, cache, metrics);
    match timeout_at(deadline, accepting).await {
        Ok(Ok((stream, host))) => {
            let connection = stream.connection();
            metrics.handshake(connection.protocol_version(), connection.handshake_kind());
            Some((stream, host))
        }
        Ok(Err(failure)) => {
            let Failed { failure, told } = *failure;
            metrics.handshake_failed(failure);
            debug!(?failure, "TLS handshake failed");
            if let Some(io) = told {
                // Linger so that the alert can arrive; errors do not matter.
                let _ = Lingering::new(io).shutdown().await;
            }
            None
        }
        Err(_) => {
            metrics.handshake_failed(HandshakeFailure::Timeout);
            debug!("TLS handshake timed out");
            None
        }
    }
}

/// A handshake that failed.
struct Failed<IO> {
    failure: HandshakeFailure,
    /// The connection, if an alert was sent.
    told: Option<IO>,
}

impl<IO> Failed<IO> {
    /// Failure without an alert: the client disconnected, or an internal error.
    fn silently(failure: HandshakeFailure) -> Box<Self> {
        let told = None;
        Box::new(Self { failure, told })
    }
}

async fn try_accept<IO: AsyncRead + AsyncWrite + Unpin>(
    mut io: IO,
    client: IpAddr,
    snapshot: &Snapshot,
    keys: &Arc<SharedKeys>,
    cache: &SessionCache,
    metrics: &ProxyMetrics,
) -> Result<(TlsStream<IO>, Arc<Host>), Box<Failed<IO>>> {
    let Received { hello, wire } = match read_hello(&mut io).await {
        Ok(received) => received,
        Err(ClientHelloError::Io) => return Err(Failed::silently(HandshakeFailure::ClientClosed)),
        Err(ClientHelloError::Unreadable(wire)) => {
            return Err(reject(io, &refusal(&wire), HandshakeFailure::UnreadableClientHello).await);
        }
    };
    let served = match choose(snapshot, &hello) {
        Ok(served) => served,
        Err(refused) => return Err(reject(io, &fatal_alert(refused.alert), refused.failure).await),
    };
    let host = &served.host;
    let found = match host.lookup(&hello) {
        Some(lookup) => cache.find(lookup).await,
        None => None,
    };
    let cached = Cached {
        found,
        room: cache.room(client),
    };
    let ConnectionTls { config, tickets } =
        host.connect(served.index, &hello, cached, Arc::clone(keys), metrics.clone());
    let Ok(connection) = ServerConnection::new(Arc::new(config)) else {
        return Err(Failed::silently(HandshakeFailure::Internal));
    };
    let mut stream = TlsStream::new(io, connection, wire);
    match stream
        .handshake(|connection| tickets.settle(connection.handshake_kind()))
        .await
    {
        // Host and tickets were chosen by the name that we parsed; rustls must have parsed the same.
        Ok(()) if !same_name(stream.connection().server_name(), &hello) => {
            Err(Failed::silently(HandshakeFailure::Internal))
        }
        Ok(()) => {
            cache.count_over_budget(tickets.take_over_budget());
            // Store before the client gets the tickets or ids: it may offer them to another proxy immediately.
            cache.store(client, tickets.take_entries()).await;
            match stream.flush().await {
                Ok(()) => Ok((stream, Arc::clone(host))),
                Err(error) => Err(Failed::silently(io_failure(&error))),
            }
        }
        Err(HandshakeError::Io(error)) => Err(Failed::silently(io_failure(&error))),
        Err(HandshakeError::Tls(error)) => {
            debug!(%error, "rustls rejected a TLS handshake");
            // rustls has written the alert.
            Err(Box::new(Failed {
                failure: tls_failure(&error),
                told: Some(stream.into_inner()),
            }))
        }
    }
}

/// A whole ClientHello.
struct Received {
    hello: ClientHello,
    /// All bytes read from the wire, for rustls.
    wire: Vec<u8>,
}

enum ClientHelloError {
    Io,
    Unreadable(Vec<u8>),
}

async fn read_hello(io: &mut (impl AsyncRead + Unpin)) -> Result<Received, ClientHelloError> {
    let mut reader = ClientHelloReader::default();
    let mut bytes = [0; 4096];
    loop {
        let read = io.read(&mut bytes).await.map_err(|_| ClientHelloError::Io)?;
        if read == 0 {
            return Err(ClientHelloError::Io);
        }
        match reader.feed(bytes.get(..read).unwrap_or_default()) {
            Progress::Incomplete => {}
            Progress::Complete(hello) => {
                let wire = reader.into_wire();
                return Ok(Received { hello, wire });
            }
            Progress::Unreadable => return Err(ClientHelloError::Unreadable(reader.into_wire())),
        }
    }
}

/// No host for the server name.
struct Refused {
    alert: Alert,
    failure: HandshakeFailure,
}

fn choose<'a>(snapshot: &'a Snapshot, hello: &ClientHello) -> Result<&'a ServedName, Refused> {
    let refused = |alert, failure| Refused { alert, failure };
    let name = hello
        .server_name
        .as_ref()
        .ok_or(refused(Alert::UnrecognizedName, HandshakeFailure::NoServerName))?;
    let served = snapshot.find(name).ok_or(refused(
        Alert::UnrecognizedName,
        HandshakeFailure::UnknownServerName,
    ))?;
    match served.host.certificates.any_usable() {
        true => Ok(served),
        false => Err(refused(Alert::HandshakeFailure, HandshakeFailure::NoCertificate)),
    }
}

async fn reject<IO: AsyncWrite + Unpin>(
    mut io: IO,
    alert: &[u8],
    failure: HandshakeFailure,
) -> Box<Failed<IO>> {
    let sent = io.write_all(alert).await;
    let told = sent.is_ok().then_some(io);
    Box::new(Failed { failure, told })
}

fn same_name(theirs: Option<&str>, hello: &ClientHello) -> bool {
    let theirs = theirs.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
    theirs == hello.server_name
}

fn io_failure(error: &io::Error) -> HandshakeFailure {
    match error.kind() {
        io::ErrorKind::TimedOut => HandshakeFailure::Timeout,
        // rustls returns this error when a message does not fit into its buffer.
        io::ErrorKind::InvalidData => HandshakeFailure::ClientMisbehaved,
        _ => HandshakeFailure::ClientClosed,
    }
}

fn tls_failure(error: &TlsError) -> HandshakeFailure {
    match error {
        TlsError::AlertReceived(_) => HandshakeFailure::ClientAlert,
        TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol => HandshakeFailure::Incompatible,
        // rustls returns this error when no certificate suits the client's signature schemes.
        TlsError::General(_) => HandshakeFailure::NoCertificate,
        TlsError::FailedToGetCurrentTime | TlsError::FailedToGetRandomBytes | TlsError::Other(_) => {
            HandshakeFailure::Internal
        }
        _ => HandshakeFailure::ClientMisbehaved,
    }
}

#[cfg(test)]
mod tests;
