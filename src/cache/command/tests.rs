use super::*;
use crate::resp::{RequestDecoder, encode_request};

/// What a request comes to, in short.
fn parse(words: &[&[u8]]) -> Result<String, CommandError> {
    let mut bytes = Vec::new();
    encode_request(words, &mut bytes);
    let mut decoder = RequestDecoder::default();
    let (request, _) = decoder.decode(&bytes).expect("well formed").expect("whole");
    let command = Command::parse(request)?;
    let names = |keys: Keys<'_>| {
        keys.iter()
            .map(<[u8]>::escape_ascii)
            .map(|k| k.to_string())
            .collect::<Vec<_>>()
    };
    Ok(match command {
        Command::One(OneKey::Set(set)) => {
            let [key, value] = [set.key, set.value].map(<[u8]>::escape_ascii);
            format!("{key}={value} {:?} {}", set.lifetime, set.only_new)
        }
        Command::One(OneKey::Expire(key, lifetime)) => format!("{} {lifetime:?}", key.escape_ascii()),
        Command::One(one) => format!("{:?} {}", command.verb(), one.key().escape_ascii()),
        Command::Delete(keys) | Command::Exists(keys) => names(keys).join(" "),
        Command::Other(Other::Info(keys) | Other::ConfigGet(keys)) => names(keys).join(" "),
        Command::Other(Other::Hello(protocol, credentials)) => {
            format!("{protocol:?} {}", credentials.is_some())
        }
        Command::Other(Other::Auth(credentials)) => format!("{}", credentials.user.is_some()),
        other => format!("{:?}", other.verb()),
    })
}

