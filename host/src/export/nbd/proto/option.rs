//! The options of the handshake: parsing their data, encoding their replies.

use super::export_info::{
    ExportDirectory, ExportInfo, ExportSummary, clip_to_wire_string, is_wire_string,
};
use super::limits::{MAX_OPTION_REPLY_BYTES, MAX_STRING_BYTES};
use super::wire;

/// Why an option is refused, with a text for the client's user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OptionError {
    Unsupported,
    Invalid(&'static str),
    TooBig(&'static str),
    Unknown(String),
}

impl OptionError {
    pub(super) fn unknown_export(name: &str) -> Self {
        Self::Unknown(format!(
            "no export named '{name:.80}'; list the exports to see what is served"
        ))
    }

    fn reply_type(&self) -> u32 {
        match self {
            Self::Unsupported => wire::REP_ERR_UNSUP,
            Self::Invalid(_) => wire::REP_ERR_INVALID,
            Self::TooBig(_) => wire::REP_ERR_TOO_BIG,
            Self::Unknown(_) => wire::REP_ERR_UNKNOWN,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Unsupported => "option is not supported by this server",
            Self::Invalid(message) | Self::TooBig(message) => message,
            Self::Unknown(message) => message,
        }
    }
}

/// Appends one option reply whose data is `parts`, one after the other. Callers keep the sum below
/// 4 GiB by sending strings of the protocol only.
pub(super) fn push_reply(output: &mut Vec<u8>, option: u32, reply_type: u32, parts: &[&[u8]]) {
    let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(len_bytes <= 16 + 2 * MAX_STRING_BYTES);
    output.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&option.to_be_bytes());
    output.extend_from_slice(&reply_type.to_be_bytes());
    output.extend_from_slice(&(len_bytes as u32).to_be_bytes());
    for part in parts {
        output.extend_from_slice(part);
    }
}

/// Appends the final reply of `option`. Replies that came before it and began at `replies_start`
/// are taken back when they exceed [`MAX_OPTION_REPLY_BYTES`].
pub(super) fn push_final_reply(
    output: &mut Vec<u8>,
    replies_start: usize,
    option: u32,
    result: &Result<(), OptionError>,
) {
    if output.len().saturating_sub(replies_start) > MAX_OPTION_REPLY_BYTES {
        output.truncate(replies_start);
        return push_error(output, option, &OptionError::TooBig("reply is too long to be sent"));
    }
    match result {
        Ok(()) => push_reply(output, option, wire::REP_ACK, &[]),
        Err(error) => push_error(output, option, error),
    }
}

fn push_error(output: &mut Vec<u8>, option: u32, error: &OptionError) {
    let message = clip_to_wire_string(error.message());
    push_reply(output, option, error.reply_type(), &[message.as_bytes()]);
}

/// Appends one `REP_SERVER` for each export, stopping once the limit of one option is passed. Names
/// that the protocol cannot carry are left out.
pub(super) fn push_listing(output: &mut Vec<u8>, directory: &dyn ExportDirectory) {
    let start = output.len();
    for ExportSummary { name, description } in directory.names() {
        if output.len() - start > MAX_OPTION_REPLY_BYTES {
            break;
        }
        if is_wire_string(&name) {
            let name_len = (name.len() as u32).to_be_bytes();
            let description = clip_to_wire_string(&description).as_bytes();
            let parts = [&name_len, name.as_bytes(), description];
            push_reply(output, wire::OPT_LIST, wire::REP_SERVER, &parts);
        }
    }
}

/// Data of `OPT_INFO` and `OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) export: &'a str,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
}

impl<'a> InfoRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, OptionError> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = usize::from(fields.u16()?);
        if fields.0.len() != count * 2 {
            return Err(OptionError::Invalid("number of information requests is wrong"));
        }
        let wants = |info: u16| fields.0.chunks_exact(2).any(|item| item == info.to_be_bytes());
        Ok(Self {
            export,
            wants_name: wants(wire::INFO_NAME),
            wants_description: wants(wire::INFO_DESCRIPTION),
        })
    }
}

/// Appends the `REP_INFO` replies to `option`. The block sizes are sent unasked too: a client that
/// does not know them ignores them, and one that does can only gain.
pub(super) fn push_info(
    output: &mut Vec<u8>,
    option: u32,
    request: &InfoRequest<'_>,
    info: &ExportInfo,
    structured: bool,
) {
    let mut push = |kind: u16, parts: [&[u8]; 3]| {
        let [first, second, third] = parts;
        push_reply(output, option, wire::REP_INFO, &[&kind.to_be_bytes(), first, second, third]);
    };
    let size_bytes = info.size_bytes.to_be_bytes();
    let flags = info.transmission_flags(structured).to_be_bytes();
    push(wire::INFO_EXPORT, [&size_bytes, &flags, &[]]);
    let sizes = info.block_sizes;
    push(
        wire::INFO_BLOCK_SIZE,
        [
            &sizes.minimum_bytes().to_be_bytes(),
            &sizes.preferred_bytes().to_be_bytes(),
            &sizes.maximum_bytes().to_be_bytes(),
        ],
    );
    if request.wants_name && is_wire_string(&info.name) {
        push(wire::INFO_NAME, [info.name.as_bytes(), &[], &[]]);
    }
    if request.wants_description && !info.description.is_empty() {
        let description = clip_to_wire_string(&info.description);
        push(wire::INFO_DESCRIPTION, [description.as_bytes(), &[], &[]]);
    }
}

