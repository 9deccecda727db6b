//! What a status is made from.

use jiff::{Timestamp, Unit};

use crate::api::{BackendRef, TLSFarm};
use crate::operator::cluster::apply::Live;
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::fleet::observe::Observed;
use crate::operator::names::FarmId;
use crate::ring::{Plan, Ring, RotationPolicy};

/// What one pass saw.
pub(crate) struct StatusInputs<'a> {
    pub(crate) farm: &'a TLSFarm,
    pub(crate) id: &'a FarmId,
    /// Why the farm is not accepted.
    pub(crate) refusal: Option<&'a FarmRefusal>,
    /// Backends whose Service or port does not exist.
    pub(crate) missing_backends: &'a [BackendRef],
    pub(crate) live: &'a Live,
    /// What failed in this pass, though the spec is not to blame.
    pub(crate) problem: Option<&'a str>,
    pub(crate) proxies: &'a [Observed],
    pub(crate) ring: Option<&'a Ring>,
    /// What the ring waits for.
    pub(crate) plan: Option<&'a Plan>,
    pub(crate) policy: &'a RotationPolicy,
    /// What was wrong with the ring that the current one replaces.
    pub(crate) repaired: Option<&'a str>,
    /// When the certificates of the caches are next renewed.
    pub(crate) certificate_renewal: Option<Timestamp>,
    pub(crate) now: Timestamp,
}

impl StatusInputs<'_> {
    pub(super) fn ready(&self) -> impl Iterator<Item = &Observed> {
        self.proxies.iter().filter(|one| one.proxy.is_ready())
    }

    pub(super) fn ready_count(&self) -> i32 {
        count(self.ready())
    }

    pub(super) fn acknowledged_count(&self, ring: &Ring) -> i32 {
        count(
            self.ready()
                .filter(|one| one.memory.has_acknowledged(ring.generation)),
        )
    }
}

/// The API writes times in whole seconds.
pub(super) fn whole_second(time: Timestamp) -> Timestamp {
    time.round(
        jiff::TimestampRound::new()
            .smallest(Unit::Second)
            .mode(jiff::RoundMode::Trunc),
    )
    .unwrap_or(time)
}

pub(super) fn count<'a>(proxies: impl Iterator<Item = &'a Observed>) -> i32 {
    i32::try_from(proxies.count()).unwrap_or(i32::MAX)
}
