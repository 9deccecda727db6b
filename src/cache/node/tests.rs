//! One node without a socket: whose entry it is, and for how long.

use std::net::{Ipv4Addr, SocketAddr};

use prometheus_client::registry::Registry;

use super::*;
use crate::cache::peers::metrics::PeerMetrics;
use crate::config::{Backend, Peers};
use crate::resp::client::CacheError;
use crate::resp::{RequestDecoder, encode_request};

fn node(router: Router, default_lifetime: Duration) -> Rc<Node> {
    with_password(router, default_lifetime, None)
}

fn with_password(router: Router, default_lifetime: Duration, password: Option<Password>) -> Rc<Node> {
    let now = Instant::now();
    let shard = Arc::new(Shard::new(1 << 20, true, now).expect("randomness"));
    Rc::new(Node {
        metrics: CacheMetrics::register(&mut Registry::default(), &shard),
        shard,
        router,
        password,
        default_lifetime,
        started: now,
        connections: Cell::new(0),
    })
}

/// The router of a cache that owns nothing: it is not on its own list of caches.
fn everything_is_others() -> Router {
    let address = |number| SocketAddr::from((Ipv4Addr::new(127, 0, 0, number), 1));
    let peers = Peers {
        listen: address(1),
        members: Backend::Addresses(vec![address(2), address(3)]),
        server_name: "cache.test".into(),
        certificate: "no such file".into(),
        key: "no such file".into(),
        authority: "no such file".into(),
        timeout: "20ms".parse().expect("valid"),
    };
    Router::start(&peers, address(1), Arc::default(), PeerMetrics::default())
}

fn ask(node: &Rc<Node>, from: Origin, line: &str) -> NodeAnswer {
    ask_on(node, &mut node.session(from), line)
}

fn ask_on(node: &Rc<Node>, session: &mut ClientSession, line: &str) -> NodeAnswer {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut bytes = Vec::new();
    encode_request(&words, &mut bytes);
    let mut decoder = RequestDecoder::default();
    let (request, _) = decoder.decode(&bytes).expect("well formed").expect("whole");
    node.answer(session, request, node.started)
}

fn own(answer: NodeAnswer) -> Reply {
    match answer {
        NodeAnswer::Now(reply) => reply,
        NodeAnswer::Later(_) => panic!("another cache is asked"),
        NodeAnswer::Last(_) => panic!("the connection ends"),
    }
}

const COMMANDS: [(&str, Reply); 7] = [
    ("SET k v EX 60", Reply::OK),
    ("EXISTS k k", Reply::Integer(2)),
    ("EXPIRE k 30", Reply::Integer(1)),
    ("TTL k", Reply::Integer(30)),
    ("DEL k other", Reply::Integer(1)),
    ("GET k", Reply::Null),
    ("GETDEL k", Reply::Null),
];

/// Else two caches that disagree about an owner would ask each other for ever.
#[tokio::test]
async fn requests_of_peers_are_answered_locally_and_never_forwarded() {
    let node = node(everything_is_others(), Duration::from_secs(60));
    for (line, reply) in COMMANDS {
        assert_eq!(own(ask(&node, Origin::Peer, line)), reply, "{line}");
    }
    assert_eq!(own(ask(&node, Origin::Peer, "SET k v")), Reply::OK);
    assert_eq!(own(ask(&node, Origin::Peer, "GET k")), Reply::text("v"));
    assert_eq!(own(ask(&node, Origin::Peer, "GETDEL k")), Reply::text("v"));
    assert_eq!(node.shard.figures().entries, 0);
}

#[tokio::test]
async fn client_requests_go_to_the_owner_and_without_it_miss_or_fail() {
    let node = node(everything_is_others(), Duration::from_secs(60));
    for (line, _) in COMMANDS {
        let NodeAnswer::Later(reply) = ask(&node, Origin::Client, line) else {
            panic!("{line} was answered here");
        };
        match (reply.await, line.starts_with("GET")) {
            (Reply::Null, true) => {}
            (Reply::Error(text), false) => assert!(text.contains("does not answer"), "{text}"),
            (reply, _) => panic!("{line}: {reply:?}"),
        }
    }
    assert_eq!(node.shard.figures().entries, 0);
}

