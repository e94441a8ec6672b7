//! The lives of jobs, event by event, as qemu-storage-daemon tells them.

use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::scene::{can_start, event, host, life, peer, status};
use crate::scratch;

/// One step: a command, and until when the job's events are to be compared then.
type Step<'a> = (&'a str, Value, Box<dyn Fn(&Value) -> bool>);

fn to(word: &'static str) -> Box<dyn Fn(&Value) -> bool> {
    Box::new(status(word))
}

fn until(name: &'static str) -> Box<dyn Fn(&Value) -> bool> {
    Box::new(event(name))
}

/// The same steps for both; the same events.
fn check(steps: &[Step<'_>], expect: &[&str]) {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let live = |mut client: Qmp| {
        let mut all = Vec::new();
        for (command, arguments, until) in steps {
            client.run(command, arguments.clone());
            all.extend(life(&mut client, "j", until));
        }
        assert_eq!(client.run("query-jobs", json!({})), json!([]));
        all
    };
    let theirs = live(Qmp::open_peer(&peer.socket));
    assert_eq!(theirs, expect, "qemu-storage-daemon");
    assert_eq!(live(host.client()), expect);
    host.finish();
}

#[test]
fn a_stream() {
    check(
        &[("block-stream", json!({"device": "top", "job-id": "j"}), to("null"))],
        &[
            "JOB_STATUS_CHANGE created",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE waiting",
            "JOB_STATUS_CHANGE pending",
            "BLOCK_JOB_COMPLETED stream all done: true speed 0",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    );
}

#[test]
fn a_stream_that_is_cancelled_when_it_waits_for_its_end() {
    let start =
        json!({"device": "top", "job-id": "j", "auto-finalize": false, "auto-dismiss": false});
    check(
        &[
            ("block-stream", start, until("BLOCK_JOB_PENDING")),
            ("job-cancel", json!({"id": "j"}), to("concluded")),
            ("job-dismiss", json!({"id": "j"}), to("null")),
        ],
        &[
            "JOB_STATUS_CHANGE created",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE waiting",
            "JOB_STATUS_CHANGE pending",
            "BLOCK_JOB_PENDING stream",
            "JOB_STATUS_CHANGE aborting",
            "BLOCK_JOB_CANCELLED stream speed 0",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    );
}

#[test]
fn a_stream_that_is_cancelled_when_it_stands_still() {
    check(
        &[
            (
                "block-stream",
                json!({"device": "top", "job-id": "j", "speed": 65536}),
                to("running"),
            ),
            ("job-pause", json!({"id": "j"}), to("paused")),
            ("job-cancel", json!({"id": "j"}), to("null")),
        ],
        &[
            "JOB_STATUS_CHANGE created",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE paused",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE aborting",
            "BLOCK_JOB_CANCELLED stream speed 65536",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    );
}

/// Whether it has gone on already does not matter: it is cancelled as one that nobody has paused.
#[test]
fn a_stream_that_is_cancelled_as_soon_as_it_is_to_go_on() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    for _ in 0..10 {
        client.run("block-stream", json!({"device": "top", "job-id": "j", "speed": 1}));
        client.run("block-job-pause", json!({"device": "j"}));
        let (_, desc) = client.fail("block-job-cancel", json!({"device": "j"}));
        assert_eq!(desc, "The block job for device 'j' is currently paused");
        life(&mut client, "j", status("paused"));
        client.run("block-job-resume", json!({"device": "j"}));
        client.run("block-job-cancel", json!({"device": "j"}));
        life(&mut client, "j", status("null"));
    }
    host.finish();
}

fn mirror() -> Value {
    json!({"device": "top", "target": "tgt", "sync": "full", "job-id": "j"})
}

const UNTIL_READY: [&str; 4] = [
    "JOB_STATUS_CHANGE created",
    "JOB_STATUS_CHANGE running",
    "JOB_STATUS_CHANGE ready",
    "BLOCK_JOB_READY mirror all done: true speed 0",
];

#[test]
fn a_mirror_that_is_completed_or_left() {
    for (command, arguments) in [
        ("job-complete", json!({"id": "j"})),
        ("block-job-complete", json!({"device": "j"})),
        ("block-job-cancel", json!({"device": "j"})),
    ] {
        check(
            &[
                ("blockdev-mirror", mirror(), until("BLOCK_JOB_READY")),
                (command, arguments, to("null")),
            ],
            &[
                &UNTIL_READY[..],
                &[
                    "JOB_STATUS_CHANGE waiting",
                    "JOB_STATUS_CHANGE pending",
                    "BLOCK_JOB_COMPLETED mirror all done: true speed 0",
                    "JOB_STATUS_CHANGE concluded",
                    "JOB_STATUS_CHANGE null",
                ],
            ]
            .concat(),
        );
    }
}

#[test]
fn a_mirror_that_is_cancelled() {
    for (command, arguments) in [
        ("job-cancel", json!({"id": "j"})),
        ("block-job-cancel", json!({"device": "j", "force": true})),
    ] {
        check(
            &[
                ("blockdev-mirror", mirror(), until("BLOCK_JOB_READY")),
                (command, arguments, to("null")),
            ],
            &[
                &UNTIL_READY[..],
                &[
                    "JOB_STATUS_CHANGE aborting",
                    "BLOCK_JOB_CANCELLED mirror speed 0",
                    "JOB_STATUS_CHANGE concluded",
                    "JOB_STATUS_CHANGE null",
                ],
            ]
            .concat(),
        );
    }
}

#[test]
fn a_commit_of_the_active_image() {
    let start = json!({"device": "top", "base-node": "base", "job-id": "j"});
    check(
        &[
            ("block-commit", start, until("BLOCK_JOB_READY")),
            ("job-complete", json!({"id": "j"}), to("null")),
        ],
        &[
            "JOB_STATUS_CHANGE created",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE ready",
            "BLOCK_JOB_READY commit all done: true speed 0",
            "JOB_STATUS_CHANGE waiting",
            "JOB_STATUS_CHANGE pending",
            "BLOCK_JOB_COMPLETED commit all done: true speed 0",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    );
}

#[test]
fn a_commit_of_the_middle_of_a_chain() {
    let start = json!({"device": "top", "top-node": "mid", "base-node": "base", "job-id": "j"});
    check(
        &[("block-commit", start, to("null"))],
        &[
            "JOB_STATUS_CHANGE created",
            "JOB_STATUS_CHANGE running",
            "JOB_STATUS_CHANGE waiting",
            "JOB_STATUS_CHANGE pending",
            "BLOCK_JOB_COMPLETED commit all done: true speed 0",
            "JOB_STATUS_CHANGE concluded",
            "JOB_STATUS_CHANGE null",
        ],
    );
}
