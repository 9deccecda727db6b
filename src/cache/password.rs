//! Authentication of clients by password.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

/// Digest of a password.
pub(crate) struct Password([u8; 32]);

impl Password {
    /// Reads a password from file content, without a trailing line end. None if it is empty.
    pub(crate) fn from_file(content: &[u8]) -> Option<Self> {
        let line = content.strip_suffix(b"\n").unwrap_or(content);
        let password = line.strip_suffix(b"\r").unwrap_or(line);
        match password.is_empty() {
            true => None,
            false => Some(Self(hash(password))),
        }
    }

    /// Compares in constant time: the duration reveals neither the password nor its length.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &hash(given)).is_ok()
    }
}

fn hash(password: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, password).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_password_matches() {
        for content in ["secret", "secret\n", "secret\r\n"] {
            let password = Password::from_file(content.as_bytes()).expect("not empty");
            assert!(password.is(b"secret"));
            for other in ["", "secre", "secret\n", "Secret"] {
                assert!(!password.is(other.as_bytes()), "{other:?}");
            }
        }
        assert!(Password::from_file(b"\n").is_none());
        assert!(Password::from_file(b"").is_none());
    }
}
