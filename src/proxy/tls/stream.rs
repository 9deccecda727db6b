//! An `AsyncRead` and `AsyncWrite` over a TCP connection and a rustls [`ServerConnection`].
//!
//! It starts with bytes that were already read from the connection, and calls back after every step of the handshake.

use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A TLS connection with a client.
pub(crate) struct TlsStream<IO> {
    io: IO,
    connection: ServerConnection,
    /// Bytes read from the wire that rustls has not processed yet.
    prefix: Vec<u8>,
    prefix_taken: usize,
    at_end: bool,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    /// rustls rejected the client's message; an alert was sent.
    Tls(rustls::Error),
    /// The connection failed.
    Io(io::Error),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// Creates a connection whose input starts with `prefix`.
    pub(crate) fn new(io: IO, connection: ServerConnection, prefix: Vec<u8>) -> Self {
        Self {
            io,
            connection,
            prefix,
            prefix_taken: 0,
            at_end: false,
        }
    }

    /// The rustls connection.
    pub(crate) fn connection(&self) -> &ServerConnection {
        &self.connection
    }

    /// Returns the underlying connection, to close it after a failure.
    pub(crate) fn into_inner(self) -> IO {
        self.io
    }

    /// Runs the handshake until no more client messages are needed; calls `progress` whenever rustls has processed
    /// input. Remaining output, such as tickets, is sent by the next flush.
    pub(crate) async fn handshake(
        &mut self,
        mut progress: impl FnMut(&ServerConnection),
    ) -> Result<(), HandshakeError> {
        std::future::poll_fn(|cx| {
            while self.connection.is_handshaking() {
                ready!(self.poll_send(cx)).map_err(HandshakeError::Io)?;
                let taken = ready!(self.poll_receive(cx));
                progress(&self.connection);
                if !taken? {
                    return Poll::Ready(Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into())));
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes the pending output of rustls.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut io = Blocking { io: &mut self.io, cx };
            match self.connection.write_tls(&mut io) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Passes input to rustls; returns false at the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, HandshakeError>> {
        let read = if self.prefix.is_empty() {
            self.connection.read_tls(&mut Blocking { io: &mut self.io, cx })
        } else {
            let read = self
                .connection
                .read_tls(&mut self.prefix.get(self.prefix_taken..).unwrap_or_default());
            self.prefix_taken += *read.as_ref().unwrap_or(&0);
            if self.prefix_taken == self.prefix.len() {
                self.prefix = Vec::new();
            }
            read
        };
        let read = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(HandshakeError::Io(error))),
        };
        if let Err(error) = self.connection.process_new_packets() {
            // Sends the alert, as far as the connection accepts it without blocking.
            let _ = self.poll_send(cx);
            return Poll::Ready(Err(HandshakeError::Tls(error)));
        }
        self.at_end = read == 0;
        Poll::Ready(Ok(!self.at_end))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.connection.reader().read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if this.at_end {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(this.poll_receive(cx)).map_err(io::Error::from)?;
            // Answers to key updates and the like must not wait for the next write.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let written = this.connection.writer().write_vectored(parts)?;
            let sent = this.poll_send(cx)?;
            if written > 0 || parts.iter().all(|part| part.is_empty()) {
                return Poll::Ready(Ok(written));
            }
            // rustls's buffer is full: it accepts nothing before something was sent.
            ready!(sent);
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // rustls sends close_notify once, however often this is called.
        this.connection.send_close_notify();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Tls(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            HandshakeError::Io(error) => error,
        }
    }
}

/// Adapter from an asynchronous connection to blocking I/O traits for rustls: an operation that would block fails with
/// `WouldBlock`, and the task is woken when it can continue.
struct Blocking<'a, 'b, IO> {
    io: &'a mut IO,
    cx: &'a mut Context<'b>,
}

impl<IO: AsyncRead + Unpin> Read for Blocking<'_, '_, IO> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(bytes);
        match Pin::new(&mut *self.io).poll_read(self.cx, &mut buf) {
            Poll::Ready(Ok(())) => Ok(buf.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<IO: AsyncWrite + Unpin> Write for Blocking<'_, '_, IO> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        or_would_block(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream as ClientStream;

    use super::*;

    /// Both ends of a connection through a pipe that holds `pipe` bytes.
    async fn connected(pipe: usize) -> (TlsStream<DuplexStream>, ClientStream<DuplexStream>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["shop.test".into()]).expect("generated");
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("usable");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("supported")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("the key belongs to the certificate");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("supported")
            .with_root_certificates(roots)
            .with_no_client_auth();

        let (mut ours, theirs) = duplex(pipe);
        let name = ServerName::try_from("shop.test").expect("a name");
        let theirs =
            tokio::spawn(async move { TlsConnector::from(Arc::new(client)).connect(name, theirs).await });
        let mut prefix = vec![0; 100];
        ours.read_exact(&mut prefix).await.expect("the hello's beginning");
        let connection = ServerConnection::new(Arc::new(server)).expect("usable");
        let mut ours = TlsStream::new(ours, connection, prefix);
        ours.handshake(|_| {}).await.expect("a handshake");
        ours.flush().await.expect("sent");
        (ours, theirs.await.expect("no panic").expect("a handshake"))
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_at_once_through_a_narrow_pipe() {
        const LENGTH: usize = 300_000;
        let (ours, mut theirs) = connected(777).await;
        let (mut read, mut write) = split(ours);
        let sent: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&copy).await.expect("taken");
            write.shutdown().await.expect("closed");
        });
        let echo = tokio::spawn(async move {
            let mut received = vec![0; LENGTH];
            theirs.read_exact(&mut received).await.expect("all of it");
            theirs.write_all(&received).await.expect("taken");
            theirs.shutdown().await.expect("closed");
            let end = theirs.read(&mut [0]).await;
            assert_eq!(end.expect("close_notify came"), 0);
        });
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.expect("an end in good order");
        assert!(back == sent, "the bytes differ");
        writer.await.expect("no panic");
        echo.await.expect("no panic");
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_an_error() {
        let (mut ours, mut theirs) = connected(4096).await;
        theirs.write_all(b"half a requ").await.expect("taken");
        theirs.flush().await.expect("taken");
        drop(theirs);
        let mut received = Vec::new();
        let error = ours
            .read_to_end(&mut received)
            .await
            .expect_err("the stream was truncated");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(received, b"half a requ");
    }
}
