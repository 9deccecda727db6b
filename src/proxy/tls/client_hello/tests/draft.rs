//! ClientHellos of any shape, each with what the reader must make of it.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;

/// A ClientHello as it is put together.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    session_id: Vec<u8>,
    /// None for a hello that ends before them.
    extensions: Option<Vec<Extension>>,
    /// Most bytes of the message in one record.
    record: usize,
    /// What comes behind it in a record of its own.
    after: Option<u8>,
    fault: Fault,
}

#[derive(Clone, Debug)]
enum Extension {
    /// Names, of which there should be but one.
    Names(Vec<Vec<u8>>),
    /// A name of a kind that nobody has defined.
    NameOfNoHost(Vec<u8>),
    ExtendedMasterSecret,
    Ticket(Vec<u8>),
    Identities(Vec<Vec<u8>>),
    Versions(Vec<u16>),
    SignatureSchemes,
    Unknown(u16, Vec<u8>),
    Malformed(&'static Malformed),
}

/// An extension whose content cannot be read.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) what: &'static str,
    kind: u16,
    content: &'static [u8],
}

pub(super) const MALFORMED: [Malformed; 18] = {
    use extension::{PRE_SHARED_KEY, SERVER_NAME, SUPPORTED_VERSIONS};
    const fn of(what: &'static str, kind: u16, content: &'static [u8]) -> Malformed {
        Malformed { what, kind, content }
    }
    [
        of("no list of names", SERVER_NAME, &[]),
        of("half a length of the list of names", SERVER_NAME, &[0]),
        of("an empty list of names", SERVER_NAME, &[0, 0]),
        of("a list of names that is cut", SERVER_NAME, &[0, 5, 0, 0, 1]),
        of("a name without a length", SERVER_NAME, &[0, 2, 0, 0]),
        of(
            "a name that is longer than its list",
            SERVER_NAME,
            &[0, 4, 0, 0, 2, b'a'],
        ),
        of("an empty name", SERVER_NAME, &[0, 3, 0, 0, 0]),
        of("a name that is a dot", SERVER_NAME, &[0, 4, 0, 0, 1, b'.']),
        of("a name that is not UTF-8", SERVER_NAME, &[0, 4, 0, 0, 1, 0xff]),
        of(
            "a name that is not ASCII",
            SERVER_NAME,
            "\0\u{5}\0\0\u{2}é".as_bytes(),
        ),
        of("no list of identities", PRE_SHARED_KEY, &[]),
        of(
            "a list of identities that is cut",
            PRE_SHARED_KEY,
            &[0, 9, 0, 1, 7, 0, 0, 0],
        ),
        of(
            "an identity that is longer than the list",
            PRE_SHARED_KEY,
            &[0, 7, 0, 9, 7, 0, 0, 0, 0],
        ),
        of("an identity without an age", PRE_SHARED_KEY, &[0, 3, 0, 1, 7]),
        of(
            "an identity with half an age",
            PRE_SHARED_KEY,
            &[0, 5, 0, 1, 7, 0, 0],
        ),
        of("no list of versions", SUPPORTED_VERSIONS, &[]),
        of("a list of versions that is cut", SUPPORTED_VERSIONS, &[4, 3, 4]),
        of("half a version", SUPPORTED_VERSIONS, &[3, 3, 4, 3]),
    ]
};

/// What is wrong with the whole.
#[derive(Clone, Debug)]
enum Fault {
    None,
    RecordKind(u8),
    RecordVersion(u8),
    EmptyRecord,
    LongRecord,
    MessageKind(u8),
    LongMessage,
    /// The connection ends here.
    CutWire(Index),
    /// The message ends here, before its extensions.
    CutBody(Index),
    /// There are so many bytes too few in it for its extensions.
    CutExtensions(u8),
    /// So many bytes behind the last extension, within the block.
    SpareBytes(u8),
    /// The last extension is longer than the block.
    LongExtension,
}

/// Where the message's body has its extensions: after version, random, session id, a cipher suite and a compression.
const BEFORE_SESSION_ID: usize = 2 + 32;
const SUITES_AND_COMPRESSION: [u8; 6] = [0, 2, 0x13, 1, 1, 0];

