//! Decides what the ring needs, as a pure function. The operator executes the plan.

use jiff::Timestamp;

use super::{MAX_KEYS, Ring, RotationPolicy};

/// The newest ring generation that a proxy has acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    /// Name of the proxy's pod.
    pub proxy: String,
    /// The generation; None if the proxy has not reported yet.
    pub generation: Option<u64>,
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
    /// A rotation is due, but these proxies have not acknowledged the current generation yet.
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
    /// Rotate.
    Rotate {
        /// The request that this rotation executes.
        request: Option<RotationRequest>,
        /// Proxies that have not acknowledged the current generation and are no longer waited for. New tickets of the
        /// other proxies cause full handshakes there.
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
    // The ring itself remembers which request it answered, so an operator that restarts does not rotate again.
    let request = request.filter(|request| ring.handled_request.as_ref() != Some(&request.value));
    let scheduled = ring.rotated_at + policy.rotation_interval;
    let due = request.map_or(scheduled, |request| request.seen_at.min(scheduled));
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
        .filter(|proxy| {
            proxy
                .generation
                .is_none_or(|generation| generation < ring.generation)
        })
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
