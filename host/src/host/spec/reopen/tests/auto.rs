//! Files that are open for writing only while somebody writes them. What qemu-storage-daemon 10.0.2 does was tried with
//! the same steps, but for the reader, which it does not see before it writes either.

use super::*;
use crate::job::BackupSpec;
use crate::node::{FileNode, FileOptions};

fn file(scene: &Scene) -> Value {
    let path = scene.path("disk");
    json!({ "driver": "file", "node-name": "f", "filename": path, "auto-read-only": true })
}

/// Whether the file is open for writing, by its locks.
fn is_open(scene: &Scene) -> bool {
    assert!(!scene.is_free_for("disk", LockMode::Write), "somebody has it");
    !scene.is_free_for("disk", LockMode::Read)
}

fn plain(scene: &Scene) {
    std::fs::write(scene.path("disk"), vec![0; SIZE as usize]).expect("a file");
}

#[test]
fn a_file_is_open_for_writing_while_somebody_writes_it() {
    let scene = Scene::new();
    plain(&scene);
    let host = host();
    add(&host, file(&scene));
    assert!(!is_open(&scene) && is_writable(&host, "f"), "it can be written by whoever comes");
    // Who only reads is no reason.
    drive(&host, "vdb", "f", false);
    assert!(!is_open(&scene));
    block_on(host.remove_drive("vdb")).expect("a drive");

    // It cannot be opened so while another one relies on it: whoever would write is refused, and nothing is done.
    let reader = scene.locked("disk", LockMode::Read).expect("beside a reader");
    let error = block_on(host.add_drive("vda", Some("f"), true)).expect_err("a reader is there");
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(
        error.to_string().contains("node `f`") && error.to_string().contains("another process")
    );
    assert!(host.graph().find_drive("vda").is_none() && scene.is_free_for("disk", LockMode::Read));
    reader.release();

    for round in 1..4 {
        drive(&host, "vda", "f", true);
        assert!(is_open(&scene));
        write(&host, "vda", round, round as u8);
        block_on(host.set_writable("vda", false)).expect("a drive");
        assert!(!is_open(&scene), "round {round}");
        assert_eq!(read(&host, "vda", round), round as u8);
        block_on(host.set_writable("vda", true)).expect("a drive");
        assert!(is_open(&scene));
        block_on(host.remove_drive("vda")).expect("a drive");
        assert!(!is_open(&scene), "round {round}");
    }
    // A change of its size is a change.
    let resize = Action::Resize { node: "f".into(), size_bytes: 2 * SIZE };
    block_on(host.transact(Transaction::new().with(resize))).expect("a file that grows");
    assert_eq!(std::fs::metadata(scene.path("disk")).expect("a file").len(), 2 * SIZE);
    assert!(!is_open(&scene));
    host.shutdown().expect("an end in order");
}

/// An image that may be changed writes its file by itself; a filter does not.
#[test]
fn what_stands_on_such_a_file() {
    let scene = Scene::new();
    scene.make(&["disk"]);
    let host = host();
    add(&host, file(&scene));
    let image =
        |more: bool| json!({ "driver": "qcow2", "node-name": "i", "file": "f", "read-only": more });
    add(&host, image(true));
    assert!(!is_open(&scene) && !is_writable(&host, "i"));
    block_on(host.remove_node("i")).expect("a node");
    add(&host, image(false));
    assert!(is_open(&scene));
    drive(&host, "vda", "i", true);
    write(&host, "vda", 3, 7);
    reopen(
        &host,
        &[json!({ "driver": "file", "node-name": "f", "filename": scene.path("disk"),
        "auto-read-only": true })],
    );
    assert!(is_open(&scene));
    block_on(host.remove_drive("vda")).expect("a drive");
    reopen(&host, &[image(true)]);
    assert!(!is_open(&scene));
    reopen(&host, &[image(false)]);
    assert!(is_open(&scene));
    block_on(host.remove_node("i")).expect("a node");
    assert!(!is_open(&scene));
    // Without the option it is open for whoever comes.
    reopen(
        &host,
        &[json!({ "driver": "file", "node-name": "f", "filename": scene.path("disk"),
        "auto-read-only": false, "read-only": false })],
    );
    assert!(is_open(&scene));
    host.shutdown().expect("an end in order");

    // What is given inline has it from its parent, with a name or without; a backing has not.
    for more in [json!({}), json!({ "node-name": "f" })] {
        let (scene, host) = (Scene::new(), self::host());
        plain(&scene);
        let mut inline = json!({ "driver": "file", "filename": scene.path("disk") });
        inline.as_object_mut().expect("keys").extend(more.as_object().expect("keys").clone());
        add(
            &host,
            json!({ "driver": "raw", "node-name": "r", "file": inline, "auto-read-only": true }),
        );
        assert!(!is_open(&scene));
        drive(&host, "vda", "r", true);
        assert!(is_open(&scene));
        write(&host, "vda", 0, 1);
        block_on(host.remove_drive("vda")).expect("a drive");
        assert!(!is_open(&scene));
        host.shutdown().expect("an end in order");
    }
}

