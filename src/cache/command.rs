//! Parses requests into typed commands. Error texts are those of Redis, which clients recognize.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::resp::{LONGEST_KEY, LONGEST_VALUE, Protocol, Request};

/// Maximum lifetime of an entry: that of a TLS 1.3 session (7 days).
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// A parsed command.
#[derive(Clone, Copy)]
pub(crate) enum Command<'a> {
    /// A command on one key
    One(OneKey<'a>),
    /// `DEL key…`, `UNLINK key…`
    Delete(Keys<'a>),
    /// `EXISTS key…`
    Exists(Keys<'a>),
    /// `QUIT`
    Quit,
    /// A command that accesses no entry
    Other(Other<'a>),
}

/// Commands on one key.
#[derive(Clone, Copy)]
pub(crate) enum OneKey<'a> {
    /// `GET key`
    Get(&'a [u8]),
    /// `GETDEL key`
    Take(&'a [u8]),
    /// `SET key value [EX seconds | PX milliseconds] [NX]`, `SETEX key seconds value`
    Set(Set<'a>),
    /// `EXPIRE key seconds`; a lifetime of zero or less deletes the entry
    Expire(&'a [u8], Duration),
    /// `TTL key`
    TimeLeft(&'a [u8]),
}

/// Commands on the connection or the process.
#[derive(Clone, Copy)]
pub(crate) enum Other<'a> {
    /// `PING [text]`
    Ping(Option<&'a [u8]>),
    /// `ECHO text`
    Echo(&'a [u8]),
    /// `SELECT 0`
    Select,
    /// `AUTH [user] password`
    Auth(Credentials<'a>),
    /// `HELLO [2|3 [AUTH user password] [SETNAME name]]`
    Hello(Option<Protocol>, Option<Credentials<'a>>),
    /// `INFO [section…]`
    Info(Keys<'a>),
    /// `CLIENT ID`
    ClientId,
    /// `CLIENT SETNAME name`, `CLIENT SETINFO attribute value`: accepted and ignored
    ClientNote,
    /// `COMMAND`, `COMMAND DOCS`
    CommandList,
    /// `CONFIG GET parameter…`
    ConfigGet(Keys<'a>),
}

/// The arguments of `SET` or `SETEX`.
#[derive(Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// None: the configured default lifetime.
    pub(crate) lifetime: Option<Duration>,
    /// Whether an existing value is kept (`NX`).
    pub(crate) only_new: bool,
}

/// User name and password of a client.
#[derive(Clone, Copy)]
pub(crate) struct Credentials<'a> {
    pub(crate) user: Option<&'a [u8]>,
    pub(crate) password: &'a [u8],
}

/// The remaining arguments of a request: keys or names.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    request: Request<'a>,
    from: usize,
}

/// Why a request was rejected. The connection stays open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("ERR unknown command")]
    Unknown,
    #[error("ERR unknown subcommand")]
    UnknownSubcommand,
    #[error("ERR wrong number of arguments for this command")]
    Arity,
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("ERR invalid expire time in this command")]
    Lifetime,
    #[error("ERR the key is longer than {LONGEST_KEY} bytes")]
    LongKey,
    #[error("ERR the value is longer than {LONGEST_VALUE} bytes")]
    LongValue,
    #[error("ERR DB index is out of range")]
    Database,
    #[error("NOPROTO unsupported protocol version")]
    Protocol,
}

/// Command names for the metric label `command`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    Get,
    Take,
    Set,
    Delete,
    Exists,
    Expire,
    TimeLeft,
    /// Any command that accesses no entry.
    Other,
}

impl<'a> Command<'a> {
    /// Parses a request. Fails if the command is unknown or its arguments are invalid.
    pub(crate) fn parse(request: Request<'a>) -> Result<Self, CommandError> {
        let name = request.get(0).and_then(Word::of).ok_or(CommandError::Unknown)?;
        let arguments = Arguments(request);
        let other = match name.as_bytes() {
            b"GET" => return Ok(Self::One(OneKey::Get(arguments.only_key()?))),
            b"GETDEL" => return Ok(Self::One(OneKey::Take(arguments.only_key()?))),
            b"SET" => return Ok(Self::One(OneKey::Set(arguments.set()?))),
            b"SETEX" => return Ok(Self::One(OneKey::Set(arguments.setex()?))),
            b"EXPIRE" => return Ok(Self::One(arguments.expire()?)),
            b"TTL" => return Ok(Self::One(OneKey::TimeLeft(arguments.only_key()?))),
            b"DEL" | b"UNLINK" => return Ok(Self::Delete(arguments.keys()?)),
            b"EXISTS" => return Ok(Self::Exists(arguments.keys()?)),
            b"QUIT" => return Ok(Self::Quit),
            b"PING" => arguments.count(1..=2).map(|()| Other::Ping(request.get(1)))?,
            b"ECHO" => arguments.count(2..=2).and(arguments.at(1)).map(Other::Echo)?,
            b"SELECT" => arguments.select()?,
            b"AUTH" => arguments.auth()?,
            b"HELLO" => arguments.hello()?,
            b"INFO" => Other::Info(arguments.from(1)),
            b"CLIENT" => arguments.client()?,
            b"COMMAND" => Other::CommandList,
            b"CONFIG" => arguments.config()?,
            _ => return Err(CommandError::Unknown),
        };
        Ok(Self::Other(other))
    }

    /// Value of the metric label.
    pub(crate) fn verb(&self) -> Verb {
        match self {
            Self::One(OneKey::Get(_)) => Verb::Get,
            Self::One(OneKey::Take(_)) => Verb::Take,
            Self::One(OneKey::Set(_)) => Verb::Set,
            Self::One(OneKey::Expire(..)) => Verb::Expire,
            Self::One(OneKey::TimeLeft(_)) => Verb::TimeLeft,
            Self::Delete(_) => Verb::Delete,
            Self::Exists(_) => Verb::Exists,
            Self::Quit | Self::Other(_) => Verb::Other,
        }
    }
}

impl<'a> OneKey<'a> {
    /// The key that the command accesses.
    pub(crate) fn key(&self) -> &'a [u8] {
        match *self {
            Self::Get(key) | Self::Take(key) | Self::Expire(key, _) | Self::TimeLeft(key) => key,
            Self::Set(set) => set.key,
        }
    }
}

impl<'a> Keys<'a> {
    /// Iterates over the keys.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        (self.from..self.request.len()).filter_map(move |index| self.request.get(index))
    }
}

/// Accessors for the arguments of a request.
#[derive(Clone, Copy)]
struct Arguments<'a>(Request<'a>);

impl<'a> Arguments<'a> {
    fn count(self, allowed: RangeInclusive<usize>) -> Result<(), CommandError> {
        match allowed.contains(&self.0.len()) {
            true => Ok(()),
            false => Err(CommandError::Arity),
        }
    }

    fn at(self, index: usize) -> Result<&'a [u8], CommandError> {
        self.0.get(index).ok_or(CommandError::Arity)
    }

    fn key(self, index: usize) -> Result<&'a [u8], CommandError> {
        let key = self.at(index)?;
        match key.len() <= LONGEST_KEY {
            true => Ok(key),
            false => Err(CommandError::LongKey),
        }
    }

    fn only_key(self) -> Result<&'a [u8], CommandError> {
        self.count(2..=2)?;
        self.key(1)
    }

    fn keys(self) -> Result<Keys<'a>, CommandError> {
        self.count(2..=usize::MAX)?;
        (1..self.0.len()).try_for_each(|index| self.key(index).map(drop))?;
        Ok(self.from(1))
    }

    fn from(self, from: usize) -> Keys<'a> {
        let request = self.0;
        Keys { request, from }
    }

    fn integer(self, index: usize) -> Result<i64, CommandError> {
        let text = std::str::from_utf8(self.at(index)?);
        text.ok()
            .and_then(|text| text.parse().ok())
            .ok_or(CommandError::NotInteger)
    }

    /// Parses a lifetime and limits it to [`LONGEST_LIFETIME`]. Fails if it is not positive.
    fn lifetime(self, index: usize, unit: fn(u64) -> Duration) -> Result<Duration, CommandError> {
        match u64::try_from(self.integer(index)?) {
            Ok(number) if number > 0 => Ok(unit(number).min(LONGEST_LIFETIME)),
            _ => Err(CommandError::Lifetime),
        }
    }

    fn value(self, index: usize) -> Result<&'a [u8], CommandError> {
        let value = self.at(index)?;
        match value.len() <= LONGEST_VALUE {
            true => Ok(value),
            false => Err(CommandError::LongValue),
        }
    }

    fn set(self) -> Result<Set<'a>, CommandError> {
        self.count(3..=usize::MAX)?;
        let mut set = Set {
            key: self.key(1)?,
            value: self.value(2)?,
            lifetime: None,
            only_new: false,
        };
        let mut index = 3;
        while let Some(option) = self.0.get(index) {
            let unit = match Word::of(option).as_ref().map(Word::as_bytes) {
                Some(b"NX") if !set.only_new => {
                    set.only_new = true;
                    index += 1;
                    continue;
                }
                Some(b"EX") => Duration::from_secs,
                Some(b"PX") => Duration::from_millis,
                _ => return Err(CommandError::Syntax),
            };
            if set.lifetime.is_some() || index + 1 >= self.0.len() {
                return Err(CommandError::Syntax);
            }
            set.lifetime = Some(self.lifetime(index + 1, unit)?);
            index += 2;
        }
        Ok(set)
    }

    fn setex(self) -> Result<Set<'a>, CommandError> {
        self.count(4..=4)?;
        Ok(Set {
            key: self.key(1)?,
            value: self.value(3)?,
            lifetime: Some(self.lifetime(2, Duration::from_secs)?),
            only_new: false,
        })
    }

    fn expire(self) -> Result<OneKey<'a>, CommandError> {
        self.count(3..=3)?;
        let seconds = self.integer(2)?.max(0).unsigned_abs();
        let lifetime = Duration::from_secs(seconds).min(LONGEST_LIFETIME);
        Ok(OneKey::Expire(self.key(1)?, lifetime))
    }

    fn select(self) -> Result<Other<'a>, CommandError> {
        self.count(2..=2)?;
        match self.integer(1)? {
            0 => Ok(Other::Select),
            _ => Err(CommandError::Database),
        }
    }

    fn auth(self) -> Result<Other<'a>, CommandError> {
        self.count(2..=3)?;
        let credentials = match self.0.get(2) {
            Some(_) => self.credentials(1)?,
            None => Credentials {
                user: None,
                password: self.at(1)?,
            },
        };
        Ok(Other::Auth(credentials))
    }

    fn credentials(self, index: usize) -> Result<Credentials<'a>, CommandError> {
        Ok(Credentials {
            user: Some(self.at(index)?),
            password: self.at(index + 1)?,
        })
    }

    fn hello(self) -> Result<Other<'a>, CommandError> {
        let protocol = match self.0.len() {
            0 | 1 => return Ok(Other::Hello(None, None)),
            _ => match self.integer(1).map_err(|_| CommandError::Protocol)? {
                2 => Protocol::Resp2,
                3 => Protocol::Resp3,
                _ => return Err(CommandError::Protocol),
            },
        };
        let mut credentials = None;
        let mut index = 2;
        while let Some(option) = self.0.get(index) {
            match Word::of(option).as_ref().map(Word::as_bytes) {
                Some(b"AUTH") if index + 2 < self.0.len() => {
                    credentials = Some(self.credentials(index + 1)?);
                    index += 3;
                }
                Some(b"SETNAME") if index + 1 < self.0.len() => index += 2,
                _ => return Err(CommandError::Syntax),
            }
        }
        Ok(Other::Hello(Some(protocol), credentials))
    }

    fn client(self) -> Result<Other<'a>, CommandError> {
        let (command, length) = match self.subcommand()?.as_bytes() {
            b"ID" => (Other::ClientId, 2),
            b"SETNAME" => (Other::ClientNote, 3),
            b"SETINFO" => (Other::ClientNote, 4),
            _ => return Err(CommandError::UnknownSubcommand),
        };
        self.count(length..=length).map(|()| command)
    }

    fn config(self) -> Result<Other<'a>, CommandError> {
        match self.subcommand()?.as_bytes() {
            b"GET" => self
                .count(3..=usize::MAX)
                .map(|()| Other::ConfigGet(self.from(2))),
            _ => Err(CommandError::UnknownSubcommand),
        }
    }

    fn subcommand(self) -> Result<Word, CommandError> {
        Word::of(self.at(1)?).ok_or(CommandError::UnknownSubcommand)
    }
}

/// A short keyword in upper case.
struct Word {
    bytes: [u8; 8],
    length: usize,
}

impl Word {
    /// None if it is longer than any keyword.
    fn of(word: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..word.len())?.copy_from_slice(word);
        bytes.make_ascii_uppercase();
        let length = word.len();
        Some(Self { bytes, length })
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