impl Draft {
    /// The bytes on the wire.
    pub(super) fn wire(&self) -> Vec<u8> {
        let message = self.message();
        let mut wire: Vec<u8> = message
            .chunks(self.record)
            .flat_map(|part| [&[HANDSHAKE, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat())
            .collect();
        match self.fault {
            Fault::RecordKind(kind) => wire[0] = kind,
            Fault::RecordVersion(major) => wire[1] = major,
            Fault::EmptyRecord => wire[3..5].fill(0),
            Fault::LongRecord => wire[3..5].copy_from_slice(&(MAX_RECORD as u16 + 1).to_be_bytes()),
            _ => {}
        }
        if let Fault::CutWire(end) = self.fault {
            wire.truncate(end.index(wire.len()));
        } else if let Some(byte) = self.after {
            wire.extend([20, 3, 3, 0, 1, byte]);
        }
        wire
    }

    /// What the reader must make of it.
    pub(super) fn expected(&self) -> Progress {
        match self.fault {
            Fault::None => {}
            Fault::CutWire(_) => return Progress::Incomplete,
            _ => return Progress::Unreadable,
        }
        let mut hello = ClientHello {
            session_id: self.session_id.as_slice().try_into().ok(),
            ..ClientHello::default()
        };
        for extension in self.extensions.iter().flatten() {
            match extension {
                Extension::Names(names) => {
                    let name = String::from_utf8(names[0].clone()).expect("ASCII");
                    hello.server_name = Some(name.strip_suffix('.').unwrap_or(&name).to_lowercase());
                }
                Extension::ExtendedMasterSecret => hello.extended_master_secret = true,
                Extension::Ticket(ticket) if ticket.is_empty() => hello.ticket = Some(TicketOffer::Empty),
                Extension::Ticket(_) => hello.ticket = Some(TicketOffer::Ticket),
                Extension::Identities(names) => {
                    let looked_at = names.iter().take(2);
                    hello.single_use = looked_at
                        .filter_map(|name| name.as_slice().try_into().ok())
                        .next();
                }
                Extension::Versions(versions) => hello.offers_tls13 = versions.contains(&0x0304),
                Extension::Malformed(_) => return Progress::Unreadable,
                Extension::NameOfNoHost(_) | Extension::SignatureSchemes | Extension::Unknown(..) => {}
            }
        }
        Progress::Complete(hello)
    }

    /// What is wrong with it, in words.
    pub(super) fn fault(&self) -> &'static str {
        match self.fault {
            Fault::None => self.malformed().map_or("nothing", |malformed| malformed.what),
            Fault::RecordKind(_) => "the kind of a record",
            Fault::RecordVersion(_) => "the version of a record",
            Fault::EmptyRecord => "an empty record",
            Fault::LongRecord => "a record that is too long",
            Fault::MessageKind(_) => "the kind of the message",
            Fault::LongMessage => "a message that is too long",
            Fault::CutWire(_) => "the end of the connection",
            Fault::CutBody(_) => "a message without its middle",
            Fault::CutExtensions(_) => "extensions that are cut",
            Fault::SpareBytes(_) => "bytes behind the extensions",
            Fault::LongExtension => "an extension that is longer than the block",
        }
    }

    /// Every fault but those of extensions.
    pub(super) const FAULTS: [&str; 11] = [
        "the kind of a record",
        "the version of a record",
        "an empty record",
        "a record that is too long",
        "the kind of the message",
        "a message that is too long",
        "the end of the connection",
        "a message without its middle",
        "extensions that are cut",
        "bytes behind the extensions",
        "an extension that is longer than the block",
    ];

    fn malformed(&self) -> Option<&'static Malformed> {
        self.extensions
            .iter()
            .flatten()
            .find_map(|extension| match extension {
                Extension::Malformed(malformed) => Some(*malformed),
                _ => None,
            })
    }

