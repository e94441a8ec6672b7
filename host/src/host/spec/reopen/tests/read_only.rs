//! Nodes whose drivers hold nothing open. What qemu-storage-daemon 10.0.2 does was tried with the same steps:
//! `control::read_only` of the end-to-end tests.

use super::*;

fn null(read_only: bool) -> Value {
    json!({ "driver": "null-co", "node-name": "n", "size": SIZE, "read-zeroes": true,
        "read-only": read_only })
}

/// One of each driver that holds nothing open, as node `f` over node `n`.
fn filters() -> Vec<Value> {
    let mut all = vec![
        json!({ "driver": "raw", "file": "n" }),
        json!({ "driver": "raw", "file": "n", "offset": 512 }),
        json!({ "driver": "pass", "file": "n" }),
        json!({ "driver": "throttle", "file": "n", "throttle-group": "g" }),
        json!({ "driver": "copy-on-read", "file": "n" }),
        json!({ "driver": "plugin", "plugin": "pass", "file": "n" }),
        json!({ "driver": "memory", "child": { "backing": "n" }, "size": SIZE }),
        json!({ "driver": "null", "size": SIZE }),
    ];
    all.iter_mut().for_each(|options| options["node-name"] = "f".into());
    all
}

fn with(options: &Value, read_only: bool) -> Value {
    let mut options = options.clone();
    options["read-only"] = read_only.into();
    options
}

fn no_writer(host: &Host, node: &str) -> String {
    let error = block_on(host.add_drive("vda", Some(node), true)).expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    error.to_string()
}

#[test]
fn every_driver_refuses_changes_and_takes_them_again() {
    for options in filters() {
        let host = host();
        add(&host, null(false));
        add(&host, with(&options, true));
        assert!(!is_writable(&host, "f"), "{options}");
        let text = no_writer(&host, "f");
        assert!(text.contains("node `f`: it is read-only, and drive `vda`"), "{text}");
        assert!(text.ends_with("or reopen it with `read-only` false"), "{text}");
        for _ in 0..2 {
            drive(&host, "vdb", "f", false);
            reopen(&host, &[with(&options, false)]);
            assert!(is_writable(&host, "f"), "{options}");
            block_on(host.remove_drive("vdb")).expect("a drive");
            drive(&host, "vda", "f", true);
            write(&host, "vda", 0, 7);
            let error = refused(&host, &[with(&options, true)]);
            assert!(error.contains("drive `vda` (edge `root`) changes it"), "{error}");
            assert!(is_writable(&host, "f"));
            block_on(host.remove_drive("vda")).expect("a drive");
            // What is not said stays as it is.
            reopen(&host, std::slice::from_ref(&options));
            assert!(is_writable(&host, "f"));
            reopen(&host, &[with(&options, true)]);
            reopen(&host, std::slice::from_ref(&options));
            assert!(!is_writable(&host, "f"));
            no_writer(&host, "f");
        }
        host.shutdown().expect("an end in order");
    }
}

/// What shows a node that is read-only is so, too, whatever is said of it: who would write is told which one it is.
#[test]
fn what_stands_on_it_is_read_only() {
    let host = host();
    add(&host, null(true));
    let filter = json!({ "driver": "throttle", "node-name": "f", "file": "n" });
    add(&host, filter.clone());
    assert!(!is_writable(&host, "f"));
    let text = no_writer(&host, "f");
    assert!(text.contains("node `n`: it is read-only"), "{text}");
    assert!(
        text.contains("drive `vda` (edge `root`) changes node `f`, which stands on it"),
        "{text}"
    );
    // As with QEMU: that one can be written, if what it stands on can be.
    reopen(&host, &[with(&filter, true)]);
    reopen(&host, &[with(&filter, false)]);
    assert!(!is_writable(&host, "f"));
    reopen(&host, &[null(false)]);
    assert!(is_writable(&host, "f"));
    drive(&host, "vda", "f", true);
    let error = refused(&host, &[null(true)]);
    assert!(error.contains("node `n`: it is read-only, and drive `vda`"), "{error}");
    let error = refused(&host, &[null(true), with(&filter, true)]);
    assert!(error.contains("node `f`: it is read-only, and drive `vda`"), "{error}");
    assert!(is_writable(&host, "f") && is_writable(&host, "n"));
    block_on(host.set_writable("vda", false)).expect("a drive");
    reopen(&host, &[null(true), with(&filter, true)]);
    reopen(&host, &[with(&filter, false), null(false)]);
    block_on(host.set_writable("vda", true)).expect("a drive");
    write(&host, "vda", 0, 1);
    host.shutdown().expect("an end in order");
}

/// Who keeps of its own accord what it reads writes what it stands on.
#[test]
fn copy_on_read_needs_a_child_that_can_be_written() {
    let host = host();
    add(&host, null(true));
    let filter = json!({ "driver": "copy-on-read", "node-name": "f", "file": "n" });
    let error = host.add(&Fragment::blockdev(filter.clone())).expect_err("refused").brief();
    assert!(error.contains("node `n`: it is read-only, and node `f` (edge `file`)"), "{error}");
    reopen(&host, &[null(false)]);
    add(&host, with(&filter, true));
    let error = refused(&host, &[null(true)]);
    assert!(error.contains("node `n`: it is read-only, and node `f` (edge `file`)"), "{error}");
    no_writer(&host, "f");
    drive(&host, "vdb", "f", false);
    assert_eq!(read(&host, "vdb", 0), 0);
    host.shutdown().expect("an end in order");
}

