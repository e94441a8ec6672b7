//! What commands of jobs answer: as qemu-storage-daemon does, but for what is listed.

use serde_json::{Value, json};

use blockloom_tests::qmp::Qmp;

use super::super::differential::answers;
use super::scene::{can_start, host, peer};
use crate::scratch;

/// Command and arguments.
type Input = (&'static str, &'static str);

const NOBODY: [Input; 17] = [
    ("query-jobs", r#"{}"#),
    ("query-block-jobs", r#"{}"#),
    ("job-pause", r#"{"id":"zz"}"#),
    ("job-resume", r#"{"id":"zz"}"#),
    ("job-cancel", r#"{"id":"zz"}"#),
    ("job-complete", r#"{"id":"zz"}"#),
    ("job-finalize", r#"{"id":"zz"}"#),
    ("job-dismiss", r#"{"id":"zz"}"#),
    ("block-job-pause", r#"{"device":"zz"}"#),
    ("block-job-resume", r#"{"device":"zz"}"#),
    ("block-job-cancel", r#"{"device":"zz","force":true}"#),
    ("block-job-complete", r#"{"device":"zz"}"#),
    ("block-job-finalize", r#"{"id":"zz"}"#),
    ("block-job-dismiss", r#"{"id":"zz"}"#),
    ("block-job-set-speed", r#"{"device":"zz","speed":-1}"#),
    ("block-job-change", r#"{"id":"zz","type":"stream"}"#),
    ("block-job-change", r#"{"id":"zz","type":"mirror","copy-mode":"background"}"#),
];

const WRONG: [Input; 59] = [
    ("job-pause", r#"{}"#),
    ("job-pause", r#"{"device":"zz"}"#),
    ("block-job-pause", r#"{"id":"zz"}"#),
    ("block-job-cancel", r#"{"device":"zz","force":"x"}"#),
    ("block-job-set-speed", r#"{"device":"zz"}"#),
    ("block-job-change", r#"{"id":"zz"}"#),
    ("block-job-change", r#"{"id":"zz","type":"zz"}"#),
    ("block-job-change", r#"{"id":"zz","type":"mirror"}"#),
    ("block-job-change", r#"{"id":"zz","type":"mirror","copy-mode":"zz"}"#),
    ("block-job-change", r#"{"id":"zz","type":"stream","copy-mode":"background"}"#),
    ("block-stream", r#"{}"#),
    ("block-stream", r#"{"device":5}"#),
    ("block-stream", r#"{"device":"zz"}"#),
    ("block-stream", r#"{"device":"top","zz":1}"#),
    ("block-stream", r#"{"device":"top","job-id":""}"#),
    ("block-stream", r#"{"device":"top","job-id":"1a"}"#),
    ("block-stream", r#"{"device":"top","job-id":"a b"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base":"base","base-node":"base"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base":"base","bottom":"base"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base-node":"base","bottom":"mid"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base-node":"zz"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base":"zz"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","bottom":"zz"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base-node":"tgt"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","bottom":"tgt"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","base-node":"top"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","speed":-1}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","speed":"1"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","on-error":"zz"}"#),
    ("block-stream", r#"{"device":"top","job-id":"j","backing-file":"xx"}"#),
    ("block-commit", r#"{}"#),
    ("block-commit", r#"{"device":"zz"}"#),
    ("block-commit", r#"{"device":"zz","job-id":"j"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base":"zz"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"zz"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top":"zz","base-node":"base"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top-node":"zz","base-node":"base"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top-node":"top","top":"x"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"base","base":"x"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"tgt"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top-node":"tgt","base-node":"base"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top-node":"base","base-node":"mid"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","top-node":"mid","base-node":"mid"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"top"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"base","backing-file":"x"}"#),
    ("block-commit", r#"{"device":"top","job-id":"j","base-node":"base","speed":-1}"#),
    (
        "block-commit",
        r#"{"device":"top","job-id":"j","base-node":"base","filter-node-name":"mid"}"#,
    ),
    ("blockdev-mirror", r#"{"device":"top","target":"tgt"}"#),
    ("blockdev-mirror", r#"{"device":"top","target":"zz","sync":"full"}"#),
    ("blockdev-mirror", r#"{"device":"zz","target":"tgt","sync":"full"}"#),
    ("blockdev-mirror", r#"{"device":"top","target":"tgt","sync":"zz","job-id":"j"}"#),
    ("blockdev-mirror", r#"{"device":"top","target":"top","sync":"full","job-id":"j"}"#),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","granularity":5}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","granularity":513}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","granularity":1073741824}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","buf-size":-1}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","replaces":"zz"}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","copy-mode":"zz"}"#,
    ),
    (
        "blockdev-mirror",
        r#"{"device":"top","target":"tgt","sync":"full","job-id":"j","on-source-error":"zz"}"#,
    ),
];

/// What both answer to each.
fn check(ours: &mut Qmp, theirs: &mut Qmp, inputs: &[Input]) {
    for (command, arguments) in inputs {
        let input = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}");
        let (ours, theirs) = (answers(ours, input.as_bytes()), answers(theirs, input.as_bytes()));
        assert_eq!(ours, theirs, "{input}");
    }
}

#[test]
fn answers_about_jobs_are_qemus() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let (mut ours, mut theirs) = (host.client(), Qmp::open_peer(&peer.socket));
    check(&mut ours, &mut theirs, &NOBODY);
    check(&mut ours, &mut theirs, &WRONG);
    host.finish();
}

/// Verbs in every state that can be waited for: what is allowed, and how what is not is refused.
#[test]
fn verbs_are_answered_as_by_qemu() {
    const IN_EACH_STATE: [Input; 7] = [
        ("job-finalize", r#"{"id":"j"}"#),
        ("job-dismiss", r#"{"id":"j"}"#),
        ("block-job-finalize", r#"{"id":"j"}"#),
        ("block-job-dismiss", r#"{"id":"j"}"#),
        ("block-job-set-speed", r#"{"device":"j","speed":-1}"#),
        ("block-job-change", r#"{"id":"j","type":"stream"}"#),
        ("block-job-change", r#"{"id":"j","type":"mirror","copy-mode":"write-blocking"}"#),
    ];
    const NOT_READY: [Input; 2] =
        [("job-complete", r#"{"id":"j"}"#), ("block-job-complete", r#"{"device":"j"}"#)];
    const GOES: [Input; 2] =
        [("job-resume", r#"{"id":"j"}"#), ("block-job-resume", r#"{"device":"j"}"#)];
    const STANDS: [Input; 3] = [
        ("job-pause", r#"{"id":"j"}"#),
        ("block-job-pause", r#"{"device":"j"}"#),
        ("block-job-cancel", r#"{"device":"j"}"#),
    ];
    const PENDING: [Input; 6] = [
        ("job-pause", r#"{"id":"j"}"#),
        ("job-resume", r#"{"id":"j"}"#),
        ("job-complete", r#"{"id":"j"}"#),
        ("job-dismiss", r#"{"id":"j"}"#),
        ("block-job-set-speed", r#"{"device":"j","speed":1}"#),
        ("block-job-change", r#"{"id":"j","type":"mirror","copy-mode":"background"}"#),
    ];
    const CONCLUDED: [Input; 6] = [
        ("job-pause", r#"{"id":"j"}"#),
        ("job-resume", r#"{"id":"j"}"#),
        ("job-cancel", r#"{"id":"j"}"#),
        ("block-job-cancel", r#"{"device":"j"}"#),
        ("job-complete", r#"{"id":"j"}"#),
        ("job-finalize", r#"{"id":"j"}"#),
    ];
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let (mut ours, mut theirs) = (host.client(), Qmp::open_peer(&peer.socket));
    let start = json!({"device": "top", "target": "tgt", "sync": "full", "job-id": "j",
        "copy-mode": "write-blocking", "speed": 1, "auto-finalize": false, "auto-dismiss": false});
    let both = |ours: &mut Qmp, theirs: &mut Qmp, command: &str, arguments: &Value| {
        for client in [ours, theirs] {
            client.run(command, arguments.clone());
        }
    };
    let reach = |ours: &mut Qmp, theirs: &mut Qmp, status: &str| {
        for client in [ours, theirs] {
            super::scene::life(client, "j", super::scene::status(status));
        }
    };
    let id = json!({"id": "j"});
    both(&mut ours, &mut theirs, "blockdev-mirror", &start);
    reach(&mut ours, &mut theirs, "running");
    for inputs in [&IN_EACH_STATE[..], &NOT_READY, &GOES] {
        check(&mut ours, &mut theirs, inputs);
    }
    both(&mut ours, &mut theirs, "job-pause", &id);
    reach(&mut ours, &mut theirs, "paused");
    for inputs in [&IN_EACH_STATE[..], &NOT_READY, &STANDS] {
        check(&mut ours, &mut theirs, inputs);
    }
    both(&mut ours, &mut theirs, "block-job-set-speed", &json!({"device": "j", "speed": 0}));
    both(&mut ours, &mut theirs, "job-resume", &id);
    reach(&mut ours, &mut theirs, "ready");
    for inputs in [&IN_EACH_STATE[..], &GOES] {
        check(&mut ours, &mut theirs, inputs);
    }
    both(&mut ours, &mut theirs, "job-pause", &id);
    reach(&mut ours, &mut theirs, "standby");
    // Asked to complete, it does so once it goes on.
    both(&mut ours, &mut theirs, "job-complete", &id);
    for inputs in [&IN_EACH_STATE[..], &STANDS] {
        check(&mut ours, &mut theirs, inputs);
    }
    both(&mut ours, &mut theirs, "job-resume", &id);
    reach(&mut ours, &mut theirs, "pending");
    check(&mut ours, &mut theirs, &PENDING);
    both(&mut ours, &mut theirs, "job-finalize", &id);
    reach(&mut ours, &mut theirs, "concluded");
    check(&mut ours, &mut theirs, &CONCLUDED);
    both(&mut ours, &mut theirs, "job-dismiss", &id);
    reach(&mut ours, &mut theirs, "null");
    check(&mut ours, &mut theirs, &NOBODY);
    host.finish();
}

/// Where we answer otherwise, and how.
#[test]
fn answers_about_jobs_that_differ() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let (mut ours, mut theirs) = (host.client(), Qmp::open_peer(&peer.socket));
    let mut check = |(command, arguments): Input, expect: [&str; 2]| {
        let input = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}");
        let all = [answers(&mut ours, input.as_bytes()), answers(&mut theirs, input.as_bytes())];
        let descs = all.map(|all| all[0]["error"]["desc"].as_str().unwrap_or("").to_owned());
        assert_eq!(descs, expect, "{input}");
    };
    // Without a base, it commits to the lowest image, whatever its user had in mind. Here it is saved from
    // that by want of an id; we know the drive's.
    check(
        ("block-commit", r#"{"device":"top"}"#),
        ["Parameter 'base-node' is missing: one of 'mid', 'base'", "Invalid job ID ''"],
    );
    check(
        ("block-commit", r#"{"device":"base","job-id":"j"}"#),
        ["Node 'base' has no backing image to commit to", "Need a root block node"],
    );
    // It calls that done, with nothing to do.
    check(
        ("block-stream", r#"{"device":"tgt","job-id":"j"}"#),
        ["stream job `j`: node `tgt`: it has no backing: there is nothing to stream", ""],
    );
    check(
        ("block-stream", r#"{"device":"top","job-id":"j","filter-node-name":"top"}"#),
        [
            "Duplicate nodes with node-name='top'",
            "Could not create node: Duplicate nodes with node-name='top'",
        ],
    );
    check(
        ("blockdev-mirror", r#"{"device":"top","target":"mid","sync":"full","job-id":"j"}"#),
        [
            "mirror job `j`: node `top`: its target `mid` is not another node beside it",
            "Node 'mid' is busy: node is used as backing hd of 'top'",
        ],
    );
    // It knows mirrors by a bitmap, and has none.
    check(
        ("blockdev-mirror", r#"{"device":"top","target":"tgt","sync":"bitmap","job-id":"j"}"#),
        [
            "must provide a valid bitmap name for 'bitmap' sync mode",
            "Sync mode 'bitmap' not supported",
        ],
    );
    let of_bitmap =
        |more: &str| format!(r#"{{"device":"vda","target":"tgt","job-id":"j",{more}}}"#);
    let mut ours = host.client();
    for (more, expect) in [
        (r#""sync":"incremental","bitmap":"zz""#, "Bitmap 'zz' could not be found"),
        (
            r#""sync":"incremental","bitmap":"zz","bitmap-mode":"never""#,
            "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
        ),
        (
            r#""sync":"bitmap","bitmap":"zz""#,
            "Bitmap sync mode must be given when providing a bitmap",
        ),
        (r#""sync":"full","bitmap":"zz""#, "sync mode 'full' is told by no bitmap"),
        (
            r#""sync":"top","bitmap-mode":"never""#,
            "Cannot specify bitmap sync mode without a bitmap",
        ),
    ] {
        let arguments: Value = serde_json::from_str(&of_bitmap(more)).expect("JSON");
        let (class, desc) = ours.fail("blockdev-mirror", arguments);
        assert_eq!((&*class, &*desc), ("GenericError", expect));
    }
    host.finish();
}
