//! HTTP/1 connections of clients; requests are checked before hyper parses them.

// Public for the fuzz targets.
pub(crate) mod connection;
pub mod framing;
pub(crate) mod guard;
pub(crate) mod heads;
pub(crate) mod tunnel;
pub(crate) mod upgrade;
