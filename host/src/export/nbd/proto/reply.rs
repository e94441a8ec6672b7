//! Replies of the transmission phase, appended to the caller's buffer or returned as arrays.
//!
//! The methods of [`Session`] pick the form that the session calls for. The functions below them
//! build single chunks, for replies of several chunks: sparse reads and block status. The last chunk
//! of a reply carries `done`, and no reply has anything after it.

use super::errno::NbdErrno;
use super::export_info::clip_to_wire_string;
use super::limits::MAX_PAYLOAD_BYTES;
use super::session::Session;
use super::wire;

/// Header of a data chunk: chunk header and offset.
pub const DATA_CHUNK_HEADER_BYTES: usize = wire::CHUNK_HEADER_BYTES + 8;
/// A whole hole chunk: chunk header, offset, length.
pub const HOLE_CHUNK_BYTES: usize = wire::CHUNK_HEADER_BYTES + 8 + 4;

impl Session {
    /// Success of a request without payload in its reply. A simple reply, which structured sessions
    /// allow too, for everything but a read.
    pub fn push_success(&self, output: &mut Vec<u8>, cookie: u64) {
        output.extend_from_slice(&simple(cookie, None));
    }

    /// Failure of any request. `message` reaches the client in structured sessions only.
    pub fn push_failure(&self, output: &mut Vec<u8>, cookie: u64, errno: NbdErrno, message: &str) {
        if self.structured {
            push_error_chunk(output, cookie, errno, message, true);
        } else {
            output.extend_from_slice(&simple(cookie, Some(errno)));
        }
    }

    /// What precedes the data of a read that succeeded as a whole and is sent in one piece. Exactly
    /// `len_bytes` bytes of data, which must be at hand already, are to follow.
    pub fn push_read_header(&self, output: &mut Vec<u8>, cookie: u64, offset: u64, len_bytes: u32) {
        if !self.structured {
            output.extend_from_slice(&simple(cookie, None));
        } else if len_bytes == 0 {
            // A content chunk describes at least one byte.
            output.extend_from_slice(&none_chunk(cookie));
        } else {
            output.extend_from_slice(&data_chunk_header(cookie, offset, len_bytes, true));
        }
    }
}

/// A simple reply. The data of a read follows it in sessions without structured replies.
pub fn simple(cookie: u64, error: Option<NbdErrno>) -> [u8; wire::SIMPLE_REPLY_BYTES] {
    let mut reply = [0; wire::SIMPLE_REPLY_BYTES];
    reply[..4].copy_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&error.map_or(0, NbdErrno::to_wire).to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    reply
}

/// The chunk that ends a successful reply of several chunks, or a failed one whose error chunks were
/// not last.
pub fn none_chunk(cookie: u64) -> [u8; wire::CHUNK_HEADER_BYTES] {
    chunk_header(cookie, wire::REPLY_TYPE_NONE, 0, true)
}

/// What precedes `len_bytes` bytes of data at `offset` of the export. `len_bytes` is the length of a
/// read that [`super::check`] accepted, or of a part of it, and not zero.
pub fn data_chunk_header(
    cookie: u64,
    offset: u64,
    len_bytes: u32,
    done: bool,
) -> [u8; DATA_CHUNK_HEADER_BYTES] {
    debug_assert!((1..=MAX_PAYLOAD_BYTES).contains(&len_bytes));
    let payload_bytes = len_bytes.saturating_add(8);
    let mut chunk = [0; DATA_CHUNK_HEADER_BYTES];
    let (header, rest) = chunk.split_at_mut(wire::CHUNK_HEADER_BYTES);
    let kind = wire::REPLY_TYPE_OFFSET_DATA;
    header.copy_from_slice(&chunk_header(cookie, kind, payload_bytes, done));
    rest.copy_from_slice(&offset.to_be_bytes());
    chunk
}

/// `len_bytes` zeroes at `offset` of the export; not zero.
pub fn hole_chunk(cookie: u64, offset: u64, len_bytes: u32, done: bool) -> [u8; HOLE_CHUNK_BYTES] {
    debug_assert!(len_bytes > 0);
    let mut chunk = [0; HOLE_CHUNK_BYTES];
    let (header, rest) = chunk.split_at_mut(wire::CHUNK_HEADER_BYTES);
    header.copy_from_slice(&chunk_header(cookie, wire::REPLY_TYPE_OFFSET_HOLE, 12, done));
    rest[..8].copy_from_slice(&offset.to_be_bytes());
    rest[8..].copy_from_slice(&len_bytes.to_be_bytes());
    chunk
}

