use super::super::export_info::{BlockSizes, Features};
use super::super::transcript::{bytes, session};
use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn header_is_decoded_to_the_byte() {
    let check = |words: &str, expected: Result<Header, Malformed>| {
        let bytes: [u8; 28] = bytes(words).try_into().expect("28 bytes");
        assert_eq!(decode_header(&bytes), expected);
    };
    check(
        "25609513 0102 0304 05060708090a0b0c 0d0e0f1011121314 15161718",
        Ok(Header {
            flags: 0x0102,
            command: 0x0304,
            cookie: 0x0506_0708_090a_0b0c,
            offset: 0x0d0e_0f10_1112_1314,
            len_bytes: 0x1516_1718,
        }),
    );
    check(
        "25609514 0000 0000 0000000000000000 0000000000000000 00000000",
        Err(Malformed { magic: 0x2560_9514 }),
    );
    check(
        "67446698 0000 0000 0000000000000000 0000000000000000 00000000",
        Err(Malformed { magic: 0x6744_6698 }),
    );
}

/// Judges (command, flags, offset, length).
fn verdict(session: &Session, request: (u16, u16, u64, u32)) -> Verdict {
    let (command, flags, offset, len_bytes) = request;
    check(&Header { cookie: 7, command, flags, offset, len_bytes }, session)
}

fn accepted(session: &Session, request: (u16, u16, u64, u32), expected: Request) {
    assert_eq!(verdict(session, request), Verdict::Accept(expected), "{request:?}");
}

/// Refused, with the payload of a write left to drain.
fn refused(session: &Session, request: (u16, u16, u64, u32), expected: NbdErrno) {
    let Verdict::Reject { errno, payload_bytes, .. } = verdict(session, request) else {
        panic!("{request:?} is not refused");
    };
    let drained = if request.0 == wire::CMD_WRITE { request.3 } else { 0 };
    assert_eq!((errno, payload_bytes), (expected, drained), "{request:?}");
}

fn changed(structured: bool, change: impl FnOnce(&mut Session)) -> Session {
    let mut session = session(structured);
    change(&mut session);
    session
}

#[test]
fn every_command_has_its_type() {
    let session = session(true);
    let (offset, len_bytes) = (4096, 512);
    let check = |command, flags, expected| {
        accepted(&session, (command, flags, offset, len_bytes), expected);
    };
    check(0, 0, Request::Read { offset, len_bytes, dont_fragment: false });
    check(0, 4, Request::Read { offset, len_bytes, dont_fragment: true });
    check(1, 0, Request::Write { offset, len_bytes, fua: false });
    check(1, 1, Request::Write { offset, len_bytes, fua: true });
    check(4, 0, Request::Trim { offset, len_bytes, fua: false });
    check(4, 1, Request::Trim { offset, len_bytes, fua: true });
    check(5, 0, Request::Cache { offset, len_bytes });
    let zeroes = |fua, no_hole, fast_zero| Request::WriteZeroes {
        offset,
        len_bytes,
        fua,
        no_hole,
        fast_zero,
    };
    check(6, 0, zeroes(false, false, false));
    check(6, 1, zeroes(true, false, false));
    check(6, 2, zeroes(false, true, false));
    check(6, 16, zeroes(false, false, true));
    check(6, 19, zeroes(true, true, true));
    check(7, 0, Request::BlockStatus { offset, len_bytes, req_one: false });
    check(7, 8, Request::BlockStatus { offset, len_bytes, req_one: true });
    accepted(&session, (3, 0, 0, 0), Request::Flush);
}

#[test]
fn flags_belong_to_commands() {
    let all = session(true);
    let legal = [0b101, 0b1, 0xffff, 0b1, 0b1, 0b1, 0b1_0011, 0b1001];
    for command in [0, 1, 3, 4, 5, 6, 7] {
        for bit in 0..16 {
            let len_bytes = if command == wire::CMD_FLUSH { 0 } else { 512 };
            let request = (command, 1 << bit, 0, len_bytes);
            if legal[usize::from(command)] & (1 << bit) == 0 {
                refused(&all, request, NbdErrno::Invalid);
            } else {
                assert!(matches!(verdict(&all, request), Verdict::Accept(_)), "{request:?}");
            }
        }
    }
    // What is meaningless but legal is ignored.
    accepted(&all, (3, 1, 0, 0), Request::Flush);
    accepted(&all, (5, 1, 0, 512), Request::Cache { offset: 0, len_bytes: 512 });

    refused(&session(false), (0, wire::CMD_FLAG_DF, 0, 512), NbdErrno::Invalid);
    let plain = changed(true, |session| session.info.features = Features::default());
    refused(&plain, (0, wire::CMD_FLAG_DF, 0, 512), NbdErrno::Invalid);
    refused(&plain, (0, wire::CMD_FLAG_FUA, 0, 512), NbdErrno::Invalid);
    refused(&plain, (1, wire::CMD_FLAG_FUA, 0, 512), NbdErrno::Invalid);
    let slow = changed(true, |session| session.info.features.fast_zero = false);
    refused(&slow, (6, wire::CMD_FLAG_FAST_ZERO, 0, 512), NbdErrno::Invalid);
}

