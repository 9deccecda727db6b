//! Routes keys to the cache that owns them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use super::members::{Members, canonical};
use super::metrics::PeerMetrics;
use super::owner::{KeyHash, MemberHash, owner};
use super::tls::PeerTls;
use crate::config::Peers;
use crate::resp::client::Client;
use crate::runtime::files::POLL_INTERVAL;

/// Finds the owners of keys. Clones share one state.
#[derive(Clone, Default)]
pub(crate) struct Router(Arc<ArcSwap<Table>>);

/// Owner of a key.
pub(crate) enum Route {
    /// This cache.
    Own,
    /// Another cache; requests go through this client.
    Peer(Client),
}

/// The ready members, including this cache once it is ready.
#[derive(Default)]
struct Table(Vec<Member>);

struct Member {
    address: SocketAddr,
    hash: MemberHash,
    /// None: this cache.
    client: Option<Client>,
}

impl Router {
    /// Creates a router for a cache without peers.
    pub(crate) fn alone() -> Self {
        Self::default()
    }

    /// Starts a task that follows membership changes; must be called within the runtime. `own` is the address that
    /// identifies this cache.
    pub(crate) fn start(peers: &Peers, own: SocketAddr, tls: Arc<PeerTls>, metrics: PeerMetrics) -> Self {
        let router = Self::alone();
        let mut follower = Follower {
            members: Members::follow(peers),
            own,
            tls,
            timeout: peers.timeout.as_std(),
            metrics,
            seen: Arc::default(),
        };
        follower.poll(&router);
        let following = Arc::downgrade(&router.0);
        tokio::spawn(async move {
            let mut tick = interval(POLL_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                match following.upgrade() {
                    Some(table) => follower.poll(&Self(table)),
                    None => return,
                }
            }
        });
        router
    }

    /// Returns the owner of a key. Without members, this cache owns every key.
    pub(crate) fn route(&self, key: &[u8]) -> Route {
        let table = self.0.load();
        if table.0.is_empty() {
            return Route::Own;
        }
        match owner(KeyHash::of(key), &table.0, |member| member.hash) {
            Some(Member {
                client: Some(client), ..
            }) => Route::Peer(client.clone()),
            _ => Route::Own,
        }
    }
}

/// State of the task that updates a router.
struct Follower {
    members: Members,
    own: SocketAddr,
    tls: Arc<PeerTls>,
    timeout: Duration,
    metrics: PeerMetrics,
    seen: Arc<[SocketAddr]>,
}

impl Follower {
    /// Updates the router if the members have changed. Clients of unchanged members are kept; those of removed members
    /// close after their last request.
    fn poll(&mut self, router: &Router) {
        let addresses = self.members.now();
        if Arc::ptr_eq(&addresses, &self.seen) {
            return;
        }
        let before = router.0.load();
        let mut sorted: Vec<_> = addresses.iter().copied().map(canonical).collect();
        self.seen = addresses;
        sorted.sort_unstable();
        sorted.dedup();
        if before.0.iter().map(|member| &member.address).eq(&sorted) {
            return;
        }
        info!(members = ?sorted, own = %self.own, "cache membership changed");
        self.metrics.members_are(sorted.len());
        let member = |address: SocketAddr| {
            let known = before.0.iter().find(|member| member.address == address);
            Member {
                address,
                hash: MemberHash::of(address),
                client: match known {
                    Some(known) => known.client.clone(),
                    None => (address != self.own).then(|| self.client(address)),
                },
            }
        };
        let table = Table(sorted.into_iter().map(member).collect());
        router.0.store(Arc::new(table));
    }

    fn client(&self, address: SocketAddr) -> Client {
        let tls = Arc::clone(&self.tls);
        Client::start_peer(
            address,
            Arc::new(move || tls.client()),
            self.timeout,
            self.metrics.clients(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const KEYS: u32 = 300;

    fn address(number: u8) -> SocketAddr {
        (Ipv4Addr::new(127, 0, 0, number), 1).into()
    }

    fn follower(own: u8) -> Follower {
        Follower {
            members: Members::Fixed(Arc::default()),
            own: address(own),
            tls: Arc::default(),
            timeout: Duration::from_millis(20),
            metrics: PeerMetrics::default(),
            seen: Arc::default(),
        }
    }

    fn set(follower: &mut Follower, router: &Router, members: &[u8]) {
        follower.members = Members::Fixed(members.iter().copied().map(address).collect());
        follower.poll(router);
    }

    fn own(router: &Router) -> Vec<u32> {
        (0..KEYS)
            .filter(|key| matches!(router.route(&key.to_be_bytes()), Route::Own))
            .collect()
    }

    #[tokio::test]
    async fn every_key_is_owned_by_one_cache_and_all_agree() {
        let mut routers: Vec<(u8, Follower, Router)> = (1..=3)
            .map(|number| (number, follower(number), Router::alone()))
            .collect();
        assert!(
            routers
                .iter()
                .all(|(_, _, router)| own(router).len() == KEYS as usize)
        );
        for (number, follower, router) in &mut routers {
            let mut members = [1, 2, 3, 3];
            members.rotate_left(usize::from(*number));
            set(follower, router, &members);
        }
        let mut owned: Vec<u32> = routers.iter().flat_map(|(_, _, router)| own(router)).collect();
        owned.sort_unstable();
        assert!(owned.into_iter().eq(0..KEYS));
    }

    #[tokio::test]
    async fn a_new_member_takes_its_keys_and_returns_them_when_it_leaves() {
        let (mut follower, router) = (follower(1), Router::alone());
        set(&mut follower, &router, &[1, 2]);
        let before = own(&router);
        set(&mut follower, &router, &[1, 2, 3]);
        let with_three = own(&router);
        assert!(with_three.len() < before.len());
        assert!(with_three.iter().all(|key| before.contains(key)));
        set(&mut follower, &router, &[2, 1]);
        assert_eq!(own(&router), before);
        set(&mut follower, &router, &[]);
        assert_eq!(own(&router).len(), KEYS as usize, "alone it keeps everything");
    }

    #[tokio::test]
    async fn two_ways_to_write_an_address_are_one_member() {
        let (mut follower, router) = (follower(1), Router::alone());
        let mapped = (Ipv4Addr::new(127, 0, 0, 2).to_ipv6_mapped(), 1).into();
        follower.members = Members::Fixed([address(1), address(2), mapped].into());
        follower.poll(&router);
        let members: Vec<_> = router.0.load().0.iter().map(|member| member.address).collect();
        assert_eq!(members, [address(1), address(2)]);
    }

    #[tokio::test]
    async fn a_cache_that_is_not_ready_owns_no_keys() {
        let (mut follower, router) = (follower(1), Router::alone());
        set(&mut follower, &router, &[2, 3]);
        assert!(own(&router).is_empty());
    }

    /// Else each change would make the next requests wait again for a cache that is gone.
    #[tokio::test]
    async fn membership_changes_keep_the_clients_of_unchanged_members() {
        let (mut follower, router) = (follower(1), Router::alone());
        set(&mut follower, &router, &[1, 2]);
        let of_second = |router: &Router| {
            let members = router.0.load();
            let member = members.0.iter().find(|member| member.address == address(2));
            member.and_then(|member| member.client.clone()).expect("a peer")
        };
        let second = of_second(&router);
        let down = async {
            while second.admits() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(Duration::from_secs(20), down)
            .await
            .expect("nobody listens there");
        for members in [[1, 2, 3].as_slice(), &[2, 1], &[3, 2, 4]] {
            set(&mut follower, &router, members);
            assert!(!of_second(&router).admits(), "{members:?}");
        }
    }
}
