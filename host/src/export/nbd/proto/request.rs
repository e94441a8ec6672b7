//! Requests of the transmission phase: decoding a header, judging it, and giving it a type.

use super::errno::NbdErrno;
use super::limits::MAX_PAYLOAD_BYTES;
use super::session::Session;
use super::wire;

/// The header of one request, not judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the reply is known by.
    pub cookie: u64,
    /// One of the `CMD_` numbers of [`wire`], or anything else.
    pub command: u16,
    /// `CMD_FLAG_` bits of [`wire`], or anything else.
    pub flags: u16,
    /// Offset in the export, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u32,
}

/// The stream is out of step or the peer is no NBD client: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request starts with {magic:#010x} instead of the NBD request magic")]
pub struct Malformed {
    magic: u32,
}

/// Decodes a request header.
pub fn decode_header(bytes: &[u8; wire::REQUEST_HEADER_BYTES]) -> Result<Header, Malformed> {
    let magic = u32::from_be_bytes(wire::field(bytes, 0));
    if magic != wire::REQUEST_MAGIC {
        return Err(Malformed { magic });
    }
    Ok(Header {
        flags: u16::from_be_bytes(wire::field(bytes, 4)),
        command: u16::from_be_bytes(wire::field(bytes, 6)),
        cookie: u64::from_be_bytes(wire::field(bytes, 8)),
        offset: u64::from_be_bytes(wire::field(bytes, 16)),
        len_bytes: u32::from_be_bytes(wire::field(bytes, 24)),
    })
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it. The payload of a write follows the header.
    Accept(Request),
    /// Answer with an error and go on.
    Reject {
        /// The error.
        errno: NbdErrno,
        /// Text for the client's user; structured replies carry it.
        reason: &'static str,
        /// Bytes after the header that belong to the request: to be received and thrown away before
        /// the next header. Not zero for writes only, and never more than [`MAX_PAYLOAD_BYTES`].
        payload_bytes: u32,
    },
    /// The client takes its leave: finish what is under way, then close. There is no reply.
    Disconnect,
    /// Nothing sensible can follow: close without a reply.
    Close,
}

/// A request that may be executed: within the export, aligned to its block sizes, allowed by the
/// session. Lengths may be zero, except that of a block status; such a request does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes, at most [`MAX_PAYLOAD_BYTES`].
        len_bytes: u32,
        /// Answer with at most one content chunk.
        dont_fragment: bool,
    },
    /// Write the payload that follows the header.
    Write {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes, at most [`MAX_PAYLOAD_BYTES`].
        len_bytes: u32,
        /// Make it durable before the reply.
        fua: bool,
    },
    /// Make every write durable that was replied to.
    Flush,
    /// Discard.
    Trim {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes.
        len_bytes: u32,
        /// Make it durable before the reply.
        fua: bool,
    },
    /// Prefetch.
    Cache {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes.
        len_bytes: u32,
        /// Make it durable before the reply.
        fua: bool,
        /// Leave the range allocated.
        no_hole: bool,
        /// Fail with [`NbdErrno::NotSupported`] rather than write the zeroes out.
        fast_zero: bool,
    },
    /// Report the extents of each selected context.
    BlockStatus {
        /// Offset in the export, in bytes.
        offset: u64,
        /// Length in bytes, not zero.
        len_bytes: u32,
        /// Report one extent per context.
        req_one: bool,
    },
}

/// Judges `header` by the terms of `session`.
pub fn check(header: &Header, session: &Session) -> Verdict {
    let payload_bytes = match header.command {
        wire::CMD_DISC => return Verdict::Disconnect,
        wire::CMD_WRITE if header.len_bytes > MAX_PAYLOAD_BYTES => return Verdict::Close,
        wire::CMD_WRITE => header.len_bytes,
        _ => 0,
    };
    match accept(header, session) {
        Ok(request) => Verdict::Accept(request),
        Err((errno, reason)) => Verdict::Reject { errno, reason, payload_bytes },
    }
}