#[test]
fn commands_that_are_not_offered_are_refused() {
    let plain = changed(true, |session| session.info.features = Features::default());
    for command in [3, 4, 5, 6, 8, 9, 0x100, 0xffff] {
        refused(&plain, (command, 0, 0, 0), NbdErrno::Invalid);
    }
    refused(&session(false), (7, 0, 0, 512), NbdErrno::Invalid);
    let unselected = changed(true, |session| session.contexts.clear());
    refused(&unselected, (7, 0, 0, 512), NbdErrno::Invalid);
}

#[test]
fn read_only_export_refuses_every_change() {
    let session = changed(true, |session| session.info.read_only = true);
    for command in [1, 4, 6] {
        refused(&session, (command, 0, 0, 512), NbdErrno::Perm);
        refused(&session, (command, 0, 2 * MIB, 512), NbdErrno::Perm);
    }
    let read = Request::Read { offset: 0, len_bytes: 512, dont_fragment: false };
    accepted(&session, (0, 0, 0, 512), read);
    accepted(&session, (3, 0, 0, 0), Request::Flush);
}

#[test]
fn ranges_end_with_the_export() {
    let all = session(true);
    let commands = [
        (0, NbdErrno::Invalid),
        (1, NbdErrno::NoSpace),
        (4, NbdErrno::NoSpace),
        (5, NbdErrno::Invalid),
        (6, NbdErrno::NoSpace),
        (7, NbdErrno::Invalid),
    ];
    for (command, errno) in commands {
        let fits = |offset, len_bytes| {
            let verdict = verdict(&all, (command, 0, offset, len_bytes));
            assert!(matches!(verdict, Verdict::Accept(_)), "{command} {offset} {len_bytes}");
        };
        fits(0, MIB as u32);
        fits(MIB - 1, 1);
        refused(&all, (command, 0, 0, MIB as u32 + 1), errno);
        refused(&all, (command, 0, MIB, 1), errno);
        refused(&all, (command, 0, MIB - 1, 2), errno);
        refused(&all, (command, 0, u64::MAX, 1), errno);
        refused(&all, (command, 0, u64::MAX - 511, 512), errno);
    }
    refused(&all, (3, 0, 1, 0), NbdErrno::Invalid);
    refused(&all, (3, 0, 0, 1), NbdErrno::Invalid);
}

#[test]
fn empty_ranges_do_nothing() {
    let all = session(true);
    for command in [0, 1, 4, 5, 6] {
        for offset in [0, 4096, MIB] {
            let verdict = verdict(&all, (command, 0, offset, 0));
            assert!(matches!(verdict, Verdict::Accept(_)), "{command} {offset}");
        }
    }
    refused(&all, (0, 0, MIB + 1, 0), NbdErrno::Invalid);
    refused(&all, (1, 0, MIB + 1, 0), NbdErrno::NoSpace);
    refused(&all, (7, 0, 0, 0), NbdErrno::Invalid);
}

#[test]
fn payloads_are_bounded_and_ranges_are_not() {
    let huge = |maximum_bytes| {
        changed(true, |session| {
            session.info.size_bytes = u64::MAX;
            session.info.block_sizes =
                BlockSizes::new(1, 4096, maximum_bytes).expect("valid block sizes");
        })
    };
    let fits = |session: &Session, command, len_bytes| {
        let verdict = verdict(session, (command, 0, 1 << 40, len_bytes));
        assert!(matches!(verdict, Verdict::Accept(_)), "{command} {len_bytes}");
    };
    let session = huge(MAX_PAYLOAD_BYTES);
    for command in [0, 1] {
        fits(&session, command, MAX_PAYLOAD_BYTES);
    }
    for command in [4, 5, 6, 7] {
        fits(&session, command, u32::MAX);
    }
    for len_bytes in [MAX_PAYLOAD_BYTES + 1, u32::MAX] {
        refused(&session, (0, 0, 0, len_bytes), NbdErrno::Invalid);
        assert_eq!(verdict(&session, (1, 0, 0, len_bytes)), Verdict::Close);
    }
    let session = huge(1 << 20);
    for command in [0, 1] {
        fits(&session, command, 1 << 20);
        refused(&session, (command, 0, 0, (1 << 20) + 1), NbdErrno::Invalid);
        refused(&session, (command, 0, 0, 1 << 25), NbdErrno::Invalid);
    }
    assert_eq!(verdict(&session, (1, 0, 0, MAX_PAYLOAD_BYTES + 1)), Verdict::Close);
}

#[test]
fn ranges_are_aligned_to_the_minimum_block() {
    let session = changed(true, |session| {
        session.info.block_sizes = BlockSizes::new(512, 4096, 1 << 20).expect("valid");
    });
    for command in [0, 1, 4, 5, 6, 7] {
        let fits = verdict(&session, (command, 0, 512, 1024));
        assert!(matches!(fits, Verdict::Accept(_)), "{command}");
        refused(&session, (command, 0, 256, 512), NbdErrno::Invalid);
        refused(&session, (command, 0, 512, 513), NbdErrno::Invalid);
    }
}

#[test]
fn disconnect_is_always_understood() {
    for request in [(2, 0, 0, 0), (2, 0xffff, 5, u32::MAX)] {
        assert_eq!(verdict(&session(false), request), Verdict::Disconnect);
    }
}
