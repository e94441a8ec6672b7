//! What each command does, at every size and alignment, and how it is refused.

use blockloom_tests::nbd::{Chunk, Client, Terms, command, errno, flag};
use blockloom_tests::{Random, pattern};

use crate::stack::{STACKS, Stack, Storage};
use crate::{ENGINES, KIB, MIB, memory_disk, scratch, serve};

const ALLOCATION: &str = "base:allocation";

/// Random writes, zeroes and discards of odd sizes at odd offsets, against a model in memory.
/// 4 MiB; the seed is that of the stack's number.
fn check_against_model(stack: &Stack, seed: u64) {
    const SIZE: u64 = 4 * MIB;
    let scratch = scratch();
    let daemon = stack.serve(&scratch, SIZE);
    let mut client = Client::open(daemon.uri("vda"));
    assert_eq!((client.size_bytes(), client.is_read_only()), (SIZE, false));
    let mut model = vec![0; SIZE as usize];
    let mut random = Random::new(seed);
    for step in 0..400 {
        let len = match random.below(4) {
            0 => 1 + random.below(16),
            1 => 1 + random.below(5000),
            2 => 4096 * (1 + random.below(8)),
            _ => 1 + random.below(300_000),
        };
        let mut offset = random.below(SIZE - len + 1);
        if random.below(3) == 0 {
            offset &= !4095;
        }
        let range = offset as usize..(offset + len) as usize;
        let fua = if random.below(8) == 0 { flag::FUA } else { 0 };
        let len = len as u32;
        let context = format!("{stack}, seed {seed}, step {step}: {len} bytes at {offset}");
        match random.below(6) {
            0..=2 => {
                let bytes = pattern(seed << 32 | step, len as usize);
                assert_eq!(client.write(fua, offset, &bytes), 0, "write, {context}");
                model[range].copy_from_slice(&bytes);
            }
            3 => {
                let flags = fua | if random.below(2) == 0 { flag::NO_HOLE } else { 0 };
                let errno = client.plain(command::WRITE_ZEROES, flags, offset, len);
                assert_eq!(errno, 0, "write zeroes, {context}");
                model[range].fill(0);
            }
            4 => {
                assert_eq!(client.plain(command::TRIM, fua, offset, len), 0, "trim, {context}");
                // Discarded bytes read as before or as zeros; outside the range nothing changes.
                let now = client.read(offset, len).expect("read");
                for (now, was) in now.iter().zip(&mut model[range]) {
                    assert!(*now == *was || *now == 0, "discard changed bytes, {context}");
                    *was = *now;
                }
            }
            _ => {
                let bytes = client.read(offset, len);
                assert_eq!(bytes.as_deref(), Ok(&model[range]), "read, {context}");
            }
        }
    }
    assert!(client.read(0, SIZE as u32).as_ref() == Ok(&model), "{stack}, seed {seed}: the end");
    assert_eq!(client.plain(command::FLUSH, 0, 0, 0), 0);
    client.disconnect();
    daemon.finish();
    if stack.storage != Storage::Memory {
        let file = scratch.peek("disk.img", 0, SIZE as usize);
        assert!(file == model, "{stack}, seed {seed}: the file");
    }
}

#[test]
fn commands_do_what_a_model_does() {
    for (seed, stack) in (1..).zip(&STACKS) {
        check_against_model(stack, seed);
    }
}

/// The longest request is 64 MiB, in both directions and with simple replies too.
#[test]
fn requests_have_up_to_64_mib() {
    const LONGEST: usize = 64 << 20;
    let bytes = pattern(64, LONGEST);
    for engine in ENGINES {
        let scratch = scratch();
        let daemon = serve(&scratch, &memory_disk(2 * LONGEST as u64), &["--engine", engine]);
        for structured in [true, false] {
            let terms = Terms { structured, ..Terms::default() };
            let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
            let offset = 4093 + u64::from(structured);
            assert_eq!(client.write(0, offset, &bytes), 0);
            let read = client.read(offset, LONGEST as u32).expect("read");
            assert!(read == bytes, "{engine}, structured {structured}");
            assert_eq!(client.read(0, LONGEST as u32 + 1), Err(errno::INVAL));
        }
        daemon.finish();
    }
}

