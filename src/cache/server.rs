//! Listeners of the cache process, their shared state, and graceful shutdown.

use std::fs;
use std::future::ready;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::client_socket::ClientSocket;
use super::connection::{Common, serve};
use super::metrics::Origin;
use super::peers::listener;
use super::peers::metrics::PeerMetrics;
use super::peers::tls::PeerTls;

/// Pause after an error of `accept`, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(100);

/// TCP keepalive time of client connections. Idle connections are allowed; dead ones are closed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// File mode of the Unix socket: read and write for user and group.
const SOCKET_MODE: u32 = 0o660;

/// State shared by all listeners.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) common: Rc<Common>,
    /// Connection limit for clients.
    pub(crate) room: Arc<Semaphore>,
    /// Separate connection limit for peers.
    pub(crate) peer_room: Arc<Semaphore>,
    /// Listeners and open connections.
    pub(crate) tasks: TaskTracker,
}

impl Server {
    /// Serves clients on a TCP address.
    pub(crate) fn listen_tcp(&self, listener: TcpListener) {
        let server = self.clone();
        self.tasks.spawn_local(async move {
            let accept = async || listener.accept().await.map(|(stream, _)| stream);
            server.accept(accept, tcp_client).await;
        });
    }

    /// Serves clients on a Unix socket, which is removed at shutdown.
    pub(crate) fn listen_unix(&self, socket: UnixSocket) {
        let server = self.clone();
        self.tasks.spawn_local(async move {
            let accept = async || socket.listener.accept().await.map(|(stream, _)| stream);
            server.accept(accept, unix_client).await;
        });
    }

    /// Serves other caches.
    pub(crate) fn listen_peers(&self, listener: TcpListener, tls: Arc<PeerTls>, metrics: PeerMetrics) {
        let (server, stop) = (self.clone(), self.common.stop.clone());
        let take = move |stream| {
            server.take(stream, Origin::Peer);
            ready(())
        };
        self.tasks.spawn_local(async move {
            stop.run_until_cancelled(listener::accept(listener, tls, metrics, take))
                .await;
        });
    }

    async fn accept<S>(
        &self,
        accept: impl AsyncFn() -> io::Result<S>,
        prepare: impl Fn(S) -> io::Result<ClientSocket>,
    ) {
        let metrics = &self.common.node.metrics;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.common.stop.cancelled() => return,
                accepted = accept() => accepted,
            };
            match accepted.and_then(&prepare) {
                Ok(stream) => self.take(stream, Origin::Client),
                // The client closed the connection while it was in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    metrics.accept_failed();
                    debug!(%error, "failed to accept a connection");
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Serves one connection, or closes it if the connection limit is reached.
    fn take<S>(&self, stream: S, origin: Origin)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let metrics = &self.common.node.metrics;
        let room = match origin {
            Origin::Client => &self.room,
            Origin::Peer => &self.peer_room,
        };
        let Ok(room) = Arc::clone(room).try_acquire_owned() else {
            metrics.connection_refused(origin);
            return;
        };
        let open = metrics.connection_opened(origin);
        let common = Rc::clone(&self.common);
        self.tasks.spawn_local(async move {
            serve(stream, origin, common).await;
            drop((room, open));
        });
    }
}

fn tcp_client(stream: TcpStream) -> io::Result<ClientSocket> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    ClientSocket::new(stream.into_std()?)
}

fn unix_client(stream: UnixStream) -> io::Result<ClientSocket> {
    ClientSocket::new(stream.into_std()?)
}

/// A bound Unix socket.
pub(crate) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Inode at bind time, to detect that the socket file was replaced.
    inode: u64,
}

impl UnixSocket {
    /// Binds a socket at `path`. An existing socket file is replaced: it is stale unless another process uses the same
    /// path.
    ///
    /// # Errors
    ///
    /// Fails if the directory is not writable, or if the path exists and is not a socket.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        if let Ok(there) = fs::symlink_metadata(path)
            && !there.file_type().is_socket()
        {
            let in_the_way = "the path exists and is not a socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, in_the_way));
        }
        // Bind under a temporary name and rename, so that clients find either the old socket or a listening one.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(SOCKET_MODE))?;
        fs::rename(&fresh, path)?;
        Ok(Self {
            listener,
            inode: fs::symlink_metadata(path)?.ino(),
            path: path.to_owned(),
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
