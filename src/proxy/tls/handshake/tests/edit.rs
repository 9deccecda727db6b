//! Hellos of a real client with something changed.

pub(super) const SERVER_NAME: u16 = 0;
pub(super) const GROUPS: u16 = 10;
pub(super) const SIGNATURE_SCHEMES: u16 = 13;
pub(super) const EXTENDED_MASTER_SECRET: u16 = 23;

/// One change.
pub(super) enum Edited {
    /// All cipher suites are unknown ones.
    UnknownSuites,
    /// The version in the hello itself.
    Version(u16),
    /// The extension is not there.
    Without(u16),
    /// The extension has this content.
    With(u16, Vec<u8>),
    /// An empty extension comes twice.
    Twice(u16),
}

/// A hello in one record, changed.
pub(super) fn edited(wire: &[u8], edits: &[Edited]) -> Vec<u8> {
    let (record, body) = wire.split_at(5 + 4);
    let mut head = body[..34].to_vec();
    let id = 34 + 1 + usize::from(body[34]);
    let suites = id + 2 + usize::from(u16::from_be_bytes([body[id], body[id + 1]]));
    let compression = suites + 1 + usize::from(body[suites]);
    let mut suite_list = body[id..suites].to_vec();
    let mut extensions = extensions(&body[compression + 2..]);
    for edit in edits {
        match edit {
            // Reserved by RFC 8701.
            Edited::UnknownSuites => suite_list[2..].fill(0x0a),
            Edited::Version(version) => head[..2].copy_from_slice(&version.to_be_bytes()),
            Edited::Without(kind) => extensions.retain(|(other, _)| other != kind),
            Edited::With(kind, content) => {
                extensions.retain(|(other, _)| other != kind);
                extensions.insert(0, (*kind, content.clone()));
            }
            Edited::Twice(kind) => {
                extensions.insert(0, (*kind, Vec::new()));
                extensions.insert(0, (*kind, Vec::new()));
            }
        }
    }
    let listed: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content)| {
            let length = content.len() as u16;
            [&kind.to_be_bytes()[..], &length.to_be_bytes(), content].concat()
        })
        .collect();
    let body = [
        &head,
        &body[34..id],
        &suite_list,
        &body[suites..compression],
        &(listed.len() as u16).to_be_bytes(),
        &listed,
    ]
    .concat();
    let [_, length @ ..] = (body.len() as u32).to_be_bytes();
    let message = [&[record[5]], &length[..], &body].concat();
    [&record[..3], &(message.len() as u16).to_be_bytes(), &message].concat()
}

fn extensions(mut block: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut listed = Vec::new();
    while let [high, low, long, length, rest @ ..] = block {
        let (content, rest) = rest.split_at(usize::from(u16::from_be_bytes([*long, *length])));
        listed.push((u16::from_be_bytes([*high, *low]), content.to_vec()));
        block = rest;
    }
    listed
}
