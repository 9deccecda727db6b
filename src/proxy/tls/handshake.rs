//! One TLS handshake: read the hello, choose the host, let rustls do the rest, all within one time limit.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::{Error as TlsError, ServerConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::client_hello::{Alert, Hello, HelloReader, Progress, fatal_alert, refusal};
use super::stream::{HandshakeError, TlsStream};
use crate::proxy::control::snapshot::Snapshot;
use crate::proxy::host::Host;
use crate::proxy::listen::linger::Lingering;
use crate::proxy::metrics::{HandshakeFailure, Metrics};
use crate::proxy::resume::session_cache::{Cached, SessionCache};
use crate::proxy::resume::tickets::SharedKeys;

/// Takes a connection through its handshake. On failure the client has got an alert, where one was due, and the reason
/// is counted. The result holds the host that the client chose.
pub(crate) async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    client: IpAddr,
    snapshot: &Snapshot,
    keys: &Arc<SharedKeys>,
    cache: &SessionCache,
    metrics: &Metrics,
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
            let (failure, rejected) = *failure;
            metrics.handshake_failed(failure);
            debug!(?failure, "a handshake failed");
            if let Some(io) = rejected {
                // The alert must arrive; whether it does is the client's affair.
                let _ = Lingering::new(io).shutdown().await;
            }
            None
        }
        Err(_) => {
            metrics.handshake_failed(HandshakeFailure::Timeout);
            debug!("a handshake took too long");
            None
        }
    }
}

/// A failure with the connection, where that may still be of use.
type Failed<IO> = Box<(HandshakeFailure, Option<IO>)>;

async fn try_accept<IO: AsyncRead + AsyncWrite + Unpin>(
    mut io: IO,
    client: IpAddr,
    snapshot: &Snapshot,
    keys: &Arc<SharedKeys>,
    cache: &SessionCache,
    metrics: &Metrics,
) -> Result<(TlsStream<IO>, Arc<Host>), Failed<IO>> {
    let (hello, wire) = match read_hello(&mut io).await {
        Ok(read) => read,
        Err(HelloError::Io) => return Err(Box::new((HandshakeFailure::ClientClosed, None))),
        Err(HelloError::Unreadable(wire)) => {
            return Err(reject(io, &refusal(&wire), HandshakeFailure::UnreadableHello).await);
        }
    };
    let (host, hostname) = match choose(snapshot, &hello) {
        Ok(chosen) => chosen,
        Err((alert, failure)) => return Err(reject(io, &fatal_alert(alert), failure).await),
    };
    let found = match host.lookup(&hello) {
        Some(lookup) => cache.find(lookup).await,
        None => None,
    };
    let cached = Cached {
        found,
        room: cache.room(client),
    };
    let (config, tickets) = host.connect(hostname, &hello, cached, Arc::clone(keys), metrics.clone());
    let Ok(connection) = ServerConnection::new(Arc::new(config)) else {
        return Err(Box::new((HandshakeFailure::Internal, None)));
    };
    let mut stream = TlsStream::new(io, connection, wire);
    match stream
        .handshake(|connection| tickets.settle(connection.handshake_kind()))
        .await
    {
        // Host and tickets were chosen by our reading of the name; rustls must not have read another.
        Ok(()) if !same_name(stream.connection().server_name(), &hello) => {
            Err(Box::new((HandshakeFailure::Internal, None)))
        }
        Ok(()) => {
            cache.count_over_budget(tickets.take_over_budget());
            // Before the client knows their names, because it may use them elsewhere at once.
            cache.store(client, tickets.take_entries()).await;
            match stream.flush().await {
                Ok(()) => Ok((stream, Arc::clone(host))),
                Err(error) => Err(Box::new((io_failure(&error), None))),
            }
        }
        Err(HandshakeError::Io(error)) => Err(Box::new((io_failure(&error), None))),
        Err(HandshakeError::Tls(error)) => {
            debug!(%error, "rustls refused a handshake");
            Err(Box::new((tls_failure(&error), Some(stream.into_inner()))))
        }
    }
}

enum HelloError {
    Io,
    Unreadable(Vec<u8>),
}

async fn read_hello(io: &mut (impl AsyncRead + Unpin)) -> Result<(Hello, Vec<u8>), HelloError> {
    let mut reader = HelloReader::default();
    let mut bytes = [0; 4096];
    loop {
        let read = io.read(&mut bytes).await.map_err(|_| HelloError::Io)?;
        if read == 0 {
            return Err(HelloError::Io);
        }
        match reader.feed(bytes.get(..read).unwrap_or_default()) {
            Progress::Incomplete => {}
            Progress::Complete(hello) => return Ok((hello, reader.into_wire())),
            Progress::Unreadable => return Err(HelloError::Unreadable(reader.into_wire())),
        }
    }
}

fn choose<'a>(
    snapshot: &'a Snapshot,
    hello: &Hello,
) -> Result<(&'a Arc<Host>, usize), (Alert, HandshakeFailure)> {
    let Some(name) = &hello.server_name else {
        return Err((Alert::UnrecognizedName, HandshakeFailure::NoServerName));
    };
    let Some((host, hostname)) = snapshot.find(name) else {
        return Err((Alert::UnrecognizedName, HandshakeFailure::UnknownServerName));
    };
    if !host.certificates.any_usable() {
        return Err((Alert::HandshakeFailure, HandshakeFailure::NoCertificate));
    }
    Ok((host, *hostname))
}

async fn reject<IO: AsyncWrite + Unpin>(mut io: IO, alert: &[u8], failure: HandshakeFailure) -> Failed<IO> {
    let sent = io.write_all(alert).await;
    Box::new((failure, sent.is_ok().then_some(io)))
}

fn same_name(theirs: Option<&str>, hello: &Hello) -> bool {
    let theirs = theirs.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
    theirs == hello.server_name
}

fn io_failure(error: &io::Error) -> HandshakeFailure {
    match error.kind() {
        io::ErrorKind::TimedOut => HandshakeFailure::Timeout,
        // So says rustls when a message does not fit into its buffer.
        io::ErrorKind::InvalidData => HandshakeFailure::ClientMisbehaved,
        _ => HandshakeFailure::ClientClosed,
    }
}

fn tls_failure(error: &TlsError) -> HandshakeFailure {
    match error {
        TlsError::AlertReceived(_) => HandshakeFailure::ClientAlert,
        TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol => HandshakeFailure::Incompatible,
        // So says rustls when no certificate suits the client's signature schemes.
        TlsError::General(_) => HandshakeFailure::NoCertificate,
        TlsError::FailedToGetCurrentTime | TlsError::FailedToGetRandomBytes | TlsError::Other(_) => {
            HandshakeFailure::Internal
        }
        _ => HandshakeFailure::ClientMisbehaved,
    }
}

#[cfg(test)]
mod tests;
