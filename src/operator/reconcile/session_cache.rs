//! The certificate step of a reconciliation: the two Secrets of the caches, written one at a time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::Client;
use tracing::info;
use zeroize::Zeroizing;

use crate::api::CACHE_AUTHORITY_SECRET_TYPE;
use crate::operator::cluster::secret::{self, SecretState, SecretToWrite, Version, Written};
use crate::operator::context::Context;
use crate::operator::decide::peer_certificates::{Authority, Leaf, Step, plan};
use crate::operator::error::ReconcileError;
use crate::operator::names::{FarmId, Ownership};

/// Annotation on the mounted Secret: since when it has contained the newest CA certificate.
const TRUSTED_SINCE: &str = "tlsfarm.dev/trusted-since";

const AUTHORITY: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Maximum number of steps per reconciliation: create, announce or issue, and one check of the result.
const MOST_STEPS: usize = 3;

/// State of the two Secrets.
pub(crate) struct CacheSecrets {
    ca: SecretState,
    leaf: SecretState,
}

/// Result of the certificate step.
#[derive(Default)]
pub(crate) struct CacheStep {
    /// Write conflict: the next reconciliation continues.
    pub(crate) overtaken: bool,
    /// Time of the next renewal of the leaf certificate.
    pub(crate) renewal: Option<Timestamp>,
    /// Time of the next step.
    pub(crate) due: Option<Timestamp>,
}

/// Reads both Secrets.
pub(crate) async fn read(client: &Client, id: &FarmId) -> Result<CacheSecrets, ReconcileError> {
    Ok(CacheSecrets {
        ca: secret::read(client, id, &id.cache_authority_name()).await?,
        leaf: secret::read(client, id, &id.cache_tls_name()).await?,
    })
}

impl CacheSecrets {
    /// The first of the two Secrets that is not owned by the farm.
    pub(crate) fn foreign(&self, id: &FarmId) -> Option<(String, Ownership)> {
        match (&self.ca, &self.leaf) {
            (SecretState::Foreign(ownership), _) => Some((id.cache_authority_name(), *ownership)),
            (_, SecretState::Foreign(ownership)) => Some((id.cache_tls_name(), *ownership)),
            _ => None,
        }
    }

    /// Whether certificates may be written: those of a rejected farm are renewed, but none are created.
    fn may_be_tended(&self, id: &FarmId, may_create: bool) -> bool {
        let exist = matches!(
            (&self.ca, &self.leaf),
            (SecretState::Ours(..), SecretState::Ours(..))
        );
        self.foreign(id).is_none() && (may_create || exist)
    }
}

/// Issues, announces and renews certificates.
pub(crate) async fn reconcile_certificates(
    id: &FarmId,
    secrets: CacheSecrets,
    may_create: bool,
    context: &Context,
    now: Timestamp,
) -> Result<CacheStep, ReconcileError> {
    if !secrets.may_be_tended(id, may_create) {
        return Ok(CacheStep::default());
    }
    let server_name = id.cache_server_name();
    let (mut ca, authority_version) = read_authority(secrets.ca);
    let (mut leaf, leaf_version) = read_leaf(secrets.leaf);
    for _ in 0..MOST_STEPS {
        let step = plan(ca.as_ref(), leaf.as_ref(), &server_name, now);
        let (wanted, version) = match (step, &ca) {
            (Step::Keep { until }, _) => {
                return Ok(CacheStep {
                    overtaken: false,
                    renewal: leaf.as_ref().map(Leaf::renewal),
                    due: Some(until),
                });
            }
            (Step::Issue | Step::Announce, Some(ca)) => {
                let announced = match step {
                    Step::Announce => leaf.as_ref().map(|leaf| leaf.announcing(ca, &server_name, now)),
                    _ => None,
                };
                let next = match announced {
                    Some(leaf) => leaf,
                    None => Leaf::issue(ca, leaf.as_ref(), &server_name, now)?,
                };
                let wanted = leaf_secret(id, &next);
                leaf = Some(next);
                (wanted, &leaf_version)
            }
            (Step::Found | Step::Issue | Step::Announce, _) => {
                let next = Authority::create(now)?;
                let wanted = authority_secret(id, &next);
                ca = Some(next);
                (wanted, &authority_version)
            }
        };
        let name = wanted.name.clone();
        if secret::write(&context.client, id, wanted, version.as_ref()).await? == Written::Overtaken {
            break;
        }
        context.metrics.wrote("Secret");
        info!(
            namespace = id.namespace(),
            farm = id.name(),
            secret = name,
            ?step,
            "wrote a Secret with cache certificates"
        );
    }
    // Each pass writes each Secret at most once; the next pass does the rest.
    Ok(CacheStep {
        overtaken: true,
        ..CacheStep::default()
    })
}

/// Deletes both Secrets of a farm without sidecars. Returns whether they no longer exist.
pub(crate) async fn remove(context: &Context, id: &FarmId) -> Result<bool, ReconcileError> {
    let mut gone = true;
    for name in [id.cache_tls_name(), id.cache_authority_name()] {
        if let SecretState::Ours(_, version) = secret::read(&context.client, id, &name).await? {
            gone &= secret::delete(&context.client, id, &name, &version).await? == Written::Stored;
            context.metrics.wrote("Secret");
        }
    }
    Ok(gone)
}