/// In a file that a host begins with, and with what comes in one go.
#[test]
fn files_by_toml() {
    let scene = Scene::new();
    plain(&scene);
    let host = host();
    let path = scene.path("disk");
    let toml = |more: &str| {
        let text =
            format!("[node.f]\ndriver = \"file\"\npath = {path:?}\nauto-read-only = true\n{more}");
        Fragment::toml("graph.toml", &text)
    };
    host.add(&toml("[drive.vda]\nroot = \"f\"\nwritable = true\n")).expect("a drive");
    assert!(is_open(&scene));
    write(&host, "vda", 0, 1);
    block_on(host.set_writable("vda", false)).expect("a drive");
    assert!(!is_open(&scene));
    block_on(host.remove_drive("vda")).expect("a drive");
    block_on(host.remove_node("f")).expect("a node");
    host.add(&toml("[drive.vda]\nroot = \"f\"\nwritable = false\n")).expect("a drive");
    assert!(!is_open(&scene));
    host.shutdown().expect("an end in order");
}

/// Of a host that is put together by calls.
#[test]
fn files_of_a_builder() {
    let scene = Scene::new();
    plain(&scene);
    for (writable, opened) in [(false, true), (true, true), (true, false)] {
        let options = FileOptions {
            path: scene.path("disk"),
            write: opened,
            auto_read_only: true,
            ..FileOptions::default()
        };
        let file = FileNode::open(&options).expect("a file");
        let host = Host::builder().node("f", file, vec![]).drive("vda", "f", writable);
        let host = host.start().expect("a host");
        assert_eq!(is_open(&scene), writable, "opened for writing: {opened}");
        if writable {
            write(&host, "vda", 0, 1);
        }
        block_on(host.set_writable("vda", !writable)).expect("a drive");
        assert_eq!(is_open(&scene), !writable);
        host.shutdown().expect("an end in order");
    }
}

/// The target of a job that copies is opened by the transaction with which the job comes, as for any other writer.
#[test]
fn a_file_that_a_job_copies_to() {
    let scene = Scene::new();
    plain(&scene);
    let host = host();
    add(&host, file(&scene));
    add(&host, json!({ "driver": "null", "node-name": "n", "size": SIZE }));
    let backup = JobKind::Backup(BackupSpec::of("n", "f"));
    let job = JobSpec { auto_finalize: false, ..JobSpec::new("j", backup) };
    let job = block_on(host.start_job(job)).expect("a job");
    block_on(job.reaches(JobStatus::Pending));
    assert!(is_open(&scene));
    job.finalize().expect("a job that waits");
    assert!(matches!(block_on(job.wait()), JobEnd::Completed));
    assert!(!is_open(&scene));
    host.shutdown().expect("an end in order");
}

/// The drive goes over to what a job has opened, and writes it after the job has ended.
#[test]
fn a_writer_that_outlives_a_job() {
    let scene = Scene::new();
    plain(&scene);
    scene.make(&["top"]);
    let host = host();
    add(&host, file(&scene));
    add(&host, scene.image("top", json!({ "backing": "f" })));
    drive(&host, "vda", "top", true);
    write(&host, "vda", 1, 7);
    assert!(!is_open(&scene));
    let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "f") };
    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert!(is_open(&scene));
    write(&host, "vda", 2, 7);
    block_on(host.set_writable("vda", false)).expect("a drive");
    assert!(!is_open(&scene), "nobody writes it any more");
    block_on(host.set_writable("vda", true)).expect("a drive");
    assert!(is_open(&scene));
    assert_eq!((read(&host, "vda", 1), read(&host, "vda", 2)), (7, 7));
    block_on(host.remove_drive("vda")).expect("a drive");
    assert!(!is_open(&scene));
    host.shutdown().expect("an end in order");
}
