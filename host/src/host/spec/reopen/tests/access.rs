//! Access and locks.

use super::*;

/// Locks change at once, and guests notice nothing.
#[test]
fn access_changes_while_requests_run() {
    let scene = Scene::new();
    scene.make(&["disk"]);
    let host = host();
    add(&host, scene.image("disk", json!({})));
    drive(&host, "vda", "disk", true);
    (0..8).for_each(|granule| write(&host, "vda", granule, 1 + granule as u8));
    block_on(host.set_writable("vda", false)).expect("a drive");
    let (over, reads) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let fits = |granule: &u64| read(&host, "vda", *granule) == 1 + *granule as u8;
                    assert!((0..8).all(|granule| fits(&granule)));
                    reads.store(true, Ordering::Relaxed);
                }
            });
        }
        for round in 0..12_u8 {
            reopen(&host, &[qcow2("disk", true)]);
            assert!(!is_writable(&host, "disk") && !is_writable(&host, "disk-file"));
            assert!(scene.is_free_for("disk", LockMode::Read), "round {round}");
            // Whoever is refused has waited for a while.
            assert!(round > 0 || !scene.is_free_for("disk", LockMode::Write));
            reopen(&host, &[qcow2("disk", false)]);
            assert!(is_writable(&host, "disk") && is_writable(&host, "disk-file"));
            assert!(round > 0 || !scene.is_free_for("disk", LockMode::Read));
            // It is written before it is closed again: allocations go on where they were.
            block_on(host.set_writable("vda", true)).expect("a drive");
            write(&host, "vda", 10 + u64::from(round), round);
            let error = refused(&host, &[qcow2("disk", true)]);
            assert!(error.contains("drive `vda` (edge `root`) changes it"), "{error}");
            block_on(host.set_writable("vda", false)).expect("a drive");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed));
    (0..12).for_each(|round| assert_eq!(read(&host, "vda", 10 + round), round as u8));
    host.shutdown().expect("an end in order");
}

/// Whoever holds something of a host that has ended keeps nobody from its files.
#[test]
fn what_is_held_of_a_host_that_has_ended_holds_no_file() {
    for is_shared in [false, true] {
        let scene = Scene::new();
        let host = chain(&scene);
        let (vda, kept) = (host.drive("vda").expect("a drive"), bitmap(&host, "top"));
        let spec = CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") };
        let spec = JobSpec { auto_dismiss: false, ..JobSpec::new("j", JobKind::Commit(spec)) };
        let job = block_on(host.start_job(spec)).expect("a job");
        let end = block_on(job.wait());
        assert!(matches!(end, JobEnd::Completed), "{end:?}");
        write(&host, "vda", 5, 1);
        let host = match is_shared {
            true => {
                host.end().expect("an end in order");
                Some(host)
            }
            false => {
                host.shutdown().expect("an end in order");
                None
            }
        };
        for image in ["base", "mid", "top"] {
            assert!(scene.is_free_for(image, LockMode::Write), "{image}, shared: {is_shared}");
        }
        let error = block_on(vda.read(0, 1)).expect_err("it has ended");
        assert_eq!(error.kind(), ErrorKind::ShuttingDown);
        assert_eq!((job.status(), dirty(&kept)), (JobStatus::Concluded, vec![5]));
        drop(host);
    }
}

#[test]
fn several_nodes_are_reopened_together_or_not_at_all() {
    let scene = Scene::new();
    scene.make(&["one", "other"]);
    let host = host();
    for name in ["one", "other"] {
        add(&host, scene.image(name, json!({ "read-only": true })));
    }
    assert!(!is_writable(&host, "one-file"));
    let reader = scene.locked("other", LockMode::Read).expect("beside a reader");
    let both = [qcow2("one", false), qcow2("other", false)];
    let error = refused(&host, &both);
    assert!(error.contains("other.qcow2") && error.contains("another process"), "{error}");
    assert!(["one", "other", "one-file"].iter().all(|name| !is_writable(&host, name)));
    assert!(scene.is_free_for("one", LockMode::Read));
    reader.release();
    reopen(&host, &both);
    assert!(["one", "other", "one-file"].iter().all(|name| is_writable(&host, name)));
    assert!(!scene.is_free_for("one", LockMode::Read));

    // What the file's own options say, and what nothing says.
    let file = |more: (&str, Value)| {
        let mut file = json!({
            "driver": "file",
            "node-name": "one-file",
            "filename": scene.path("one"),
        });
        file[more.0] = more.1;
        file
    };
    reopen(&host, &[file(("discard", json!("ignore")))]);
    reopen(&host, &[file(("cache", json!({ "direct": true })))]);
    let alignment = {
        let graph = host.graph();
        let file = graph.find_node("one-file").expect("a node");
        graph.nodes()[file].info().limits.request_alignment
    };
    assert!(alignment >= 512, "{alignment}");
    drive(&host, "vda", "one", true);
    write(&host, "vda", 3, 7);
    assert_eq!(read(&host, "vda", 3), 7);
    let error = refused(&host, &[file(("locking", json!("off")))]);
    assert!(error.contains("`locking` of node `one-file` cannot change"), "{error}");
    let error = refused(&host, &[file(("read-only", json!(true)))]);
    assert!(error.contains("node `one` (edge `file`) changes it"), "{error}");
    host.shutdown().expect("an end in order");

    // A file that is said to be read-only is not opened for writing behind that word.
    let host = self::host();
    let image = scene.path("one");
    let file = json!({ "driver": "file", "node-name": "f", "filename": image, "read-only": true });
    add(&host, file);
    add(&host, json!({ "driver": "qcow2", "node-name": "i", "file": "f", "read-only": true }));
    let image = json!({ "driver": "qcow2", "node-name": "i", "file": "f", "read-only": false });
    let error = refused(&host, std::slice::from_ref(&image));
    assert!(error.contains("node `f`: it is read-only by its description"), "{error}");
    let file = json!({
        "driver": "file",
        "node-name": "f",
        "filename": scene.path("one"),
        "read-only": false,
    });
    reopen(&host, &[image, file]);
    assert!(is_writable(&host, "i") && is_writable(&host, "f"));
    host.shutdown().expect("an end in order");
}