#[test]
fn forwarded_answers_are_counted_like_local_ones() {
    for (verb, reply, outcome) in [
        (Verb::Set, Ok(Reply::OK), CommandOutcome::Stored),
        (Verb::Set, Ok(Reply::Null), CommandOutcome::Exists),
        (Verb::Get, Ok(Reply::text("v")), CommandOutcome::Hit),
        (Verb::Get, Ok(Reply::Null), CommandOutcome::Miss),
        (Verb::Take, Ok(Reply::text("v")), CommandOutcome::Hit),
        (Verb::Take, Ok(Reply::Null), CommandOutcome::Miss),
        (Verb::Expire, Ok(Reply::Integer(1)), CommandOutcome::Hit),
        (Verb::Expire, Ok(Reply::Integer(0)), CommandOutcome::Miss),
        (Verb::TimeLeft, Ok(Reply::Integer(-2)), CommandOutcome::Miss),
        (Verb::Set, Ok(refused_by_owner()), CommandOutcome::Refused),
        (Verb::Get, Ok(refused_by_owner()), CommandOutcome::Refused),
        (
            Verb::Set,
            Err(CacheError::Unavailable),
            CommandOutcome::Unavailable,
        ),
        (Verb::Get, Err(CacheError::Lost), CommandOutcome::Unavailable),
    ] {
        assert_eq!(outcome_at_owner(verb, &reply), outcome, "{verb:?} {reply:?}");
    }
}

fn refused_by_owner() -> Reply {
    Reply::Error("ERR the cache is full".into())
}

#[test]
fn lifetimes_are_capped_at_seven_days_for_clients_and_peers() {
    let week = 7 * 86_400;
    let node = node(Router::alone(), Duration::from_secs(30 * 86_400));
    for (line, lifetime) in [
        ("SET k v", week),
        ("SET k v EX 99999999", week),
        ("SET k v PX 99999999999", week),
        ("SETEX k 99999999 v", week),
        ("EXPIRE k 60", 60),
        ("EXPIRE k 99999999", week),
    ] {
        assert!(
            !matches!(own(ask(&node, Origin::Client, line)), Reply::Error(_)),
            "{line}"
        );
        let left = node.shard.time_left(b"k", node.started);
        assert_eq!(left, Some(Duration::from_secs(lifetime)), "{line}");
    }
}

#[test]
fn a_zero_or_negative_lifetime_deletes_the_entry() {
    let node = node(Router::alone(), Duration::from_secs(60));
    for line in ["EXPIRE k 0", "EXPIRE k -1"] {
        own(ask(&node, Origin::Client, "SET k v"));
        assert_eq!(own(ask(&node, Origin::Client, line)), Reply::Integer(1), "{line}");
        assert_eq!(own(ask(&node, Origin::Client, "GET k")), Reply::Null, "{line}");
        assert_eq!(own(ask(&node, Origin::Client, line)), Reply::Integer(0), "{line}");
    }
}

fn is_error(reply: &Reply, code: &str) -> bool {
    matches!(reply, Reply::Error(text) if text.starts_with(code))
}

#[test]
fn peers_need_no_password() {
    let password = Password::from_file(b"secret");
    let node = with_password(Router::alone(), Duration::from_secs(60), password);
    assert_eq!(own(ask(&node, Origin::Peer, "GET k")), Reply::Null);
    let refused = own(ask(&node, Origin::Client, "GET k"));
    assert!(is_error(&refused, "NOAUTH"), "{refused:?}");
}

#[test]
fn a_failed_authentication_leaves_the_connection_unchanged() {
    let password = Password::from_file(b"secret");
    let node = with_password(Router::alone(), Duration::from_secs(60), password);
    let mut session = node.session(Origin::Client);
    for (line, code) in [
        ("AUTH wrong", "WRONGPASS"),
        ("AUTH other secret", "WRONGPASS"),
        ("HELLO 3 AUTH default wrong", "WRONGPASS"),
        ("HELLO 3 AUTH other secret", "WRONGPASS"),
        ("HELLO 3", "NOAUTH"),
        ("GET k", "NOAUTH"),
    ] {
        let refused = own(ask_on(&node, &mut session, line));
        assert!(is_error(&refused, code), "{line}: {refused:?}");
        assert_eq!(
            (session.authenticated, session.protocol),
            (false, Protocol::Resp2),
            "{line}"
        );
    }
    own(ask_on(&node, &mut session, "HELLO 3 AUTH default secret"));
    assert_eq!((session.authenticated, session.protocol), (true, Protocol::Resp3));
    assert_eq!(own(ask_on(&node, &mut session, "GET k")), Reply::Null);
}
