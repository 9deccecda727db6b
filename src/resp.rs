//! The subset of the Redis protocol that a cache needs: RESP2, and RESP3 after `HELLO 3`.
//!
//! Every length is checked against its limit as soon as it has been read, so that no memory is allocated for an
//! announced length.

pub mod breaker;
mod buffer;
pub mod client;
mod cursor;
mod reply;
mod request;

pub(crate) use self::buffer::WipedBuffer;
pub use self::reply::{Protocol, Reply, ReplyDecoder};
pub(crate) use self::request::encoded_request;
pub use self::request::{Request, RequestDecoder, encode_request};

/// Maximum length of a stored value, in bytes.
pub const LONGEST_VALUE: usize = 4096;

/// Maximum length of a key, in bytes.
pub const LONGEST_KEY: usize = 512;

/// Maximum number of arguments of a request, including the command name.
pub const MOST_ARGUMENTS: usize = 64;

/// Maximum length of an argument that is read, in bytes. Larger than the limit of values, so that a value that is too
/// long gets an error reply instead of a closed connection.
pub const LONGEST_ARGUMENT: usize = 64 * 1024;

/// Maximum length of a request, in bytes.
pub const LONGEST_REQUEST: usize = LONGEST_ARGUMENT + 8 * 1024;

/// Maximum length of an inline request, in bytes.
pub const LONGEST_INLINE: usize = 4096;

/// A protocol error, after which the connection must be closed. The texts for requests are those of Redis.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// The length of an array is not a number or exceeds the limit.
    #[error("Protocol error: invalid multibulk length")]
    ArrayLength,
    /// The length of a string is not a number or exceeds the limit.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An array contains an element that is not a string.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    NotBulk(u8),
    /// A line exceeds the maximum length.
    #[error("Protocol error: too big inline request")]
    LongLine,
    /// An inline request contains quotes, which are not supported.
    #[error("Protocol error: quotes are not supported in inline requests")]
    Quotes,
    /// The line end after a string or a line is missing.
    #[error("Protocol error: expected end of line")]
    LineEnd,
    /// A request exceeds the maximum length.
    #[error("Protocol error: too big request")]
    LongRequest,
    /// The type of a reply is not expected for any request.
    #[error("unexpected reply type '{}'", .0.escape_ascii())]
    ReplyType(u8),
    /// The content of a reply is malformed.
    #[error("malformed reply")]
    ReplyContent,
}
