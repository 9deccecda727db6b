//! Sessions that are made and offered, and the only excuse that a miss may have: that the cache did not answer in time,
//! which the proxy counts itself. On a busy machine it happens, and costs one full handshake.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{Farm, Proxy, Visit, value_of, visit, wait_for};

/// A client that keeps session ids and no tickets, and one that keeps tickets.
pub const BY_ID: [&str; 2] = ["-tls1_2", "-no_ticket"];
pub const BY_TICKET: [&str; 1] = ["-tls1_3"];

/// Attempts that a test may make at one thing, all but the last of which the cache did not answer.
const ATTEMPTS: usize = 5;

/// Time without the end of a store after which no earlier one is under way. One takes 20 ms at most, and longer only where
/// the machine is busy.
const SETTLED: Duration = Duration::from_millis(500);

/// What became of a session that was offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    Resumed,
    /// The cache was asked and answered, and the handshake was a full one all the same.
    Refused,
    /// The cache was not asked, or gave no answer that could be used in time.
    Unanswered,
}

/// What a proxy has counted of the requests to its cache, and of the ways there.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Lookups that brought an answer, whether with a session or without.
    pub answered: u64,
    pub unanswered: u64,
    pub stored: u64,
    pub not_stored: u64,
    /// Requests to store that were certainly not sent, or perhaps not.
    pub not_sent: u64,
    clients: u64,
    reachable: u64,
}

impl Counted {
    pub fn of(proxy: &Proxy) -> Self {
        let page = proxy.get("/metrics").1;
        let sum = |operations: &[&str], outcomes: &[&str]| -> u64 {
            let of = |operation: &&str| -> u64 {
                let values = outcomes
                    .iter()
                    .map(|outcome| value_of(&series(operation, outcome), &page));
                values.sum()
            };
            operations.iter().map(of).sum()
        };
        let failures = ["timeout", "unavailable", "lost", "garbled", "refused"];
        let metric = |name: &str| value_of(&format!("tlsfarm_proxy_session_cache_{name}"), &page);
        let breakers = ["closed", "half_open", "open"];
        Self {
            answered: sum(&["get", "take"], &["hit", "miss"]),
            unanswered: sum(&["get", "take"], &failures),
            stored: sum(&["put"], &["stored"]),
            not_stored: sum(&["put"], &failures),
            not_sent: sum(&["put"], &["unavailable", "lost"]),
            clients: breakers
                .map(|state| metric(&format!("breakers{{state=\"{state}\"}}")))
                .iter()
                .sum(),
            reachable: metric("reachable"),
        }
    }

    /// Requests to store that have come to an end.
    pub fn puts(&self) -> u64 {
        self.stored + self.not_stored
    }

    /// Waits until no request to store has ended for a time that is many times the limit of one.
    pub fn settles(proxy: &Proxy) {
        let mut last = (Self::of(proxy).puts(), Instant::now());
        wait_for("the end of earlier stores", || {
            let puts = Self::of(proxy).puts();
            if puts != last.0 {
                last = (puts, Instant::now());
            }
            (last.1.elapsed() >= SETTLED).then_some(())
        });
    }

    /// The same after a visit, once every session that the client was given has been stored, or not.
    pub fn and_what_was_stored_of(&self, visit: &Visit, proxy: &Proxy) -> Self {
        let puts = self.puts() + sessions_given(visit);
        let after = wait_for("an end of storing", || {
            Some(Self::of(proxy)).filter(|now| now.puts() >= puts)
        });
        assert_eq!(after.puts(), puts, "stored and never given");
        after
    }

    /// Whether some thread does not ask the cache now.
    pub fn holds_back(&self) -> bool {
        self.reachable < self.clients
    }
}

fn series(operation: &str, outcome: &str) -> String {
    format!("tlsfarm_proxy_session_cache_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}")
}

pub fn requests(proxy: &Proxy, operation: &str, outcome: &str) -> u64 {
    proxy.metric(&series(operation, outcome))
}

/// Attempts something until it says what came of it, rather than that the cache did not answer.
pub fn until_answered<T>(proxy: &Proxy, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..ATTEMPTS {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        wait_for("a cache that every thread asks", || {
            (!Counted::of(proxy).holds_back()).then_some(())
        });
    }
    panic!("the cache left {ATTEMPTS} attempts at {what} in a row without an answer");
}

