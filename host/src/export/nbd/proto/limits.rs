//! Every bound that a client meets, in one place.
//!
//! Memory of one connection in the handshake, at most: one option's data
//! ([`MAX_OPTION_DATA_BYTES`]), the selected contexts ([`MAX_SELECTED_CONTEXTS`] names of
//! [`MAX_STRING_BYTES`], 1 MiB), and unsent output ([`OUTPUT_FLUSH_BYTES`] and one option's replies,
//! [`MAX_OPTION_REPLY_BYTES`]).

/// Longest string of the protocol: names, descriptions, queries, error messages.
pub const MAX_STRING_BYTES: usize = 4096;

/// Options of one connection. Clients that list hundreds of exports ask a few options for each.
pub const MAX_OPTIONS: usize = 1024;

/// Longest option data that is parsed: an export name and 14 queries of the longest kind, or
/// hundreds of usual ones.
pub const MAX_OPTION_DATA_BYTES: usize = 64 << 10;

/// Longest option data that is read and thrown away; a longer one ends the connection.
pub const MAX_DRAINED_OPTION_BYTES: usize = 1 << 20;

/// Replies to one option, with their headers: over 8000 exports with names of 100 bytes.
pub const MAX_OPTION_REPLY_BYTES: usize = 1 << 20;

/// Unsent output above which the handshake takes no further option.
pub const OUTPUT_FLUSH_BYTES: usize = 64 << 10;

/// Queries of one metadata context option.
pub const MAX_META_QUERIES: usize = 1024;

/// Metadata contexts that one connection can select.
pub const MAX_SELECTED_CONTEXTS: usize = 256;

/// Payload of one read or write that is served at most, whatever an export advertises. A write that
/// announces more ends the connection, because draining it would be work for nothing.
pub const MAX_PAYLOAD_BYTES: u32 = 64 << 20;

/// Smallest maximum payload that an export may advertise: the specification wants 1 MiB, and every
/// chunk sent here (a status chunk of 512 KiB is the longest without data) fits.
pub const MIN_ADVERTISED_PAYLOAD_BYTES: u32 = 1 << 20;

/// Extents of one block status chunk: 8 bytes each, so 512 KiB. At 64 KiB per extent they cover the
/// longest request (4 GiB), and a shorter answer is always allowed.
pub const MAX_STATUS_EXTENTS: usize = 1 << 16;
