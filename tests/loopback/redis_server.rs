//! Debian's redis-server, as tests need it.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Connection, cmd};
use tlsfarm::config::CacheServer;

use crate::harness::{Farm, Reserved, wait_for};

/// A redis-server of our own, with a Unix socket, a TCP and a TLS port. Its certificate is the blog's.
pub struct Redis {
    dir: PathBuf,
    pub tcp: SocketAddr,
    pub tls: SocketAddr,
    arguments: Vec<String>,
    child: Child,
    _reserved: [Reserved; 2],
}

impl Redis {
    pub fn start(farm: &Farm, arguments: &[&str]) -> Self {
        let (tcp, tls) = (Reserved::new(), Reserved::new());
        let [certificate, key] = farm.certificate_files("blog");
        let display = |path: &Path| path.display().to_string();
        let (tcp_port, tls_port) = (tcp.address.port().to_string(), tls.address.port().to_string());
        let mut all = vec![
            "--bind".into(),
            "127.0.0.1".into(),
            "--port".into(),
            tcp_port,
            "--tls-port".into(),
            tls_port,
            "--tls-cert-file".into(),
            display(&certificate),
            "--tls-key-file".into(),
            display(&key),
            "--tls-ca-cert-file".into(),
            display(&farm.ca_file()),
            "--tls-auth-clients".into(),
            "optional".into(),
            "--unixsocket".into(),
            display(&farm.dir.join("redis.sock")),
            "--dir".into(),
            display(&farm.dir),
            "--save".into(),
            String::new(),
        ];
        all.extend(arguments.iter().map(|argument| (*argument).into()));
        let redis = Self {
            dir: farm.dir.clone(),
            tcp: tcp.address,
            tls: tls.address,
            child: spawn(&all),
            arguments: all,
            _reserved: [tcp, tls],
        };
        redis.wait();
        redis
    }

    pub fn over_unix(&self) -> CacheServer {
        CacheServer::Unix(self.dir.join("redis.sock"))
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    pub fn start_again(&mut self) {
        self.child = spawn(&self.arguments);
        self.wait();
    }

    /// Has it carry out a command that has no arguments.
    pub fn command(&self, command: &str) {
        cmd(command).exec(&mut self.connection()).expect("done");
    }

    /// How many entries it has, asked over a connection that is new.
    pub fn entries(&self) -> usize {
        cmd("DBSIZE").query(&mut self.connection()).expect("a number")
    }

    /// How long each of its entries will be there yet.
    pub fn lifetimes(&self) -> Vec<Duration> {
        let mut connection = self.connection();
        let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query(&mut connection).expect("names");
        let left = keys.into_iter().map(|key| {
            let millis: i64 = cmd("PTTL").arg(key).query(&mut connection).expect("a number");
            Duration::from_millis(millis.try_into().expect("an entry with a lifetime"))
        });
        left.collect()
    }

    fn connection(&self) -> Connection {
        let client = redis::Client::open(format!("redis://{}", self.tcp)).expect("an address");
        client.get_connection().expect("the process runs")
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    fn wait(&self) {
        wait_for("redis-server", || TcpStream::connect(self.tls).ok());
        wait_for("redis-server's socket", || {
            UnixStream::connect(self.dir.join("redis.sock")).ok()
        });
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("these tests need redis-server on the path (Debian's package redis-server)")
}
