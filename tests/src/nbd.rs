//! An NBD client that does as it is told: every command and flag, many requests at once, and half of
//! anything. Numbers are those of the NBD protocol document (`doc/proto.md`).

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use crate::DEADLINE;

/// Commands.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
    pub const DF: u16 = 4;
    pub const REQ_ONE: u16 = 8;
    pub const FAST_ZERO: u16 = 16;
}

/// Error numbers.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod errno {
    pub const PERM: u32 = 1;
    pub const IO: u32 = 5;
    pub const INVAL: u32 = 22;
    pub const NOSPC: u32 = 28;
    pub const NOTSUP: u32 = 95;
}

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;

/// Options of the handshake.
#[expect(missing_docs, reason = "the protocol's names")]
pub mod option {
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// A stream to a server: what [`connect`] gives.
#[derive(Debug)]
pub enum Stream {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Ends what this side sends.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn end_sending(&self) {
        let ended = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
        ended.expect("shut down");
    }

    /// Everything that the server still sends, until it closes the stream.
    ///
    /// # Panics
    /// When it does not close it within [`DEADLINE`].
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server keeps the connection open: {error}"),
        }
        bytes
    }
}

/// A stream to the server of an NBD URI (unix or TCP), with nothing said yet. Whatever waits for the
/// server gives up after [`DEADLINE`].
///
/// # Errors
/// When nobody listens.
///
/// # Panics
/// When the URI is none that the daemon prints.
pub fn connect(uri: &str) -> io::Result<Stream> {
    let timeout = Some(DEADLINE);
    if let Some((_, socket)) = uri.split_once("?socket=") {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        return Ok(Stream::Unix(stream));
    }
    let rest = uri.strip_prefix("nbd://").unwrap_or_else(|| panic!("no NBD URI: {uri}"));
    let (address, _) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    Ok(Stream::Tcp(stream))
}

/// The export name in a URI.
fn export_name(uri: &str) -> &str {
    let path = uri.split_once(":///").map_or_else(
        || uri.splitn(4, '/').nth(3).unwrap_or(""),
        |(_, rest)| rest.split('?').next().unwrap_or(""),
    );
    assert!(!path.contains('%'), "percent-encoded names are not for this client");
    path
}

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

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    size_bytes: u64,
    flags: u16,
    contexts: Vec<(u32, String)>,
    next_cookie: u64,
}

/// One command to send.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One of [`command`].
    pub command: u16,
    /// Some of [`flag`].
    pub flags: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len_bytes: u32,
    /// Sent after the header.
    pub payload: &'a [u8],
}

/// A piece of the answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Offset and bytes.
    Data(u64, Vec<u8>),
    /// Offset and length.
    Hole(u64, u32),
}

/// The whole answer to one request.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Of the request.
    pub cookie: u64,
    /// 0, or one of [`mod@errno`].
    pub errno: u32,
    /// The text of a structured error.
    pub message: String,
    /// Of a structured read, in the order of arrival.
    pub chunks: Vec<Chunk>,
    /// Of a block status: context id, then lengths and flags.
    pub extents: Vec<(u32, Vec<(u32, u32)>)>,
}

