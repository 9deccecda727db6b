//! Membership of the peer group: a static list from the configuration, or the ready endpoints of a Service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Backend, Peers, ServicePort};
use crate::discovery::{self, Endpoints};

/// Source of the peer group's members.
pub(crate) enum Members {
    /// A static list.
    Fixed(Arc<[SocketAddr]>),
    /// The ready endpoints of a Service.
    Watched(Endpoints, ServicePort),
}

impl Members {
    /// Starts to watch the Service, if members are not static. There are no members until the API server has been
    /// reached; while it is unreachable, the last known members stay.
    pub(crate) fn follow(peers: &Peers) -> Self {
        match &peers.members {
            Backend::Addresses(addresses) => Self::Fixed(addresses.iter().copied().map(canonical).collect()),
            Backend::Service(service) => {
                let endpoints = Endpoints::watched();
                tokio::spawn(discovery::follow(endpoints.clone(), None));
                Self::Watched(endpoints, service.clone())
            }
        }
    }

    /// The current members, unordered.
    pub(crate) fn now(&self) -> Arc<[SocketAddr]> {
        match self {
            Self::Fixed(addresses) => Arc::clone(addresses),
            Self::Watched(endpoints, service) => endpoints.addresses(service).unwrap_or_default(),
        }
    }
}

/// The address that identifies this cache among its peers.
pub(crate) fn own_address(peers: &Peers, pod_ip: Option<IpAddr>) -> SocketAddr {
    canonical(SocketAddr::new(
        pod_ip.unwrap_or(peers.listen.ip()),
        peers.listen.port(),
    ))
}

/// Normalizes an address, so that IPv4-mapped IPv6 addresses compare equal to IPv4 addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(listen: &str, members: &[&str]) -> Peers {
        let address = |text: &&str| text.parse().expect("an address");
        Peers {
            listen: address(&listen),
            members: Backend::Addresses(members.iter().map(address).collect()),
            server_name: "cache.test".into(),
            certificate: "tls.crt".into(),
            key: "tls.key".into(),
            authority: "ca.crt".into(),
            timeout: "20ms".parse().expect("valid"),
        }
    }

    #[test]
    fn the_own_address_is_the_pod_address_or_else_the_listen_address() {
        let own = |listen: &str, pod_ip: Option<&str>| {
            let pod_ip = pod_ip.map(|ip| ip.parse().expect("an address"));
            own_address(&peers(listen, &[]), pod_ip).to_string()
        };
        assert_eq!(own("10.0.0.7:7443", None), "10.0.0.7:7443");
        assert_eq!(own("[::]:7443", Some("10.0.0.8")), "10.0.0.8:7443");
        assert_eq!(own("[::]:7443", Some("::ffff:10.0.0.8")), "10.0.0.8:7443");
        assert_eq!(own("[::]:7443", Some("fd00::8")), "[fd00::8]:7443");
    }

    #[test]
    fn member_addresses_are_canonical() {
        let members = Members::follow(&peers("[::]:1", &["[::ffff:10.0.0.7]:7443", "10.0.0.8:7443"]));
        let addresses: Vec<String> = members.now().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.7:7443", "10.0.0.8:7443"]);
    }
}
