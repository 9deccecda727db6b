//! Client sockets: accepting and closing connections.

pub(crate) mod linger;
pub(crate) mod sockets;
