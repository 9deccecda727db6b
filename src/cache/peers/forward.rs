//! Forwards commands to the cache that owns the key.

use std::time::Duration;

use futures::future::try_join_all;
use zeroize::Zeroizing;

use crate::cache::command::{OneKey, Set, Verb};
use crate::resp::Reply;
use crate::resp::client::{CacheError, Client};

/// Result of a forwarded command. An error means that the owner did not reply.
pub(crate) type Forwarded = Result<Reply, CacheError>;

/// Forwards a command on one key to its owner.
pub(crate) fn command(owner: Client, command: &OneKey<'_>) -> impl Future<Output = Forwarded> + 'static {
    let words = words(command);
    async move { ask(&owner, &words).await }
}

/// Forwards a command on one of several keys to its owner; returns the count in the reply.
pub(crate) fn count(
    owner: Client,
    verb: Verb,
    key: &[u8],
) -> impl Future<Output = Result<i64, CacheError>> + 'static {
    let name: &[u8] = match verb {
        Verb::Delete => b"DEL",
        _ => b"EXISTS",
    };
    let words = copy(&[name, key]);
    async move {
        match ask(&owner, &words).await? {
            Reply::Integer(number) => Ok(number),
            _ => Err(CacheError::Garbled),
        }
    }
}

/// Sums the counts. Fails if one of them failed.
pub(crate) async fn sum(
    own: i64,
    elsewhere: Vec<impl Future<Output = Result<i64, CacheError>>>,
) -> Forwarded {
    let counts = try_join_all(elsewhere).await?;
    Ok(Reply::Integer(own + counts.iter().sum::<i64>()))
}

type Words = Vec<Zeroizing<Vec<u8>>>;

async fn ask(owner: &Client, words: &Words) -> Forwarded {
    let borrowed: Vec<&[u8]> = words.iter().map(|word| word.as_slice()).collect();
    owner.call(&borrowed).await
}

/// Encodes the command for its owner. Lifetimes are explicit, because the owner's default may differ.
fn words(command: &OneKey<'_>) -> Words {
    match *command {
        OneKey::Get(key) => copy(&[b"GET", key]),
        OneKey::Take(key) => copy(&[b"GETDEL", key]),
        OneKey::Expire(key, lifetime) => copy(&[b"EXPIRE", key, lifetime.as_secs().to_string().as_bytes()]),
        OneKey::TimeLeft(key) => copy(&[b"TTL", key]),
        OneKey::Set(Set {
            key,
            value,
            lifetime,
            only_new,
        }) => {
            let millis = lifetime
                .map_or(0, |lifetime: Duration| lifetime.as_millis())
                .to_string();
            let mut words = copy(&[b"SET", key, value, b"PX", millis.as_bytes()]);
            if only_new {
                words.extend(copy(&[b"NX"]));
            }
            words
        }
    }
}

fn copy(words: &[&[u8]]) -> Words {
    words.iter().map(|word| Zeroizing::new(word.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(command: &OneKey<'_>) -> String {
        let words = words(command);
        let texts = words
            .iter()
            .map(|word| String::from_utf8_lossy(word).into_owned());
        texts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn forwarded_commands_carry_an_explicit_lifetime() {
        let set = |lifetime, only_new| {
            OneKey::Set(Set {
                key: b"k",
                value: b"v",
                lifetime,
                only_new,
            })
        };
        let minute = Duration::from_secs(60);
        for (command, request) in [
            (OneKey::Get(b"k"), "GET k"),
            (OneKey::Take(b"k"), "GETDEL k"),
            (OneKey::Expire(b"k", minute), "EXPIRE k 60"),
            (OneKey::Expire(b"k", Duration::ZERO), "EXPIRE k 0"),
            (OneKey::TimeLeft(b"k"), "TTL k"),
            (set(Some(minute), false), "SET k v PX 60000"),
            (set(Some(Duration::from_millis(7)), true), "SET k v PX 7 NX"),
        ] {
            assert_eq!(sent(&command), request);
        }
    }

    #[tokio::test]
    async fn counts_of_owners_are_summed_and_one_failure_fails_the_sum() {
        use std::future::ready;
        assert_eq!(
            sum(1, vec![ready(Ok(2)), ready(Ok(0))]).await,
            Ok(Reply::Integer(3))
        );
        let lost = sum(1, vec![ready(Ok(2)), ready(Err(CacheError::Lost))]).await;
        assert_eq!(lost, Err(CacheError::Lost));
    }
}
