//! Validation of a spec beyond the CRD schema. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use kube::ResourceExt;

use super::listing::first_of;
use crate::api::{Reason, TLSFarm};
use crate::config::{HOSTNAME_RULE, is_hostname};

/// `NAME-proxy-metrics` must be a Service name, which has at most 63 characters.
const LONGEST_NAME: usize = 63 - "-proxy-metrics".len();

/// Why a farm was rejected. While it is rejected, its objects are not changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct FarmRefusal {
    /// Machine-readable reason.
    pub(crate) reason: Reason,
    /// Human-readable message.
    pub(crate) message: String,
}

impl FarmRefusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Validates `farm` against the other farms in its namespace. `neighbours` may contain the farm itself.
pub(crate) fn validate<'a>(
    farm: &TLSFarm,
    neighbours: impl Iterator<Item = &'a TLSFarm>,
) -> Result<(), FarmRefusal> {
    let name = farm.name_any();
    if name.len() > LONGEST_NAME || name.contains('.') || !name.starts_with(|c: char| c.is_ascii_lowercase())
    {
        let message = format!(
            "the name must be a DNS label of at most {LONGEST_NAME} characters that starts with a letter: Services \
             are named after it"
        );
        return Err(FarmRefusal::new(Reason::Invalid, message));
    }
    refuse_what_proxies_refuse(farm)?;
    let claims = claims_within(farm)?;
    let older =
        neighbours.filter(|other| other.name_any() != name && age_order(other, farm) == Ordering::Less);
    let mut conflicts: Vec<String> = Vec::new();
    for other in older {
        for host in &other.spec.hosts {
            let shared = host.hostnames.iter().filter_map(|hostname| {
                let ours = claims.get(hostname.to_ascii_lowercase().as_str())?;
                Some(format!(
                    "{hostname:?} of host {ours:?} is already used by host {:?} of the older farm {:?}",
                    host.name,
                    other.name_any()
                ))
            });
            conflicts.extend(shared);
        }
    }
    conflicts.sort();
    if conflicts.is_empty() {
        return Ok(());
    }
    let named = first_of(&conflicts, MOST_NAMED, "; ");
    Err(FarmRefusal::new(Reason::HostnameConflict, named))
}

/// Maximum number of conflicts listed in a message.
const MOST_NAMED: usize = 4;

/// Proxies refuse a configuration with such a path or name as a whole. The schema refuses them too, but not in an object
/// that is older than its rule.
fn refuse_what_proxies_refuse(farm: &TLSFarm) -> Result<(), FarmRefusal> {
    for host in &farm.spec.hosts {
        if let Some(route) = host.routes.iter().find(|route| route.path.contains('*')) {
            let message = format!(
                "path {:?} of host {:?} has a wildcard: a path is a prefix, so write / for /*, and /shop for /shop/*",
                route.path, host.name
            );
            return Err(FarmRefusal::new(Reason::Invalid, message));
        }
        // Their case is not compared here: names that differ in case only conflict.
        let invalid = |name: &&String| !is_hostname(&name.to_ascii_lowercase());
        if let Some(name) = host.hostnames.iter().find(invalid) {
            let message = format!("host name {name:?} of host {:?} {HOSTNAME_RULE}", host.name);
            return Err(FarmRefusal::new(Reason::Invalid, message));
        }
    }
    Ok(())
}

/// Maps the farm's host names to their hosts. Fails if two hosts have the same host name.
fn claims_within(farm: &TLSFarm) -> Result<BTreeMap<String, &str>, FarmRefusal> {
    let mut claims = BTreeMap::new();
    for host in &farm.spec.hosts {
        for hostname in &host.hostnames {
            if let Some(first) = claims.insert(hostname.to_ascii_lowercase(), host.name.as_str()) {
                let message = format!(
                    "{hostname:?} is used by host {first:?} and by host {:?}",
                    host.name
                );
                return Err(FarmRefusal::new(Reason::HostnameConflict, message));
            }
        }
    }
    Ok(claims)
}

