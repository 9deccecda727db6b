//! Keys of session cache entries.

use aws_lc_rs::digest::{Context, SHA256};

use super::Scope;

/// Key of a session cache entry.
///
/// It is a digest of kind, scope and the client's id: reading the cache reveals no id that a proxy would accept, and
/// the same id in another scope is a different entry (E2 of the requirements).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct CacheKey([u8; 32]);

/// Kind of id that a session is looked up by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CacheKind {
    /// A TLS 1.2 session id, which can be used repeatedly.
    SessionId,
    /// A single-use TLS 1.3 ticket.
    SingleUse,
}

impl CacheKey {
    /// Computes the key of the session with this id.
    pub fn new(kind: CacheKind, scope: &Scope, id: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(match kind {
            CacheKind::SessionId => b"tlsfarm session id v1",
            CacheKind::SingleUse => b"tlsfarm single use v1",
        });
        context.update(scope.as_bytes());
        context.update(id);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }

    /// The key as sent to the cache.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
