//! The handshake: greeting, options, and the choice of an export.

use std::io::{Read, Write};

use super::stream::{Stream, connect};
use super::{be32, be64, option};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;

/// What to ask for in a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The export; `None` for the URI's.
    pub export: Option<&'a str>,
    /// Ask for structured replies.
    pub structured: bool,
    /// Metadata contexts to select; all must exist.
    pub contexts: &'a [&'a str],
}

impl Default for Terms<'_> {
    fn default() -> Self {
        Self { export: None, structured: true, contexts: &[] }
    }
}

/// An option that the server refused, by its reply type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionRefused(pub u32);

/// Greets, negotiates options and gives the stream of a client, with export size and flags.
pub(super) fn handshake(
    stream: &mut Stream,
    name: &str,
    terms: &Terms<'_>,
) -> Result<Agreed, OptionRefused> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&3_u32.to_be_bytes()).expect("client flags");
    if terms.structured {
        send_option(stream, option::STRUCTURED_REPLY, &[]);
        collect_replies(stream, option::STRUCTURED_REPLY)?;
    }
    let mut contexts = Vec::new();
    if !terms.contexts.is_empty() {
        let mut data = string(name);
        data.extend(u32::try_from(terms.contexts.len()).expect("few").to_be_bytes());
        terms.contexts.iter().for_each(|context| data.extend(string(context)));
        send_option(stream, option::SET_META_CONTEXT, &data);
        for (kind, data) in collect_replies(stream, option::SET_META_CONTEXT)? {
            assert_eq!(kind, REPLY_META_CONTEXT);
            let name = String::from_utf8(data[4..].to_vec()).expect("a name");
            contexts.push((be32(&data), name));
        }
        assert_eq!(contexts.len(), terms.contexts.len(), "selected {contexts:?}");
    }
    let mut data = string(name);
    data.extend(0_u16.to_be_bytes());
    send_option(stream, option::GO, &data);
    let infos = collect_replies(stream, option::GO)?;
    let export = infos.iter().find(|(kind, data)| *kind == REPLY_INFO && data[..2] == [0, 0]);
    let (_, info) = export.expect("NBD_INFO_EXPORT");
    let flags = u16::from_be_bytes([info[10], info[11]]);
    Ok((be64(&info[2..]), flags, contexts))
}

/// Size, transmission flags, contexts with their ids.
pub(super) type Agreed = (u64, u16, Vec<(u32, String)>);

/// Sends one option.
///
/// # Panics
/// When the stream is broken.
pub fn send_option(stream: &mut Stream, option: u32, data: &[u8]) {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes).expect("send an option");
}

/// Receives the replies to an option, up to its acknowledgement: type and data of each.
///
/// # Errors
/// When the server refuses the option.
///
/// # Panics
/// When the stream is broken or out of step.
pub fn collect_replies(
    stream: &mut Stream,
    option: u32,
) -> Result<Vec<(u32, Vec<u8>)>, OptionRefused> {
    let mut replies = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).expect("an option reply");
        assert_eq!((be64(&header), be32(&header[8..])), (OPTION_REPLY_MAGIC, option));
        let kind = be32(&header[12..]);
        let mut data = vec![0; be32(&header[16..]) as usize];
        stream.read_exact(&mut data).expect("an option reply's data");
        match kind {
            REPLY_ACK => return Ok(replies),
            0x8000_0000.. => return Err(OptionRefused(kind)),
            _ => replies.push((kind, data)),
        }
    }
}

/// The names that a listener lists.
///
/// # Panics
/// When it refuses, or breaks the protocol.
pub fn list(uri: &str) -> Vec<String> {
    let mut stream = connect(uri).expect("connect");
    stream.read_exact(&mut [0; 18]).expect("greeting");
    stream.write_all(&3_u32.to_be_bytes()).expect("client flags");
    send_option(&mut stream, option::LIST, &[]);
    let replies = collect_replies(&mut stream, option::LIST).expect("a list");
    let name = |data: &[u8]| String::from_utf8(data[4..4 + be32(data) as usize].to_vec());
    replies.iter().map(|(_, data)| name(data).expect("a name")).collect()
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
