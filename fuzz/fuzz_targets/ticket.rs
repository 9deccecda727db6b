//! Tickets and entries of the cache: nothing but what was sealed opens, and that opens to what it was.

#![no_main]

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use tlsfarm::api::MinVersion;
use tlsfarm::ring::{
    CacheKey, CacheKind, KeySecret, Ring, RotationPolicy, Scope, SealedAs, SessionAge, TicketKeys,
    TicketPolicy,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const HOUR: SignedDuration = SignedDuration::from_hours(1);
const POLICY: TicketPolicy = TicketPolicy {
    lifetime: HOUR,
    max_age: HOUR,
};
const AGE: SessionAge = SessionAge {
    authenticated_at: NOW,
    certificate_until: Timestamp::MAX,
};

static KEYS: LazyLock<TicketKeys> = LazyLock::new(|| {
    let policy = RotationPolicy {
        rotation_interval: HOUR,
        lifetime: HOUR,
        max_unacked_wait: HOUR,
    };
    let secret = || KeySecret::generate().expect("the system has randomness");
    TicketKeys::new(&Ring::new(1, secret(), secret(), &policy, NOW))
});

fuzz_target!(|input: &[u8]| {
    let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
    let key = CacheKey::new(CacheKind::SingleUse, &scope, input);
    for sealed_as in [SealedAs::Ticket, SealedAs::Entry(&key)] {
        let open = |bytes: &[u8]| KEYS.open(bytes, sealed_as, &scope, &POLICY, NOW);
        assert!(open(input).is_err());
        let Ok(sealed) = KEYS.seal(input, sealed_as, &scope, &POLICY, &AGE, NOW) else {
            continue;
        };
        let opened = open(&sealed).expect("it was sealed just now");
        assert_eq!(opened.session.as_slice(), input);

        // The same header and length, and other bytes: there is a key to try it with.
        let mut forged = sealed.clone();
        for (byte, other) in forged.iter_mut().rev().zip(input) {
            *byte ^= other;
        }
        assert!(forged == sealed || open(&forged).is_err());
    }
});
