//! Resumptions that are due at a farm that nothing disturbs, and the few of them that a late answer may cost.
//!
//! Every handshake is seen from both sides: by the client, and in what the very proxy that was asked, and the cache
//! beside it, counted meanwhile. One that is full although a session was offered is a failure, unless that proxy's one
//! lookup has no answer.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cached_farm::{BANK, Proxy, SHOP};
use crate::harness::{Handshake, Metrics, Version, happens, s_client, scratch};

/// How many of a test's attempts may come to nothing because an answer was late: the machine is busy with other
/// tests. Far fewer than a cache that is gone costs.
pub fn most_explained(attempts: usize) -> usize {
    2 + attempts / 20
}

/// How long a proxy may take to count what it stored: far longer than it waits for an answer.
const COUNTING: Duration = Duration::from_secs(10);

/// What one handshake made a proxy and its cache count.
#[derive(Debug, Default)]
struct Counted {
    /// By operation and outcome.
    proxy: BTreeMap<String, u64>,
    /// Commands whose owner did not answer, by command.
    unavailable: BTreeMap<String, u64>,
}

/// One handshake with a proxy, seen from both sides.
#[derive(Debug)]
pub struct Visit {
    pub seen: Handshake,
    /// From starting the client to the end of the page.
    pub took: Duration,
    proxy: String,
    counted: Counted,
}

/// A late answer, told by the counters of the proxy that waited for it.
#[derive(Debug)]
pub struct Explained(String);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The attempts of one test.
#[derive(Debug, Default)]
pub struct Due {
    attempts: usize,
    explained: Vec<String>,
}

impl Due {
    /// Demands that an attempt succeeds. One that a late answer has spoilt is made again; of these there may be
    /// [`most_explained`] so far.
    pub fn attempt(&mut self, what: &str, attempt: impl Fn() -> Result<(), Explained>) {
        self.attempts += 1;
        let most = most_explained(self.attempts);
        while let Err(late) = attempt() {
            println!("{what}: tried again, because {late}");
            self.explained.push(format!("{what}: {late}"));
            assert!(
                self.explained.len() <= most,
                "more than {most} late answers: {:#?}",
                self.explained
            );
        }
    }

    /// Demands that a session of each proxy resumes at each: by its id as often as it is offered, and a single-use one
    /// once.
    pub fn everywhere(&mut self, proxies: &[Proxy]) {
        let session = scratch("due").join(format!("{}.pem", proxies[0].name));
        for issuer in proxies {
            for resumer in proxies {
                let pair = format!("{} -> {}", issuer.name, resumer.name);
                self.attempt(&pair, || by_session_id(&session, issuer, resumer));
                self.attempt(&pair, || once(&session, issuer, resumer, proxies));
            }
        }
    }
}

fn by_session_id(session: &Path, issuer: &Proxy, resumer: &Proxy) -> Result<(), Explained> {
    take(issuer, SHOP, Version::Tls12WithoutTickets, session)?;
    for time in ["once", "again"] {
        let what = format!("its id, {time}");
        resume(resumer, SHOP, Version::Tls12WithoutTickets, session, &what)?;
    }
    let foreign = visit(resumer, BANK, Version::Tls12WithoutTickets, None, Some(session));
    full(foreign.seen, "its id under another name");
    Ok(())
}

fn once(session: &Path, issuer: &Proxy, resumer: &Proxy, everywhere: &[Proxy]) -> Result<(), Explained> {
    take(issuer, BANK, Version::Tls13, session)?;
    resume(resumer, BANK, Version::Tls13, session, "a single-use ticket")?;
    for proxy in everywhere {
        let again = visit(proxy, BANK, Version::Tls13, None, Some(session));
        let what = format!("a single-use ticket a second time, at {}", proxy.name);
        full(again.seen, &what);
    }
    Ok(())
}

/// Takes a new session that the cache has for certain.
pub fn take(at: &Proxy, hostname: &str, version: Version, session: &Path) -> Result<(), Explained> {
    let taken = visit(at, hostname, version, Some(session), None);
    full(taken.seen, &format!("a new session of {}", at.name));
    taken.stored()
}

/// Demands a page and a resumed session.
pub fn resume(
    at: &Proxy,
    hostname: &str,
    version: Version,
    session: &Path,
    what: &str,
) -> Result<(), Explained> {
    visit(at, hostname, version, None, Some(session)).resumed(what)
}

/// Demands a page and a full handshake, whatever happens.
pub fn full(seen: Handshake, what: &str) {
    assert!(seen.served && !seen.resumed, "{what}: {seen:?}");
}

/// Shakes hands with a proxy and waits until it has counted what it stored for that. Nobody else may do so meanwhile.
pub fn visit(
    at: &Proxy,
    hostname: &str,
    version: Version,
    save: Option<&Path>,
    offer: Option<&Path>,
) -> Visit {
    let before = Page::of(at);
    let start = Instant::now();
    let seen = s_client(at.address, hostname, version, save, offer);
    let took = start.elapsed();
    let due = sessions_made(hostname, version, seen);
    let mut counted = Counted::default();
    let enough = || {
        counted = Page::of(at).since(&before);
        (counted.puts().sum::<u64>() >= due).then_some(())
    };
    if happens(COUNTING, enough).is_none() {
        panic!("{} was to store {due} sessions: {seen:?}, {counted:?}", at.name);
    }
    Visit {
        seen,
        took,
        proxy: at.name.clone(),
        counted,
    }
}

/// How many sessions a handshake makes that belong into the cache.
fn sessions_made(hostname: &str, version: Version, seen: Handshake) -> u64 {
    match version {
        _ if !seen.complete => 0,
        Version::Tls12WithoutTickets => u64::from(!seen.resumed),
        Version::Tls13 if hostname == BANK => 2,
        Version::Tls12 | Version::Tls13 => 0,
    }
}