    fn message(&self) -> Vec<u8> {
        let mut body = vec![3; BEFORE_SESSION_ID];
        body.push(self.session_id.len() as u8);
        body.extend_from_slice(&self.session_id);
        body.extend(SUITES_AND_COMPRESSION);
        let before_extensions = body.len();
        if let Some(extensions) = &self.extensions {
            let mut block = extensions.iter().flat_map(Extension::bytes).collect::<Vec<_>>();
            match self.fault {
                Fault::SpareBytes(spare) => block.extend(vec![0xfe; spare.into()]),
                Fault::LongExtension => block.extend([0xfe, 0xfe, 0, 2, 0]),
                _ => {}
            }
            body.extend((block.len() as u16).to_be_bytes());
            body.extend(block);
        }
        match self.fault {
            Fault::CutBody(end) => body.truncate(end.index(before_extensions)),
            // At least half of the block's length, so that something is missed.
            Fault::CutExtensions(few) => {
                let few = usize::from(few).min(body.len() - before_extensions - 1);
                body.truncate(body.len() - few);
            }
            _ => {}
        }
        let kind = match self.fault {
            Fault::MessageKind(kind) => kind,
            _ => CLIENT_HELLO,
        };
        let length = match self.fault {
            Fault::LongMessage => MAX_MESSAGE - MESSAGE_HEADER + 1,
            _ => body.len(),
        };
        let [_, length @ ..] = (length as u32).to_be_bytes();
        [&[kind], &length[..], &body].concat()
    }
}

impl Extension {
    fn kind(&self) -> u16 {
        match self {
            Self::Names(_) | Self::NameOfNoHost(_) => extension::SERVER_NAME,
            Self::ExtendedMasterSecret => extension::EXTENDED_MASTER_SECRET,
            Self::Ticket(_) => extension::SESSION_TICKET,
            Self::Identities(_) => extension::PRE_SHARED_KEY,
            Self::Versions(_) => extension::SUPPORTED_VERSIONS,
            Self::SignatureSchemes => 13,
            Self::Unknown(kind, _) => *kind,
            Self::Malformed(malformed) => malformed.kind,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let content = match self {
            Self::Names(names) => {
                let listed = names.iter().flat_map(|name| [vec![0], vector16(name)].concat());
                vector16(&listed.collect::<Vec<_>>())
            }
            Self::NameOfNoHost(name) => vector16(&[vec![7], vector16(name)].concat()),
            Self::ExtendedMasterSecret => Vec::new(),
            Self::Ticket(ticket) => ticket.clone(),
            Self::Identities(names) => {
                let listed = names
                    .iter()
                    .flat_map(|name| [vector16(name), vec![0; 4]].concat());
                let binders = names.iter().flat_map(|_| [vec![32], vec![9; 32]].concat());
                [
                    vector16(&listed.collect::<Vec<_>>()),
                    vector16(&binders.collect::<Vec<_>>()),
                ]
                .concat()
            }
            Self::Versions(versions) => {
                let listed: Vec<u8> = versions
                    .iter()
                    .flat_map(|version| version.to_be_bytes())
                    .collect();
                [vec![listed.len() as u8], listed].concat()
            }
            Self::SignatureSchemes => vector16(&[4, 3]),
            Self::Unknown(_, content) => content.clone(),
            Self::Malformed(malformed) => malformed.content.to_vec(),
        };
        [self.kind().to_be_bytes().to_vec(), vector16(&content)].concat()
    }
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes()[..], content].concat()
}

/// Hellos with nothing wrong, about half of them; the others have one fault.
pub(super) fn draft() -> BoxedStrategy<Draft> {
    draft_with(fault().boxed())
}

/// Hellos with nothing wrong.
pub(super) fn good_draft() -> BoxedStrategy<Draft> {
    draft_with(Just((None, Fault::None)).boxed())
}

fn draft_with(fault: BoxedStrategy<Faults>) -> BoxedStrategy<Draft> {
    let of_any_length = prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..=40),
        2 => prop::collection::vec(any::<u8>(), 32),
        1 => Just(Vec::new()),
    ];
    let extensions = prop_oneof![
        19 => extensions().prop_map(Some),
        1 => Just(None),
    ];
    let record = prop_oneof![2 => Just(MAX_RECORD), 1 => 1..200usize];
    let extensions = extensions.boxed();
    (
        of_any_length.boxed(),
        extensions,
        record.boxed(),
        any::<Option<u8>>().boxed(),
        fault,
    )
        .prop_map(
            |(session_id, extensions, record, after, (malformed, mut fault))| {
                let mut extensions = extensions;
                if let Some((malformed, place)) = malformed {
                    let listed = extensions.get_or_insert_default();
                    // A second extension of the same kind may go unread.
                    listed.retain(|extension| extension.kind() != malformed.kind);
                    listed.insert(place.index(listed.len() + 1), Extension::Malformed(malformed));
                }
                let about_extensions = matches!(
                    fault,
                    Fault::CutExtensions(_) | Fault::SpareBytes(_) | Fault::LongExtension
                );
                if about_extensions && extensions.is_none() {
                    fault = Fault::None;
                }
                Draft {
                    session_id,
                    extensions,
                    record,
                    after,
                    fault,
                }
            },
        )
        .boxed()
}

