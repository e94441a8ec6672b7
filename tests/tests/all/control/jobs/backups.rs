//! `blockdev-backup`: what has no sense together is refused as qemu-storage-daemon refuses it; what becomes of
//! bitmaps; several drives at one instant.

use blockloom_tests::eventually;
use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::super::differential::answers;
use super::scene::{can_start, host, life, peer, status};
use crate::{KIB, MIB, scratch};

const SYNCS: [&str; 5] = ["full", "top", "none", "incremental", "bitmap"];
const MODES: [Option<&str>; 4] = [None, Some("on-success"), Some("never"), Some("always")];

/// Waits until a job is gone; what it told.
fn ended(client: &mut Qmp, job: &str) -> Vec<String> {
    let lived = life(client, job, status("null"));
    eventually("a job that is gone", || {
        let jobs = client.run("query-jobs", json!({}));
        (jobs == json!([])).then_some(())
    });
    lived
}

fn arguments(sync: &str, bitmap: Option<&str>, mode: Option<&str>) -> Value {
    let mut all = json!({"device": "top", "target": "tgt", "sync": sync, "job-id": "j"});
    for (key, value) in [("bitmap", bitmap), ("bitmap-mode", mode)] {
        if let Some(value) = value {
            all[key] = json!(value);
        }
    }
    all
}

/// E6: every sync with every mode, with a bitmap, one that is not there, and none.
#[test]
fn what_has_no_sense_together_is_refused_as_by_qemu() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let mut both = [host.client(), Qmp::open(&peer.socket)];
    for client in &mut both {
        client.run("block-dirty-bitmap-add", json!({"node": "top", "name": "b"}));
    }
    for sync in SYNCS {
        for bitmap in [None, Some("b"), Some("zz")] {
            for mode in MODES {
                let arguments = arguments(sync, bitmap, mode);
                let input = json!({"execute": "blockdev-backup", "arguments": arguments});
                let input = input.to_string();
                let [ours, theirs] =
                    both.each_mut().map(|client| answers(client, input.as_bytes()));
                let answer = |all: &[Value]| {
                    let mut all = all.iter().filter(|answer| answer["event"].is_null());
                    all.next().expect("an answer").clone()
                };
                let (ours, theirs) = (answer(&ours), answer(&theirs));
                assert_eq!(ours["error"], theirs["error"], "{input}");
                if !ours["error"].is_null() {
                    continue;
                }
                for client in &mut both {
                    if sync == "none" {
                        client.run("job-cancel", json!({"id": "j"}));
                    }
                    ended(client, "j");
                }
            }
        }
    }
    host.finish();
}

/// The members of both, those of the second first.
fn with(mut all: Value, more: Value) -> Value {
    let (all_of, Value::Object(more)) = (all.as_object_mut().expect("an object"), more) else {
        panic!("an object")
    };
    all_of.extend(more);
    all
}

fn start(client: &mut Qmp, more: Value) {
    let all = with(json!({"device": "vda", "target": "tgt", "job-id": "j"}), more);
    client.run("blockdev-backup", all);
    let lived = ended(client, "j");
    let expect = "BLOCK_JOB_COMPLETED backup all done: true speed 0";
    assert!(lived.iter().any(|news| news == expect), "{lived:?}");
}

fn ranges(client: &mut Qmp, node: &str, name: &str) -> Vec<(u64, u64)> {
    let found = client.run("block-dirty-bitmap-query", json!({"node": node, "name": name}));
    let ranges = found["ranges"].as_array().expect("a list").iter();
    let number = |range: &Value, key: &str| range[key].as_u64().expect("a number");
    ranges.map(|range| (number(range, "offset"), number(range, "length"))).collect()
}

fn add(client: &mut Qmp, name: &str) {
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": name}));
}

