//! HTTP/1.1 of clients, checked before hyper parses it.

// Public for the fuzz targets.
pub(crate) mod connection;
pub mod framing;
pub(crate) mod guard;
pub(crate) mod heads;
pub(crate) mod tunnel;
pub(crate) mod upgrade;
