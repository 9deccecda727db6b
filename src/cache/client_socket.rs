//! Client sockets that register for read readiness, and for write readiness only while a write is blocked.
//!
//! tokio's sockets always register for both, so that each reply that a client reads causes an unnecessary wake-up.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A connected, non-blocking stream socket.
pub(crate) struct ClientSocket {
    /// None only after registering for write readiness failed.
    watched: Option<AsyncFd<Socket>>,
    /// Whether the socket is registered for write readiness. It stays registered once a write was blocked.
    hears_of_room: bool,
}

impl ClientSocket {
    /// Wraps a non-blocking socket.
    ///
    /// # Errors
    ///
    /// Fails if registering the socket with the event loop fails.
    pub(crate) fn new(socket: impl Into<Socket>) -> io::Result<Self> {
        Ok(Self {
            watched: Some(watch(socket.into(), Interest::READABLE)?),
            hears_of_room: false,
        })
    }

    fn watched(&self) -> io::Result<&AsyncFd<Socket>> {
        self.watched.as_ref().ok_or(io::ErrorKind::NotConnected.into())
    }

    /// Registers for write readiness. Events that were already reported are reported again if they still apply.
    fn hear_of_room(&mut self) -> io::Result<()> {
        if let Some(watched) = self.watched.take() {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.watched = Some(watch(watched.into_inner(), both)?);
            self.hears_of_room = true;
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for the sake of types whose descriptor changes; a socket's does not"
)]
fn watch(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = self.watched()?;
        loop {
            let mut ready = ready!(watched.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            let Ok(read) = ready.try_io(|watched| watched.get_ref().read(room)) else {
                continue;
            };
            let read = read?;
            if (1..room.len()).contains(&read) {
                // A short read drained the socket; clearing readiness saves a read that would return WouldBlock.
                ready.clear_ready();
            }
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.hears_of_room {
            match self.watched()?.get_ref().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.hear_of_room()?,
                written => return Poll::Ready(written),
            }
        }
        let watched = self.watched()?;
        loop {
            let mut ready = ready!(watched.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|watched| watched.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    /// There is no write buffer to flush.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.watched()?.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A socket of ours and the client's end of it.
    fn pair() -> (ClientSocket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        (ClientSocket::new(ours).expect("watched"), theirs)
    }

    #[tokio::test]
    async fn no_write_readiness_event_arrives_while_the_socket_has_room() {
        let (mut socket, mut client) = pair();
        let (mut other, mut others_client) = pair();
        socket.write_all(b"reply").await.expect("there is room");
        client.read_exact(&mut [0; 5]).expect("the reply");
        // Once this byte has arrived, a write-readiness event would have arrived too.
        others_client.write_all(b"x").expect("written");
        other.read_u8().await.expect("the other's byte");
        let watched = socket.watched().expect("watched");
        let room = poll_fn(|cx| Poll::Ready(watched.poll_write_ready(cx).is_ready()));
        assert!(!room.await);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_whole_reply_and_can_still_send() {
        let (mut socket, mut client) = pair();
        let reply: Vec<u8> = (0..4_000_000u32).map(|number| number as u8).collect();
        let expected = reply.clone();
        let slow = std::thread::spawn(move || {
            client.write_all(b"more").expect("written");
            let mut received = vec![0; expected.len()];
            client.read_exact(&mut received).expect("all of it");
            client.write_all(b"thanks").expect("written");
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
            received == expected
        });
        socket.write_all(&reply).await.expect("written");
        let mut received = [0; 10];
        socket.read_exact(&mut received).await.expect("received");
        assert_eq!(&received, b"morethanks");
        socket.shutdown().await.expect("shut down");
        assert_eq!(socket.read(&mut received).await.expect("the client's end"), 0);
        assert!(slow.join().expect("the client ends"));
    }

    #[tokio::test]
    async fn a_closed_client_is_an_error_or_end_of_stream() {
        let (mut socket, client) = pair();
        drop(client);
        assert_eq!(socket.read(&mut [0]).await.expect("the end"), 0);
        let error = socket.write_all(b"reply").await.expect_err("the client is gone");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