/// A request that cannot be done says why by its number, and the connection goes on.
#[test]
fn refusals_have_the_numbers_of_the_protocol() {
    const SIZE: u64 = MIB + 512;
    let scratch = scratch();
    let daemon = serve(&scratch, &memory_disk(SIZE), &[]);
    for structured in [true, false] {
        let terms = Terms { structured, ..Terms::default() };
        let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
        for (offset, len) in [(SIZE - 511, 512), (SIZE, 1), (u64::MAX - 3, 4), (u64::MAX, 1)] {
            let payload = vec![1; len as usize];
            assert_eq!(client.write(0, offset, &payload), errno::NOSPC, "write at {offset}");
            assert_eq!(client.read(offset, len), Err(errno::INVAL), "read at {offset}");
            let check = |client: &mut Client, kind, expect| {
                assert_eq!(client.plain(kind, 0, offset, len), expect, "command {kind}");
            };
            check(&mut client, command::WRITE_ZEROES, errno::NOSPC);
            check(&mut client, command::TRIM, errno::NOSPC);
            check(&mut client, command::CACHE, errno::INVAL);
        }
        assert_eq!(client.plain(77, 0, 0, 512), errno::INVAL, "an unknown command");
        assert_eq!(client.plain(command::READ, 1 << 9, 0, 512), errno::INVAL, "an unknown flag");
        assert_eq!(client.plain(command::FLUSH, 0, 512, 512), errno::INVAL, "flush of a range");
        assert_eq!(client.plain(command::BLOCK_STATUS, 0, 0, 512), errno::INVAL, "no context");
        if !structured {
            assert_eq!(client.plain(command::READ, flag::DF, 0, 512), errno::INVAL, "DF");
        }
        assert_eq!(client.write(0, SIZE - 1, b"x"), 0, "the last byte");
        assert_eq!(client.read(SIZE - 1, 1), Ok(b"x".to_vec()));
        client.disconnect();
    }
    daemon.finish();
}

/// Nothing is left of a write that was refused, whole or in part.
#[test]
fn a_refused_write_changes_nothing_and_dirties_nothing() {
    let scratch = scratch();
    let daemon = STACKS[1].serve(&scratch, MIB);
    let context = "qemu:dirty-bitmap:node";
    let terms = Terms { contexts: &[context], ..Terms::default() };
    let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
    assert_eq!(client.write(0, MIB - 4096, &[7; 8192]), errno::NOSPC);
    assert_eq!(client.read(MIB - 4096, 4096), Ok(vec![0; 4096]));
    assert_eq!(client.flagged(context), []);
    daemon.finish();
}

/// Zeros travel as holes; with DF an answer is one chunk.
#[test]
fn zeros_are_sent_as_holes() {
    for stack in &STACKS[..3] {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 4 * MIB);
        let mut client = Client::open(daemon.uri("vda"));
        let data = pattern(3, 4096);
        assert_eq!(client.write(0, 64 * KIB, &data), 0);
        let chunks = client.read_chunks(0, 0, 128 << 10).expect("read");
        let rest = 60 * KIB as u32;
        let expect = [
            Chunk::Hole(0, 64 << 10),
            Chunk::Data(64 * KIB, data.clone()),
            Chunk::Hole(68 * KIB, rest),
        ];
        assert_eq!(chunks, expect, "{stack}");
        let whole = client.read_chunks(flag::DF, 0, 128 << 10).expect("read");
        let [Chunk::Data(0, bytes)] = &whole[..] else { panic!("{stack}: DF gave {whole:?}") };
        assert!(bytes[64 << 10..68 << 10] == data && bytes[68 << 10..].iter().all(|it| *it == 0));
        daemon.finish();
    }
}

