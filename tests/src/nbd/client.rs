//! The transmission phase.

use std::io::{self, Read, Write};

use super::handshake::{OptionRefused, Terms, handshake};
use super::stream::{Stream, connect};
use super::{be32, be64, command};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The export name in a URI.
fn export_name(uri: &str) -> &str {
    let path = uri.split_once(":///").map_or_else(
        || uri.splitn(4, '/').nth(3).unwrap_or(""),
        |(_, rest)| rest.split('?').next().unwrap_or(""),
    );
    assert!(!path.contains('%'), "percent-encoded names are not for this client");
    path
}

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
    /// Some of [`flag`](super::flag).
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
    /// 0, or one of [`errno`](super::errno).
    pub errno: u32,
    /// The text of a structured error.
    pub message: String,
    /// Of a structured read, in the order of arrival.
    pub chunks: Vec<Chunk>,
    /// Of a block status: context id, then lengths and flags.
    pub extents: Vec<(u32, Vec<(u32, u32)>)>,
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
