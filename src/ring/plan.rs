//! Decides what the ring needs, as a pure function. The operator executes the plan.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{KeyId, MAX_KEYS, Ring, RotationPolicy};

/// Tolerated difference between the clocks of two operators: a ring may be dated this far in the future.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What a proxy has reported about its ring.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    /// Name of the proxy's pod.
    pub proxy: String,
    /// The newest generation; None if the proxy has not reported yet.
    pub generation: Option<u64>,
    /// Ids of the keys that it can decrypt with; None if it has reported none, as earlier releases
    /// do.
    pub opens: Option<BTreeSet<KeyId>>,
}

impl Acknowledgement {
    /// Whether the proxy can decrypt with `key` of `ring`. A proxy that reports no keys is believed to have those of the
    /// generation that it reports.
    pub fn opens(&self, key: KeyId, ring: &Ring) -> bool {
        match &self.opens {
            Some(ids) => ids.contains(&key),
            None => self
                .generation
                .is_some_and(|generation| generation >= ring.generation),
        }
    }
}

/// A requested rotation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RotationRequest {
    /// Value of the farm's `tlsfarm.dev/rotate` annotation. Each new value causes one rotation.
    pub value: String,
    /// When the operator first saw it.
    pub seen_at: Timestamp,
}

/// The next action on the ring.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Plan {
    /// Nothing to do before `until`.
    Keep {
        /// When to plan again.
        until: Timestamp,
    },
    /// A rotation is due, but these proxies have not reported the next key yet.
    Wait {
        /// Names of the pods that have not acknowledged.
        missing: Vec<String>,
        /// When the rotation continues without them.
        until: Timestamp,
    },
    /// A rotation is due, but the ring is full of keys that valid tickets may need.
    Full {
        /// When the oldest key expires.
        until: Timestamp,
    },
    /// Write the ring without its expired keys.
    Expire,
    /// Write the ring with a fresh next key, because the current one expires before every proxy could use it.
    Renew,
    /// Write the ring with times that are not in the future.
    Clamp,
    /// Rotate.
    Rotate {
        /// The request that this rotation executes.
        request: Option<RotationRequest>,
        /// Proxies that have not reported the next key and are no longer waited for. New tickets of the other proxies
        /// cause full handshakes there.
        late: Vec<String>,
    },
}

/// Decides what the ring needs.
///
/// `proxies` are the proxies that may serve clients: those that are ready, and those that may become ready.
pub fn plan(
    ring: &Ring,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Plan {
    if ring.rotated_at.max(ring.changed_at) > now + CLOCK_SKEW {
        return Plan::Clamp;
    }
    // Proxies drop a key that has expired, whatever generation they report. Late ones must be able to use it for as long
    // as a rotation may be on its way to them.
    if ring.next.open_until <= now + policy.max_unacked_wait {
        return Plan::Renew;
    }
    // The ring itself remembers which request it answered, so an operator that restarts does not rotate again.
    let request = request.filter(|request| ring.handled_request.as_ref() != Some(&request.value));
    let scheduled = ring.rotated_at + policy.rotation_interval;
    let due = request.map_or(scheduled, |request| request.seen_at.min(scheduled));
    // Without a key that encrypts, no tickets are issued: the next key is promoted as soon as it is confirmed.
    let due = if ring.may_seal(now) {
        due
    } else {
        due.min(ring.changed_at)
    };
    let expiry = ring.previous.iter().map(|key| key.open_until).min();
    // A rotation removes expired keys anyway, so they are written separately only while no rotation is due.
    if now < due {
        return match expiry {
            Some(expiry) if expiry <= now => Plan::Expire,
            Some(expiry) => Plan::Keep {
                until: expiry.min(due),
            },
            None => Plan::Keep { until: due },
        };
    }

    let missing: Vec<String> = proxies
        .iter()
        .filter(|proxy| !proxy.opens(ring.next.id, ring))
        .map(|proxy| proxy.proxy.clone())
        .collect();
    // Also counted from the last write: after operator downtime `due` is long past, and proxies still need their time.
    let patience_ends = due.max(ring.changed_at) + policy.max_unacked_wait;
    if !missing.is_empty() && now < patience_ends {
        return Plan::Wait {
            missing,
            until: patience_ends,
        };
    }
    let still_needed = ring.previous.iter().filter(|key| now < key.open_until).count();
    match expiry {
        // The rotation adds a previous key beside next and primary.
        Some(until) if still_needed + 3 > MAX_KEYS => Plan::Full { until },
        _ => Plan::Rotate {
            request: request.cloned(),
            late: missing,
        },
    }
}

#[cfg(test)]
mod tests;
