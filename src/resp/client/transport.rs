//! Transports to a cache. Files with credentials and certificates are read at each connection attempt, so that changes
//! need no restart.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem};
use rustls::{ClientConfig, RootCertStore};
use tokio::fs;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::error::CacheError;
use super::link::PING;
use super::outstanding::Expects;
use crate::config::{RedisConfig, RedisTlsConfig};
use crate::resp::{ProtocolError, Reply, ReplyDecoder, encoded_request};

/// Returns the current TLS configuration for a peer and the DNS name that its certificate must be valid for; called at
/// each connection attempt. None until a peer certificate is loaded.
pub type PeerConfigs = Arc<dyn Fn() -> Option<(Arc<ClientConfig>, ServerName<'static>)> + Send + Sync>;

/// Transport to one cache.
pub(super) enum Transport {
    Unix(PathBuf),
    Redis(RedisConfig),
    Peer(SocketAddr, PeerConfigs),
}

/// Trait of all connections.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the name does not resolve to an address")]
    NoAddress,
    #[error("failed to read {}: {error}", file.display())]
    File { file: PathBuf, error: io::Error },
    #[error("failed to parse {} as PEM: {error}", file.display())]
    Pem { file: PathBuf, error: pem::Error },
    #[error("{} contains no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("{0} is not a valid DNS name")]
    ServerName(String, #[source] InvalidDnsNameError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("no usable peer certificate is loaded yet")]
    NoPeerCertificate,
    #[error(transparent)]
    Refused(CacheError),
    #[error("the server closed the connection before it replied")]
    Closed,
    #[error("the server does not speak the Redis protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(socket) => write!(f, "{}", socket.display()),
            Self::Redis(server) => f.write_str(&server.address),
            Self::Peer(address, _) => write!(f, "{address}"),
        }
    }
}

impl Transport {
    /// Connects, authenticates and waits for the server's reply. The decoder belongs to the stream.
    pub(super) async fn connect(&self) -> Result<(Box<dyn Stream>, ReplyDecoder), ConnectError> {
        let mut hello = Zeroizing::new(Vec::new());
        let mut stream: Box<dyn Stream> = match self {
            Self::Unix(socket) => Box::new(UnixStream::connect(socket).await?),
            Self::Redis(server) => {
                hello = authentication(server).await?;
                let tcp = connect_tcp(&server.address).await?;
                match &server.tls {
                    None => Box::new(tcp),
                    Some(tls) => {
                        let name = server_name(&server.address, tls)?;
                        let connector = TlsConnector::from(Arc::new(client_config(tls).await?));
                        Box::new(connector.connect(name, tcp).await?)
                    }
                }
            }
            Self::Peer(address, configs) => {
                let (config, name) = configs().ok_or(ConnectError::NoPeerCertificate)?;
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Box::new(TlsConnector::from(config).connect(name, tcp).await?)
            }
        };
        let expected: &[Expects] = match hello.is_empty() {
            true => &[Expects::Word("PONG")],
            false => &[Expects::Word("OK"), Expects::Word("PONG")],
        };
        hello.extend_from_slice(PING);
        stream.write_all(&hello).await?;
        stream.flush().await?;
        let mut decoder = ReplyDecoder::default();
        for expects in expected {
            let reply = read_reply(&mut stream, &mut decoder).await?;
            expects.judge(reply).map_err(ConnectError::Refused)?;
        }
        Ok((stream, decoder))
    }
}

/// Reads the files that connecting to `server` needs. Returns what is wrong with the credentials and with TLS.
pub(super) async fn check_files(server: &RedisConfig) -> Vec<ConnectError> {
    let credentials = authentication(server).await.err();
    let (name, files) = match &server.tls {
        Some(tls) => (
            server_name(&server.address, tls).err(),
            client_config(tls).await.err(),
        ),
        None => (None, None),
    };
    credentials.into_iter().chain(name).chain(files).collect()
}

async fn read_reply(stream: &mut Box<dyn Stream>, decoder: &mut ReplyDecoder) -> Result<Reply, ConnectError> {
    let mut bytes = [0; 256];
    loop {
        if let Some(reply) = decoder.decode()? {
            return Ok(reply);
        }
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            return Err(ConnectError::Closed);
        }
        decoder.push(bytes.get(..read).unwrap_or_default());
    }
}

/// Encodes `AUTH`; empty if there is no password. The user name is optional even if its file is configured.
async fn authentication(server: &RedisConfig) -> Result<Zeroizing<Vec<u8>>, ConnectError> {
    let Some(password_file) = &server.password else {
        return Ok(Zeroizing::default());
    };
    let password = read(password_file).await?;
    let username = match &server.username {
        Some(file) => read_if_there(file).await?,
        None => None,
    };
    let mut arguments: Vec<&[u8]> = vec![b"AUTH"];
    arguments.extend(username.as_ref().map(|name| one_line(name)));
    arguments.push(one_line(&password));
    Ok(encoded_request(&arguments))
}

fn one_line(file: &[u8]) -> &[u8] {
    file.trim_ascii_end()
}

async fn connect_tcp(address: &str) -> Result<TcpStream, ConnectError> {
    let mut failure = ConnectError::NoAddress;
    for address in lookup_host(address).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

fn server_name(address: &str, tls: &RedisTlsConfig) -> Result<ServerName<'static>, ConnectError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|error| ConnectError::ServerName(name.to_owned(), error))
}

async fn client_config(tls: &RedisTlsConfig) -> Result<ClientConfig, ConnectError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.authority, &read(&tls.authority).await?)? {
        roots.add(certificate)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let (Some(certificate_file), Some(key_file)) = (&tls.certificate, &tls.key) else {
        return Ok(config.with_no_client_auth());
    };
    let (Some(certificate), Some(key)) = (
        read_if_there(certificate_file).await?,
        read_if_there(key_file).await?,
    ) else {
        return Ok(config.with_no_client_auth());
    };
    let chain = certificates(certificate_file, &certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| ConnectError::Pem {
        file: key_file.clone(),
        error,
    })?;
    Ok(config.with_client_auth_cert(chain, key)?)
}

fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| ConnectError::Pem {
            file: file.to_owned(),
            error,
        })?;
    match found.is_empty() {
        true => Err(ConnectError::NoCertificate(file.to_owned())),
        false => Ok(found),
    }
}

async fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, ConnectError> {
    let read = fs::read(file).await;
    read.map(Zeroizing::new).map_err(|error| ConnectError::File {
        file: file.to_owned(),
        error,
    })
}

async fn read_if_there(file: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, ConnectError> {
    match read(file).await {
        Err(ConnectError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_to_expect_is_the_host_unless_given() {
        let name = |address, server_name: Option<&str>| {
            let tls = RedisTlsConfig {
                authority: "ca.crt".into(),
                server_name: server_name.map(Into::into),
                certificate: None,
                key: None,
            };
            super::server_name(address, &tls).map(|name| name.to_str().into_owned())
        };
        assert_eq!(name("redis.web.svc:6379", None).expect("a name"), "redis.web.svc");
        assert_eq!(name("[fd00::7]:6379", None).expect("an address"), "fd00::7");
        assert_eq!(name("10.0.0.7:6379", Some("redis")).expect("a name"), "redis");
        assert!(name("no name:6379", None).is_err());
    }
}
