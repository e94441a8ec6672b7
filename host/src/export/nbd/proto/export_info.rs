//! What the protocol needs to know about exports.

use super::limits::{MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, MIN_ADVERTISED_PAYLOAD_BYTES};
use super::wire;

/// The exports a connection may see. Asked during the handshake only, and before anything is opened:
/// both calls must be cheap and free of side effects.
pub trait ExportDirectory {
    /// Every export that a listing shows.
    fn names(&self) -> Vec<ExportSummary>;

    /// The export that a client means by `name`; what the empty name means is decided here. An
    /// export that could not be opened now should not be found.
    fn lookup(&self, name: &str) -> Option<ExportInfo>;
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// Name to open it by.
    pub name: String,
    /// Text for a human, may be empty.
    pub description: String,
}

/// One export, as a client will see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its own name, whatever name it was found by.
    pub name: String,
    /// Text for a human, may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What it can do.
    pub features: Features,
    /// Its block sizes.
    pub block_sizes: BlockSizes,
    /// Full names of its metadata contexts, such as `base:allocation` and
    /// `qemu:dirty-bitmap:daily`, each once.
    pub contexts: Vec<String>,
}

/// Commands and flags beyond plain read and write that an export serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Flush and FUA on one connection cover writes that completed on the others.
    pub multi_conn: bool,
    /// Flush.
    pub flush: bool,
    /// Force unit access.
    pub fua: bool,
    /// Trim.
    pub trim: bool,
    /// Write zeroes.
    pub write_zeroes: bool,
    /// Write zeroes that fail rather than be slow; means nothing without `write_zeroes`.
    pub fast_zero: bool,
    /// Cache hints.
    pub cache: bool,
    /// Reads in one content chunk; means nothing without structured replies.
    pub dont_fragment: bool,
}

impl Features {
    /// Everything.
    pub const ALL: Self = Self {
        multi_conn: true,
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        dont_fragment: true,
    };
}

impl ExportInfo {
    /// The transmission flags of a session with or without structured replies. A read-only export
    /// never offers trim and zeroes.
    pub(super) fn transmission_flags(&self, structured: bool) -> u16 {
        let Features { multi_conn, flush, fua, trim, write_zeroes, fast_zero, .. } = self.features;
        let Features { cache, dont_fragment, .. } = self.features;
        let writable = !self.read_only;
        let flags = [
            (self.read_only, wire::FLAG_READ_ONLY),
            (flush, wire::FLAG_SEND_FLUSH),
            (fua, wire::FLAG_SEND_FUA),
            (trim && writable, wire::FLAG_SEND_TRIM),
            (write_zeroes && writable, wire::FLAG_SEND_WRITE_ZEROES),
            (dont_fragment && structured, wire::FLAG_SEND_DF),
            (multi_conn, wire::FLAG_CAN_MULTI_CONN),
            (cache, wire::FLAG_SEND_CACHE),
            (fast_zero && write_zeroes && writable, wire::FLAG_SEND_FAST_ZERO),
        ];
        flags.iter().filter(|(set, _)| *set).fold(wire::FLAG_HAS_FLAGS, |all, (_, flag)| all | flag)
    }
}

/// Block sizes that may be advertised (specification, section "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum_bytes: u32,
    preferred_bytes: u32,
    maximum_bytes: u32,
}

/// Block sizes that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "block sizes {minimum_bytes}/{preferred_bytes}/{maximum_bytes} cannot be advertised: minimum \
     and preferred must be powers of two, 1 <= minimum <= 65536, preferred >= 512 and >= minimum, \
     maximum >= 1 MiB, >= preferred and <= 64 MiB"
)]
pub struct InvalidBlockSizes {
    minimum_bytes: u32,
    preferred_bytes: u32,
    maximum_bytes: u32,
}

