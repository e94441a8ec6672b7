//! A whole session from arbitrary bytes.

use super::handshake::{Handshake, Step};
use super::limits::{MAX_OPTION_REPLY_BYTES, MAX_PAYLOAD_BYTES, OUTPUT_FLUSH_BYTES};
use super::request::{Request, Verdict, check, decode_header};
use super::session::Session;
use super::specimen::Specimens;
use super::status::{StatusExtent, StatusQuery, push_block_status};

/// Unsent output of the handshake, at most: what did not yet stop it, one option's replies with the
/// one that broke their limit, and the final reply.
const MAX_UNSENT_BYTES: usize = OUTPUT_FLUSH_BYTES + MAX_OPTION_REPLY_BYTES + (16 << 10);

/// One request's replies without data: a failure with its text, or a few extents for each context.
const MAX_REPLY_BYTES: usize = 8 << 10;

/// Drives a whole session from arbitrary bytes; used by the fuzz target and by the corpus replay test.
///
/// The low four bits of the first byte choose the size of the pieces that the handshake is fed with;
/// the rest is what the client sends.
///
/// # Panics
///
/// When an invariant of the module does not hold: the outcome depends on how the input is cut, the
/// output passes its bound, or a request is accepted that the session does not allow.
pub fn fuzz_one(data: &[u8]) {
    let Some((&knobs, input)) = data.split_first() else {
        return;
    };
    let in_pieces = drive(input, 1 + usize::from(knobs & 15));
    let at_once = drive(input, input.len().max(1));
    assert_eq!(in_pieces, at_once, "the outcome depends on how the input is cut");
}

/// What a client sees and the server concludes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trace {
    output: Vec<u8>,
    session: Option<Session>,
    closed: bool,
}

fn drive(input: &[u8], piece_bytes: usize) -> Trace {
    let mut trace = Trace::default();
    let mut unsent = Vec::new();
    let mut handshake = Handshake::start(&mut unsent);
    let (mut consumed, mut received) = (0, 0);
    loop {
        let progress = handshake.feed(&input[consumed..received], &Specimens, &mut unsent);
        consumed += progress.consumed_bytes;
        assert!(unsent.len() <= MAX_UNSENT_BYTES, "{} bytes unsent", unsent.len());
        assert!(progress.step != Step::Send || !unsent.is_empty(), "nothing to send");
        trace.output.append(&mut unsent);
        match progress.step {
            Step::Receive => {
                assert_eq!(consumed, received, "input left over");
                if received == input.len() {
                    return trace;
                }
                received = input.len().min(received + piece_bytes);
            }
            Step::Send => {}
            Step::Transmission(session) => {
                trace.closed = serve(&session, &input[consumed..], &mut trace.output);
                trace.session = Some(*session);
                return trace;
            }
            Step::Close => {
                trace.closed = true;
                return trace;
            }
        }
    }
}

/// Serves requests without data, and tells whether the connection is to be closed.
fn serve(session: &Session, mut input: &[u8], output: &mut Vec<u8>) -> bool {
    while let Some((bytes, rest)) = input.split_first_chunk() {
        let Ok(header) = decode_header(bytes) else {
            return true;
        };
        let before = output.len();
        let payload_bytes = match check(&header, session) {
            Verdict::Accept(request) => {
                assert_allowed(&request, session);
                push_reply(&request, session, header.cookie, output)
            }
            Verdict::Reject { errno, reason, payload_bytes } => {
                session.push_failure(output, header.cookie, errno, reason);
                payload_bytes
            }
            Verdict::Disconnect | Verdict::Close => return true,
        };
        assert!(output.len() - before <= MAX_REPLY_BYTES, "reply of {}", output.len() - before);
        assert!(payload_bytes <= MAX_PAYLOAD_BYTES, "payload of {payload_bytes}");
        input = &rest[rest.len().min(payload_bytes as usize)..];
    }
    false
}

/// Replies as a node without data would, and returns the length of the request's payload.
fn push_reply(request: &Request, session: &Session, cookie: u64, output: &mut Vec<u8>) -> u32 {
    match *request {
        Request::Read { offset, len_bytes, .. } => {
            session.push_read_header(output, cookie, offset, len_bytes);
            0
        }
        Request::BlockStatus { len_bytes, req_one, .. } => {
            let query = StatusQuery { len_bytes, req_one };
            let last = session.contexts.last().map(|context| context.id);
            for context in &session.contexts {
                let extents = (0..9).map(|n| StatusExtent { len_bytes: 0x333, flags: (n / 2) & 1 });
                let done = Some(context.id) == last;
                let covered = push_block_status(output, cookie, context.id, query, extents, done);
                assert!(covered.is_ok_and(|covered| (1..=len_bytes).contains(&covered)));
            }
            0
        }
        Request::Write { len_bytes, .. } => {
            session.push_success(output, cookie);
            len_bytes
        }
        _ => {
            session.push_success(output, cookie);
            0
        }
    }
}

