//! Executes commands: on the local shard, on the connection, or by forwarding to the cache that owns the key.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::command::{Command, CommandError, Credentials, Keys, LONGEST_LIFETIME, OneKey, Other, Set, Verb};
use super::info::{self, CacheInfo};
use super::metrics::{CacheMetrics, CommandOutcome, Origin};
use super::password::Password;
use super::peers::forward;
use super::peers::router::{Route, Router};
use super::shard::{Shard, StoreOutcome};
use crate::resp::client::{Client, OWNER_IS_SILENT};
use crate::resp::{Protocol, Reply, Request};

/// A running cache: its shard, router, metrics and settings.
pub(crate) struct Node {
    pub(crate) shard: Arc<Shard>,
    pub(crate) router: Router,
    pub(crate) metrics: CacheMetrics,
    /// Password that clients must send; None: no authentication.
    pub(crate) password: Option<Password>,
    /// Lifetime of entries stored without one.
    pub(crate) default_lifetime: Duration,
    pub(crate) started: Instant,
    pub(crate) connections: Cell<u64>,
}

/// Protocol state of one connection.
pub(crate) struct ClientSession {
    number: u64,
    origin: Origin,
    authenticated: bool,
    protocol: Protocol,
}

/// The answer to a request.
pub(crate) enum NodeAnswer {
    /// A reply that is available immediately.
    Now(Reply),
    /// A reply that another cache will send.
    Later(LocalBoxFuture<'static, Reply>),
    /// A reply after which the connection is closed.
    Last(Reply),
}

/// Reply to a command on one key, and its outcome.
type Done = (Reply, CommandOutcome);

impl ClientSession {
    /// Protocol version to encode replies in.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl Node {
    /// Starts the session of a new connection.
    pub(crate) fn session(&self, origin: Origin) -> ClientSession {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        ClientSession {
            number,
            origin,
            // Peers have authenticated with a certificate.
            authenticated: origin == Origin::Peer || self.password.is_none(),
            protocol: Protocol::default(),
        }
    }

    /// Executes a request.
    pub(crate) fn answer(
        self: &Rc<Self>,
        session: &mut ClientSession,
        request: Request<'_>,
        now: Instant,
    ) -> NodeAnswer {
        let command = Command::parse(request);
        if !session.authenticated
            && !matches!(
                command,
                Ok(Command::Quit | Command::Other(Other::Auth(_) | Other::Hello(..)))
            )
        {
            self.metrics.answered(Verb::Other, CommandOutcome::Refused);
            return NodeAnswer::Now(error(NO_AUTH));
        }
        let command = match command {
            Ok(command) => command,
            Err(refusal) => {
                self.metrics.answered(Verb::Other, CommandOutcome::Refused);
                return NodeAnswer::Now(refused(refusal));
            }
        };
        let verb = command.verb();
        let (reply, outcome) = match command {
            Command::One(command) => {
                let command = self.with_lifetime(command);
                match self.peer(session, command.key()) {
                    None => self.on_key(command, now),
                    Some(peer) => return self.later(verb, now, forward::command(peer, &command)),
                }
            }
            Command::Delete(keys) | Command::Exists(keys) => {
                return self.on_keys(session, verb, keys, now);
            }
            Command::Quit => {
                self.metrics.answered(verb, CommandOutcome::Done);
                return NodeAnswer::Last(Reply::OK);
            }
            Command::Other(other) => self.on_connection(session, other),
        };
        self.metrics.answered(verb, outcome);
        NodeAnswer::Now(reply)
    }