/// As in QEMU, what shows a node is added though that is read-only; it is when it is to be written that it is refused.
#[test]
fn a_node_is_added_over_what_is_read_only() {
    let host = host();
    let child = json!({ "driver": "null-co", "node-name": "n", "size": SIZE, "read-only": true });
    add(
        &host,
        json!({ "driver": "raw", "node-name": "r",
        "file": { "driver": "pass", "file": child } }),
    );
    let text = no_writer(&host, "r");
    assert!(text.contains("node `n`: it is read-only"), "{text}");
    // What keeps its bytes there has to write it.
    let child = json!({ "driver": "null-co", "size": SIZE, "read-only": true });
    let image = json!({ "driver": "qcow2", "node-name": "i", "file": child });
    let error = host.add(&Fragment::blockdev(image)).expect_err("refused").brief();
    assert!(error.contains("is read-only"), "{error}");
    host.shutdown().expect("an end in order");
}

#[test]
fn a_file_says_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("graph.toml");
    let disk = "[node.disk]\ndriver = \"memory\"\nsize = \"4MiB\"\nread-only = true\n\
        [node.slow]\ndriver = \"throttle\"\nchild.file = \"disk\"\nread-only = true\n";
    std::fs::write(&path, disk).expect("a file");
    let (host, _) = crate::host::start(&path, crate::host::Overrides::default()).expect("a host");
    assert!(!is_writable(&host, "disk") && !is_writable(&host, "slow"));
    assert!(no_writer(&host, "slow").contains("node `slow`: it is read-only"));
    let disk = json!({ "driver": "memory", "node-name": "disk", "size": "4MiB" });
    let slow = json!({ "driver": "throttle", "node-name": "slow", "file": "disk" });
    reopen(&host, &[with(&slow, false)]);
    assert!(no_writer(&host, "slow").contains("node `disk`: it is read-only"));
    reopen(&host, &[with(&disk, false)]);
    drive(&host, "vda", "slow", true);
    write(&host, "vda", 1, 3);
    assert_eq!(read(&host, "vda", 1), 3);
    host.shutdown().expect("an end in order");
}

/// Files that came with a node follow it; others are opened with it, and not closed.
#[test]
fn files_follow() {
    let scene = Scene::new();
    std::fs::write(scene.path("disk"), vec![0; SIZE as usize]).expect("a file");
    let file = json!({ "driver": "file", "filename": scene.path("disk") });
    let named = |read_only: Value| {
        let mut file = file.clone();
        file["node-name"] = "disk".into();
        file["read-only"] = read_only;
        file
    };
    let raw = |file: Value, read_only: bool| json!({ "driver": "raw", "node-name": "r", "file": file, "read-only": read_only });
    let host = host();
    add(&host, raw(file.clone(), true));
    assert!(scene.is_free_for("disk", LockMode::Read), "nobody can write it");
    for _ in 0..2 {
        reopen(&host, &[raw("#r.file".into(), false)]);
        assert!(is_writable(&host, "r") && !scene.is_free_for("disk", LockMode::Read));
        reopen(&host, &[raw("#r.file".into(), true)]);
        assert!(!is_writable(&host, "#r.file") && scene.is_free_for("disk", LockMode::Read));
    }
    block_on(host.remove_node("r")).expect("a node");

    add(&host, named(false.into()));
    add(&host, raw("disk".into(), true));
    assert!(is_writable(&host, "disk") && !is_writable(&host, "r"));
    reopen(&host, &[raw("disk".into(), false)]);
    reopen(&host, &[raw("disk".into(), true)]);
    assert!(is_writable(&host, "disk"), "it is for others, too");
    // Its own word counts.
    reopen(&host, &[named(true.into())]);
    reopen(&host, &[raw("disk".into(), false)]);
    assert!(!is_writable(&host, "disk") && !is_writable(&host, "r"));
    assert!(no_writer(&host, "r").contains("node `disk`: it is read-only"));
    let both = [named(false.into()), raw("disk".into(), false)];
    reopen(&host, &both);
    drive(&host, "vda", "r", true);
    write(&host, "vda", 0, 1);
    host.shutdown().expect("an end in order");
}