/// Appends a failure. A message longer than the protocol allows is cut.
pub fn push_error_chunk(
    output: &mut Vec<u8>,
    cookie: u64,
    errno: NbdErrno,
    message: &str,
    done: bool,
) {
    push_error(output, cookie, wire::REPLY_TYPE_ERROR, errno, message, &[], done);
}

/// Appends a failure at `offset` of the export, which lies within the request.
pub fn push_error_offset_chunk(
    output: &mut Vec<u8>,
    cookie: u64,
    errno: NbdErrno,
    message: &str,
    offset: u64,
    done: bool,
) {
    let kind = wire::REPLY_TYPE_ERROR_OFFSET;
    push_error(output, cookie, kind, errno, message, &offset.to_be_bytes(), done);
}

fn push_error(
    output: &mut Vec<u8>,
    cookie: u64,
    kind: u16,
    errno: NbdErrno,
    message: &str,
    tail: &[u8],
    done: bool,
) {
    let message = clip_to_wire_string(message).as_bytes();
    let payload_bytes = 4 + 2 + message.len() + tail.len();
    output.extend_from_slice(&chunk_header(cookie, kind, payload_bytes as u32, done));
    output.extend_from_slice(&errno.to_wire().to_be_bytes());
    output.extend_from_slice(&(message.len() as u16).to_be_bytes());
    output.extend_from_slice(message);
    output.extend_from_slice(tail);
}

pub(super) fn chunk_header(
    cookie: u64,
    kind: u16,
    payload_bytes: u32,
    done: bool,
) -> [u8; wire::CHUNK_HEADER_BYTES] {
    let flags = if done { wire::REPLY_FLAG_DONE } else { 0 };
    let mut header = [0; wire::CHUNK_HEADER_BYTES];
    header[..4].copy_from_slice(&wire::STRUCTURED_REPLY_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::super::transcript::{bytes, session};
    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    fn check(actual: &[u8], expected: &str) {
        assert_eq!(actual, bytes(expected), "{expected}");
    }

    fn pushed(push: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut output = Vec::new();
        push(&mut output);
        output
    }

    #[test]
    fn single_chunks_to_the_byte() {
        check(&simple(COOKIE, None), "67446698 00000000 0102030405060708");
        check(&simple(COOKIE, Some(NbdErrno::NoSpace)), "67446698 0000001c 0102030405060708");
        check(&none_chunk(COOKIE), "668e33ef 0001 0000 0102030405060708 00000000");
        check(
            &data_chunk_header(COOKIE, 0x1000, 512, false),
            "668e33ef 0000 0001 0102030405060708 00000208 0000000000001000",
        );
        check(
            &hole_chunk(COOKIE, 0x1_0000_0000, 0x8000_0000, true),
            "668e33ef 0001 0002 0102030405060708 0000000c 0000000100000000 80000000",
        );
        check(
            &pushed(|output| push_error_chunk(output, COOKIE, NbdErrno::Io, "bad", false)),
            "668e33ef 0000 8001 0102030405060708 00000009 00000005 0003 'bad'",
        );
        check(
            &pushed(|output| push_error_offset_chunk(output, 1, NbdErrno::Io, "bad", 4096, true)),
            "668e33ef 0001 8002 0000000000000001 00000011 00000005 0003 'bad' 0000000000001000",
        );
        check(
            &pushed(|output| push_error_chunk(output, 1, NbdErrno::Io, &"m".repeat(9999), true)),
            "668e33ef 0001 8001 0000000000000001 00001006 00000005 1000 6d*4096",
        );
    }

    #[test]
    fn a_session_picks_the_form_of_its_replies() {
        let check_both = |push: &dyn Fn(&Session, &mut Vec<u8>), plain: &str, structured: &str| {
            check(&pushed(|output| push(&session(false), output)), plain);
            check(&pushed(|output| push(&session(true), output)), structured);
        };
        check_both(
            &|session, output| session.push_success(output, 7),
            "67446698 00000000 0000000000000007",
            "67446698 00000000 0000000000000007",
        );
        check_both(
            &|session, output| session.push_failure(output, 7, NbdErrno::Perm, "no"),
            "67446698 00000001 0000000000000007",
            "668e33ef 0001 8001 0000000000000007 00000008 00000001 0002 'no'",
        );
        check_both(
            &|session, output| session.push_read_header(output, 7, 512, 4096),
            "67446698 00000000 0000000000000007",
            "668e33ef 0001 0001 0000000000000007 00001008 0000000000000200",
        );
        check_both(
            &|session, output| session.push_read_header(output, 7, 512, 0),
            "67446698 00000000 0000000000000007",
            "668e33ef 0001 0000 0000000000000007 00000000",
        );
    }
}
