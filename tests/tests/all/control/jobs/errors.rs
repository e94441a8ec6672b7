//! Jobs that meet errors: what they do about them, and what is told of it, as by qemu-storage-daemon.

use std::process::Command;

use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::super::differential::Peer;
use super::scene::{can_start, host_from, life, make_images, peer_of, status};
use crate::scratch;

/// Where a node that fails once stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// Over the source.
    Source,
    /// Over the target.
    Target,
    /// Between the image that is streamed to and its backing.
    Below,
}

/// Ours and theirs, with a node `bad` that fails once.
fn both(
    bad: Bad,
    errno: (&str, u32),
) -> (super::super::Controlled, (Peer, blockloom_tests::Scratch)) {
    let (child, kind) = match bad {
        Bad::Source => ("top", "read"),
        Bad::Target => ("tgt", "write"),
        Bad::Below => ("mid", "read"),
    };
    let node = format!(
        "[node.bad]\ndriver = \"plugin\"\nplugin = \"error\"\nchild.file = \"{child}\"\n\
         config = {{ kinds = [\"{kind}\"], errno = \"{}\", count = 1 }}\n",
        errno.0
    );
    let below = |text: String| match bad {
        Bad::Below => text.replace("backing = \"mid\"", "backing = \"bad\""),
        _ => text,
    };
    let ours = host_from(|text| below(text) + &node);
    let images = scratch();
    make_images(&images);
    let inject = json!({"driver": "blkdebug", "node-name": "bad", "image": child,
        "inject-error": [{"event": "none", "iotype": kind, "errno": errno.1, "once": true}]});
    let add = |command: &mut Command| {
        command.args(["--blockdev", &inject.to_string()]);
    };
    let backing = if bad == Bad::Below { "bad" } else { "mid" };
    let peer = peer_of(&images, backing, add);
    (ours, (peer, images))
}

fn check(bad: Bad, errno: (&str, u32), start: (&str, Value), ends: &str, expect: &[&str]) {
    if !can_start() {
        return;
    }
    let (host, (peer, _images)) = both(bad, errno);
    let live = |mut client: Qmp| {
        let (command, mut arguments) = start.clone();
        arguments["job-id"] = json!("j");
        client.run(command, arguments);
        let mut all =
            life(&mut client, "j", |event| status("paused")(event) || status(ends)(event));
        let jobs = client.run("query-block-jobs", json!({}));
        if jobs[0]["status"] == "paused" {
            all.push(format!("io-status {}", jobs[0]["io-status"]));
            client.run("job-resume", json!({"id": "j"}));
            all.extend(life(&mut client, "j", status(ends)));
        }
        all
    };
    let name = format!("{bad:?} {errno:?} {start:?}");
    assert_eq!(live(Qmp::open_peer(&peer.socket)), expect, "qemu-storage-daemon: {name}");
    assert_eq!(live(host.client()), expect, "{name}");
    host.finish();
}

fn mirror(device: &str, target: &str, on_source: &str, on_target: &str) -> (&'static str, Value) {
    let arguments = json!({"device": device, "target": target, "sync": "full",
        "on-source-error": on_source, "on-target-error": on_target});
    ("blockdev-mirror", arguments)
}

const EIO: (&str, u32) = ("EIO", 5);
const ENOSPC: (&str, u32) = ("ENOSPC", 28);
const BEGIN: [&str; 2] = ["JOB_STATUS_CHANGE created", "JOB_STATUS_CHANGE running"];
const AGAIN: [&str; 2] = ["JOB_STATUS_CHANGE running", "JOB_STATUS_CHANGE ready"];
const BROKEN: [&str; 4] = [
    "JOB_STATUS_CHANGE aborting",
    "BLOCK_JOB_COMPLETED mirror speed 0",
    "JOB_STATUS_CHANGE concluded",
    "JOB_STATUS_CHANGE null",
];

#[test]
fn a_mirror_whose_target_fails() {
    let stopped = |io_status: &'static str| {
        let met = ["BLOCK_JOB_ERROR stop write", "JOB_STATUS_CHANGE paused", io_status];
        [&BEGIN[..], &met, &AGAIN].concat()
    };
    let target = |on_target| mirror("top", "bad", "report", on_target);
    check(Bad::Target, EIO, target("stop"), "ready", &stopped("io-status \"failed\""));
    check(Bad::Target, ENOSPC, target("enospc"), "ready", &stopped("io-status \"nospace\""));
    check(Bad::Target, ENOSPC, target("auto"), "ready", &stopped("io-status \"nospace\""));
    let reported = [&BEGIN[..], &["BLOCK_JOB_ERROR report write"], &BROKEN].concat();
    check(Bad::Target, EIO, target("report"), "null", &reported);
    check(Bad::Target, EIO, target("enospc"), "null", &reported);
    let ignored =
        [&BEGIN[..], &["BLOCK_JOB_ERROR ignore write", "JOB_STATUS_CHANGE ready"]].concat();
    check(Bad::Target, EIO, target("ignore"), "ready", &ignored);
}

#[test]
fn a_mirror_whose_source_fails() {
    let source = |on_source| mirror("bad", "tgt", on_source, "report");
    let met = ["BLOCK_JOB_ERROR stop read", "JOB_STATUS_CHANGE paused", "io-status \"failed\""];
    check(Bad::Source, EIO, source("stop"), "ready", &[&BEGIN[..], &met, &AGAIN].concat());
    let reported = [&BEGIN[..], &["BLOCK_JOB_ERROR report read"], &BROKEN].concat();
    check(Bad::Source, EIO, source("report"), "null", &reported);
}

#[test]
fn a_stream_whose_backing_fails() {
    let stream = |on_error: &str| ("block-stream", json!({"device": "top", "on-error": on_error}));
    let stopped = [
        &BEGIN[..],
        &[
            "BLOCK_JOB_ERROR stop read",
            "JOB_STATUS_CHANGE paused",
            "io-status \"failed\"",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE waiting",
            "JOB_STATUS_CHANGE pending",
            "BLOCK_JOB_COMPLETED stream all done: true speed 0",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    ];
    check(Bad::Below, EIO, stream("stop"), "null", &stopped.concat());
    let reported = [
        &BEGIN[..],
        &["BLOCK_JOB_ERROR report read", "JOB_STATUS_CHANGE aborting"],
        &["BLOCK_JOB_COMPLETED stream speed 0"],
        &["JOB_STATUS_CHANGE concluded", "JOB_STATUS_CHANGE null"],
    ];
    check(Bad::Below, EIO, stream("report"), "null", &reported.concat());
}
