//! Dirty bitmaps as clients see them: exact to the granule, whatever the way of a change.

use blockloom_tests::nbd::{Client, Terms, command};
use blockloom_tests::{Random, Scratch};

use crate::stack::{Filter, STACKS, Stack};
use crate::{KIB, MIB, scratch, serve, try_serve};

const DRIVE: &str = "qemu:dirty-bitmap:drive";
const NODE: &str = "qemu:dirty-bitmap:node";

fn open(uri: &str) -> Client {
    let terms = Terms { contexts: &[DRIVE, NODE], ..Terms::default() };
    Client::with(uri, &terms).expect("open")
}

/// What the changed ranges make dirty at a granularity: granules that hold one of their bytes.
fn granules(changes: &[(u64, u64)], granularity: u64, size_bytes: u64) -> Vec<(u64, u64)> {
    let mut dirty = vec![false; size_bytes.div_ceil(granularity) as usize];
    for &(offset, len) in changes.iter().filter(|(_, len)| *len > 0) {
        let (first, last) = (offset / granularity, (offset + len - 1) / granularity);
        dirty[first as usize..=last as usize].fill(true);
    }
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (at, _) in dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
        let start = at as u64 * granularity;
        let len = granularity.min(size_bytes - start);
        match ranges.last_mut() {
            Some((begin, whole)) if *begin + *whole == start => *whole += len,
            _ => ranges.push((start, len)),
        }
    }
    ranges
}

#[test]
fn a_one_byte_write_dirties_one_granule_and_a_read_none() {
    for stack in &STACKS {
        let scratch = scratch();
        let daemon = stack.serve(&scratch, 4 * MIB);
        let mut client = open(daemon.uri("vda"));
        client.read(0, 1 << 20).expect("read");
        assert_eq!(client.plain(command::CACHE, 0, 0, 1 << 20), 0);
        assert_eq!(client.plain(command::FLUSH, 0, 0, 0), 0);
        assert_eq!((client.flagged(DRIVE), client.flagged(NODE)), (vec![], vec![]), "{stack}");
        let at = MIB + 70 * KIB + 1;
        assert_eq!(client.write(0, at, b"x"), 0);
        let node = (at / 4096 * 4096, 4096);
        assert_eq!(client.flagged(DRIVE), [(MIB + 64 * KIB, 64 * KIB)], "{stack}");
        assert_eq!(client.flagged(NODE), [node], "{stack}");
        let log = daemon.finish();
        assert!(log.contains("bitmap `drive` of drive `vda`: 1 granules of 65536 dirty"), "{log}");
        assert!(log.contains("bitmap `node` of node `disk`: 1 granules of 4096 dirty"), "{log}");
    }
}

/// Writes, zeroes and discards of any shape; both bitmaps agree with the ranges, before and after a
/// new connection.
fn check_changes(stack: &Stack, seed: u64) {
    const SIZE: u64 = 8 * MIB + 512;
    let scratch = scratch();
    let daemon = stack.serve(&scratch, SIZE);
    let mut client = open(daemon.uri("vda"));
    let mut random = Random::new(seed);
    let mut changes = Vec::new();
    for step in 0..60 {
        let kinds = [command::WRITE, command::WRITE_ZEROES, command::TRIM];
        let kind = kinds[random.below(3) as usize];
        let longest = if random.below(4) == 0 { 200_000 } else { 6000 };
        let len = 1 + random.below(longest);
        let offset = random.below(SIZE - len + 1);
        let errno = match kind {
            command::WRITE => client.write(0, offset, &vec![5; len as usize]),
            _ => client.plain(kind, 0, offset, len as u32),
        };
        assert_eq!(errno, 0, "{stack}, seed {seed}, step {step}");
        changes.push((offset, len));
        if step % 20 == 0 || step == 59 {
            let (drive, node) = (client.flagged(DRIVE), client.flagged(NODE));
            assert_eq!(drive, granules(&changes, 64 * KIB, SIZE), "{stack}, {seed}, {step}");
            assert_eq!(node, granules(&changes, 4 * KIB, SIZE), "{stack}, {seed}, {step}");
            client.disconnect();
            client = open(daemon.uri("vda"));
        }
    }
    daemon.finish();
}

#[test]
fn writes_zeroes_and_discards_dirty_their_granules() {
    for (seed, stack) in (1..).zip(&STACKS) {
        check_changes(stack, seed);
    }
}