type Refusal = (NbdErrno, &'static str);

fn accept(header: &Header, session: &Session) -> Result<Request, Refusal> {
    let &Header { command, flags, offset, len_bytes, .. } = header;
    let has = |flag: u16| flags & flag != 0;
    check_command(command, session)?;
    check_flags(header, session)?;
    check_range(header, session)?;
    let fua = has(wire::CMD_FLAG_FUA);
    Ok(match command {
        wire::CMD_READ => {
            Request::Read { offset, len_bytes, dont_fragment: has(wire::CMD_FLAG_DF) }
        }
        wire::CMD_WRITE => Request::Write { offset, len_bytes, fua },
        wire::CMD_FLUSH => Request::Flush,
        wire::CMD_TRIM => Request::Trim { offset, len_bytes, fua },
        wire::CMD_CACHE => Request::Cache { offset, len_bytes },
        wire::CMD_WRITE_ZEROES => Request::WriteZeroes {
            offset,
            len_bytes,
            fua,
            no_hole: has(wire::CMD_FLAG_NO_HOLE),
            fast_zero: has(wire::CMD_FLAG_FAST_ZERO),
        },
        wire::CMD_BLOCK_STATUS => {
            Request::BlockStatus { offset, len_bytes, req_one: has(wire::CMD_FLAG_REQ_ONE) }
        }
        _ => return Err(UNKNOWN_COMMAND),
    })
}

const UNKNOWN_COMMAND: Refusal = (NbdErrno::Invalid, "unknown command");

/// Whether the session offers the command at all.
fn check_command(command: u16, session: &Session) -> Result<(), Refusal> {
    let features = &session.info.features;
    let writes = matches!(command, wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_WRITE_ZEROES);
    if writes && session.info.read_only {
        return Err((NbdErrno::Perm, "export is read-only"));
    }
    let offered = match command {
        wire::CMD_READ | wire::CMD_WRITE => true,
        wire::CMD_FLUSH => features.flush,
        wire::CMD_TRIM => features.trim,
        wire::CMD_CACHE => features.cache,
        wire::CMD_WRITE_ZEROES => features.write_zeroes,
        wire::CMD_BLOCK_STATUS if session.contexts.is_empty() => {
            return Err((NbdErrno::Invalid, "no metadata context was selected"));
        }
        wire::CMD_BLOCK_STATUS => true,
        _ => return Err(UNKNOWN_COMMAND),
    };
    if offered { Ok(()) } else { Err((NbdErrno::Invalid, "export does not offer this command")) }
}

/// FUA is legal on every command once it is offered, and means nothing where nothing is written.
fn check_flags(header: &Header, session: &Session) -> Result<(), Refusal> {
    let features = &session.info.features;
    let when = |offered: bool, flag: u16| if offered { flag } else { 0 };
    let own = match header.command {
        wire::CMD_READ => when(features.dont_fragment && session.structured, wire::CMD_FLAG_DF),
        wire::CMD_WRITE_ZEROES => {
            wire::CMD_FLAG_NO_HOLE | when(features.fast_zero, wire::CMD_FLAG_FAST_ZERO)
        }
        wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE,
        _ => 0,
    };
    let allowed = own | when(features.fua, wire::CMD_FLAG_FUA);
    if header.flags & !allowed == 0 {
        Ok(())
    } else {
        Err((NbdErrno::Invalid, "flag is not allowed for this command"))
    }
}

fn check_range(header: &Header, session: &Session) -> Result<(), Refusal> {
    let &Header { command, offset, len_bytes, .. } = header;
    let info = &session.info;
    if command == wire::CMD_FLUSH {
        let blank = offset == 0 && len_bytes == 0;
        let refusal = (NbdErrno::Invalid, "flush takes no offset and no length");
        return if blank { Ok(()) } else { Err(refusal) };
    }
    let has_payload = matches!(command, wire::CMD_READ | wire::CMD_WRITE);
    if has_payload && len_bytes > info.block_sizes.maximum_bytes() {
        return Err((NbdErrno::Invalid, "request is longer than the maximum payload"));
    }
    if command == wire::CMD_BLOCK_STATUS && len_bytes == 0 {
        return Err((NbdErrno::Invalid, "block status of an empty range"));
    }
    let alignment = u64::from(info.block_sizes.minimum_bytes());
    if !(offset | u64::from(len_bytes)).is_multiple_of(alignment) {
        return Err((NbdErrno::Invalid, "request is not aligned to the minimum block size"));
    }
    let end = offset.checked_add(u64::from(len_bytes));
    if end.is_none_or(|end| end > info.size_bytes) {
        return Err((past_end_errno(command), "request reaches past the end of the export"));
    }
    Ok(())
}

/// Commands that change the export run out of space past its end.
fn past_end_errno(command: u16) -> NbdErrno {
    match command {
        wire::CMD_WRITE | wire::CMD_WRITE_ZEROES | wire::CMD_TRIM => NbdErrno::NoSpace,
        _ => NbdErrno::Invalid,
    }
}

#[cfg(test)]
mod tests;