struct Page {
    proxy: Metrics,
    cache: Metrics,
}

impl Page {
    fn of(at: &Proxy) -> Self {
        let metrics =
            |page: Result<Metrics, String>| page.unwrap_or_else(|error| panic!("{}: {error}", at.name));
        Self {
            proxy: metrics(at.metrics()),
            cache: metrics(at.cache_metrics()),
        }
    }

    fn since(&self, before: &Self) -> Counted {
        let unavailable = self.cache.grown(&before.cache, "tlsfarm_cache_requests_total");
        Counted {
            proxy: self
                .proxy
                .grown(&before.proxy, "tlsfarm_proxy_session_cache_requests_total"),
            unavailable: unavailable
                .into_iter()
                .filter(|(labels, _)| labels.contains("outcome=\"unavailable\""))
                .collect(),
        }
    }
}

impl Counted {
    fn puts(&self) -> impl Iterator<Item = u64> {
        let of = |(labels, count): (&String, &u64)| labels.contains("operation=\"put\"").then_some(*count);
        self.proxy.iter().filter_map(of)
    }

    fn of(&self, operation: &str, outcome: &str) -> u64 {
        let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
        self.proxy.get(&labels).copied().unwrap_or_default()
    }

    fn lookups(&self, outcome: &str) -> u64 {
        self.of("get", outcome) + self.of("take", outcome)
    }

    fn late_lookups(&self) -> u64 {
        // The cache answers with a miss if the owner of the key does not answer.
        let elsewhere = self.unavailable("get") + self.unavailable("getdel");
        self.lookups("timeout") + self.lookups("unavailable") + self.lookups("miss").min(elsewhere)
    }

    fn late_puts(&self) -> u64 {
        // The cache answers with an error if the owner of the key does not answer.
        let elsewhere = self.of("put", "refused").min(self.unavailable("set"));
        self.of("put", "timeout") + self.of("put", "unavailable") + elsewhere
    }

    /// How often the cache heard nothing from the owner of a key.
    fn unavailable(&self, command: &str) -> u64 {
        let labels = format!("{{command=\"{command}\",outcome=\"unavailable\"}}");
        self.unavailable.get(&labels).copied().unwrap_or_default()
    }
}

impl Visit {
    /// Whether the cache took all sessions that this handshake made.
    pub fn stored(&self) -> Result<(), Explained> {
        let counted = &self.counted;
        let puts: u64 = counted.puts().sum();
        assert!(puts > 0, "no session was made: {self:?}");
        let late = counted.late_puts();
        assert_eq!(
            counted.of("put", "stored") + late,
            puts,
            "sessions were not stored: {self:?}"
        );
        match late {
            0 => Ok(()),
            _ => Err(Explained(format!(
                "{} did not hear that its session was stored: {counted:?}",
                self.proxy
            ))),
        }
    }

    /// Demands a page, and that the session was resumed or the one lookup for it has no answer.
    pub fn resumed(&self, what: &str) -> Result<(), Explained> {
        assert!(self.seen.served, "{what}: {self:?}");
        let counted = &self.counted;
        let all: u64 = counted.proxy.values().sum::<u64>() - counted.puts().sum::<u64>();
        assert_eq!(all, 1, "{what}: there was not one lookup: {self:?}");
        match (self.seen.resumed, counted.lookups("hit"), counted.late_lookups()) {
            (true, 1, 0) => Ok(()),
            (false, 0, 1) => Err(Explained(format!(
                "{what}: {} has no answer: {counted:?}",
                self.proxy
            ))),
            _ => panic!("{what} was not resumed, and nothing explains it: {self:?}"),
        }
    }
}

/// What proxies count while somebody else visits them.
pub struct Watched<'a>(Vec<(&'a Proxy, Page)>);

impl<'a> Watched<'a> {
    pub fn from_now(proxies: &'a [Proxy]) -> Self {
        Self(proxies.iter().map(|proxy| (proxy, Page::of(proxy))).collect())
    }

    /// Explains one missed session by the one late answer since then: to the proxy that was to resume it, which asked
    /// for it, or to the one that issued it, which stored it. Nothing else explains it.
    pub fn explain(&self, issuer: &str, resumer: &str) -> Explained {
        let counted = self.counted();
        let late: Vec<_> = counted
            .iter()
            .flat_map(|(name, counted)| {
                [
                    ("lookup", *name, counted.late_lookups()),
                    ("put", *name, counted.late_puts()),
                ]
            })
            .filter(|(_, _, count)| *count > 0)
            .collect();
        let one = match late[..] {
            [("lookup", name, 1)] => name == resumer,
            // A handshake stores up to two sessions.
            [("put", name, 1 | 2)] => name == issuer,
            _ => false,
        };
        assert!(
            one,
            "a session of {issuer} was not resumed at {resumer}; late answers: {late:?}"
        );
        Explained(format!(
            "a session of {issuer} was not resumed at {resumer}; late answers: {late:?}"
        ))
    }

    /// The answers since then that came late, one text for each.
    pub fn late(&self) -> Vec<String> {
        let counted = self.counted().into_iter();
        counted
            .flat_map(|(name, counted)| {
                let late = counted.late_lookups() + counted.late_puts();
                (0..late).map(move |_| format!("{name}: {counted:?}"))
            })
            .collect()
    }

    fn counted(&self) -> Vec<(&'a str, Counted)> {
        let proxies = self.0.iter();
        proxies
            .map(|(proxy, before)| (proxy.name.as_str(), Page::of(proxy).since(before)))
            .collect()
    }
}