    /// Entries stored without a lifetime get the default of the cache that received the request, limited to the maximum
    /// that a client may set.
    fn with_lifetime<'a>(&self, command: OneKey<'a>) -> OneKey<'a> {
        match command {
            OneKey::Set(set) => OneKey::Set(Set {
                lifetime: set.lifetime.or(Some(self.default_lifetime.min(LONGEST_LIFETIME))),
                ..set
            }),
            other => other,
        }
    }

    /// Executes a command on one key that this cache owns.
    fn on_key(&self, command: OneKey<'_>, now: Instant) -> Done {
        let value = |value: Option<_>| match value {
            Some(value) => (Reply::Bulk(value), CommandOutcome::Hit),
            None => (Reply::Null, CommandOutcome::Miss),
        };
        match command {
            OneKey::Get(key) => value(self.shard.get(key, now)),
            OneKey::Take(key) => value(self.shard.take(key, now)),
            OneKey::Set(set) => {
                let lifetime = set.lifetime.unwrap_or(self.default_lifetime);
                match self.shard.set(set.key, set.value, lifetime, set.only_new, now) {
                    StoreOutcome::Yes => (Reply::OK, CommandOutcome::Stored),
                    StoreOutcome::Exists => (Reply::Null, CommandOutcome::Exists),
                    StoreOutcome::No => (error("ERR the value cannot be stored"), CommandOutcome::Refused),
                }
            }
            OneKey::Expire(key, lifetime) => {
                let found = match lifetime.is_zero() {
                    true => self.shard.delete(key, now),
                    false => self.shard.expire(key, lifetime, now),
                };
                found_reply(found)
            }
            OneKey::TimeLeft(key) => match self.shard.time_left(key, now) {
                Some(left) => {
                    // Rounded to the nearest second, as in Redis.
                    let seconds = (left + Duration::from_millis(500)).as_secs();
                    (
                        Reply::Integer(i64::try_from(seconds).unwrap_or(i64::MAX)),
                        CommandOutcome::Hit,
                    )
                }
                None => (Reply::Integer(-2), CommandOutcome::Miss),
            },
        }
    }

    /// Executes a command on several keys, which may have different owners.
    fn on_keys(
        self: &Rc<Self>,
        session: &ClientSession,
        verb: Verb,
        keys: Keys<'_>,
        now: Instant,
    ) -> NodeAnswer {
        let mut own = 0;
        let mut elsewhere = Vec::new();
        for key in keys.iter() {
            match self.peer(session, key) {
                Some(peer) => elsewhere.push(forward::count(peer, verb, key)),
                None if verb == Verb::Delete => own += i64::from(self.shard.delete(key, now)),
                None => own += i64::from(self.shard.time_left(key, now).is_some()),
            }
        }
        if elsewhere.is_empty() {
            let outcome = hit_or_miss(own > 0);
            self.metrics.answered(verb, outcome);
            return NodeAnswer::Now(Reply::Integer(own));
        }
        self.later(verb, now, forward::sum(own, elsewhere))
    }

    /// Executes a command on the connection or the process.
    fn on_connection(&self, session: &mut ClientSession, command: Other<'_>) -> Done {
        let reply = match command {
            Other::Ping(None) => Reply::Simple(Cow::Borrowed("PONG")),
            Other::Ping(Some(text)) | Other::Echo(text) => Reply::text(text),
            Other::Select | Other::ClientNote => Reply::OK,
            Other::ClientId => Reply::Integer(i64::try_from(session.number).unwrap_or(i64::MAX)),
            Other::Auth(credentials) => match self.authenticate(session, credentials) {
                Ok(()) => Reply::OK,
                Err(text) => error(text),
            },
            Other::Hello(protocol, credentials) => self.hello(session, protocol, credentials),
            Other::Info(sections) => info::text(&self.info(), sections),
            Other::CommandList => Reply::Array(Vec::new()),
            Other::ConfigGet(parameters) => info::parameters(parameters),
        };
        let outcome = match reply {
            Reply::Error(_) => CommandOutcome::Refused,
            _ => CommandOutcome::Done,
        };
        (reply, outcome)
    }

    fn info(&self) -> CacheInfo {
        let (hits, misses) = self.metrics.hits_and_misses();
        CacheInfo {
            uptime: self.started.elapsed(),
            connections: self.connections.get(),
            hits,
            misses,
            shard: self.shard.figures(),
            shard_limit: self.shard.limit(),
        }
    }

    fn hello(
        &self,
        session: &mut ClientSession,
        protocol: Option<Protocol>,
        credentials: Option<Credentials<'_>>,
    ) -> Reply {
        if let Some(credentials) = credentials
            && let Err(text) = self.authenticate(session, credentials)
        {
            return error(text);
        }
        if !session.authenticated {
            return error(NO_AUTH_HELLO);
        }
        session.protocol = protocol.unwrap_or(session.protocol);
        info::hello(session.protocol, session.number)
    }

    fn authenticate(&self, session: &mut ClientSession, given: Credentials<'_>) -> Result<(), &'static str> {
        let Some(password) = &self.password else {
            return Err(NO_PASSWORD);
        };
        let right = password.is(given.password);
        if !right || given.user.is_some_and(|user| user != b"default") {
            self.metrics.authentication_failed();
            return Err(WRONG_PASSWORD);
        }
        session.authenticated = true;
        Ok(())
    }

    /// Returns the client of the cache that owns a key; None if it is this cache. Requests of peers are never
    /// forwarded, so that two caches that disagree about an owner do not forward to each other forever.
    fn peer(&self, session: &ClientSession, key: &[u8]) -> Option<Client> {
        if session.origin == Origin::Peer {
            return None;
        }
        match self.router.route(key) {
            Route::Own => None,
            Route::Peer(client) => Some(client),
        }
    }

    fn later(
        self: &Rc<Self>,
        verb: Verb,
        begin: Instant,
        reply: impl Future<Output = forward::Forwarded> + 'static,
    ) -> NodeAnswer {
        let node = Rc::clone(self);
        let answer = async move {
            let reply = reply.await;
            let outcome = outcome_at_owner(verb, &reply);
            node.metrics.answered(verb, outcome);
            node.metrics.took(begin.elapsed());
            reply.unwrap_or_else(|_| match verb {
                // Every client can handle a miss.
                Verb::Get | Verb::Take => Reply::Null,
                _ => error(OWNER_IS_SILENT),
            })
        };
        NodeAnswer::Later(answer.boxed_local())
    }
}

const NO_AUTH: &str = "NOAUTH Authentication required.";
const NO_AUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
                             HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and \
                             select the RESP protocol version at the same time";
const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the default user. Are you \
                           sure your configuration is correct?";
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

fn error(text: &'static str) -> Reply {
    Reply::Error(Cow::Borrowed(text))
}

fn refused(refusal: CommandError) -> Reply {
    Reply::Error(Cow::Owned(refusal.to_string()))
}

fn found_reply(found: bool) -> Done {
    (Reply::Integer(i64::from(found)), hit_or_miss(found))
}

/// Outcome of a forwarded request.
fn outcome_at_owner(verb: Verb, reply: &forward::Forwarded) -> CommandOutcome {
    match (reply, verb) {
        (Err(_), _) => CommandOutcome::Unavailable,
        (Ok(Reply::Error(_)), _) => CommandOutcome::Refused,
        // SET NX is answered with null if the key exists.
        (Ok(Reply::Null), Verb::Set) => CommandOutcome::Exists,
        (Ok(_), Verb::Set) => CommandOutcome::Stored,
        (Ok(Reply::Null | Reply::Integer(..=0)), _) => CommandOutcome::Miss,
        (Ok(_), _) => CommandOutcome::Hit,
    }
}

fn hit_or_miss(hit: bool) -> CommandOutcome {
    match hit {
        true => CommandOutcome::Hit,
        false => CommandOutcome::Miss,
    }
}

#[cfg(test)]
mod tests;
