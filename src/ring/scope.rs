//! Scope that a session is bound to.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

use crate::api::MinVersion;

/// Digest of everything that must match for a session to be resumed: the farm, the host, and the TLS policy under which
/// the session was issued (STEK Sharing, USENIX Security 2025; CVE-2025-23419).
///
/// Renewing a certificate or adding a host name does not change the scope; a different host, farm or policy does.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Computes the scope of one host of the farm `namespace`/`name`.
    pub fn new(farm: &str, host: &str, min_version: MinVersion) -> Self {
        let mut context = Context::new(&SHA256);
        let version = match min_version {
            MinVersion::TLS12 => "TLS12",
            MinVersion::TLS13 => "TLS13",
        };
        for part in ["tlsfarm scope v1", farm, host, "client-auth none", version] {
            // Length prefixes, so that no two lists of parts have the same encoding.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }

    /// The scope of the same host with single-use TLS 1.3 tickets, so that tickets issued before the switch cannot be
    /// resumed.
    #[must_use]
    pub fn single_use(self) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"tlsfarm scope single-use v1");
        context.update(&self.0);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_part_separates_scopes() {
        let scopes: HashSet<_> = [
            Scope::new("web/shop", "a", MinVersion::TLS12),
            Scope::new("web/shop", "a", MinVersion::TLS13),
            Scope::new("web/shop", "b", MinVersion::TLS12),
            Scope::new("web/shopa", "", MinVersion::TLS12),
            Scope::new("web2/shop", "a", MinVersion::TLS12),
            Scope::new("web/shop", "a", MinVersion::TLS12).single_use(),
        ]
        .into();
        assert_eq!(scopes.len(), 6);
    }
}