/// Orders farms by age; farms created in the same second are ordered by name.
fn age_order(one: &TLSFarm, other: &TLSFarm) -> Ordering {
    let key = |farm: &TLSFarm| (farm.creation_timestamp().map(|time| time.0), farm.name_any());
    key(one).cmp(&key(other))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn farm(name: &str, created: &str, hosts: &[(&str, &str)]) -> TLSFarm {
        let hosts: Vec<_> = hosts
            .iter()
            .map(|(host, hostname)| {
                json!({
                    "name": host,
                    "hostnames": [hostname],
                    "tls": {"certificateRefs": [{"name": "tls"}]},
                    "routes": [{"path": "/", "backend": {"service": "web", "port": 80}}],
                })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": name, "namespace": "web", "creationTimestamp": created},
            "spec": {"hosts": hosts},
        }))
        .expect("a farm")
    }

    #[test]
    fn two_hosts_of_one_farm_cannot_share_a_name() {
        let twice = farm(
            "shop",
            "2026-01-01T00:00:00Z",
            &[("a", "x.example.com"), ("b", "x.example.com")],
        );
        let refusal = validate(&twice, [].into_iter()).expect_err("refused");
        assert_eq!(refusal.reason, Reason::HostnameConflict);
        for word in ["x.example.com", "\"a\"", "\"b\""] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }

    #[test]
    fn the_older_farm_keeps_the_name_and_the_younger_is_told() {
        let older = farm("zoo", "2026-01-01T00:00:00Z", &[("a", "x.example.com")]);
        let younger = farm("alpha", "2026-01-02T00:00:00Z", &[("b", "x.example.com")]);
        let all = [older.clone(), younger.clone()];
        assert_eq!(validate(&older, all.iter()), Ok(()));
        let refusal = validate(&younger, all.iter()).expect_err("refused");
        for word in ["x.example.com", "\"b\"", "\"a\"", "\"zoo\""] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }

    #[test]
    fn farms_of_the_same_second_are_ordered_by_name_and_never_both_refused() {
        let second = "2026-01-01T00:00:00Z";
        let all = [
            farm("b", second, &[("a", "x.example.com")]),
            farm("a", second, &[("a", "x.example.com")]),
        ];
        assert!(validate(&all[0], all.iter()).is_err());
        assert_eq!(validate(&all[1], all.iter()), Ok(()));
    }

    #[test]
    fn a_wildcard_and_an_exact_name_do_not_conflict() {
        let hosts = [("a", "*.example.com"), ("b", "x.example.com")];
        assert_eq!(
            validate(&farm("shop", "2026-01-01T00:00:00Z", &hosts), [].into_iter()),
            Ok(())
        );
    }

    #[test]
    fn names_that_no_service_could_carry_are_refused() {
        let created = "2026-01-01T00:00:00Z";
        for name in [&"x".repeat(50), "1shop", "my.shop"] {
            let refusal = validate(&farm(name, created, &[("a", "x.example.com")]), [].into_iter());
            assert_eq!(refusal.expect_err("refused").reason, Reason::Invalid, "{name}");
        }
    }

    #[test]
    fn a_path_with_a_wildcard_is_refused_and_the_right_form_is_named() {
        let mut shop = farm("shop", "2026-01-01T00:00:00Z", &[("a", "x.example.com")]);
        shop.spec.hosts[0].routes[0].path = "/shop/*".into();
        let refusal = validate(&shop, [].into_iter()).expect_err("refused");
        assert_eq!(refusal.reason, Reason::Invalid);
        for word in ["/shop/*", "\"a\"", "prefix"] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
    }

    #[test]
    fn a_host_name_that_proxies_would_refuse_is_refused() {
        for name in ["10.0.0.1", "*.10.0.0.1", "1", "shop.example.com."] {
            let shop = farm("shop", "2026-01-01T00:00:00Z", &[("a", name)]);
            let refusal = validate(&shop, [].into_iter()).expect_err(name);
            assert_eq!(refusal.reason, Reason::Invalid, "{name}");
            assert!(refusal.message.contains(name), "{}", refusal.message);
        }
    }

    #[test]
    fn the_longest_name_that_a_service_could_carry_is_accepted() {
        let (created, hosts) = ("2026-01-01T00:00:00Z", [("a", "x.example.com")]);
        let verdict = |name: &str| validate(&farm(name, created, &hosts), [].into_iter());
        let name = "x".repeat(49);
        assert_eq!(crate::operator::names::id(&name).metrics_name().len(), 63);
        assert_eq!(verdict(&name), Ok(()));
        let refusal = verdict(&(name + "x")).expect_err("refused");
        assert_eq!(refusal.reason, Reason::Invalid);
        assert!(refusal.message.contains("49"), "{}", refusal.message);
    }

    #[test]
    fn host_names_are_compared_without_regard_to_case() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let twice = farm("shop", old, &[("a", "x.example.com"), ("b", "X.Example.com")]);
        assert!(validate(&twice, [].into_iter()).is_err());
        let older = farm("older", old, &[("a", "X.EXAMPLE.com")]);
        let younger = farm("shop", new, &[("b", "x.example.COM")]);
        assert!(validate(&younger, [older].iter()).is_err());
    }

    #[test]
    fn a_farm_does_not_conflict_with_an_older_state_of_itself() {
        let seen_before = farm("shop", "2026-01-01T00:00:00Z", &[("a", "x.example.com")]);
        let now = farm("shop", "2026-01-02T00:00:00Z", &[("b", "x.example.com")]);
        assert_eq!(validate(&now, [seen_before].iter()), Ok(()));
    }

    #[test]
    fn a_refusal_names_four_conflicts_and_counts_the_rest() {
        let names: Vec<(String, String)> = (0..6)
            .map(|n| (format!("host{n}"), format!("{n}.example.com")))
            .collect();
        let refusal = |count: usize| {
            let hosts: Vec<_> = names[..count]
                .iter()
                .map(|(host, name)| (host.as_str(), name.as_str()))
                .collect();
            let older = farm("older", "2026-01-01T00:00:00Z", &hosts);
            let younger = farm("shop", "2026-01-02T00:00:00Z", &hosts);
            validate(&younger, [older].iter()).expect_err("refused").message
        };
        assert_eq!(refusal(1).matches("already").count(), 1);
        let four = refusal(4);
        assert_eq!(
            (four.matches("already").count(), four.contains("more")),
            (4, false),
            "{four}"
        );
        let six = refusal(6);
        assert_eq!(six.matches("already").count(), 4, "{six}");
        assert!(six.ends_with("; and 2 more"), "{six}");
    }
}