fn read_authority(found: SecretState) -> (Option<Authority>, Option<Version>) {
    let SecretState::Ours(content, version) = found else {
        return (None, None);
    };
    let ca = content
        .get(AUTHORITY)
        .zip(content.get(AUTHORITY_KEY))
        .and_then(|(certificate, key)| Authority::read(certificate, key));
    (ca, Some(version))
}

fn read_leaf(found: SecretState) -> (Option<Leaf>, Option<Version>) {
    let SecretState::Ours(content, version) = found else {
        return (None, None);
    };
    let trusted_since = content.annotation(TRUSTED_SINCE);
    let trusted_since = trusted_since.and_then(|since| since.parse().ok());
    let leaf = content
        .get(CERTIFICATE)
        .zip(content.get(KEY))
        .zip(content.get(AUTHORITY))
        .and_then(|((certificate, key), authorities)| {
            Leaf::read(certificate, key, authorities, trusted_since)
        });
    (leaf, Some(version))
}

fn authority_secret(id: &FarmId, ca: &Authority) -> SecretToWrite {
    SecretToWrite {
        name: id.cache_authority_name(),
        type_: CACHE_AUTHORITY_SECRET_TYPE,
        annotations: BTreeMap::new(),
        data: vec![
            (AUTHORITY, bytes(&ca.certificate())),
            (AUTHORITY_KEY, bytes(ca.key())),
        ],
    }
}

fn leaf_secret(id: &FarmId, leaf: &Leaf) -> SecretToWrite {
    let since = leaf.trusted_since().map(|since| since.to_string());
    SecretToWrite {
        name: id.cache_tls_name(),
        type_: "kubernetes.io/tls",
        annotations: since
            .map(|since| (TRUSTED_SINCE.to_owned(), since))
            .into_iter()
            .collect(),
        data: vec![
            (CERTIFICATE, bytes(&leaf.certificate())),
            (KEY, bytes(leaf.key())),
            (AUTHORITY, bytes(&leaf.authorities())),
        ],
    }
}

fn bytes(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::cluster::secret::tests::{stored, wanted};
    use crate::operator::names::id;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn foreign() -> SecretState {
        SecretState::Foreign(Ownership::Foreign)
    }

    #[test]
    fn foreign_secrets_are_named_the_authority_first() {
        let conflicting = |ca, leaf| {
            let foreign = CacheSecrets { ca, leaf }.foreign(&id("shop"));
            foreign.map(|(name, _)| name)
        };
        assert_eq!(conflicting(SecretState::Missing, SecretState::Missing), None);
        assert_eq!(conflicting(stored(wanted("a")), stored(wanted("b"))), None);
        assert_eq!(
            conflicting(foreign(), SecretState::Missing).as_deref(),
            Some("shop-cache-ca")
        );
        assert_eq!(
            conflicting(SecretState::Missing, foreign()).as_deref(),
            Some("shop-cache-tls")
        );
        assert_eq!(
            conflicting(foreign(), foreign()).as_deref(),
            Some("shop-cache-ca")
        );
    }

    #[test]
    fn a_refused_farm_keeps_its_certificates_and_gets_no_new_ones() {
        let tended = |ca, leaf, may_create| CacheSecrets { ca, leaf }.may_be_tended(&id("shop"), may_create);
        let ours = || stored(wanted("a"));
        assert!(tended(ours(), ours(), true) && tended(ours(), ours(), false));
        assert!(tended(SecretState::Missing, SecretState::Missing, true));
        assert!(!tended(SecretState::Missing, SecretState::Missing, false));
        assert!(!tended(ours(), SecretState::Missing, false));
        assert!(!tended(SecretState::Missing, ours(), false));
        assert!(
            !tended(foreign(), ours(), true),
            "nothing of others is written over"
        );
        assert!(
            !tended(ours(), foreign(), true),
            "nothing of others is written over"
        );
    }

    #[test]
    fn certificates_that_are_written_are_read_back() {
        let (farm, name) = (id("shop"), id("shop").cache_server_name());
        let ca = Authority::create(now()).expect("made");
        let leaf = Leaf::issue(&ca, None, &name, now()).expect("made");
        let (read_authority, version) = read_authority(stored(authority_secret(&farm, &ca)));
        assert_eq!(version, Some(Version("7".into())));
        let (read_leaf, version) = read_leaf(stored(leaf_secret(&farm, &leaf)));
        assert_eq!(version, Some(Version("7".into())));
        let step = plan(read_authority.as_ref(), read_leaf.as_ref(), &name, now());
        assert_eq!(
            step,
            Step::Keep {
                until: leaf.renewal()
            }
        );
        let read_leaf = read_leaf.expect("read");
        assert_eq!(read_leaf.trusted_since(), Some(now()));
    }

    #[test]
    fn damaged_certificates_are_replaced_and_missing_ones_created() {
        let (ca, version) = read_authority(stored(wanted("shop-cache-ca")));
        assert!(ca.is_none() && version.is_some());
        let (leaf, version) = read_leaf(stored(wanted("shop-cache-tls")));
        assert!(leaf.is_none() && version.is_some());
        assert!(matches!(read_authority(SecretState::Missing), (None, None)));
        assert!(matches!(read_leaf(foreign()), (None, None)));
    }
}