impl BlockSizes {
    /// Alignment of every request, size of efficient requests, largest payload.
    pub fn new(
        minimum_bytes: u32,
        preferred_bytes: u32,
        maximum_bytes: u32,
    ) -> Result<Self, InvalidBlockSizes> {
        let minimum_fits = minimum_bytes.is_power_of_two() && minimum_bytes <= 1 << 16;
        let preferred_fits =
            preferred_bytes.is_power_of_two() && preferred_bytes >= minimum_bytes.max(512);
        let maximum_fits = (MIN_ADVERTISED_PAYLOAD_BYTES..=MAX_PAYLOAD_BYTES)
            .contains(&maximum_bytes)
            && maximum_bytes >= preferred_bytes;
        if minimum_fits && preferred_fits && maximum_fits {
            Ok(Self { minimum_bytes, preferred_bytes, maximum_bytes })
        } else {
            Err(InvalidBlockSizes { minimum_bytes, preferred_bytes, maximum_bytes })
        }
    }

    /// Offsets and lengths must be multiples of this power of two.
    pub fn minimum_bytes(&self) -> u32 {
        self.minimum_bytes
    }

    /// Requests of this size and alignment need no read-modify-write.
    pub fn preferred_bytes(&self) -> u32 {
        self.preferred_bytes
    }

    /// Largest read or write.
    pub fn maximum_bytes(&self) -> u32 {
        self.maximum_bytes
    }
}

impl Default for BlockSizes {
    /// Any alignment, 4 KiB preferred, the largest payload served here.
    fn default() -> Self {
        Self { minimum_bytes: 1, preferred_bytes: 4096, maximum_bytes: MAX_PAYLOAD_BYTES }
    }
}

/// Whether `text` may travel as a string of the protocol.
pub(super) fn is_wire_string(text: &str) -> bool {
    text.len() <= MAX_STRING_BYTES && !text.contains('\0')
}

/// The longest start of `text` that may travel as a string of the protocol.
pub(super) fn clip_to_wire_string(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(MAX_STRING_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_the_specification() {
        let check = |minimum, preferred, maximum, allowed: bool| {
            let sizes = BlockSizes::new(minimum, preferred, maximum);
            assert_eq!(sizes.is_ok(), allowed, "{minimum}/{preferred}/{maximum}");
        };
        check(1, 512, 1 << 20, true);
        check(1, 4096, 64 << 20, true);
        check(65536, 65536, 32 << 20, true);
        check(4096, 2 << 20, 3_000_000, true);
        check(0, 4096, 32 << 20, false);
        check(3, 4096, 32 << 20, false);
        check(131_072, 131_072, 32 << 20, false);
        check(1, 256, 32 << 20, false);
        check(1, 5000, 32 << 20, false);
        check(4096, 512, 32 << 20, false);
        check(1, 4096, 1 << 19, false);
        check(1, 4 << 20, 2 << 20, false);
        check(1, 4096, (64 << 20) + 1, false);
        let sizes = BlockSizes::default();
        assert_eq!(
            BlockSizes::new(sizes.minimum_bytes(), sizes.preferred_bytes(), sizes.maximum_bytes()),
            Ok(sizes)
        );
    }

    #[test]
    fn strings_are_clipped_at_a_character() {
        let check = |text: &str, expected: &str| {
            assert_eq!(clip_to_wire_string(text), expected);
            assert_eq!(is_wire_string(text), text == expected);
        };
        check("", "");
        check("disk", "disk");
        check("di\0sk", "di");
        check(&"a".repeat(4096), &"a".repeat(4096));
        check(&"a".repeat(4097), &"a".repeat(4096));
        check(&format!("{}ä", "a".repeat(4095)), &"a".repeat(4095));
    }

    #[test]
    fn flags_offer_only_what_can_be_used() {
        let all = Features::ALL;
        let check = |read_only, features, structured, expected: u16| {
            let info = ExportInfo {
                name: String::new(),
                description: String::new(),
                size_bytes: 0,
                read_only,
                features,
                block_sizes: BlockSizes::default(),
                contexts: Vec::new(),
            };
            assert_eq!(info.transmission_flags(structured), expected);
        };
        check(false, all, true, 0b1101_1110_1101);
        check(false, all, false, 0b1101_0110_1101);
        check(true, all, true, 0b0101_1000_1111);
        check(false, Features::default(), true, 1);
        check(false, Features { fast_zero: true, ..Features::default() }, true, 1);
        check(false, Features { write_zeroes: true, ..Features::default() }, true, 0b100_0001);
    }
}
