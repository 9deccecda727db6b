//! TLS sessions passed from one connection to another, and the client configurations that receive and offer them.
//!
//! A TLS client normally chooses the session by server name. The probe instead sets for every connection which session
//! is offered, and collects every session that arrives, so each connection has its own [`SessionSlot`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore, SignatureScheme};
use serde::Serialize;

/// Maximum number of sessions kept from one connection: the server decides how many tickets it sends.
const MOST_SESSIONS: usize = 8;

/// A resumption mechanism.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
pub enum Mechanism {
    /// TLS 1.2 with a session ticket (RFC 5077).
    #[serde(rename = "tls12-ticket")]
    #[value(name = "tls12-ticket")]
    Tls12Ticket,
    /// TLS 1.2 with a session id (RFC 5246 section 7.4.1.2), which refers to a session stored by the server.
    #[serde(rename = "tls12-session-id")]
    #[value(name = "tls12-session-id")]
    Tls12SessionId,
    /// TLS 1.3 with a ticket as pre-shared key (RFC 9846 section 2.2).
    #[serde(rename = "tls13-ticket")]
    #[value(name = "tls13-ticket")]
    Tls13Ticket,
    /// TLS 1.3 with a ticket that must be accepted only once.
    #[serde(rename = "tls13-single-use")]
    #[value(name = "tls13-single-use")]
    Tls13SingleUse,
}

/// A session that a server may resume. It contains secrets, so it does not implement `Debug`.
pub(super) enum Session {
    Tls12(Box<Tls12ClientSessionValue>),
    Tls13(Box<Tls13ClientSessionValue>),
}

/// Client configurations, one for each mechanism.
///
/// rustls offers a session only with the same verifier instance, so all connections of a probe use these
/// configurations.
pub(super) struct Clients {
    tls12: ClientConfig,
    tls13: ClientConfig,
}

/// The session that one connection offers, and the sessions that it receives.
#[derive(Default)]
pub(super) struct SessionSlot(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    offer: Option<Session>,
    received: Vec<Session>,
}

/// Accepts any certificate: the probe sends no secrets and only checks resumption.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl Clients {
    /// Creates configurations that verify servers against `roots`, or accept any certificate without them.
    pub(super) fn new(roots: Option<RootCertStore>) -> Result<Self, VerifierBuilderError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match roots {
            Some(roots) => {
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?
            }
            None => Arc::new(AnyCertificate(provider.clone())),
        };
        let client = |version| {
            ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[version])
                .expect("the provider has cipher suites for TLS 1.2 and TLS 1.3")
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_no_client_auth()
        };
        Ok(Self {
            tls12: client(&TLS12),
            tls13: client(&TLS13),
        })
    }

    /// The configuration for one connection.
    pub(super) fn for_connection(&self, mechanism: Mechanism, slot: &Arc<SessionSlot>) -> Arc<ClientConfig> {
        let (client, tls12) = match mechanism {
            Mechanism::Tls12Ticket => (&self.tls12, Tls12Resumption::SessionIdOrTickets),
            Mechanism::Tls12SessionId => (&self.tls12, Tls12Resumption::SessionIdOnly),
            Mechanism::Tls13Ticket | Mechanism::Tls13SingleUse => (&self.tls13, Tls12Resumption::Disabled),
        };
        let mut config = client.clone();
        config.resumption = Resumption::store(slot.clone()).tls12_resumption(tls12);
        Arc::new(config)
    }
}

impl Mechanism {
    /// Mechanisms that require no session cache.
    pub(super) const STATELESS: [Self; 2] = [Self::Tls12Ticket, Self::Tls13Ticket];

    /// Whether the session is stored in the session cache.
    pub(super) fn is_stateful(self) -> bool {
        !Self::STATELESS.contains(&self)
    }

    /// What the server issues: a ticket or a session id.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Tls12SessionId => "session id",
            Self::Tls12Ticket | Self::Tls13Ticket | Self::Tls13SingleUse => "ticket",
        }
    }
}

impl Session {
    /// Copies the session, if a client may use it more than once. TLS 1.3 tickets are used once (RFC 9846 appendix
    /// C.4).
    pub(super) fn again(&self) -> Option<Self> {
        match self {
            Self::Tls12(session) => Some(Self::Tls12(session.clone())),
            Self::Tls13(_) => None,
        }
    }
}

impl SessionSlot {
    /// Creates a slot for a connection that offers `session`.
    pub(super) fn offering(session: Option<Session>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Slot {
            offer: session,
            received: Vec::new(),
        })))
    }

    /// Removes and returns the received sessions, in order.
    pub(super) fn take_received(&self) -> Vec<Session> {
        std::mem::take(&mut self.lock().received)
    }

    fn receive(&self, session: Session) {
        let mut slot = self.lock();
        if slot.received.len() < MOST_SESSIONS {
            slot.received.push(session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for SessionSlot {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.receive(Session::Tls12(Box::new(value)));
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        match &self.lock().offer {
            Some(Session::Tls12(value)) => Some((**value).clone()),
            _ => None,
        }
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.lock().offer = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.receive(Session::Tls13(Box::new(value)));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut slot = self.lock();
        match slot.offer.take() {
            Some(Session::Tls13(value)) => Some(*value),
            other => {
                slot.offer = other;
                None
            }
        }
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for SessionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSlot(..)")
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tls12Ticket => "TLS 1.2 ticket",
            Self::Tls12SessionId => "TLS 1.2 session id",
            Self::Tls13Ticket => "TLS 1.3 ticket",
            Self::Tls13SingleUse => "TLS 1.3 single-use",
        })
    }
}
