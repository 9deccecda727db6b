//! The whole of [`serve`](super::serve) against real backends on loopback.

mod draining;
mod forwarding;
mod headers;
mod http2;
mod limits;
mod refusals;
mod retries;
mod stricter;
mod support;
mod upgrades;