fn assert_allowed(request: &Request, session: &Session) {
    let info = &session.info;
    let (offset, len_bytes, writes, has_payload) = match *request {
        Request::Read { offset, len_bytes, dont_fragment } => {
            assert!(!dont_fragment || session.structured, "unfragmented read");
            (offset, len_bytes, false, true)
        }
        Request::Write { offset, len_bytes, .. } => (offset, len_bytes, true, true),
        Request::Flush => return,
        Request::Trim { offset, len_bytes, .. } => (offset, len_bytes, true, false),
        Request::Cache { offset, len_bytes } => (offset, len_bytes, false, false),
        Request::WriteZeroes { offset, len_bytes, .. } => (offset, len_bytes, true, false),
        Request::BlockStatus { offset, len_bytes, .. } => {
            assert!(session.structured && !session.contexts.is_empty() && len_bytes > 0);
            (offset, len_bytes, false, false)
        }
    };
    let len = u64::from(len_bytes);
    assert!(len <= info.size_bytes && offset <= info.size_bytes - len, "past the end");
    assert_eq!((offset | len) % u64::from(info.block_sizes.minimum_bytes()), 0, "unaligned");
    assert!(!has_payload || len_bytes <= info.block_sizes.maximum_bytes(), "payload too long");
    assert!(!writes || !info.read_only, "write to a read-only export");
    for context in &session.contexts {
        assert!(context.index < info.contexts.len(), "context of nowhere");
    }
}

#[cfg(test)]
mod tests {
    use super::super::transcript::bytes;
    use super::*;

    /// Sessions worth starting from: the pieces' size, client flags, and what follows.
    const SEEDS: [(&str, &str); 16] = [
        ("empty", "00"),
        ("abort", "00 00000003 'IHAVEOPT' 00000002 00000000"),
        ("list", "03 00000003 'IHAVEOPT' 00000003 00000000"),
        ("export-name", "00 00000001 'IHAVEOPT' 00000001 00000004 'disk'"),
        (
            "export-name-plain-newstyle",
            "01 00000000 'IHAVEOPT' 00000001 00000000 \
             25609513 0000 0000 0000000000000001 0000000000000000 00000200",
        ),
        (
            "info-all",
            "02 00000003 'IHAVEOPT' 00000006 00000010 00000002 'cd' 0004 0000 0001 0002 0003",
        ),
        (
            "go-read-disconnect",
            "04 00000003 'IHAVEOPT' 00000007 0000000c 00000004 'disk' 0001 0003 \
             25609513 0000 0000 0000000000000001 0000000000000200 00001000 \
             25609513 0000 0002 0000000000000002 0000000000000000 00000000",
        ),
        (
            "go-write-flush",
            "05 00000003 'IHAVEOPT' 00000007 0000000a 00000004 'disk' 0000 \
             25609513 0001 0001 0000000000000001 0000000000000003 00000005 'hello' \
             25609513 0000 0003 0000000000000002 0000000000000000 00000000",
        ),
        (
            "structured-read",
            "06 00000003 'IHAVEOPT' 00000008 00000000 \
             'IHAVEOPT' 00000007 00000006 00000000 0000 \
             25609513 0004 0000 0000000000000001 0000000000000000 00000400 \
             25609513 0000 0000 0000000000000002 0000000000100000 00000001",
        ),
        (
            "list-contexts",
            "07 00000003 'IHAVEOPT' 00000008 00000000 \
             'IHAVEOPT' 00000009 0000000c 00000004 'disk' 00000000 \
             'IHAVEOPT' 00000009 00000015 00000004 'disk' 00000001 00000005 'qemu:'",
        ),
        (
            "block-status",
            "08 00000003 'IHAVEOPT' 00000008 00000000 \
             'IHAVEOPT' 0000000a 0000003a 00000004 'disk' 00000002 \
             0000000f 'base:allocation' 00000017 'qemu:dirty-bitmap:daily' \
             'IHAVEOPT' 00000007 0000000a 00000004 'disk' 0000 \
             25609513 0000 0007 0000000000000001 0000000000000000 00100000 \
             25609513 0008 0007 0000000000000002 0000000000000200 00010000",
        ),
        (
            "read-only-refusals",
            "09 00000003 'IHAVEOPT' 00000007 00000008 00000002 'cd' 0000 \
             25609513 0000 0001 0000000000000001 0000000000000000 00000004 'oops' \
             25609513 0000 0004 0000000000000002 0000000000000000 00000800 \
             25609513 0000 0000 0000000000000003 0000000000000200 00000200",
        ),
        (
            "zero-trim-cache",
            "0a 00000003 'IHAVEOPT' 00000007 00000006 00000000 0000 \
             25609513 0012 0006 0000000000000001 0000000000000000 00100000 \
             25609513 0001 0004 0000000000000002 0000000000001000 00001000 \
             25609513 0000 0005 0000000000000003 0000000000000000 00100000",
        ),
        (
            "unsupported-options",
            "0b 00000003 'IHAVEOPT' 00000005 00000000 'IHAVEOPT' 0000000b 00000000 \
             'IHAVEOPT' 0000002a 00000003 'abc' 'IHAVEOPT' 00000007 00000006 00000000 0000",
        ),
        ("option-too-long", "0f 00000003 'IHAVEOPT' 00000007 00100001"),
        (
            "bad-request-magic",
            "0d 00000003 'IHAVEOPT' 00000007 00000006 00000000 0000 \
             25609514 0000 0000 0000000000000001 0000000000000000 00000200",
        ),
    ];