/// Sixteen bitmaps of as many granularities beside each other, one of them not recording.
#[test]
fn many_bitmaps_of_many_granularities() {
    const SIZE: u64 = 64 * MIB;
    let scratch = scratch();
    let mut text = crate::memory_disk(SIZE);
    let mut names = Vec::new();
    for shift in 9..25 {
        let scope = if shift % 2 == 0 { "drive = \"vda\"" } else { "node = \"disk\"" };
        let granularity = 1_u64 << shift;
        text += &format!("[bitmap.b{shift}]\n{scope}\ngranularity = {granularity}\n");
        names.push(format!("b{shift}"));
    }
    text += "[bitmap.off]\ndrive = \"vda\"\nenabled = false\n";
    names.push("off".to_owned());
    let text = text.replace("writable = true", &format!("writable = true\nbitmaps = {names:?}"));
    let daemon = serve(&scratch, &text, &[]);
    let contexts: Vec<_> = names.iter().map(|name| format!("qemu:dirty-bitmap:{name}")).collect();
    let selected: Vec<_> = contexts.iter().map(String::as_str).collect();
    let terms = Terms { contexts: &selected, ..Terms::default() };
    let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
    let changes = [(511, 2), (3 * MIB - 1, 1), (40 * MIB, 70_000), (SIZE - 1, 1)];
    for (offset, len) in changes {
        assert_eq!(client.write(0, offset, &vec![1; len as usize]), 0);
    }
    for shift in 9..25 {
        let found = client.flagged(&format!("qemu:dirty-bitmap:b{shift}"));
        assert_eq!(found, granules(&changes, 1 << shift, SIZE), "2^{shift}");
    }
    assert_eq!(client.flagged("qemu:dirty-bitmap:off"), []);
    daemon.finish();
}

/// A graph of the raw section `part` (1 MiB at 1 MiB + 512) of the file `disk`, with bitmaps on both.
fn section(scratch: &Scratch, more: &str) -> String {
    let path = scratch.sparse_image("disk.img", 4 * MIB);
    format!(
        "[node.disk]\ndriver = \"file\"\npath = \"{}\"\n\
         [node.part]\ndriver = \"raw\"\noffset = {}\nsize = \"1MiB\"\nfile = \"disk\"\n\
         [drive.vda]\nroot = \"part\"\n\
         [bitmap.drive]\ndrive = \"vda\"\ngranularity = 512\n\
         [bitmap.node]\nnode = \"disk\"\ngranularity = 512\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"drive\"]\n\
         [export.whole]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"unix:nbd.sock\"\n\
         bitmaps = [\"node\"]\n{more}",
        path.display(),
        MIB + 512
    )
}

/// A section of a file: the right bytes, and exact bitmaps at both offsets.
#[test]
fn a_section_and_its_file_have_exact_bitmaps() {
    let scratch = scratch();
    let daemon = serve(&scratch, &section(&scratch, ""), &[]);
    let terms = Terms { contexts: &[DRIVE], ..Terms::default() };
    let mut part = Client::with(daemon.uri("vda"), &terms).expect("open");
    let terms = Terms { contexts: &[NODE], ..Terms::default() };
    let mut whole = Client::with(daemon.uri("whole"), &terms).expect("open");
    assert_eq!((part.size_bytes(), whole.size_bytes()), (MIB, 4 * MIB));
    assert_eq!((part.is_read_only(), whole.is_read_only()), (false, true));
    assert_eq!(part.write(0, 0, b"first"), 0);
    assert_eq!(part.write(0, MIB - 4, b"last"), 0);
    assert_eq!(part.write(0, MIB - 3, b"last"), 28, "past the end of the section, not of the file");
    assert_eq!(part.plain(command::WRITE_ZEROES, 0, 100 * KIB, 1024), 0);
    let begin = MIB + 512;
    assert_eq!(part.flagged(DRIVE), [(0, 512), (100 * KIB, 1024), (MIB - 512, 512)]);
    let expect = [(begin, 512), (begin + 100 * KIB, 1024), (begin + MIB - 512, 512)];
    assert_eq!(whole.flagged(NODE), expect);
    assert_eq!(whole.read(begin, 5), Ok(b"first".to_vec()));
    assert_eq!(whole.read(begin + MIB - 4, 4), Ok(b"last".to_vec()));
    assert_eq!(whole.read(0, begin as u32), Ok(vec![0; begin as usize]), "before the section");
    daemon.finish();
    assert_eq!(scratch.peek("disk.img", begin, 5), b"first");
}

/// Nobody may write the file beside a section of it: the section's bitmaps could not be exact.
#[test]
fn a_writer_beside_a_section_is_refused() {
    let scratch = scratch();
    let more = "[export.beside]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"unix:nbd.sock\"\n\
                writable = true\n";
    let refused = try_serve(&scratch, &section(&scratch, more), &[]).err().expect("refused");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("disk"), "{}", refused.stderr);
}

/// A bitmap of a node is shown by an export of the node too, and agrees with the drive's.
#[test]
fn an_export_of_a_node_shows_its_bitmap() {
    let scratch = scratch();
    let stack = Stack { filter: Filter::ThrottlePlugin, ..STACKS[2] };
    let text = stack.graph(&scratch, MIB)
        + "[export.bare]\ntype = \"nbd\"\nnode = \"disk\"\nlisten = \"unix:nbd.sock\"\n\
           bitmaps = [\"node\"]\n";
    let daemon = serve(&scratch, &text, &[]);
    let mut client = open(daemon.uri("vda"));
    let terms = Terms { contexts: &[NODE], ..Terms::default() };
    let mut bare = Client::with(daemon.uri("bare"), &terms).expect("open");
    assert_eq!(client.write(0, 12_345, b"y"), 0);
    assert_eq!(bare.flagged(NODE), [(12_288, 4096)]);
    assert_eq!(bare.read(12_345, 1), Ok(b"y".to_vec()));
    assert_eq!(client.flagged(DRIVE), [(0, 64 * KIB)]);
    daemon.finish();
}
