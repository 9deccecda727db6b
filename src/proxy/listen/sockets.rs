//! Listening sockets: one per traffic thread on the same address; the kernel distributes connections (`SO_REUSEPORT`).

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

const BACKLOG: i32 = 4096;

/// The listeners of one traffic thread.
pub(crate) struct Listeners {
    pub(crate) https: StdListener,
    pub(crate) http: Option<StdListener>,
}

/// Binds the listeners of `threads` traffic threads.
///
/// # Errors
///
/// Returns the address that could not be bound, and the I/O error.
pub(crate) fn listen(
    https: SocketAddr,
    http: Option<SocketAddr>,
    threads: usize,
) -> Result<Vec<Listeners>, (SocketAddr, io::Error)> {
    let open = |address| listener(address).map_err(|error| (address, error));
    (0..threads)
        .map(|_| {
            Ok(Listeners {
                https: open(https)?,
                http: http.map(open).transpose()?,
            })
        })
        .collect()
}

fn listener(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    // After a restart, the old process's connections may be in TIME_WAIT and would make bind fail.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts the connections in the backlog of a listener. It calls the kernel directly, because the runtime only knows
/// of connections that arrived before its last poll.
pub(crate) fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std();
    std::iter::from_fn(move || {
        loop {
            match listener.as_ref().ok()?.accept() {
                Ok((stream, peer)) => {
                    let stream = stream
                        .set_nonblocking(true)
                        .and_then(|()| TcpStream::from_std(stream));
                    return Some((stream.ok()?, peer));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream as StdStream};

    use super::*;

    #[tokio::test]
    async fn connections_in_the_backlog_are_accepted() {
        let listener = listener((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let listener = TcpListener::from_std(listener).expect("a runtime");
        // Nothing is awaited from here on, so the runtime does not poll the listener.
        let clients: Vec<_> = (0..3)
            .map(|_| StdStream::connect(address).expect("queued"))
            .collect();
        assert_eq!(waiting(listener).count(), clients.len());
    }
}