/// As libvirt opens a chain whose base is raw: a commit writes the base for as long as it goes on.
#[test]
fn a_commit_writes_a_raw_base() {
    let scene = Scene::new();
    scene.make(&["top"]);
    std::fs::write(scene.path("disk"), vec![0; SIZE as usize]).expect("a file");
    let host = host();
    let file = json!({ "driver": "file", "node-name": "disk-file", "filename": scene.path("disk"),
        "auto-read-only": true });
    add(&host, file);
    let base = json!({ "driver": "raw", "node-name": "base", "file": "disk-file" });
    add(&host, with(&base, true));
    add(&host, scene.image("top", json!({ "backing": "base" })));
    drive(&host, "vda", "top", true);
    write(&host, "vda", 2, 5);
    assert!(scene.is_free_for("disk", LockMode::Read));
    let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    let held = JobSpec { auto_finalize: false, ..JobSpec::new("j", JobKind::Commit(spec.clone())) };
    let job = block_on(host.start_job(held)).expect("a job");
    block_on(job.reaches(JobStatus::Pending));
    assert!(is_writable(&host, "base") && !scene.is_free_for("disk", LockMode::Read));
    // It is the job that writes it, for now.
    let error = refused(&host, &[with(&base, true)]);
    assert!(error.contains("node `base`: it is read-only, and "), "{error}");
    assert!(error.contains("`j`"), "{error}");
    job.cancel(true).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    assert!(!is_writable(&host, "base") && scene.is_free_for("disk", LockMode::Read));

    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert_eq!(read(&host, "vda", 2), 5);
    // It is what the drive writes now, and stays so.
    assert!(is_writable(&host, "base"));
    write(&host, "vda", 3, 6);
    host.shutdown().expect("an end in order");
    assert_eq!(std::fs::read(scene.path("disk")).expect("a file")[2 * GRANULE as usize], 5);
}

/// What was said of a node that holds the bytes itself, a job does not undo.
#[test]
fn jobs_that_would_write_it_are_refused() {
    let host = host();
    let memory = |name: &str| json!({ "driver": "memory", "node-name": name, "size": SIZE });
    let over = json!({ "driver": "memory", "node-name": "top", "size": SIZE,
        "child": { "backing": "base" } });
    for name in ["base", "target"] {
        add(&host, with(&memory(name), true));
    }
    add(&host, over.clone());
    drive(&host, "vda", "top", true);
    write(&host, "vda", 1, 4);
    let refused = |what: JobKind| {
        let error = block_on(host.start_job(JobSpec::new("j", what))).map(drop);
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert!(host.jobs().is_empty());
        error.to_string()
    };
    let text = refused(JobKind::Commit(CommitSpec::of("vda", "base")));
    assert_eq!(
        text,
        "node `base`: it is read-only by its description, and is to be written: reopen it with `read-only` \
         false"
    );
    let text = refused(JobKind::Mirror(MirrorSpec::of("vda", "target")));
    assert!(text.contains("node `target`: it is read-only, and job `j` (edge `target`)"), "{text}");
    reopen(&host, &[with(&memory("base"), false)]);
    let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert_eq!(read(&host, "vda", 1), 4);
    host.shutdown().expect("an end in order");
}

/// What fails leaves it as it was, and so does what fails beside it.
#[test]
fn all_of_a_transaction_or_nothing() {
    let host = host();
    add(&host, null(false));
    let closing = || {
        let graph = host.graph();
        let node = &graph.nodes()[graph.find_node("n").expect("a node")];
        let how = crate::node::Reopen { write: Some(false), ..Default::default() };
        let to = crate::node::Reopened::of(node, &how).expect("a way");
        Action::Reopen { node: "n".into(), to }
    };
    let fails = Transaction::new().with(closing()).with(Action::RemoveNode { node: "none".into() });
    block_on(host.transact(fails)).expect_err("there is no such node");
    assert!(is_writable(&host, "n"));
    block_on(host.transact(Transaction::new().with(closing()))).expect("nobody writes it");
    assert!(!is_writable(&host, "n"));

    // A filter that is put in refuses whoever is above it.
    reopen(&host, &[null(false)]);
    drive(&host, "vda", "n", true);
    let place =
        crate::host::FilterPlace::Above { node: "n".into(), users: crate::graph::Which::All };
    let filter =
        |read_only: bool| json!({ "driver": "pass", "node-name": "p", "read-only": read_only });
    let error = host.insert_filter(&place, &filter(true)).expect_err("it is written").brief();
    assert!(error.contains("node `p`: it is read-only, and drive `vda`"), "{error}");
    assert!(host.graph().find_node("p").is_none());
    block_on(host.set_writable("vda", false)).expect("a drive");
    host.insert_filter(&place, &filter(true)).expect("nobody writes it");
    block_on(host.set_writable("vda", true)).expect_err("it is read-only");
    block_on(host.remove_filter("p")).expect("a filter");
    block_on(host.set_writable("vda", true)).expect("what it shows can be written");
    // A snapshot takes a drive's changes away from what it shows.
    let over = json!({ "driver": "memory", "node-name": "over", "size": SIZE });
    block_on(host.set_writable("vda", false)).expect("a drive");
    reopen(&host, &[null(true)]);
    let mut backed = over;
    backed["child"] = json!({ "backing": "n" });
    add(&host, backed);
    let root = Action::SetRoot { drive: "vda".into(), node: "over".into() };
    let writable = Action::SetWritable { drive: "vda".into(), writable: true };
    block_on(host.transact(Transaction::new().with(root).with(writable))).expect("an overlay");
    write(&host, "vda", 1, 1);
    host.shutdown().expect("an end in order");
}