/// A bitmap is made dirty by what lies in an image, and taken by the backup that copies that.
#[test]
fn a_bitmap_is_filled_and_taken() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "b");
    let populate = |client: &mut Qmp, more: Value| {
        let all = with(json!({"job-id": "p", "node": "vda", "name": "b"}), more);
        client.run("block-dirty-bitmap-populate", all);
        ended(client, "p");
    };
    populate(&mut client, json!({"pattern": "allocation-top"}));
    assert_eq!(ranges(&mut client, "vda", "b"), [(12 * MIB, 64 * KIB)]);
    populate(&mut client, json!({"pattern": "allocation-top", "base": "base"}));
    let above_base = [(4 * MIB, MIB), (12 * MIB, 64 * KIB)];
    assert_eq!(ranges(&mut client, "vda", "b"), above_base);
    start(&mut client, json!({"sync": "bitmap", "bitmap": "b", "bitmap-mode": "never"}));
    assert_eq!(ranges(&mut client, "vda", "b"), above_base);
    start(&mut client, json!({"sync": "incremental", "bitmap": "b"}));
    assert_eq!(ranges(&mut client, "vda", "b"), []);
    // What is missing is what lies in the base.
    populate(&mut client, json!({"pattern": "difference", "other": "tgt"}));
    assert_eq!(ranges(&mut client, "vda", "b"), [(0, 4 * MIB), (8 * MIB, MIB)]);
    start(&mut client, json!({"sync": "full", "bitmap": "b", "bitmap-mode": "always"}));
    populate(&mut client, json!({"pattern": "difference", "other": "tgt"}));
    assert_eq!(ranges(&mut client, "vda", "b"), []);
    for (more, expect) in [
        (json!({"pattern": "difference"}), "pattern 'difference' needs 'other'"),
        (json!({"pattern": "allocation-top", "name": "zz"}), "Bitmap 'zz' could not be found"),
        (
            json!({"pattern": "allocation-top", "other": "tgt"}),
            "'other' is for pattern 'difference' alone",
        ),
    ] {
        let all = with(json!({"job-id": "p", "node": "vda", "name": "b"}), more);
        let (_, desc) = client.fail("block-dirty-bitmap-populate", all);
        assert_eq!(desc, expect);
    }
    host.finish();
}

/// E12: a bitmap, what it is to hold, and the backup by it begin at one instant; or nothing does.
#[test]
fn it_begins_with_the_rest_of_a_transaction() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "old");
    let old = json!({"node": "vda", "name": "old"});
    let new = json!({"node": "vda", "name": "new"});
    let backup = json!({"device": "vda", "target": "tgt", "job-id": "j", "sync": "bitmap",
        "bitmap": "new", "bitmap-mode": "on-success"});
    let merge = json!({"node": "vda", "target": "new", "bitmaps": ["old"]});
    let actions = |last: Option<Value>| -> Value {
        let of = |kind: &str, data: &Value| json!({"type": kind, "data": data});
        let mut all = vec![
            of("block-dirty-bitmap-add", &new),
            of("block-dirty-bitmap-merge", &merge),
            of("block-dirty-bitmap-clear", &old),
            of("blockdev-backup", &backup),
        ];
        all.extend(last);
        json!({"actions": all})
    };
    let abort = json!({"type": "abort", "data": {}});
    client.fail("transaction", actions(Some(abort)));
    assert_eq!(client.run("query-jobs", json!({})), json!([]));
    client.run("transaction", actions(None));
    ended(&mut client, "j");
    assert_eq!(ranges(&mut client, "vda", "new"), []);
    host.finish();
}

/// E7: a bitmap that a job uses is left alone, and who asks is told by whom.
#[test]
fn a_bitmap_in_use_is_left_alone() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "b");
    client.run(
        "blockdev-backup",
        json!({"device": "vda", "target": "tgt", "job-id": "j", "sync": "full", "bitmap": "b",
            "bitmap-mode": "on-success", "speed": 1}),
    );
    life(&mut client, "j", status("running"));
    let b = json!({"node": "vda", "name": "b"});
    for command in ["clear", "disable", "remove"] {
        let (_, desc) = client.fail(&format!("block-dirty-bitmap-{command}"), b.clone());
        assert!(desc.contains("job `j`"), "{desc}");
    }
    let again = json!({"device": "vda", "target": "mid", "job-id": "k", "sync": "incremental",
        "bitmap": "b"});
    client.fail("blockdev-backup", again);
    client.run("job-cancel", json!({"id": "j"}));
    ended(&mut client, "j");
    client.run("block-dirty-bitmap-remove", b);
    host.finish();
}
