//! E1, E5b, E5c, E17, E18: what is copied up is no change, through whatever filters.

use blockloom_tests::nbd::Client;
use serde_json::json;

use super::super::jobs::scene::{can_start, host, host_from, host_of, shown_at_first};
use super::{
    EXPORT, add_bitmaps, check_image, depth, dirty, host_of_headers, own_bytes, read_all, run_job,
};
use crate::{KIB, MIB};

/// What copies up.
enum By {
    /// A stream of this node or drive.
    Stream(&'static str),
    /// A guest that reads so many MiB from the start.
    Reads(u64),
}

struct Case {
    name: &'static str,
    filters: String,
    root: &'static str,
    by: By,
    /// What qemu-storage-daemon says is dirty in `top`; or what else it does.
    qemu: &'static str,
    /// Bytes that are to be found in `top` then beside its own 64 KiB.
    copied: u64,
}

fn filter(name: &str, plugin: &str, child: &str) -> String {
    let more = match plugin {
        "copy-on-read" => "grant.file = [\"read\", \"write-unchanged\"]\n",
        "backup" => {
            "grant.file = [\"read\"]\ngrant.target = [\"write\"]\nchild.target = \"kept\"\n\
             config = { sync = \"none\" }\n[node.kept]\ndriver = \"memory\"\nsize = \"16MiB\"\n"
        }
        _ => "config = { iops = 100000 }\n",
    };
    format!(
        "[node.{name}]\ndriver = \"plugin\"\nplugin = \"{plugin}\"\nchild.file = \"{child}\"\n{more}"
    )
}

fn cases() -> Vec<Case> {
    let case = |name, filters: &[String], root, by, qemu, copied| {
        let filters = filters.concat();
        Case { name, filters, root, by, qemu, copied }
    };
    let throttle = || filter("thr", "throttle", "top");
    let cor = |below| filter("cor", "copy-on-read", below);
    let all = 6 * MIB;
    vec![
        case("E1a: the image itself", &[], "top", By::Stream("top"), "0", all),
        case(
            "E18: a throttle, as which it is streamed, written by a guest",
            &[throttle()],
            "thr",
            By::Stream("thr"),
            "read-only 6291456; with a guest that writes: refused, permission conflict",
            all,
        ),
        case("E17a: below a throttle", &[throttle()], "thr", By::Stream("top"), "0", all),
        case(
            "E17d: copy-before-write above, as which it is streamed",
            &[filter("cbw", "backup", "top")],
            "cbw",
            By::Stream("cbw"),
            "6291456",
            all,
        ),
        case(
            "E1b2: a raw node above, as which it is streamed",
            &["[node.raw]\ndriver = \"raw\"\nfile = \"top\"\n".to_owned()],
            "raw",
            By::Stream("raw"),
            "0: the job is done at once, and has done nothing",
            all,
        ),
        case("E1c: copy-on-read", &[cor("top")], "cor", By::Reads(16), "0", all),
        case(
            "E1d: copy-on-read over a throttle",
            &[throttle(), cor("thr")],
            "cor",
            By::Reads(16),
            "6291456",
            all,
        ),
        case(
            "E1e: copy-on-read twice",
            &[filter("thr", "copy-on-read", "top"), cor("thr")],
            "cor",
            By::Reads(16),
            "6291456",
            all,
        ),
        case(
            "E17e: one MiB that a guest reads, through copy-on-read over a throttle",
            &[throttle(), cor("thr")],
            "cor",
            By::Reads(1),
            "1048576",
            MIB,
        ),
        case(
            "E1b: a stream of a drive, through all of these",
            &[throttle(), cor("thr")],
            "cor",
            By::Stream("vda"),
            "6291456",
            all,
        ),
    ]
}

#[test]
fn what_is_copied_up_is_no_change() {
    if !can_start() {
        return;
    }
    for case in cases() {
        let host = host_of(case.root, &(case.filters.clone() + EXPORT));
        let mut client = host.client();
        let uri = host.daemon.uri("vda").to_owned();
        let filters = ["thr", "cor", "cbw", "raw"];
        let filters =
            filters.into_iter().filter(|name| case.filters.contains(&format!("[node.{name}]")));
        let of: Vec<&str> = filters.chain(["base", "mid", "top", "vda"]).collect();
        add_bitmaps(&mut client, &of, "b");
        let kept = json!({"node": "top", "name": "kept", "persistent": true});
        client.run("block-dirty-bitmap-add", kept);
        match case.by {
            By::Stream(device) => {
                run_job(&mut client, "block-stream", json!({"device": device}));
                assert_eq!(depth(&mut client, "top"), 0, "{}", case.name);
            }
            By::Reads(mib) => {
                let mut guest = Client::open(&uri);
                for at in 0..mib {
                    guest.read(at * MIB, MIB as u32).expect("a read");
                }
                guest.disconnect();
            }
        }
        let count = dirty(&mut client);
        let Case { name, qemu, copied, .. } = case;
        assert_eq!(count.len(), of.len() + 1, "{name}: {count:?}");
        let sum: u64 = count.values().sum();
        assert_eq!(sum, 0, "{name}: {count:?}; qemu-storage-daemon: {qemu}");
        assert_eq!(read_all(&uri), shown_at_first(), "{name}");
        // The bytes that are there, written again, are a change: these bitmaps do record.
        let mut guest = Client::open(&uri);
        let bytes = guest.read(5 * MIB, 512).expect("a read");
        assert_eq!(guest.write(0, 5 * MIB, &bytes), 0, "{name}");
        guest.disconnect();
        for (bitmap, bytes) in dirty(&mut client) {
            let is_below = bitmap.starts_with("base/") || bitmap.starts_with("mid/");
            assert_eq!(bytes, if is_below { 0 } else { 64 * KIB }, "{name}: {bitmap}");
        }
        let (_, images) = host.end();
        check_image(&images, "top.qcow2", &shown_at_first());
        let own = own_bytes(&images, "top.qcow2");
        assert!(own >= copied + 64 * KIB, "{name}: {own} bytes");
    }
}

/// E5b. qemu-storage-daemon: 0 on all; `mid` leaves the chain and keeps its bitmap. Right.
#[test]
fn a_node_that_leaves_the_chain_keeps_its_bitmap() {
    if !can_start() {
        return;
    }
    let host = host(EXPORT);
    let mut client = host.client();
    add_bitmaps(&mut client, &["base", "mid", "top", "vda"], "b");
    run_job(&mut client, "block-stream", json!({"device": "top", "base-node": "base"}));
    let count = dirty(&mut client);
    assert_eq!(count.len(), 4, "{count:?}");
    assert_eq!(count.values().sum::<u64>(), 0, "{count:?}");
    assert_eq!(depth(&mut client, "top"), 1);
    assert_eq!(read_all(host.daemon.uri("vda")), shown_at_first());
    let (_, images) = host.end();
    check_image(&images, "top.qcow2", &shown_at_first());
    let own = own_bytes(&images, "top.qcow2");
    assert_eq!(own, MIB + 64 * KIB, "what the base has stays there");
}

/// E17c: a filter between an image and its backing. qemu-storage-daemon: 0. Right.
#[test]
fn a_filter_below_an_image() {
    if !can_start() {
        return;
    }
    let between = filter("thr", "throttle", "mid");
    let host = host_from(|text| {
        text.replace("backing = \"mid\"", "backing = \"thr\"") + &between + EXPORT
    });
    let mut client = host.client();
    add_bitmaps(&mut client, &["base", "mid", "thr", "top", "vda"], "b");
    run_job(&mut client, "block-stream", json!({"device": "vda", "base-node": "base"}));
    let count = dirty(&mut client);
    assert_eq!(count.values().sum::<u64>(), 0, "{count:?}");
    assert_eq!(depth(&mut client, "top"), 1);
    assert_eq!(read_all(host.daemon.uri("vda")), shown_at_first());
    host.finish();
}

/// E5c: the images below are found in the headers; one of them keeps a bitmap. qemu-storage-daemon closes it when the
/// stream has ended: the bitmap is there no more, as long as nobody opens that image.
///
/// Right: a node that has a bitmap stays until somebody removes both.
#[test]
fn a_node_that_nobody_named_stays_with_its_bitmap() {
    if !can_start() {
        return;
    }
    let host = host_of_headers(EXPORT);
    let mut client = host.client();
    let before = dirty(&mut client);
    let of = before.keys().next().expect("the bitmap").clone();
    assert!(of.ends_with("/bp") && before.len() == 1, "{before:?}");
    run_job(&mut client, "block-stream", json!({"device": "vda"}));
    assert_eq!(dirty(&mut client), before);
    assert_eq!(depth(&mut client, "top"), 0);
    let (_, images) = host.end();
    check_image(&images, "top.qcow2", &shown_at_first());
}