/// FUA, FAST_ZERO, CACHE and REQ_ONE on every storage.
#[test]
fn flags_are_honoured() {
    for stack in &STACKS {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 4 * MIB);
        let terms = Terms { contexts: &[ALLOCATION], ..Terms::default() };
        let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
        for at in [0, 2 * MIB] {
            assert_eq!(client.write(flag::FUA, at, &pattern(1, MIB as usize)), 0, "{stack}");
        }
        assert_eq!(client.plain(command::CACHE, 0, 1, 3 << 20), 0, "{stack}");
        let one = client.block_status(ALLOCATION, flag::REQ_ONE, 0, 4 << 20).expect("status");
        assert_eq!(one, [(1 << 20, 0)], "{stack}");
        let tail = client.block_status(ALLOCATION, flag::REQ_ONE, MIB - 1, 2).expect("status");
        assert_eq!(tail, [(1, 0)], "{stack}: no longer than asked");
        let all = client.block_status(ALLOCATION, 0, 0, 4 << 20).expect("status");
        assert_eq!(all, [(1 << 20, 0), (1 << 20, 3), (1 << 20, 0), (1 << 20, 3)], "{stack}");
        // All of these storages can zero without writing data.
        let fast = flag::FAST_ZERO;
        assert_eq!(client.plain(command::WRITE_ZEROES, fast, 0, 1 << 20), 0, "{stack}");
        assert_eq!(client.read(0, 1 << 20), Ok(vec![0; 1 << 20]), "{stack}");
        let status = client.block_status(ALLOCATION, flag::REQ_ONE, 0, 1 << 20).expect("status");
        assert_eq!(status, [(1 << 20, 3)], "{stack}: zeroing gives the space back");
        // With NO_HOLE the space stays: in use, whether or not it is known to be zero.
        let keep = flag::NO_HOLE;
        assert_eq!(client.plain(command::WRITE_ZEROES, keep, 2 * MIB, 1 << 20), 0, "{stack}");
        assert_eq!(client.read(2 * MIB, 1 << 20), Ok(vec![0; 1 << 20]), "{stack}");
        daemon.finish();
    }
}

/// Requests of length 0 do nothing, and are answered.
#[test]
fn empty_requests_do_nothing() {
    for stack in &STACKS[..2] {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, MIB);
        let mut client = Client::open(daemon.uri("vda"));
        for at in [0, 5, MIB] {
            assert_eq!(client.write(0, at, b""), 0, "{stack} at {at}");
            assert_eq!(client.read(at, 0), Ok(vec![]), "{stack} at {at}");
            for kind in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
                assert_eq!(client.plain(kind, 0, at, 0), 0, "{stack}: command {kind} at {at}");
            }
        }
        daemon.finish();
    }
}

/// Writers of neighbouring bytes, on connections of their own (so on both workers), do not undo each
/// other's writes: the read-modify-write cycles of one block take turns.
fn check_neighbours(daemon: &blockloom_tests::Daemon, what: &str) {
    const WRITERS: usize = 8;
    const BLOCKS: u64 = 4;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut client = Client::open(daemon.uri("vda"));
                for round in 0..60 {
                    for block in 0..BLOCKS {
                        let bytes = vec![(writer * 16 + round % 16) as u8; 509];
                        let at = block * 4096 + writer as u64 * 509;
                        assert_eq!(client.write(0, at, &bytes), 0);
                        // It is ours alone: nobody else may have touched it.
                        assert_eq!(client.read(at, 509), Ok(bytes), "{what}: writer {writer}");
                    }
                }
            });
        }
    });
}

#[test]
fn neighbouring_unaligned_writes_keep_all_bytes() {
    for engine in ENGINES {
        let place = scratch();
        let text = memory_disk(MIB).replace("size =", "block-size = 4096\nsize =");
        let daemon = serve(&place, &text, &["--engine", engine, "--workers", "4"]);
        check_neighbours(&daemon, &format!("{engine}, memory"));
        daemon.finish();
        let place = scratch();
        let text = memory_disk(MIB).replace("memory", "file").replace(
            "size = 1048576",
            &format!(
                "create = 1048576\ndirect = true\npath = \"{}\"",
                place.image("disk.img").display()
            ),
        );
        let daemon = serve(&place, &text, &["--engine", engine, "--workers", "2"]);
        check_neighbours(&daemon, &format!("{engine}, direct"));
        daemon.finish();
    }
}
