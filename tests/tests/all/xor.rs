//! `xor`: a filter that changes data, as clients see it, and what the graph makes of its node.

use blockloom_tests::nbd::{Client, Terms, command};
use blockloom_tests::tools::{have, qemu_io, succeed};
use blockloom_tests::{Random, Scratch};

use crate::{KIB, MIB, scratch, serve, try_serve};

const KEY: &[u8] = b"Ukey";

/// One that may take its time for many bytes, on any machine.
fn node(name: &str, below: &str) -> String {
    format!(
        "[node.{name}]\ndriver = \"plugin\"\nplugin = \"xor\"\nchild.file = \"{below}\"\n\
         grant.bytes = \"transform\"\nlimits.call = \"1s\"\nconfig = {{ key = \"Ukey\" }}\n"
    )
}

const EXPORT: &str = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
     writable = true\n";

fn changed(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let key = |at: usize| KEY[(offset as usize + at) % KEY.len()];
    bytes.iter().enumerate().map(|(at, byte)| byte ^ key(at)).collect()
}

/// An image of zeros as the file below a graph of `nodes`, of which the last is `root`.
fn over_a_file(scratch: &Scratch, nodes: &str, root: &str, size_bytes: u64) -> String {
    let image = scratch.image_of("disk.img", &vec![0; size_bytes as usize]);
    format!(
        "[node.disk]\ndriver = \"file\"\npath = \"{}\"\n{nodes}\
         [drive.vda]\nroot = \"{root}\"\n{EXPORT}",
        image.display()
    )
}

