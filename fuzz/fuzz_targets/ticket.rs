//! Tickets and entries of the cache, over time: what was sealed opens to what it was, for as long as every bound holds
//! and not a second longer, and in no other scope; nothing else opens.

#![no_main]

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tlsfarm::api::MinVersion;
use tlsfarm::ring::{
    CacheKey, CacheKind, KeySecret, OpenError, Ring, RotationPolicy, Scope, SealError, SealedAs, SessionAge,
    TicketKeys, TicketPolicy,
};

/// How far the clock of the proxy that issued a ticket may be ahead, in seconds.
const CLOCK_SKEW: i64 = 600;
/// Longest lifetime of a ticket, in seconds (RFC 9846 section 4.7.1).
const LONGEST_LIFETIME: i64 = 604_800;
/// Longest session that fits into a ticket.
const LONGEST_SESSION: usize = 2048 - 29 - 26 - 16;
const START: i64 = 1_800_000_000;

#[derive(Arbitrary, Debug)]
struct Case {
    session: Vec<u8>,
    is_entry: bool,
    other_scope: bool,
    single_use: bool,
    /// Seconds from the making of the ring to the sealing, and from there to the opening.
    sealed_after: u32,
    opened_after: i32,
    /// Seconds from the last full handshake to the sealing, and from there to the end of the certificate.
    authenticated_before: u32,
    certificate_left: i32,
    sealing: Policy,
    opening: Policy,
    /// Changes to the last bytes of what was sealed.
    changes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Policy {
    lifetime: u32,
    max_age: u32,
}

impl From<&Policy> for TicketPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            lifetime: SignedDuration::from_secs(policy.lifetime.into()),
            max_age: SignedDuration::from_secs(policy.max_age.into()),
        }
    }
}

static RING: LazyLock<Ring> = LazyLock::new(|| {
    let policy = RotationPolicy {
        rotation_interval: SignedDuration::from_hours(1),
        lifetime: SignedDuration::from_hours(4),
        max_unacked_wait: SignedDuration::from_mins(10),
    };
    let secret = || KeySecret::generate().expect("the system has randomness");
    Ring::new(1, secret(), secret(), &policy, at(START))
});
static KEYS: LazyLock<TicketKeys> = LazyLock::new(|| TicketKeys::new(&RING));

fuzz_target!(|case: Case| {
    let scope = |is_single_use| {
        let scope = Scope::new("web/shop", "shop", MinVersion::TLS12);
        if is_single_use { scope.single_use() } else { scope }
    };
    let sealing_scope = scope(case.single_use);
    let opening_scope = scope(case.single_use != case.other_scope);
    let key = CacheKey::new(CacheKind::SingleUse, &sealing_scope, b"name");
    let sealed_as = if case.is_entry {
        SealedAs::Entry(&key)
    } else {
        SealedAs::Ticket
    };

    let issued = START + i64::from(case.sealed_after);
    let authenticated = issued - i64::from(case.authenticated_before);
    let certificate = issued + i64::from(case.certificate_left);
    let now = issued + i64::from(case.opened_after);
    let expires = [
        issued + i64::from(case.sealing.lifetime),
        authenticated + i64::from(case.sealing.max_age),
        certificate,
        issued + LONGEST_LIFETIME,
    ];
    let expires = expires.into_iter().min().expect("four");

    let age = SessionAge {
        authenticated_at: at(authenticated),
        certificate_until: at(certificate),
    };
    let (sealing, opening) = ((&case.sealing).into(), (&case.opening).into());
    let sealed = KEYS.seal(
        &case.session,
        sealed_as,
        &sealing_scope,
        &sealing,
        &age,
        at(issued),
    );
    let sealed = match sealed {
        Ok(sealed) => sealed,
        Err(SealError::KeyExpired) => return assert!(issued >= RING.primary.seal_until.as_second()),
        Err(SealError::SessionExpired) => return assert!(expires <= issued),
        Err(SealError::TooLarge) => return assert!(case.session.len() > LONGEST_SESSION),
        Err(SealError::Cipher) => panic!("no cipher or no randomness"),
    };
    assert!(issued < RING.primary.seal_until.as_second());
    assert!(expires > issued && case.session.len() <= LONGEST_SESSION);

    let open = |bytes: &[u8]| KEYS.open(bytes, sealed_as, &opening_scope, &opening, at(now));
    let key_is_open = now < RING.primary.open_until.as_second();
    let in_time = now + CLOCK_SKEW >= issued
        && now < expires
        && now < issued + i64::from(case.opening.lifetime)
        && now < authenticated + i64::from(case.opening.max_age);
    match open(&sealed) {
        Ok(opened) => {
            assert!(!case.other_scope && key_is_open && in_time);
            assert_eq!(opened.session.as_slice(), case.session);
            assert_eq!(opened.authenticated_at, at(authenticated));
        }
        Err(OpenError::NotAuthentic) => assert!(case.other_scope && key_is_open),
        Err(OpenError::Expired) => assert!(!key_is_open || (!case.other_scope && !in_time)),
        Err(OpenError::Malformed | OpenError::UnknownKey) => panic!("it was sealed by us"),
    }

    // The same header and length, and other bytes: there is a key to try it with.
    let mut forged = sealed.clone();
    for (byte, change) in forged.iter_mut().rev().zip(&case.changes) {
        *byte ^= change;
    }
    assert!(forged == sealed || open(&forged).is_err());
    assert!(open(&case.changes).is_err());
});

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("some centuries around now")
}