/// Makes a session at `proxy` that the cache has.
pub fn session(farm: &Farm, proxy: &Proxy, arguments: &[&str]) -> PathBuf {
    let file = farm
        .dir
        .join(format!("session-{}{}", proxy.https.port(), arguments.concat()));
    // TLS 1.3 clients get two tickets and offer the last one.
    let entries = if arguments == BY_TICKET { 2 } else { 1 };
    until_answered(proxy, "storing a session", || {
        let before = Counted::of(proxy);
        let first = connect(farm, proxy, "shop.test", arguments, "-sess_out", &file);
        assert!(first.served() && !first.reused, "{}", first.output);
        let after = before.and_what_was_stored_of(&first, proxy);
        if after.stored == before.stored + entries {
            return Some(());
        }
        let excused = after.not_stored > before.not_stored || before.holds_back() || after.holds_back();
        assert!(excused, "not stored: {}", first.output);
        None
    });
    file
}

/// How many names of sessions in the cache a client was given. A session that is resumed by its id keeps it.
pub fn sessions_given(visit: &Visit) -> u64 {
    let tickets = visit.output.matches("New Session Ticket arrived").count() as u64;
    let has_id = visit.output.lines().any(|line| {
        line.trim()
            .strip_prefix("Session-ID:")
            .is_some_and(|id| !id.trim().is_empty())
    });
    tickets.max((has_id && !visit.reused).into())
}

pub fn connect(farm: &Farm, proxy: &Proxy, name: &str, arguments: &[&str], way: &str, file: &Path) -> Visit {
    let file = file.to_str().expect("a plain path");
    visit(farm, proxy.https, name, &[arguments, &[way, file]].concat())
}

/// Offers a session to the host `name`, which serves the client in any case.
pub fn offer_to(farm: &Farm, proxy: &Proxy, name: &str, arguments: &[&str], file: &Path) -> Offer {
    let before = Counted::of(proxy);
    let visit = connect(farm, proxy, name, arguments, "-sess_in", file);
    assert!(visit.served(), "{}", visit.output);
    let after = before.and_what_was_stored_of(&visit, proxy);
    let lookups = (
        after.answered - before.answered,
        after.unanswered - before.unanswered,
    );
    match (visit.reused, lookups) {
        (true, (1, 0)) => Offer::Resumed,
        (false, (1, 0)) => Offer::Refused,
        (false, (0, 1)) => Offer::Unanswered,
        (reused, lookups) => panic!("{lookups:?} lookups, resumed: {reused}: {}", visit.output),
    }
}

pub fn offer(farm: &Farm, proxy: &Proxy, arguments: &[&str], file: &Path) -> Offer {
    offer_to(farm, proxy, "shop.test", arguments, file)
}

/// What the cache's answer leads to, for a session whose lookup may be repeated.
pub fn answered_offer(farm: &Farm, proxy: &Proxy, name: &str, arguments: &[&str], file: &Path) -> Offer {
    until_answered(proxy, "a lookup", || {
        Some(offer_to(farm, proxy, name, arguments, file)).filter(|offer| *offer != Offer::Unanswered)
    })
}

/// Offers a session that is in the cache and is not used up by that.
pub fn resumes(farm: &Farm, proxy: &Proxy, arguments: &[&str], file: &Path) {
    assert_eq!(
        answered_offer(farm, proxy, "shop.test", arguments, file),
        Offer::Resumed,
        "{arguments:?} at {}",
        proxy.https
    );
}

/// Offers a session that is not in the cache, or that must not be resumed.
pub fn is_refused(farm: &Farm, proxy: &Proxy, arguments: &[&str], file: &Path) {
    assert_eq!(
        answered_offer(farm, proxy, "shop.test", arguments, file),
        Offer::Refused,
        "{arguments:?} at {}",
        proxy.https
    );
}

/// Uses a single-use ticket of one proxy at another; gives the used ticket. One whose lookup was not answered may be used up
/// or not, so it takes a new one then.
pub fn use_ticket(farm: &Farm, issuer: &Proxy, resumer: &Proxy) -> PathBuf {
    until_answered(resumer, "taking a ticket's session", || {
        let file = session(farm, issuer, &BY_TICKET);
        match offer(farm, resumer, &BY_TICKET, &file) {
            Offer::Resumed => Some(file),
            Offer::Refused => panic!("a fresh ticket was refused"),
            Offer::Unanswered => None,
        }
    })
}
