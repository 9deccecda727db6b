//! Sockets of clients: how a connection comes in and how it is closed.

pub(crate) mod linger;
pub(crate) mod sockets;
