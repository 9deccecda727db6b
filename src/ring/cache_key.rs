//! Under which key the session cache keeps a session.

use aws_lc_rs::digest::{Context, SHA256};

use super::Scope;

/// Key of an entry of the session cache.
///
/// It is a digest of kind, scope and the id that the client holds: whoever reads the cache learns no id that a proxy
/// would take, and the same id in another scope is another entry (E2 of the requirements).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct CacheKey([u8; 32]);

/// What a session in the cache is found by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CacheKind {
    /// A TLS 1.2 session id, which may be offered again.
    SessionId,
    /// A TLS 1.3 ticket that may be used once.
    SingleUse,
}

impl CacheKey {
    /// The key for the session of that id.
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

    /// The key as the cache gets it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