#[test]
fn a_pattern_goes_in_and_comes_out_and_is_another_in_the_file() {
    if !have(&["qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let graph = over_a_file(&scratch, &node("xor", "disk"), "xor", 4 * MIB);
    let daemon = serve(&scratch, &graph, &[]);
    let uri = daemon.uri("vda").to_owned();
    qemu_io(&uri, &["write -P 0x11 1M 1M", "write -P 0x22 1536 512", "read -P 0x11 1M 1M"]);
    qemu_io(&uri, &["read -P 0x22 1536 512", "write -z 2M 64k", "discard 1M 64k", "flush"]);
    qemu_io(&uri, &["read -P 0 2M 64k", "read -P 0x11 1M 64k"]);
    daemon.finish();
    let file = std::fs::read(scratch.image("disk.img")).expect("the image");
    assert_eq!(file[MIB as usize..2 * MIB as usize], changed(MIB, &vec![0x11; MIB as usize]));
    assert_eq!(file[1536..2048], changed(1536, &[0x22; 512]));
    let zeros = (2 * MIB) as usize..(2 * MIB + 64 * KIB) as usize;
    assert_eq!(file[zeros], changed(2 * MIB, &vec![0; 64 << 10]));
}

/// Twice is not at all: the file has what the client wrote.
#[test]
fn xor_over_xor_is_as_if_there_were_none() {
    let scratch = scratch();
    let nodes = node("inner", "disk") + &node("outer", "inner");
    let daemon = serve(&scratch, &over_a_file(&scratch, &nodes, "outer", MIB), &[]);
    let mut client = Client::open(daemon.uri("vda"));
    let data: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(client.write(0, 12_345, &data), 0);
    assert_eq!(client.read(12_345, 300_000), Ok(data.clone()));
    client.disconnect();
    daemon.finish();
    let file = std::fs::read(scratch.image("disk.img")).expect("the image");
    assert_eq!(file[12_345..312_345], data);
    assert!(file[..12_345].iter().all(|byte| *byte == 0), "nothing else is touched");
}

/// Requests of any shape against a plain array, over a file and over a copy-on-read.
#[test]
fn random_requests_agree_with_a_reference() {
    const SIZE: u64 = 2 * MIB + 512;
    for seed in 1..4 {
        let scratch = scratch();
        let daemon =
            serve(&scratch, &over_a_file(&scratch, &node("xor", "disk"), "xor", SIZE), &[]);
        let mut client = Client::open(daemon.uri("vda"));
        let mut random = Random::new(seed);
        let mut expect = changed(0, &vec![0; SIZE as usize]);
        for step in 0..150 {
            let longest = if random.below(4) == 0 { SIZE } else { 9000 };
            let len = 1 + random.below(longest);
            let offset = random.below(SIZE - len + 1);
            let range = offset as usize..(offset + len) as usize;
            let errno = match random.below(5) {
                0 | 1 => {
                    let data = vec![step as u8; len as usize];
                    expect[range].copy_from_slice(&data);
                    client.write(0, offset, &data)
                }
                2 => {
                    expect[range].fill(0);
                    client.plain(command::WRITE_ZEROES, 0, offset, len as u32)
                }
                3 => client.plain(command::TRIM, 0, offset, len as u32),
                _ => {
                    let read = client.read(offset, len as u32).expect("a read");
                    assert!(read == expect[range], "seed {seed}, step {step}");
                    0
                }
            };
            assert_eq!(errno, 0, "seed {seed}, step {step}");
        }
        client.disconnect();
        daemon.finish();
        let file = std::fs::read(scratch.image("disk.img")).expect("the image");
        assert!(file == changed(0, &expect), "seed {seed}: the file");
    }
}

/// Writes through the node mark just what they touch, above it and below.
#[test]
fn writes_through_it_mark_their_ranges_and_reads_none() {
    let scratch = scratch();
    let bitmaps = "[bitmap.drive]\ndrive = \"vda\"\ngranularity = 4096\n\
         [bitmap.xor]\nnode = \"xor\"\ngranularity = 4096\n\
         [bitmap.disk]\nnode = \"disk\"\ngranularity = 4096\n";
    let graph = over_a_file(&scratch, &node("xor", "disk"), "xor", MIB)
        .replace("writable = true", "writable = true\nbitmaps = [\"drive\", \"xor\"]");
    let daemon = serve(&scratch, &(graph + bitmaps), &[]);
    let contexts = ["qemu:dirty-bitmap:drive", "qemu:dirty-bitmap:xor"];
    let terms = Terms { contexts: &contexts, ..Terms::default() };
    let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
    client.read(0, 1 << 20).expect("a read");
    assert_eq!(client.plain(command::TRIM, 0, 128 << 10, 4096), 0);
    let trimmed = client.flagged(contexts[0]);
    assert_eq!(client.write(0, 70_000, &[1; 10_000]), 0);
    assert_eq!(client.plain(command::WRITE_ZEROES, 0, 500_000, 10), 0);
    let mut expect = trimmed.clone();
    expect.extend([(68 << 10, 12 << 10), (488 << 10, 4096)]);
    expect.sort_unstable();
    for context in contexts {
        assert_eq!(client.flagged(context), expect, "{context}");
    }
    client.disconnect();
    let log = daemon.finish();
    assert!(log.contains("bitmap `disk` of node `disk`: 4 granules of 4096 dirty"), "{log}");
}

/// An overlay of 1 MiB on a base of one byte, with copies on reads below the filter.
#[test]
fn copies_on_reads_below_and_above_it() {
    let copies = |name: &str, below: &str| {
        format!(
            "[node.{name}]\ndriver = \"plugin\"\nplugin = \"copy-on-read\"\nchild.file = \"{below}\"\n\
             grant.file = [\"read\", \"write-unchanged\"]\n"
        )
    };
    let below = copies("cor", "top") + &node("xor", "cor");
    let above = node("xor", "top") + &copies("cor", "xor");
    for (filters, root) in [(below, "xor"), (above, "cor")] {
        let scratch = scratch();
        let base = scratch.image_of("base.img", &vec![0x77; MIB as usize]);
        let graph = format!(
            "[node.base]\ndriver = \"file\"\npath = \"{}\"\nread-only = true\n\
             [node.top]\ndriver = \"memory\"\nsize = \"1MiB\"\nchild.backing = \"base\"\n{filters}\
             [drive.vda]\nroot = \"{root}\"\n\
             [bitmap.drive]\ndrive = \"vda\"\n[bitmap.top]\nnode = \"top\"\n{EXPORT}",
            base.display()
        )
        .replace("writable = true", "writable = true\nbitmaps = [\"drive\"]");
        let daemon = serve(&scratch, &graph, &[]);
        let context = "qemu:dirty-bitmap:drive";
        let terms = Terms { contexts: &[context], ..Terms::default() };
        let mut client = Client::with(daemon.uri("vda"), &terms).expect("open");
        assert_eq!(client.read(1001, 9000), Ok(changed(1001, &[0x77; 9000])), "{root}");
        assert_eq!(client.flagged(context), [], "{root}: a read dirties nothing");
        assert_eq!(client.write(0, 70_001, b"hello"), 0);
        assert_eq!(client.read(70_001, 5), Ok(b"hello".to_vec()), "{root}");
        assert_eq!(client.read(70_006, 5), Ok(changed(70_006, &[0x77; 5])), "{root}");
        assert_eq!(client.flagged(context), [(64 * KIB, 64 * KIB)], "{root}");
        client.disconnect();
        let log = daemon.finish();
        assert!(log.contains("bitmap `top` of node `top`: 1 granules of 65536 dirty"), "{log}");
    }
}

/// Zeros of the child are none of the node, and nothing of it is a hole.
#[test]
fn its_status_is_its_own() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = scratch();
    let text = format!(
        "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n{}[drive.vda]\nroot = \"xor\"\n{EXPORT}",
        node("xor", "disk")
    );
    let daemon = serve(&scratch, &text, &[]);
    let map = succeed("qemu-img", ["map", "--output=json", daemon.uri("vda")]);
    assert!(map.contains("\"length\": 1048576") && map.contains("\"zero\": false"), "{map}");
    assert!(map.contains("\"data\": true"), "{map}");
    daemon.finish();
}

#[test]
fn what_is_not_granted_is_shown_at_its_line() {
    let scratch = scratch();
    let graph = |more: &str| {
        let node = node("xor", "disk").replace("grant.bytes = \"transform\"\n", more);
        format!(
            "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n{node}[drive.vda]\nroot = \"xor\"\n{EXPORT}"
        )
    };
    for (more, expect) in [
        (
            "",
            "wants to change the data of requests, and is not granted that: write `grant.bytes = \"transform\"`",
        ),
        ("grant.bytes = \"read\"\n", "write `grant.bytes = \"transform\"`"),
        ("grant.bytes = \"write\"\n", "`grant.bytes` of node `xor`"),
        ("grant.bytes = [\"read\"]\n", "`grant.bytes` of node `xor` must be one of"),
        (
            "grant.bytes = \"transform\"\non-fault = \"bypass\"\n",
            "may not be bypassed when it fails",
        ),
        ("child.bytes = \"disk\"\n", "`child.bytes` of node `xor` cannot be"),
    ] {
        let refused = try_serve(&scratch, &graph(more), &[]).err().expect("refused");
        assert!(refused.stderr.contains(expect), "{more}: {}", refused.stderr);
        assert!(refused.stderr.contains("graph.toml:"), "{}", refused.stderr);
    }
}