type Faults = (Option<(&'static Malformed, Index)>, Fault);

fn fault() -> impl Strategy<Value = Faults> {
    let whole = prop_oneof![
        any::<u8>()
            .prop_filter("a handshake", |kind| *kind != HANDSHAKE)
            .prop_map(Fault::RecordKind),
        any::<u8>()
            .prop_filter("TLS", |major| *major != 3)
            .prop_map(Fault::RecordVersion),
        Just(Fault::EmptyRecord),
        Just(Fault::LongRecord),
        any::<u8>()
            .prop_filter("a ClientHello", |kind| *kind != CLIENT_HELLO)
            .prop_map(Fault::MessageKind),
        Just(Fault::LongMessage),
        any::<Index>().prop_map(Fault::CutWire),
        any::<Index>().prop_map(Fault::CutBody),
        (1..=255u8).prop_map(Fault::CutExtensions),
        (1..4u8).prop_map(Fault::SpareBytes),
        Just(Fault::LongExtension),
    ];
    prop_oneof![
        10 => Just((None, Fault::None)),
        5 => whole.prop_map(|fault| (None, fault)),
        5 => (0..MALFORMED.len(), any::<Index>())
            .prop_map(|(number, place)| (Some((&MALFORMED[number], place)), Fault::None)),
    ]
}

/// Extensions in any order, at most one of a kind, mostly with what rustls wants to see.
fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let names = prop_oneof![
        12 => name().prop_map(|name| Extension::Names(vec![name])),
        1 => (name(), name()).prop_map(|(name, second)| Extension::Names(vec![name, second])),
        1 => name().prop_map(Extension::NameOfNoHost),
    ];
    let ticket = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 1..300)];
    let identity = prop_oneof![
        prop::collection::vec(any::<u8>(), 32),
        prop::collection::vec(any::<u8>(), 1..300)
    ];
    let version = prop_oneof![Just(0x0304), Just(0x0303), any::<u16>()];
    (
        prop::option::weighted(0.9, names),
        prop::option::of(Just(Extension::ExtendedMasterSecret)),
        prop::option::of(ticket.prop_map(Extension::Ticket)),
        prop::option::of(prop::collection::vec(version, 1..6).prop_map(Extension::Versions)),
        prop::option::weighted(0.95, Just(Extension::SignatureSchemes)),
        prop::option::of(
            (0x5000..0x5fffu16, prop::collection::vec(any::<u8>(), 0..600))
                .prop_map(|(kind, content)| Extension::Unknown(kind, content)),
        ),
        prop::option::of(prop::collection::vec(identity, 1..4).prop_map(Extension::Identities)),
        prop::bool::weighted(0.9),
    )
        .prop_flat_map(
            |(names, secret, ticket, versions, schemes, unknown, identities, last)| {
                let identities = identities.into_iter();
                let mut listed: Vec<_> = [names, secret, ticket, versions, schemes, unknown]
                    .into_iter()
                    .flatten()
                    .collect();
                // At the end, where rustls requires them, or anywhere.
                let (anywhere, at_the_end): (Vec<_>, Vec<_>) = identities.partition(|_| !last);
                listed.extend(anywhere);
                (Just(listed).prop_shuffle(), Just(at_the_end))
            },
        )
        .prop_map(|(listed, at_the_end)| [listed, at_the_end].concat())
}

/// Names of hosts, and what is none: addresses, and what looks like a name.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-zA-Z0-9]{1,8}(\\.[a-z0-9][a-z0-9-]{0,6}[a-z]){0,3}\\.?",
        1 => Just("127.0.0.1".to_string()),
        1 => Just("::1".to_string()),
        1 => "[ -~]{1,12}".prop_filter("a dot", |name| name != "."),
    ]
    .prop_map(String::into_bytes)
}
