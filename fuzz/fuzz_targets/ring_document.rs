//! Ring documents: what is accepted is sound, survives being written again, and can seal and open; what is refused is
//! refused in words that hold nothing of the document.

#![no_main]

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use tlsfarm::api::MinVersion;
use tlsfarm::ring::{MAX_KEYS, Ring, Scope, SealError, SealedAs, SessionAge, TicketKeys, TicketPolicy};

const POLICY: TicketPolicy = TicketPolicy {
    lifetime: SignedDuration::from_hours(1),
    max_age: SignedDuration::from_hours(1),
};

fuzz_target!(|document: &[u8]| {
    let ring = match Ring::from_document(document) {
        Ok(ring) => ring,
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 200 && said.is_ascii(), "{said}");
            for secret in secrets(document) {
                assert!(!said.contains(secret), "{said}");
            }
            return;
        }
    };
    let ids: BTreeSet<_> = ring.keys().map(|key| key.id).collect();
    assert_eq!(ids.len(), ring.keys().count());
    assert!(ids.len() <= MAX_KEYS);
    let again = Ring::from_document(&ring.to_document()).expect("it was written by us");
    assert_eq!(again, ring);

    // At the edges of what each key allows, nothing overflows and the two bounds hold.
    let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
    let keys = TicketKeys::new(&ring);
    let before = Timestamp::from_second(ring.primary.seal_until.as_second() - 1).expect("in range");
    for now in [before, ring.primary.seal_until, ring.primary.open_until] {
        let age = SessionAge {
            authenticated_at: now,
            certificate_until: Timestamp::MAX,
        };
        match keys.seal(b"session", SealedAs::Ticket, &scope, &POLICY, &age, now) {
            Ok(ticket) => {
                assert!(now < ring.primary.seal_until);
                let opened = keys.open(&ticket, SealedAs::Ticket, &scope, &POLICY, now);
                assert_eq!(opened.is_ok(), now < ring.primary.open_until);
            }
            Err(error) => {
                assert_eq!(error, SealError::KeyExpired);
                assert!(now >= ring.primary.seal_until);
            }
        }
    }
});

/// What might be a part of a secret: eight characters of base64 that no message has by itself.
fn secrets(document: &[u8]) -> impl Iterator<Item = &str> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    let is_random = move |part: &&[u8]| {
        part.iter().all(is_base64)
            && part.iter().any(u8::is_ascii_uppercase)
            && part.iter().any(u8::is_ascii_lowercase)
            && part.iter().any(u8::is_ascii_digit)
    };
    let parts = document.windows(8).filter(is_random);
    parts.filter_map(|part| std::str::from_utf8(part).ok())
}