    /// Knuth's MMIX generator; its upper bits are good enough to break things.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }

        fn byte(&mut self) -> u8 {
            const EDGES: [u8; 8] = [0, 1, 2, 7, 0x7f, 0x80, 0xfe, 0xff];
            if self.below(2) == 0 { EDGES[self.below(8)] } else { self.below(256) as u8 }
        }
    }

    fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
        for _ in 0..1 + random.below(4) {
            let at = random.below(input.len() + 1);
            let end = input.len().min(at + 1 + random.below(24));
            match random.below(6) {
                0 => input.truncate(at),
                1 => drop(input.drain(at..end)),
                2 => input.insert(at, random.byte()),
                3 => {
                    let copy = input[at..end].to_vec();
                    input.splice(at..at, copy);
                }
                4 => {
                    let other = &seeds[random.below(seeds.len())];
                    input.truncate(at);
                    input.extend_from_slice(&other[random.below(other.len())..]);
                }
                _ => input[at..end].iter_mut().take(2).for_each(|byte| *byte = random.byte()),
            }
        }
    }

    #[test]
    fn seeds_go_where_they_are_meant_to() {
        let check = |name: &str, contexts: Option<usize>, closed: bool| {
            let (_, words) = SEEDS.iter().find(|(seed, _)| *seed == name).expect("a seed");
            let seed = bytes(words);
            fuzz_one(&seed);
            let trace = drive(&seed[1..], 99);
            let found = trace.session.map(|session| session.contexts.len());
            assert_eq!((found, trace.closed), (contexts, closed), "{name}");
        };
        check("empty", None, false);
        check("abort", None, true);
        check("list", None, false);
        check("export-name", Some(0), false);
        check("export-name-plain-newstyle", Some(0), false);
        check("info-all", None, false);
        check("go-read-disconnect", Some(0), true);
        check("go-write-flush", Some(0), false);
        check("structured-read", Some(0), false);
        check("list-contexts", None, false);
        check("block-status", Some(2), false);
        check("read-only-refusals", Some(0), false);
        check("zero-trim-cache", Some(0), false);
        check("unsupported-options", Some(0), false);
        check("option-too-long", None, true);
        check("bad-request-magic", Some(0), true);
    }

    /// Says which input fails, for a new seed.
    fn try_one(input: &[u8]) {
        let outcome = std::panic::catch_unwind(|| fuzz_one(input));
        assert!(outcome.is_ok(), "replay with fuzz_one(b\"{}\")", input.escape_ascii());
    }

    #[test]
    fn mutated_sessions_break_nothing() {
        let seeds: Vec<Vec<u8>> = SEEDS.iter().map(|(_, words)| bytes(words)).collect();
        let (mut sessions, mut random) = (0, Random(1));
        for _ in 0..200_000 {
            let mut input = seeds[random.below(seeds.len())].clone();
            mutate(&mut input, &seeds, &mut random);
            try_one(&input);
            let client = input.get(1..).unwrap_or_default();
            sessions += usize::from(drive(client, 99).session.is_some());
        }
        let mut noise = Vec::new();
        for _ in 0..10_000 {
            noise.clear();
            noise.resize_with(random.below(64), || random.byte());
            try_one(&noise);
        }
        assert!(sessions > 10_000, "only {sessions} inputs get past the handshake");
    }

    /// Writes the seeds of the fuzz target: `NBD_SEEDS_DIR=$PWD/tests/fuzz/corpus/nbd_session cargo
    /// test -p blockloom --lib -- --ignored write_seed_corpus`.
    #[test]
    #[ignore = "writes files"]
    fn write_seed_corpus() {
        let directory = std::env::var("NBD_SEEDS_DIR").expect("NBD_SEEDS_DIR is set");
        for (name, words) in SEEDS {
            std::fs::write(format!("{directory}/{name}"), bytes(words)).expect("seed is written");
        }
    }
}
