//! Key ownership by rendezvous hashing: when a cache is added or removed, only its own keys change their owner.
//!
//! All caches of a farm must agree, whatever their release, so the function is fixed:
//!
//! - hash of a key: the first 8 bytes, big endian, of its SHA-256;
//! - hash of a member: the same of its address's 16 bytes (IPv4 as `::ffff:a.b.c.d`) and its port's 2, big endian;
//! - score: both hashes, xored and put through the finalizer of SplitMix64;
//! - owner: the member with the highest score, and among equals the one with the highest hash.
//!
//! Clients can choose keys, but not members. A client can find keys that map to one member by trying, but gains nothing
//! except that its own entries are stored there.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::digest;

/// Hash of a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MemberHash(u64);

/// Hash of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeyHash(u64);

impl MemberHash {
    /// Hashes the member that listens for peers on `address`.
    pub(crate) fn of(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = [0; 18];
        let (host, port) = bytes.split_at_mut(16);
        host.copy_from_slice(&ip.octets());
        port.copy_from_slice(&address.port().to_be_bytes());
        Self(first_of_sha256(&bytes))
    }
}

impl KeyHash {
    /// Hashes a key.
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(first_of_sha256(key))
    }
}

/// Returns the owner of a key among `members`; None if there are no members.
pub(crate) fn owner<M>(
    key: KeyHash,
    members: impl IntoIterator<Item = M>,
    hash: impl Fn(&M) -> MemberHash,
) -> Option<M> {
    members.into_iter().max_by_key(|member| {
        let MemberHash(member) = hash(member);
        (mix(key.0 ^ member), member)
    })
}

/// The finalizer of SplitMix64.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn first_of_sha256(bytes: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest
        .as_ref()
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;
    use crate::reached::check;

    const KEYS: u32 = 20_000;

    fn address(number: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 0, 0, number), 7443).into()
    }

    fn owner_among(key: &[u8], members: &[SocketAddr]) -> SocketAddr {
        let found = owner(KeyHash::of(key), members.iter().copied(), |member| {
            MemberHash::of(*member)
        });
        found.expect("there are members")
    }

    #[test]
    fn owners_are_the_same_as_in_other_releases() {
        assert_eq!(KeyHash::of(b"abc"), KeyHash(0xba78_16bf_8f01_cfea));
        assert_eq!(MemberHash::of(address(1)), MemberHash(0x2313_55b1_1551_9bfb));
        assert_eq!(
            [1, u64::MAX].map(mix),
            [0x5692_161d_100b_05e5, 0xb4d0_55fc_f2cb_bd7b]
        );
        let members: Vec<_> = (1..=5).map(address).collect();
        let owners: Vec<u8> = ["a", "b", "c", "d", "e", "f", "g", "h"]
            .iter()
            .map(|key| match owner_among(key.as_bytes(), &members).ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            })
            .collect();
        assert_eq!(owners, [1, 1, 5, 1, 3, 4, 3, 1]);
    }

    #[test]
    fn ipv4_and_ipv4_mapped_addresses_are_the_same_member() {
        let mapped = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into(), 7443);
        assert_eq!(MemberHash::of(mapped), MemberHash::of(address(1)));
    }

    #[test]
    fn ports_distinguish_caches_on_one_host() {
        let of = |port| MemberHash::of((Ipv4Addr::LOCALHOST, port).into());
        assert!(of(7443) != of(7444) && of(7443) != of(7443 + 256));
    }

    #[test]
    fn without_members_there_is_no_owner() {
        let nobody = owner(KeyHash::of(b"key"), Vec::<SocketAddr>::new(), |member| {
            MemberHash::of(*member)
        });
        assert_eq!(nobody, None);
    }

    /// Every case has members that keep their keys and a newcomer that takes some.
    #[test]
    fn keys_are_balanced_and_a_new_member_moves_only_its_own() {
        let keys: Vec<_> = (0..KEYS).map(|key| KeyHash::of(&key.to_be_bytes())).collect();
        let members = (btree_set(any::<u8>(), 2..9), any::<prop::sample::Index>());
        let floors = [("a key that moves", 100), ("a key that stays", 100)];
        check(12, members, &floors, |(numbers, newcomer), case| {
            let mut members: Vec<_> = numbers
                .into_iter()
                .map(|number| MemberHash::of(address(number)))
                .collect();
            let newcomer = members.remove(newcomer.index(members.len()));
            let mut all = vec![newcomer];
            all.extend(members.iter().rev());
            let mut owned = vec![0; all.len()];
            for key in &keys {
                let now = owner(*key, 0..all.len(), |place| all[*place]).expect("there are members");
                let before = owner(*key, members.iter(), |member| **member);
                owned[now] += 1;
                case.reaches(match now {
                    0 => "a key that moves",
                    _ => "a key that stays",
                });
                prop_assert!(now == 0 || before == Some(&all[now]));
            }
            let fair = 1.0 / all.len() as f64;
            for owned in owned {
                let share = f64::from(owned) / f64::from(KEYS);
                prop_assert!((share - fair).abs() < 0.02, "one has {share}, {fair} is fair");
            }
            Ok(())
        });
    }
}
