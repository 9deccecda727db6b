//! A user's own Redis: Debian's redis-server, outside the cluster, with TLS and an ACL user.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::harness::{Namespace, scratch, wait_for};

/// The ACL user of the farm.
pub const USER: &str = "farm";

pub struct Redis {
    dir: PathBuf,
    address: SocketAddr,
    /// Who signed its certificate, in PEM.
    pub authority: String,
    /// Name in its certificate.
    pub server_name: String,
    child: Child,
    /// Keeps the port ours while no server runs: bound, never listened on.
    _port: Socket,
}

impl Redis {
    /// Starts a server at an address of this machine that pods reach, and makes a Service `redis` of it.
    pub fn start(namespace: &Namespace, password: &str) -> Self {
        let dir = scratch(&format!("{}-redis", namespace.name));
        let server_name = format!("redis.{}.svc", namespace.name);
        let authority = write_certificate(&dir, &server_name);
        let (port, address) = reserve(address_for_pods(namespace));
        let child = spawn(&dir, address, password);
        let redis = Self {
            dir,
            address,
            authority,
            server_name,
            child,
            _port: port,
        };
        redis.wait();
        redis.create_service(namespace);
        redis
    }

    pub fn stop(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Starts it again, empty.
    pub fn start_again(&mut self, password: &str) {
        self.child = spawn(&self.dir, self.address, password);
        self.wait();
    }

    fn wait(&self) {
        wait_for("redis-server", Duration::from_secs(60), || {
            TcpStream::connect(self.address).ok()
        });
    }

    fn create_service(&self, namespace: &Namespace) {
        let port = self.address.port();
        namespace.apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "redis"},
            "spec": {"ports": [{"name": "redis", "port": 6379, "targetPort": port}]},
        }));
        namespace.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "redis", "labels": {"kubernetes.io/service-name": "redis"}},
            "addressType": "IPv4",
            "ports": [{"name": "redis", "port": port}],
            "endpoints": [{"addresses": [self.address.ip()]}],
        }));
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, address: SocketAddr, password: &str) -> Child {
    let of = |name: &str| dir.join(name).display().to_string();
    // The permissions are those of the sample. In a file, since every user can read command lines.
    let config = format!(
        "bind {}\nport 0\ntls-port {}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n\
         dir {}\nsave \"\"\nlogfile {}\nuser default off\nuser {USER} on >{password} ~* +get +getdel +set +ping\n",
        address.ip(),
        address.port(),
        of("tls.crt"),
        of("tls.key"),
        of("ca.crt"),
        dir.display(),
        of("redis.log"),
    );
    fs::write(dir.join("redis.conf"), config).expect("written");
    Command::new("redis-server")
        .arg(dir.join("redis.conf"))
        .stdout(Stdio::null())
        .spawn()
        .expect("this test needs redis-server on the path (Debian's package redis-server)")
}

/// Writes a certificate for `name` with its key, and the authority that signed it; returns that.
fn write_certificate(dir: &Path, name: &str) -> String {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a DNS name");
    let certificate = params.signed_by(&key, &authority).expect("signed");
    for (file, pem) in [
        ("ca.crt", authority.pem()),
        ("tls.crt", certificate.pem()),
        ("tls.key", key.serialize_pem()),
    ] {
        fs::write(dir.join(file), pem).expect("written");
    }
    authority.pem()
}

/// The address by which this machine speaks to the nodes.
fn address_for_pods(namespace: &Namespace) -> IpAddr {
    let path = "--output=jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}";
    let node: IpAddr = namespace
        .kubectl(&["get", "nodes", path])
        .parse()
        .expect("an address");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // Sends nothing: connecting makes the kernel choose the source address.
    socket.connect((node, 9)).expect("there is a way to the node");
    socket.local_addr().expect("bound").ip()
}

fn reserve(address: IpAddr) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("settable");
    socket
        .bind(&SocketAddr::new(address, 0).into())
        .expect("a free port");
    let bound = socket
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("an address");
    (socket, bound)
}
