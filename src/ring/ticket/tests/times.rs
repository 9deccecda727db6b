//! Every bound on the life of a ticket, each against a list of inequalities.

use super::*;

/// One ticket and all that bounds it, in seconds. Ends are the first moments at which it must not be used.
#[derive(Clone, Debug)]
struct Life {
    authenticated: i64,
    issued: i64,
    seal_until: i64,
    ends: Ends,
    offered: i64,
}

#[derive(Clone, Debug)]
struct Ends {
    lifetime: i64,
    session: i64,
    certificate: i64,
    key: i64,
    /// By the policy of the proxy that opens it, which may have changed since.
    lifetime_now: i64,
    session_now: i64,
}

const TLS_LIMIT: i64 = 7 * 86_400;
const SKEW: i64 = 600;

impl Life {
    fn policy(&self, lifetime_ends: i64, session_ends: i64) -> TicketPolicy {
        TicketPolicy {
            lifetime: SignedDuration::from_secs(lifetime_ends - self.issued),
            max_age: SignedDuration::from_secs(session_ends - self.authenticated),
        }
    }

    fn sealed_under(&self) -> TicketPolicy {
        self.policy(self.ends.lifetime, self.ends.session)
    }

    fn opened_under(&self) -> TicketPolicy {
        self.policy(self.ends.lifetime_now, self.ends.session_now)
    }

    fn age(&self) -> SessionAge {
        SessionAge {
            authenticated_at: at(self.authenticated),
            certificate_until: at(self.ends.certificate),
        }
    }

    /// The end that is written into the ticket.
    fn own_end(&self) -> i64 {
        let Ends {
            lifetime,
            session,
            certificate,
            ..
        } = self.ends;
        [lifetime, session, certificate, self.issued + TLS_LIMIT]
            .into_iter()
            .min()
            .expect("four ends")
    }

    /// Each bound on its use, and whether it holds at the moment at which it is offered.
    fn bounds(&self) -> [(&'static str, bool); 8] {
        let before = |end| self.offered < end;
        [
            ("lifetime", before(self.ends.lifetime)),
            ("session", before(self.ends.session)),
            ("certificate", before(self.ends.certificate)),
            ("TLS", before(self.issued + TLS_LIMIT)),
            ("key", before(self.ends.key)),
            ("lifetime now", before(self.ends.lifetime_now)),
            ("session now", before(self.ends.session_now)),
            ("clocks", self.issued - self.offered <= SKEW),
        ]
    }
}

fn lives() -> impl Strategy<Value = Life> {
    // So late that TLS's limit comes first, soon, or over immediately.
    let end = || prop_oneof![15 => TLS_LIMIT..3 * TLS_LIMIT, 4 => 2..TLS_LIMIT, 1 => 0..2_i64];
    let ends = (end(), end(), end(), end(), end(), end());
    let seal_for = prop_oneof![9 => 1..TLS_LIMIT, 1 => -1..2_i64];
    // Offered around the first end, around the tolerated clock skew, or at any time.
    let offered = prop_oneof![
        6 => (-1..2_i64).prop_map(|offset| (Some(true), offset)),
        2 => (-1..2_i64).prop_map(|offset| (Some(false), offset)),
        1 => (-SKEW..TLS_LIMIT).prop_map(|offset| (None, offset)),
    ];
    (0..TLS_LIMIT, 0..TLS_LIMIT, seal_for, ends, offered).prop_map(
        |(authenticated, waited, seal_for, ends, (around, offset))| {
            let issued = authenticated + waited;
            let (lifetime, session, certificate, key, lifetime_now, session_now) = ends;
            let all = [
                lifetime,
                session,
                certificate,
                key,
                lifetime_now,
                session_now,
                TLS_LIMIT,
            ];
            let offered = match around {
                Some(true) => all.into_iter().min().expect("seven ends") + offset,
                Some(false) => -SKEW + offset,
                None => offset,
            };
            Life {
                authenticated,
                issued,
                seal_until: issued + seal_for,
                ends: Ends {
                    lifetime: issued + lifetime,
                    session: issued + session,
                    certificate: issued + certificate,
                    key: issued + key,
                    lifetime_now: issued + lifetime_now,
                    session_now: issued + session_now,
                },
                offered: issued + offered,
            }
        },
    )
}

/// Each life is one of a ticket and one of an entry, with the same outcome. Measured: 35 % open, 7 % come when the key may not
/// seal and 7 % are over before they begin; of the eight bounds each is the only one that is broken in 5 to 7 %, and in 2 %
/// several are.
#[test]
fn a_ticket_is_sealed_and_opened_exactly_as_long_as_every_bound_holds() {
    let floors = [
        ("opened", 17),
        ("key may not seal", 3),
        ("over before it begins", 3),
        ("lifetime", 2),
        ("session", 2),
        ("certificate", 2),
        ("TLS", 3),
        ("key", 3),
        ("lifetime now", 3),
        ("session now", 3),
        ("clocks", 3),
        ("several", 1),
    ];
    let key = CacheKey::new(CacheKind::SingleUse, &scope(), &[1; 32]);
    check(2048, lives(), &floors, |life, case| {
        let mut ring = ring();
        ring.primary.seal_until = at(life.seal_until);
        ring.primary.open_until = at(life.ends.key);
        let keys = TicketKeys::new(&ring);
        let lifetime = (life.own_end() - life.issued).max(0);
        let hinted = life.sealed_under().lifetime_of(&life.age(), at(life.issued));
        prop_assert_eq!(i64::from(hinted), lifetime);
        for sealed_as in [SealedAs::Ticket, SealedAs::Entry(&key)] {
            let (now, policy) = (at(life.issued), life.sealed_under());
            let sealed = keys.seal(b"session", sealed_as, &scope(), &policy, &life.age(), now);
            if life.issued >= life.seal_until {
                prop_assert_eq!(sealed, Err(SealError::KeyExpired));
                case.reaches("key may not seal");
                continue;
            }
            if lifetime == 0 {
                prop_assert_eq!(sealed, Err(SealError::SessionExpired));
                case.reaches("over before it begins");
                continue;
            }
            let opened = keys.open(
                &sealed.expect("sealed"),
                sealed_as,
                &scope(),
                &life.opened_under(),
                at(life.offered),
            );
            let broken: Vec<_> = life.bounds().into_iter().filter(|(_, holds)| !holds).collect();
            match broken.as_slice() {
                [] => {
                    let opened = opened.ok();
                    prop_assert_eq!(opened.map(|o| o.authenticated_at), Some(at(life.authenticated)));
                    case.reaches("opened");
                }
                [(only, _)] => {
                    prop_assert_eq!(opened.err(), Some(OpenError::Expired), "{}", only);
                    case.reaches(only);
                }
                _ => {
                    prop_assert_eq!(opened.err(), Some(OpenError::Expired), "{:?}", broken);
                    case.reaches("several");
                }
            }
        }
        Ok(())
    });
}
