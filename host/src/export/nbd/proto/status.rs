//! Block status chunks: the extents of one metadata context.

use super::limits::MAX_STATUS_EXTENTS;
use super::reply::chunk_header;
use super::wire;

/// A run of bytes with the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes; an empty extent is passed over.
    pub len_bytes: u64,
    /// `STATE_` bits of [`wire`], of the context in question.
    pub flags: u32,
}

/// What a block status request asks of each context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// Length of the requested range in bytes.
    pub len_bytes: u32,
    /// Report one extent.
    pub req_one: bool,
}

/// A context had no extent to report at the offset of the request. Nothing was appended; answer the
/// request with an error, because any extent would be a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no extent at the start of the requested range")]
pub struct NoExtents;

/// Appends the chunk of the context that the client knows as `context_id`, and returns how many bytes
/// from the start of the range it covers: fewer than asked for if `extents` end early, if one extent
/// is wanted, or at [`MAX_STATUS_EXTENTS`].
///
/// `extents` lie end to end from the offset of the request. Neighbours with equal flags become one
/// extent, the last is clipped to the range, and nothing is taken from the iterator beyond what the
/// chunk needs.
pub fn push_block_status(
    output: &mut Vec<u8>,
    cookie: u64,
    context_id: u32,
    query: StatusQuery,
    extents: impl IntoIterator<Item = StatusExtent>,
    done: bool,
) -> Result<u32, NoExtents> {
    let start = output.len();
    output.extend_from_slice(&[0; wire::CHUNK_HEADER_BYTES]);
    output.extend_from_slice(&context_id.to_be_bytes());
    let covered_bytes = push_extents(output, query, extents);
    if covered_bytes == 0 {
        output.truncate(start);
        return Err(NoExtents);
    }
    // At most 4 bytes and 8 for each of MAX_STATUS_EXTENTS.
    let payload_bytes = (output.len() - start - wire::CHUNK_HEADER_BYTES) as u32;
    let header = chunk_header(cookie, wire::REPLY_TYPE_BLOCK_STATUS, payload_bytes, done);
    output[start..start + wire::CHUNK_HEADER_BYTES].copy_from_slice(&header);
    Ok(covered_bytes)
}

/// Appends the descriptors and returns the sum of their lengths.
fn push_extents(
    output: &mut Vec<u8>,
    query: StatusQuery,
    extents: impl IntoIterator<Item = StatusExtent>,
) -> u32 {
    let max_extents = if query.req_one { 1 } else { MAX_STATUS_EXTENTS };
    let mut extents = extents.into_iter();
    let mut pushed_extents = 0;
    let mut pushed_bytes: u32 = 0;
    // The extent that may still grow. With what is pushed it never exceeds the range.
    let mut run_bytes: u32 = 0;
    let mut run_flags = 0;
    while pushed_bytes + run_bytes < query.len_bytes {
        let Some(extent) = extents.next() else { break };
        let left_bytes = query.len_bytes - pushed_bytes - run_bytes;
        let len_bytes =
            u32::try_from(extent.len_bytes).map_or(left_bytes, |len| len.min(left_bytes));
        if len_bytes == 0 {
            continue;
        }
        if run_bytes > 0 && extent.flags != run_flags {
            push_extent(output, run_bytes, run_flags);
            pushed_bytes += run_bytes;
            pushed_extents += 1;
            run_bytes = 0;
            if pushed_extents == max_extents {
                break;
            }
        }
        run_bytes += len_bytes;
        run_flags = extent.flags;
    }
    if run_bytes > 0 {
        push_extent(output, run_bytes, run_flags);
    }
    pushed_bytes + run_bytes
}

fn push_extent(output: &mut Vec<u8>, len_bytes: u32, flags: u32) {
    output.extend_from_slice(&len_bytes.to_be_bytes());
    output.extend_from_slice(&flags.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::transcript::bytes;
    use super::*;

    fn extents(list: &[(u64, u32)]) -> impl Iterator<Item = StatusExtent> {
        list.iter().map(|&(len_bytes, flags)| StatusExtent { len_bytes, flags })
    }

    /// `expected` is what follows the context id, and the bytes it covers.
    fn check(len_bytes: u32, req_one: bool, list: &[(u64, u32)], expected: (&str, u32)) {
        let (descriptors, covered) = (bytes(expected.0), expected.1);
        let query = StatusQuery { len_bytes, req_one };
        let mut output = b"before".to_vec();
        assert_eq!(push_block_status(&mut output, 9, 2, query, extents(list), true), Ok(covered));
        let payload_bytes = 4 + descriptors.len() as u32;
        let head = bytes("'before' 668e33ef 0001 0005 0000000000000009");
        let whole =
            [&head[..], &payload_bytes.to_be_bytes(), &bytes("00000002"), &descriptors].concat();
        assert_eq!(output, whole, "{list:?}");
    }

    #[test]
    fn extents_are_joined_and_clipped() {
        check(4096, false, &[(4096, 3)], ("00001000 00000003", 4096));
        check(4096, false, &[(1 << 40, 1)], ("00001000 00000001", 4096));
        check(u32::MAX, false, &[(u64::MAX, 1)], ("ffffffff 00000001", u32::MAX));
        check(4096, false, &[(512, 0)], ("00000200 00000000", 512));
        check(2048, false, &[(512, 0), (512, 0), (1024, 0)], ("00000800 00000000", 2048));
        check(
            4096,
            false,
            &[(512, 0), (0, 3), (512, 0), (1024, 3), (9999, 0)],
            ("00000400 00000000 00000400 00000003 00000800 00000000", 4096),
        );
        check(1024, false, &[(1024, 0), (1024, 1)], ("00000400 00000000", 1024));
        check(u32::MAX, false, &[(1 << 32, 0), (1, 1)], ("ffffffff 00000000", u32::MAX));
    }

    #[test]
    fn one_extent_when_one_is_wanted() {
        check(4096, true, &[(512, 1), (512, 0)], ("00000200 00000001", 512));
        check(4096, true, &[(512, 1), (512, 1), (512, 0)], ("00000400 00000001", 1024));
        check(4096, true, &[(8192, 1)], ("00001000 00000001", 4096));
        check(4096, true, &[(0, 0), (512, 1)], ("00000200 00000001", 512));
    }

    #[test]
    fn nothing_to_report_is_an_error() {
        let check = |len_bytes, list: &[(u64, u32)]| {
            let query = StatusQuery { len_bytes, req_one: false };
            let mut output = b"before".to_vec();
            let result = push_block_status(&mut output, 9, 2, query, extents(list), true);
            assert_eq!((result, &output[..]), (Err(NoExtents), &b"before"[..]));
        };
        check(4096, &[]);
        check(4096, &[(0, 1), (0, 0)]);
        check(0, &[(4096, 1)]);
    }

    #[test]
    fn a_chunk_is_bounded() {
        let mut taken: u32 = 0;
        let alternating = std::iter::from_fn(|| {
            taken += 1;
            Some(StatusExtent { len_bytes: 512, flags: taken & 1 })
        });
        let query = StatusQuery { len_bytes: u32::MAX, req_one: false };
        let mut output = Vec::new();
        let covered = push_block_status(&mut output, 9, 2, query, alternating, false);
        assert_eq!(covered, Ok(512 * MAX_STATUS_EXTENTS as u32));
        assert_eq!(output.len(), wire::CHUNK_HEADER_BYTES + 4 + 8 * MAX_STATUS_EXTENTS);
        assert_eq!(taken as usize, MAX_STATUS_EXTENTS + 1);
    }
}
