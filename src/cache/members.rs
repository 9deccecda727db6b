//! Which caches there are: a list from the configuration, or the ready ones behind a Service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Backend, Peers, ServicePort};
use crate::discovery::{self, Endpoints};

/// The source of the caches that share the entries.
pub(crate) enum Members {
    /// They are always the same.
    Fixed(Arc<[SocketAddr]>),
    /// They come and go.
    Watched(Endpoints, ServicePort),
}

impl Members {
    /// Begins to watch, if there is something to watch. Until the API server has been reached there are none, and while
    /// it is away the last known ones stay.
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

    /// The caches as they are now, in no order.
    pub(crate) fn now(&self) -> Arc<[SocketAddr]> {
        match self {
            Self::Fixed(addresses) => Arc::clone(addresses),
            Self::Watched(endpoints, service) => endpoints.addresses(service).unwrap_or_default(),
        }
    }
}

/// The address by which the others know this cache.
pub(crate) fn own_address(peers: &Peers, pod_ip: Option<IpAddr>) -> SocketAddr {
    canonical(SocketAddr::new(
        pod_ip.unwrap_or(peers.listen.ip()),
        peers.listen.port(),
    ))
}

/// An address in the form in which it equals others that mean the same.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
