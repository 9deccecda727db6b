//! Mutual TLS between caches: one certificate for both directions, from files that are reloaded when they change.
//!
//! Both sides must present a certificate that is signed by the CA and valid for the peers' DNS name. Sessions are not
//! resumed, because resumption would skip this check after the CA has changed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig};
use rustls::{Error as TlsError, SignatureScheme};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::metrics::PeerMetrics;
use crate::config::Peers;
use crate::runtime::error_chain::with_causes;
use crate::runtime::files::WatchedFile;

/// Interval at which the files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// TLS configurations for new connections in both directions; none until the files have been loaded once.
#[derive(Default)]
pub(crate) struct PeerTls(ArcSwapOption<Configs>);

struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl PeerTls {
    /// Loads the files, if present, and starts a task that reloads them when they change.
    pub(crate) fn follow(peers: &Peers, metrics: PeerMetrics) -> Arc<Self> {
        let tls = Arc::new(Self::default());
        let mut files = Files::new(peers, metrics);
        files.poll(&tls);
        let following = Arc::downgrade(&tls);
        tokio::spawn(async move {
            let mut tick = interval(POLL_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                match following.upgrade() {
                    Some(tls) => files.poll(&tls),
                    None => return,
                }
            }
        });
        tls
    }

    /// Configuration for outgoing connections, and the server name to verify.
    pub(crate) fn client(&self) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let configs = self.0.load();
        let configs = configs.as_ref()?;
        Some((Arc::clone(&configs.client), configs.name.clone()))
    }

    /// Configuration for incoming connections.
    pub(crate) fn server(&self) -> Option<Arc<ServerConfig>> {
        let configs = self.0.load();
        Some(Arc::clone(&configs.as_ref()?.server))
    }
}

/// Reads the certificate, key and CA files of `peers`; returns the problems.
pub(crate) fn check_files(peers: &Peers) -> Vec<String> {
    let mut files = Files::new(peers, PeerMetrics::default());
    let missing = files.changed().err();
    let unreadable = [
        files.certificate.certificates().err(),
        files.key.private_key().err(),
        files.ca.certificates().err(),
    ];
    let mut problems: Vec<_> = missing.into_iter().collect();
    if problems.is_empty() {
        problems.extend(unreadable.into_iter().flatten());
    }
    if problems.is_empty() {
        problems.extend(files.configs().err());
    }
    if problems.is_empty() {
        problems.extend(files.verify_own_certificate().err());
    }
    problems.iter().map(|error| with_causes(error)).collect()
}

/// The three files.
struct Files {
    server_name: String,
    certificate: File,
    key: File,
    ca: File,
    metrics: PeerMetrics,
}

struct File {
    path: PathBuf,
    watched: WatchedFile,
    contents: Zeroizing<Vec<u8>>,
}