/// Greets, negotiates options and gives the stream of a client, with export size and flags.
fn handshake(stream: &mut Stream, name: &str, terms: &Terms<'_>) -> Result<Agreed, OptionRefused> {
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
type Agreed = (u64, u16, Vec<(u32, String)>);

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

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

impl Client {
    /// Opens the export of a URI with structured replies.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn open(uri: &str) -> Self {
        Self::with(uri, &Terms::default()).expect("open the export")
    }

    /// Opens an export.
    ///
    /// # Errors
    /// When the server refuses an option.
    ///
    /// # Panics
    /// When nobody listens, or the server breaks the protocol.
    pub fn with(uri: &str, terms: &Terms<'_>) -> Result<Self, OptionRefused> {
        let mut stream = connect(uri).expect("connect");
        let name = terms.export.unwrap_or_else(|| export_name(uri));
        let (size_bytes, flags, contexts) = handshake(&mut stream, name, terms)?;
        Ok(Self { stream, size_bytes, flags, contexts, next_cookie: 1 })
    }

    /// Size of the export, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the server says that the export cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// The stream, for what is not a request.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Sends a request and does not wait; gives its cookie.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn send(&mut self, request: &Request<'_>) -> u64 {
        self.try_send(request).expect("send a request")
    }

    /// As [`Client::send`], where the server may go away.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn try_send(&mut self, request: &Request<'_>) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = Vec::with_capacity(28 + request.payload.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(request.flags.to_be_bytes());
        bytes.extend(request.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(request.offset.to_be_bytes());
        bytes.extend(request.len_bytes.to_be_bytes());
        bytes.extend_from_slice(request.payload);
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// Receives one whole reply. A simple reply's data is taken for a read of `read_bytes`.
    ///
    /// # Panics
    /// When the stream is broken or the server breaks the protocol.
    pub fn receive(&mut self, read_bytes: u32) -> Reply {
        self.try_receive(read_bytes).expect("receive a reply")
    }

    /// As [`Client::receive`], where the server may go away.
    ///
    /// # Errors
    /// When the stream ends.
    ///
    /// # Panics
    /// When the server breaks the protocol.
    pub fn try_receive(&mut self, read_bytes: u32) -> io::Result<Reply> {
        let mut reply = Reply::default();
        loop {
            let mut magic = [0; 4];
            self.stream.read_exact(&mut magic)?;
            match be32(&magic) {
                SIMPLE_REPLY_MAGIC => {
                    let mut rest = [0; 12];
                    self.stream.read_exact(&mut rest)?;
                    (reply.errno, reply.cookie) = (be32(&rest), be64(&rest[4..]));
                    if reply.errno == 0 && read_bytes > 0 {
                        let mut data = vec![0; read_bytes as usize];
                        self.stream.read_exact(&mut data)?;
                        reply.chunks.push(Chunk::Data(0, data));
                    }
                    return Ok(reply);
                }
                CHUNK_MAGIC => {
                    if self.chunk(&mut reply)? {
                        return Ok(reply);
                    }
                }
                other => panic!("no reply begins with {other:#x}"),
            }
        }
    }

    /// Receives the rest of a chunk; whether it is the last.
    fn chunk(&mut self, reply: &mut Reply) -> io::Result<bool> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let (flags, kind) = (header[1], u16::from_be_bytes([header[2], header[3]]));
        let cookie = be64(&header[4..]);
        assert!(reply.cookie == 0 || reply.cookie == cookie, "chunks of two replies are mixed");
        reply.cookie = cookie;
        let mut data = vec![0; be32(&header[12..]) as usize];
        self.stream.read_exact(&mut data)?;
        match kind {
            0 => assert!(flags & 1 != 0 && data.is_empty(), "a wrong end"),
            1 => reply.chunks.push(Chunk::Data(be64(&data), data.split_off(8))),
            2 => reply.chunks.push(Chunk::Hole(be64(&data), be32(&data[8..]))),
            5 => {
                let pairs = data[4..].chunks_exact(8).map(|it| (be32(it), be32(&it[4..])));
                reply.extents.push((be32(&data), pairs.collect()));
            }
            0x8001.. => {
                reply.errno = be32(&data);
                let len = usize::from(u16::from_be_bytes([data[4], data[5]]));
                reply.message = String::from_utf8(data[6..6 + len].to_vec()).expect("UTF-8");
            }
            other => panic!("unknown chunk type {other}"),
        }
        Ok(flags & 1 != 0)
    }

    fn call(&mut self, request: &Request<'_>) -> Reply {
        let cookie = self.send(request);
        let is_read = request.command == command::READ;
        let reply = self.receive(if is_read { request.len_bytes } else { 0 });
        assert_eq!(reply.cookie, cookie, "the reply is another request's");
        reply
    }

    /// A request without data; gives the error number, 0 for success.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn plain(&mut self, command: u16, flags: u16, offset: u64, len_bytes: u32) -> u32 {
        self.call(&Request { command, flags, offset, len_bytes, payload: &[] }).errno
    }

    /// Writes; gives the error number, 0 for success.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn write(&mut self, flags: u16, offset: u64, payload: &[u8]) -> u32 {
        let len_bytes = u32::try_from(payload.len()).expect("at most 64 MiB");
        self.call(&Request { command: command::WRITE, flags, offset, len_bytes, payload }).errno
    }

    /// Reads into one buffer.
    ///
    /// # Errors
    /// The error number.
    ///
    /// # Panics
    /// When chunks do not cover the range exactly once, or the stream is broken.
    pub fn read(&mut self, offset: u64, len_bytes: u32) -> Result<Vec<u8>, u32> {
        let reply = self.read_chunks(0, offset, len_bytes)?;
        let mut bytes = vec![0; len_bytes as usize];
        let mut covered = 0;
        for chunk in reply {
            match chunk {
                // A simple reply says no offset.
                Chunk::Data(0, data) if data.len() == bytes.len() => {
                    covered += data.len();
                    bytes = data;
                }
                Chunk::Data(at, data) => {
                    let at = usize::try_from(at - offset).expect("within the request");
                    bytes[at..at + data.len()].copy_from_slice(&data);
                    covered += data.len();
                }
                Chunk::Hole(_, len) => covered += len as usize,
            }
        }
        assert_eq!(covered, len_bytes as usize, "chunks do not cover the read");
        Ok(bytes)
    }

    /// Reads; gives the chunks as they came.
    ///
    /// # Errors
    /// The error number.
    ///
    /// # Panics
    /// When the stream is broken.
    pub fn read_chunks(
        &mut self,
        flags: u16,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Vec<Chunk>, u32> {
        let request = Request { command: command::READ, flags, offset, len_bytes, payload: &[] };
        let reply = self.call(&request);
        if reply.errno == 0 { Ok(reply.chunks) } else { Err(reply.errno) }
    }

    /// Block status of one selected context: lengths and flags from `offset` on.
    ///
    /// # Errors
    /// The error number.
    ///
    /// # Panics
    /// When the context was not selected, or the stream is broken.
    pub fn block_status(
        &mut self,
        context: &str,
        flags: u16,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Vec<(u32, u32)>, u32> {
        let known = self.contexts.iter().find(|(_, name)| name == context);
        let id = known.expect("a selected context").0;
        let command = command::BLOCK_STATUS;
        let reply = self.call(&Request { command, flags, offset, len_bytes, payload: &[] });
        if reply.errno != 0 {
            return Err(reply.errno);
        }
        assert_eq!(reply.extents.len(), self.contexts.len(), "one chunk for each context");
        let found = reply.extents.into_iter().find(|(of, _)| *of == id);
        Ok(found.expect("an answer for the context").1)
    }

    /// The dirty or otherwise flagged ranges of a context over the whole export: offset and length,
    /// with neighbours joined.
    ///
    /// # Panics
    /// When the server refuses, or answers nothing.
    pub fn flagged(&mut self, context: &str) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.size_bytes {
            let len = u32::try_from((self.size_bytes - at).min(1 << 30)).expect("at most 1 GiB");
            for (len, flags) in self.block_status(context, 0, at, len).expect("block status") {
                assert!(len > 0, "an empty extent");
                match ranges.last_mut() {
                    _ if flags == 0 => {}
                    Some((start, whole)) if *start + *whole == at => *whole += u64::from(len),
                    _ => ranges.push((at, len.into())),
                }
                at += u64::from(len);
            }
        }
        ranges
    }

    /// Takes leave in order and waits until the server has closed.
    ///
    /// # Panics
    /// When the server sends more, or keeps the connection open.
    pub fn disconnect(mut self) {
        let command = command::DISCONNECT;
        self.send(&Request { command, flags: 0, offset: 0, len_bytes: 0, payload: &[] });
        assert_eq!(self.stream.read_to_close(), b"", "bytes after the last reply");
    }
}
