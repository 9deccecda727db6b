//! Tunnel for a connection that has switched protocols (RFC 9110 section 7.8).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};

use super::upgrade::Upstream;

/// Copies between client and backend until both have closed, one fails, or no byte is transferred for `idle`. `sent`
/// are the bytes that the client sent before the switch was complete.
pub(crate) async fn run<IO>(client: IO, sent: &[Bytes], mut upstream: Upstream, idle: Duration)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Rc::new(Cell::new(Instant::now()));
    let mut client = Watched {
        io: client,
        moved: Rc::clone(&moved),
    };
    let copy = async {
        for sent in sent {
            upstream.stream.write_all(sent).await?;
        }
        client.write_all(&upstream.received).await?;
        client.flush().await?;
        copy_bidirectional(&mut client, &mut upstream.stream).await
    };
    let watch = async {
        while moved.get().elapsed() < idle {
            sleep_until(moved.get() + idle).await;
        }
    };
    tokio::select! {
        // How either side ended does not matter to a tunnel.
        _ = copy => {}
        () = watch => {}
    }
}

/// Records progress when bytes are read from or written to the client.
struct Watched<IO> {
    io: IO,
    moved: Rc<Cell<Instant>>,
}

impl<IO> Watched<IO> {
    fn note<T>(&self, outcome: Poll<T>) -> Poll<T> {
        if outcome.is_ready() {
            self.moved.set(Instant::now());
        }
        outcome
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_read(cx, buf);
        this.note(outcome)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write(cx, buf);
        this.note(outcome)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
