//! Replies about the cache itself: `HELLO`, `CONFIG GET` and `INFO`.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use super::command::Keys;
use super::shard::Figures;
use crate::resp::{Protocol, Reply};

/// Redis version reported to clients, which use it to decide which commands are available.
const REDIS_VERSION: &str = "7.2.0";

/// Figures reported by `INFO`.
pub(super) struct CacheInfo {
    pub(super) uptime: Duration,
    /// Number of connections accepted since the start.
    pub(super) connections: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) shard: Figures,
    /// Memory limit of the entries, in bytes.
    pub(super) shard_limit: usize,
}

/// The reply to `HELLO`.
pub(super) fn hello(protocol: Protocol, connection: u64) -> Reply {
    let version = match protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    let pairs = [
        ("server", Reply::text("redis")),
        ("version", Reply::text(REDIS_VERSION)),
        ("proto", Reply::Integer(version)),
        (
            "id",
            Reply::Integer(i64::try_from(connection).unwrap_or(i64::MAX)),
        ),
        ("mode", Reply::text("standalone")),
        ("role", Reply::text("master")),
        ("modules", Reply::Array(Vec::new())),
    ];
    Reply::Map(pairs.map(|(name, value)| (Reply::text(name), value)).into())
}

/// The reply to `CONFIG GET`: only the parameters that benchmarks query.
pub(super) fn parameters(wanted: Keys<'_>) -> Reply {
    let known = [("save", ""), ("appendonly", "no")];
    let named = |name: &str| {
        wanted
            .iter()
            .any(|pattern| pattern.eq_ignore_ascii_case(name.as_bytes()))
    };
    let pairs = known.into_iter().filter(|(name, _)| named(name));
    Reply::Map(
        pairs
            .map(|(name, value)| (Reply::text(name), Reply::text(value)))
            .collect(),
    )
}

/// The reply to `INFO`.
pub(super) fn text(info: &CacheInfo, wanted: Keys<'_>) -> Reply {
    let is = |section: &[u8], name: &str| section.eq_ignore_ascii_case(name.as_bytes());
    let everything = wanted.iter().next().is_none()
        || wanted.iter().any(|section| {
            ["all", "default", "everything"]
                .iter()
                .any(|name| is(section, name))
        });
    let mut text = String::new();
    for (name, lines) in sections(info) {
        if !everything && !wanted.iter().any(|section| is(section, name)) {
            continue;
        }
        let gap = if text.is_empty() { "" } else { "\r\n" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}# {name}\r\n");
        for (name, value) in lines {
            let _ = write!(text, "{name}:{value}\r\n");
        }
    }
    Reply::text(text)
}

type Line = (&'static str, Cow<'static, str>);

fn sections(info: &CacheInfo) -> [(&'static str, Vec<Line>); 4] {
    let number = |number: u64| Cow::Owned(number.to_string());
    let size = |number: usize| Cow::Owned(number.to_string());
    [
        (
            "Server",
            vec![
                ("redis_version", REDIS_VERSION.into()),
                ("redis_mode", "standalone".into()),
                ("tlsfarm_version", env!("CARGO_PKG_VERSION").into()),
                ("process_id", number(std::process::id().into())),
                ("uptime_in_seconds", number(info.uptime.as_secs())),
            ],
        ),
        (
            "Memory",
            vec![
                ("used_memory", size(info.shard.bytes)),
                ("maxmemory", size(info.shard_limit)),
            ],
        ),
        (
            "Stats",
            vec![
                ("total_connections_received", number(info.connections)),
                ("keyspace_hits", number(info.hits)),
                ("keyspace_misses", number(info.misses)),
                ("expired_keys", number(info.shard.expired)),
                ("evicted_keys", number(info.shard.evicted)),
            ],
        ),
        (
            "Keyspace",
            match info.shard.entries {
                0 => Vec::new(),
                entries => vec![(
                    "db0",
                    format!("keys={entries},expires={entries},avg_ttl=0").into(),
                )],
            },
        ),
    ]
}
