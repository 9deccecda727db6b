//! Servers given by `--address`: IP addresses, or names to resolve.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use rustls::pki_types::DnsName;
use tokio::net::lookup_host;

use super::{TargetError, TargetProxy};

/// Port of an address without one.
const HTTPS: u16 = 443;

/// Host and port of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::probe) enum ServerAddress {
    /// An IP address.
    Ip(SocketAddr),
    /// A DNS name, which may have several addresses.
    Name(DnsName<'static>, u16),
}

impl FromStr for ServerAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>()
            && address.port() != 0
        {
            return Ok(Self::Ip(address));
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Ok(Self::Ip(SocketAddr::new(ip, HTTPS)));
        }
        let wrong = "must be an IP address or a DNS name, optionally followed by a colon and a port";
        let (host, port) = match text.split_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, port.parse().map_err(|_| wrong)?)
            }
            Some(_) => return Err(wrong),
            None => (text, HTTPS),
        };
        if port == 0 {
            return Err(wrong);
        }
        let name = DnsName::try_from(host.to_owned()).map_err(|_| wrong)?;
        Ok(Self::Name(name, port))
    }
}

impl ServerAddress {
    /// Resolves `servers`. Every address of a name is a target of its own, because each may be another replica.
    pub(in crate::probe) async fn resolve(servers: &[Self]) -> Result<Vec<TargetProxy>, TargetError> {
        let mut targets: Vec<TargetProxy> = Vec::new();
        for server in servers {
            for target in server.targets().await? {
                if targets.iter().all(|known| known.address != target.address) {
                    targets.push(target);
                }
            }
        }
        Ok(targets)
    }

    async fn targets(&self) -> Result<Vec<TargetProxy>, TargetError> {
        let target = |name: String, address: SocketAddr| TargetProxy {
            name,
            id: address.to_string(),
            address,
        };
        let (name, port) = match self {
            Self::Ip(address) => return Ok(vec![target(address.to_string(), *address)]),
            Self::Name(name, port) => (name.as_ref(), *port),
        };
        let failed = |why: String| TargetError::Resolve {
            name: name.to_owned(),
            why,
        };
        let found = lookup_host((name, port)).await;
        let found = found.map_err(|error| failed(error.to_string()))?;
        let targets: Vec<_> = found
            .map(|address| target(format!("{name} ({address})"), address))
            .collect();
        match targets.is_empty() {
            true => Err(failed("it has no address".into())),
            false => Ok(targets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<ServerAddress, &'static str> {
        text.parse()
    }

    fn name(name: &str, port: u16) -> ServerAddress {
        ServerAddress::Name(DnsName::try_from(name.to_owned()).expect("a name"), port)
    }

    #[test]
    fn the_port_may_be_left_out() {
        let ip = |text: &str| ServerAddress::Ip(text.parse().expect("an address"));
        assert_eq!(parsed("192.0.2.1:8443"), Ok(ip("192.0.2.1:8443")));
        assert_eq!(parsed("192.0.2.1"), Ok(ip("192.0.2.1:443")));
        assert_eq!(parsed("2001:db8::1"), Ok(ip("[2001:db8::1]:443")));
        assert_eq!(parsed("[2001:db8::1]"), Ok(ip("[2001:db8::1]:443")));
        assert_eq!(parsed("[2001:db8::1]:8443"), Ok(ip("[2001:db8::1]:8443")));
        assert_eq!(parsed("www.example.com"), Ok(name("www.example.com", 443)));
        assert_eq!(parsed("www.example.com:8443"), Ok(name("www.example.com", 8443)));
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for text in [
            "",
            ":443",
            "a b",
            "https://www.example.com",
            "www.example.com:",
            "www.example.com:99999",
            "www.example.com:+443",
            "www.example.com:0",
            "192.0.2.1:0",
        ] {
            assert!(parsed(text).is_err(), "{text:?} was accepted");
        }
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_one_target() {
        let servers = [
            name("localhost", 8443),
            ServerAddress::Ip(([127, 0, 0, 1], 8443).into()),
        ];
        let targets = ServerAddress::resolve(&servers).await.expect("resolves");
        let to_ipv4 = targets.iter().filter(|target| target.address.is_ipv4());
        assert_eq!(to_ipv4.count(), 1, "{targets:?}");
        assert!(
            targets
                .iter()
                .any(|target| target.name.starts_with("localhost (")),
            "{targets:?}"
        );

        let unknown = ServerAddress::resolve(&[name("no-such-name.invalid", 443)]).await;
        let error = unknown.expect_err("does not resolve").to_string();
        assert!(
            error.starts_with("failed to resolve no-such-name.invalid: "),
            "{error}"
        );
    }
}
