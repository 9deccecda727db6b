//! Redis's protocol, as far as a cache needs it: RESP2, and RESP3 once a client has asked for it with `HELLO 3`.
//!
//! Everything is bounded before it is believed: a length is compared with its limit as soon as it has been read, so
//! that nothing is ever allocated because somebody announced it.

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

/// Longest value that is stored.
pub const LONGEST_VALUE: usize = 4096;

/// Longest key.
pub const LONGEST_KEY: usize = 512;

/// Most arguments of one request, the command's name among them.
pub const MOST_ARGUMENTS: usize = 64;

/// Longest argument that is read at all, so that a value that is too long gets an answer and not a closed connection.
pub const LONGEST_ARGUMENT: usize = 64 * 1024;

/// Longest request: the longest argument, or many keys.
pub const LONGEST_REQUEST: usize = LONGEST_ARGUMENT + 8 * 1024;

/// Longest request that is written without lengths, on a line of its own.
pub const LONGEST_INLINE: usize = 4096;

/// What breaks the protocol so that nothing that follows on the connection has a meaning. The texts of the first are
/// Redis's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// An array's length is no number or over its limit.
    #[error("Protocol error: invalid multibulk length")]
    ArrayLength,
    /// A string's length is no number or over its limit.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An array holds something other than strings, such as another array.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    NotBulk(u8),
    /// A line is too long.
    #[error("Protocol error: too big inline request")]
    LongLine,
    /// A request on a line of its own has quotes, which only people at a terminal write.
    #[error("Protocol error: quotes are not supported in inline requests")]
    Quotes,
    /// A string or a line does not end where it should.
    #[error("Protocol error: expected end of line")]
    LineEnd,
    /// A request is longer than any that means something.
    #[error("Protocol error: too big request")]
    LongRequest,
    /// A reply is of no kind that our requests have.
    #[error("unexpected reply type '{}'", .0.escape_ascii())]
    ReplyType(u8),
    /// A reply's number or text is not one.
    #[error("malformed reply")]
    ReplyContent,
}