/// Why the files could not be loaded.
#[derive(Debug, thiserror::Error)]
enum PeerTlsError {
    #[error("failed to read {}: {error}", file.display())]
    File { file: PathBuf, error: io::Error },
    #[error("failed to parse {} as PEM: {error}", file.display())]
    Pem { file: PathBuf, error: pem::Error },
    #[error("{} contains no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("{0:?} is not a valid DNS name")]
    ServerName(String, #[source] InvalidDnsNameError),
    #[error("invalid CA certificate")]
    Authority(#[from] VerifierBuilderError),
    #[error("the certificate is not valid for the name {0:?}")]
    OwnName(String, #[source] TlsError),
    #[error("peers will refuse the certificate: {0}")]
    OwnCertificate(#[source] TlsError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Files {
    fn new(peers: &Peers, metrics: PeerMetrics) -> Self {
        Self {
            server_name: peers.server_name.clone(),
            certificate: File::new(&peers.certificate),
            key: File::new(&peers.key),
            ca: File::new(&peers.authority),
            metrics,
        }
    }

    /// Loads the files if they have changed. On failure the loaded configuration stays in use.
    fn poll(&mut self, tls: &PeerTls) {
        let outcome = match self.changed() {
            Ok(false) => return,
            Ok(true) => self.configs(),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(configs) => {
                tls.0.store(Some(Arc::new(configs)));
                self.metrics.certificate_loaded();
                info!(certificate = %self.certificate.path.display(), "peer certificate loaded");
            }
            Err(error) => {
                self.metrics.certificate_failed();
                let error = with_causes(&error);
                warn!(%error, "failed to load the peer certificate; keeping the loaded one, if any");
            }
        }
    }

    fn changed(&mut self) -> Result<bool, PeerTlsError> {
        let mut changed = false;
        let mut missing = None;
        for file in [&mut self.certificate, &mut self.key, &mut self.ca] {
            match file.watched.poll(&file.path) {
                None => {}
                Some(Ok(contents)) => {
                    file.contents = Zeroizing::new(contents);
                    changed = true;
                }
                Some(Err(error)) => {
                    file.contents = Zeroizing::default();
                    missing = Some(PeerTlsError::File {
                        file: file.path.clone(),
                        error,
                    });
                }
            }
        }
        match missing {
            Some(error) => Err(error),
            // Missing files were already reported; their appearance counts as a change.
            None => Ok(changed && !self.any_empty()),
        }
    }

    fn any_empty(&self) -> bool {
        [&self.certificate, &self.key, &self.ca]
            .iter()
            .any(|file| file.contents.is_empty())
    }

    /// Verifies the certificate as the peers will.
    fn verify_own_certificate(&self) -> Result<(), PeerTlsError> {
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|error| PeerTlsError::ServerName(self.server_name.clone(), error))?;
        let verifier = PeerVerifier::new(self.roots()?, Arc::new(default_provider()), name)?;
        let chain = self.certificate.certificates()?;
        let (leaf, intermediates) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
        verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(PeerTlsError::OwnCertificate)?;
        Ok(())
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PeerTlsError> {
        let mut roots = RootCertStore::empty();
        for ca in self.ca.certificates()? {
            roots.add(ca)?;
        }
        Ok(Arc::new(roots))
    }

    fn configs(&self) -> Result<Configs, PeerTlsError> {
        let provider = Arc::new(default_provider());
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|error| PeerTlsError::ServerName(self.server_name.clone(), error))?;
        let roots = self.roots()?;
        let chain = self.certificate.certificates()?;
        let leaf = chain.first().ok_or(TlsError::NoCertificatesPresented)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, &name)
            .map_err(|error| PeerTlsError::OwnName(self.server_name.clone(), error))?;
        let key = self.key.private_key()?;

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(PeerVerifier::new(roots, provider, name.clone())?)
            .with_single_cert(chain, key)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Configs {
            client: Arc::new(client),
            server: Arc::new(server),
            name,
        })
    }
}

impl File {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            watched: WatchedFile::default(),
            contents: Zeroizing::default(),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, PeerTlsError> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&self.contents)
            .collect::<Result<_, _>>()
            .map_err(|error| self.is_no_pem(error))?;
        match found.is_empty() {
            true => Err(PeerTlsError::NoCertificate(self.path.clone())),
            false => Ok(found),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, PeerTlsError> {
        PrivateKeyDer::from_pem_slice(&self.contents).map_err(|error| self.is_no_pem(error))
    }

    fn is_no_pem(&self, error: pem::Error) -> PeerTlsError {
        PeerTlsError::Pem {
            file: self.path.clone(),
            error,
        }
    }
}

/// Verifies client certificates by WebPKI, and additionally the peers' DNS name.
#[derive(Debug)]
struct PeerVerifier {
    signed: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl PeerVerifier {
    fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        name: ServerName<'static>,
    ) -> Result<Arc<Self>, VerifierBuilderError> {
        let signed = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Arc::new(Self { signed, name }))
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signed
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signed
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
