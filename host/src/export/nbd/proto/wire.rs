//! Numbers of the NBD protocol, under the names of its specification (`doc/proto.md`, section
//! "Values"). All integers on the wire are big-endian.

/// First eight bytes of the greeting, `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: ends the magic of a newstyle greeting and starts every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every request of the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Greeting: two magics and the handshake flags.
pub const GREETING_BYTES: usize = 8 + 8 + 2;
/// The client's answer to the greeting.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Option header: magic, option, data length.
pub const OPTION_HEADER_BYTES: usize = 8 + 4 + 4;
/// Option reply header: magic, option, reply type, data length.
pub const OPTION_REPLY_HEADER_BYTES: usize = 8 + 4 + 4 + 4;
/// Zeroes that follow the answer to `OPT_EXPORT_NAME` unless `NO_ZEROES` was agreed on.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Request header: magic, flags, command, cookie, offset, length.
pub const REQUEST_HEADER_BYTES: usize = 4 + 2 + 2 + 8 + 8 + 4;
/// Simple reply header: magic, error, cookie.
pub const SIMPLE_REPLY_BYTES: usize = 4 + 4 + 8;
/// Structured chunk header: magic, flags, type, cookie, payload length.
pub const CHUNK_HEADER_BYTES: usize = 4 + 2 + 2 + 8 + 4;

/// Handshake flag and client flag: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag and client flag: no padding after `OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Transmission flag that is always set.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: writes are refused.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `CMD_FLUSH` is served.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `CMD_FLAG_FUA` is served.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `CMD_TRIM` is served.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `CMD_WRITE_ZEROES` and `CMD_FLAG_NO_HOLE` are served.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `CMD_FLAG_DF` is served (structured replies only).
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// Transmission flag: flush and FUA reach across connections.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CMD_CACHE` is served.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: `CMD_FLAG_FAST_ZERO` is served.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// Option: choose an export and enter transmission, without a way to report errors.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub const OPT_ABORT: u32 = 2;
/// Option: list the exports.
pub const OPT_LIST: u32 = 3;
/// Option: upgrade to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const OPT_INFO: u32 = 6;
/// Option: describe an export and enter transmission.
pub const OPT_GO: u32 = 7;
/// Option: use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: select metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option: 64-bit headers (an extension of the specification).
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: success, nothing more follows.
pub const REP_ACK: u32 = 1;
/// Option reply: one export of a listing.
pub const REP_SERVER: u32 = 2;
/// Option reply: one piece of information on an export.
pub const REP_INFO: u32 = 3;
/// Option reply: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Option error: the option is not known here.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// Option error: malformed, or not allowed at this point.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// Option error: no such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// Option error: the request or its reply is too large.
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// Information: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: the export's own name.
pub const INFO_NAME: u16 = 1;
/// Information: text for a human.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: minimum and preferred block size, maximum payload.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write; the payload follows the header.
pub const CMD_WRITE: u16 = 1;
/// Command: end the session; has no reply.
pub const CMD_DISC: u16 = 2;
/// Command: make completed writes durable.
pub const CMD_FLUSH: u16 = 3;
/// Command: the range is no longer needed.
pub const CMD_TRIM: u16 = 4;
/// Command: the range is about to be used.
pub const CMD_CACHE: u16 = 5;
/// Command: write zeroes, without a payload.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command: extents of the selected metadata contexts.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flag: durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Command flag of `CMD_WRITE_ZEROES`: leave the range allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of `CMD_READ`: at most one content chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag of `CMD_BLOCK_STATUS`: exactly one extent per context.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of `CMD_WRITE_ZEROES`: fail unless faster than writing.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last chunk of its reply.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk: nothing, ends a reply.
pub const REPLY_TYPE_NONE: u16 = 0;
/// Chunk: bytes of the export at an offset.
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Chunk: a range that reads as zeroes.
pub const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Chunk: extents of one metadata context.
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Chunk: the request failed.
pub const REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;
/// Chunk: the request failed at an offset.
pub const REPLY_TYPE_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// The context every server may offer: allocation of the export.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// What the name of a dirty bitmap's context starts with (QEMU's `docs/interop/nbd.rst`).
pub const CONTEXT_DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
/// Extent flag of [`CONTEXT_ALLOCATION`]: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Extent flag of [`CONTEXT_ALLOCATION`]: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;
/// Extent flag of a dirty bitmap's context: changed.
pub const STATE_DIRTY: u32 = 1 << 0;

/// The field of `N` bytes at `start`, a constant, of a message of fixed size.
pub(super) fn field<const N: usize, const LEN: usize>(bytes: &[u8; LEN], start: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[start + index])
}