/// The part of an option's data that is not parsed yet.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], OptionError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, OptionError> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, OptionError> {
        self.take().map(u32::from_be_bytes)
    }

    /// A string after its length in 32 bits.
    pub(super) fn string(&mut self) -> Result<&'a str, OptionError> {
        let len_bytes = usize::try_from(self.u32()?).map_err(|_| TRUNCATED)?;
        let (string, rest) = self.0.split_at_checked(len_bytes).ok_or(TRUNCATED)?;
        self.0 = rest;
        parse_string(string)
    }
}

const TRUNCATED: OptionError = OptionError::Invalid("option data is shorter than its fields say");

/// `bytes` as a string of the protocol: UTF-8, not too long, without NUL.
pub(super) fn parse_string(bytes: &[u8]) -> Result<&str, OptionError> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(OptionError::Invalid("string is longer than 4096 bytes"));
    }
    match str::from_utf8(bytes) {
        Ok(string) if is_wire_string(string) => Ok(string),
        Ok(_) => Err(OptionError::Invalid("string contains a NUL")),
        Err(_) => Err(OptionError::Invalid("string is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::transcript::bytes;
    use super::*;

    fn check_info_request(data: &str, expected: Result<(&str, bool, bool), &'static str>) {
        let expected = expected
            .map(|(export, wants_name, wants_description)| InfoRequest {
                export,
                wants_name,
                wants_description,
            })
            .map_err(OptionError::Invalid);
        assert_eq!(InfoRequest::parse(&bytes(data)), expected, "{data}");
    }

    #[test]
    fn info_request_is_parsed_to_the_byte() {
        let truncated = Err("option data is shorter than its fields say");
        let miscounted = Err("number of information requests is wrong");
        check_info_request("00000000 0000", Ok(("", false, false)));
        check_info_request("00000004 'disk' 0000", Ok(("disk", false, false)));
        check_info_request("00000001 'd' 0002 0003 0001", Ok(("d", true, false)));
        check_info_request("00000001 'd' 0003 0002 0002 ffff", Ok(("d", false, true)));
        check_info_request("", truncated);
        check_info_request("000000", truncated);
        check_info_request("00000007 'disk' 0000", truncated);
        check_info_request("ffffffff 'disk' 0000", truncated);
        check_info_request("00000004 'disk'", truncated);
        check_info_request("00000004 'disk' 0001", miscounted);
        check_info_request("00000004 'disk' 0000 0000", miscounted);
        check_info_request("00000004 'disk' ffff 0001", miscounted);
        check_info_request("00000002 c328 0000", Err("string is not UTF-8"));
        check_info_request("00000002 6100 0000", Err("string contains a NUL"));
        check_info_request("00001001 61*4097 0000", Err("string is longer than 4096 bytes"));
        check_info_request("00001000 61*4096 0000", Ok((&"a".repeat(4096), false, false)));
    }

    struct Many(usize);

    impl ExportDirectory for Many {
        fn names(&self) -> Vec<ExportSummary> {
            let name = "n".repeat(MAX_STRING_BYTES);
            let unsendable = ExportSummary { name: "a\0b".into(), description: String::new() };
            let export = ExportSummary { name, description: String::new() };
            std::iter::once(unsendable).chain(vec![export; self.0]).collect()
        }

        fn lookup(&self, _: &str) -> Option<ExportInfo> {
            None
        }
    }

    #[test]
    fn listing_is_bounded() {
        let check = |exports: usize, expected_type: u32, expected_len: usize| {
            let mut output = b"before".to_vec();
            push_listing(&mut output, &Many(exports));
            push_final_reply(&mut output, 6, wire::OPT_LIST, &Ok(()));
            assert_eq!(output.len(), expected_len, "{exports} exports");
            let last = output.windows(8).rposition(|w| w == wire::OPTION_REPLY_MAGIC.to_be_bytes());
            let last = last.expect("a final reply");
            assert_eq!(output[last + 12..last + 16], expected_type.to_be_bytes());
        };
        let entry = 20 + 4 + MAX_STRING_BYTES;
        check(0, wire::REP_ACK, 6 + 20);
        check(254, wire::REP_ACK, 6 + 254 * entry + 20);
        check(255, wire::REP_ERR_TOO_BIG, 6 + 20 + 28);
        check(10_000, wire::REP_ERR_TOO_BIG, 6 + 20 + 28);
    }
}