fn words(line: &str) -> Result<String, CommandError> {
    parse(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

#[test]
fn commands_are_understood() {
    for (line, meaning) in [
        ("get k", "Get k"),
        ("GetDel k", "Take k"),
        ("SET k v", "k=v None false"),
        ("set k v ex 10 nx", "k=v Some(10s) true"),
        ("SET k v NX PX 10", "k=v Some(10ms) true"),
        ("SETEX k 7 v", "k=v Some(7s) false"),
        ("DEL a b", "a b"),
        ("UNLINK a", "a"),
        ("EXISTS a a", "a a"),
        ("EXPIRE k 7", "k 7s"),
        ("EXPIRE k 0", "k 0ns"),
        ("EXPIRE k -1", "k 0ns"),
        ("TTL k", "TimeLeft k"),
        ("QUIT", "Other"),
        ("PING", "Other"),
        ("PING text", "Other"),
        ("ECHO text", "Other"),
        ("SELECT 0", "Other"),
        ("HELLO", "None false"),
        ("HELLO 2", "Some(Resp2) false"),
        ("HELLO 3 SETNAME me", "Some(Resp3) false"),
        ("HELLO 3 AUTH default secret SETNAME me", "Some(Resp3) true"),
        ("HELLO 3 SETNAME me AUTH default secret", "Some(Resp3) true"),
        ("AUTH secret", "false"),
        ("AUTH default secret", "true"),
        ("INFO", ""),
        ("INFO server memory", "server memory"),
        ("CONFIG GET save appendonly", "save appendonly"),
        ("CLIENT ID", "Other"),
        ("CLIENT SETNAME me", "Other"),
        ("CLIENT SETINFO LIB-NAME x", "Other"),
        ("COMMAND", "Other"),
        ("COMMAND DOCS", "Other"),
    ] {
        assert_eq!(words(line).as_deref(), Ok(meaning), "{line}");
    }
}

#[test]
fn no_lifetime_is_longer_than_seven_days() {
    let week = 7 * 86_400;
    for (line, lifetime) in [
        (format!("SET k v EX {week}"), "k=v Some(604800s) false"),
        (format!("SET k v EX {}", week + 1), "k=v Some(604800s) false"),
        (format!("SET k v EX {}", week - 1), "k=v Some(604799s) false"),
        (format!("SET k v EX {}", i64::MAX), "k=v Some(604800s) false"),
        (format!("SET k v PX {}", week * 1000), "k=v Some(604800s) false"),
        (
            format!("SET k v PX {}", week * 1000 + 1),
            "k=v Some(604800s) false",
        ),
        (
            format!("SET k v PX {}", week * 1000 - 1),
            "k=v Some(604799.999s) false",
        ),
        (format!("SET k v PX {}", i64::MAX), "k=v Some(604800s) false"),
        (format!("SETEX k {} v", week + 1), "k=v Some(604800s) false"),
        (format!("SETEX k {} v", i64::MAX), "k=v Some(604800s) false"),
        (format!("EXPIRE k {}", week - 1), "k 604799s"),
        (format!("EXPIRE k {}", week + 1), "k 604800s"),
        (format!("EXPIRE k {}", i64::MAX), "k 604800s"),
        (format!("EXPIRE k {}", i64::MIN), "k 0ns"),
    ] {
        assert_eq!(words(&line).as_deref(), Ok(lifetime), "{line}");
    }
}

#[test]
fn every_command_has_its_own_verb_for_metrics() {
    let verb = |line: &str| {
        let mut bytes = Vec::new();
        encode_request(
            &line.split(' ').map(str::as_bytes).collect::<Vec<_>>(),
            &mut bytes,
        );
        let mut decoder = RequestDecoder::default();
        let (request, _) = decoder.decode(&bytes).expect("well formed").expect("whole");
        Command::parse(request).expect("a command").verb()
    };
    for (line, kind) in [
        ("GET k", Verb::Get),
        ("GETDEL k", Verb::Take),
        ("SET k v", Verb::Set),
        ("SETEX k 1 v", Verb::Set),
        ("DEL k", Verb::Delete),
        ("UNLINK k", Verb::Delete),
        ("EXISTS k", Verb::Exists),
        ("EXPIRE k 1", Verb::Expire),
        ("TTL k", Verb::TimeLeft),
        ("PING", Verb::Other),
        ("QUIT", Verb::Other),
    ] {
        assert_eq!(verb(line), kind, "{line}");
    }
}

#[test]
fn errors_are_worded_as_in_redis() {
    use CommandError::*;
    for (line, error) in [
        ("FLUSHALL", Unknown),
        ("AVERYLONGNAME", Unknown),
        ("GET", Arity),
        ("GET a b", Arity),
        ("GETDEL", Arity),
        ("TTL a b", Arity),
        ("DEL", Arity),
        ("UNLINK", Arity),
        ("EXISTS", Arity),
        ("SET k", Arity),
        ("SET k v XX", Syntax),
        ("SET k v NX NX", Syntax),
        ("SET k v EX 1 PX 1", Syntax),
        ("SET k v EX 1 EX 1", Syntax),
        ("SET k v EX", Syntax),
        ("SET k v NX PX", Syntax),
        ("SET k v EX x", NotInteger),
        ("SET k v EX 9223372036854775808", NotInteger),
        ("SET k v EX 0", Lifetime),
        ("SET k v PX 0", Lifetime),
        ("SET k v PX -1", Lifetime),
        ("SETEX k 1", Arity),
        ("SETEX k 1 v NX", Arity),
        ("SETEX k x v", NotInteger),
        ("SETEX k 0 v", Lifetime),
        ("SETEX k -1 v", Lifetime),
        ("EXPIRE k", Arity),
        ("EXPIRE k 1 NX", Arity),
        ("EXPIRE k x", NotInteger),
        ("PING a b", Arity),
        ("ECHO", Arity),
        ("ECHO a b", Arity),
        ("SELECT", Arity),
        ("SELECT x", NotInteger),
        ("SELECT 1", Database),
        ("AUTH", Arity),
        ("AUTH a b c", Arity),
        ("HELLO x", Protocol),
        ("HELLO 1", Protocol),
        ("HELLO 4", Protocol),
        ("HELLO 3 AUTH default", Syntax),
        ("HELLO 3 SETNAME", Syntax),
        ("HELLO 3 SETNAME me AUTH default", Syntax),
        ("HELLO 3 NONSENSE", Syntax),
        ("CLIENT", Arity),
        ("CLIENT ID x", Arity),
        ("CLIENT SETNAME", Arity),
        ("CLIENT SETINFO LIB-NAME", Arity),
        ("CLIENT KILL", UnknownSubcommand),
        ("CLIENT AVERYLONGNAME", UnknownSubcommand),
        ("CONFIG", Arity),
        ("CONFIG SET a b", UnknownSubcommand),
        ("CONFIG GET", Arity),
    ] {
        assert_eq!(words(line), Err(error), "{line}");
    }
    let long_key = [b'k'; LONGEST_KEY + 1];
    let long_value = [b'v'; LONGEST_VALUE + 1];
    for request in [
        &[b"GET", long_key.as_slice()][..],
        &[b"DEL", b"k", &long_key],
        &[b"SET", &long_key, b"v"],
        &[b"SETEX", &long_key, b"1", b"v"],
        &[b"EXPIRE", &long_key, b"1"],
    ] {
        assert_eq!(parse(request), Err(LongKey));
    }
    assert_eq!(parse(&[b"SET", b"k", &long_value]), Err(LongValue));
    assert_eq!(parse(&[b"SETEX", b"k", b"1", &long_value]), Err(LongValue));
    assert!(parse(&[b"SET", &long_key[1..], &long_value[1..]]).is_ok());
}
