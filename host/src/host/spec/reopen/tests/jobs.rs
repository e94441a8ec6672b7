//! Images that jobs open.

use super::*;

#[test]
fn a_commit_opens_its_base_for_as_long_as_it_writes_it() {
    let scene = Scene::new();
    let host = chain(&scene);
    let spec = CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") };
    let held = JobSpec { auto_finalize: false, ..JobSpec::new("j", JobKind::Commit(spec.clone())) };
    let reader = scene.locked("base", LockMode::Read).expect("beside a reader");
    let error = block_on(host.start_job(held.clone())).map(drop).expect_err("somebody reads it");
    assert!(error.to_string().contains("another process"), "{error}");
    assert!(!is_writable(&host, "base"));
    reader.release();
    let job = block_on(host.start_job(held.clone())).expect("a job");
    block_on(job.reaches(JobStatus::Pending));
    assert!(is_writable(&host, "base") && !scene.is_free_for("base", LockMode::Read));
    job.cancel(true).expect("a job that runs");
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
    assert!(!is_writable(&host, "base") && !is_writable(&host, "base-file"));
    assert!(scene.is_free_for("base", LockMode::Read));

    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert_eq!(shows(&host), SHOWN);
    assert!(!is_writable(&host, "base") && scene.is_free_for("base", LockMode::Read));
    block_on(host.remove_node("mid")).expect("nobody uses it");
    // The active one stays open: it is what the drive writes now.
    let spec = CommitSpec { completes: true, ..CommitSpec::of("vda", "base") };
    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert_eq!(shows(&host), SHOWN);
    assert!(is_writable(&host, "base") && is_writable(&host, "base-file"));
    write(&host, "vda", 0, 9);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_stream_opens_the_overlay_that_it_writes() {
    let scene = Scene::new();
    let host = chain(&scene);
    let stream = JobKind::Stream(StreamSpec::of("mid"));
    assert!(matches!(ends(&host, stream), JobEnd::Completed));
    assert!(!is_writable(&host, "mid") && !is_writable(&host, "mid-file"));
    assert_eq!(shows(&host), SHOWN);
    {
        let graph = host.graph();
        assert_eq!(graph.nodes()[graph.find_node("mid").expect("a node")].edges().len(), 1);
    }
    host.shutdown().expect("an end in order");
}

/// Whoever names another backing in an image that is open read-only has it opened for that.
#[test]
fn an_image_that_is_open_read_only_names_another_backing() {
    let scene = Scene::new();
    let host = chain(&scene);
    let name = BackingName { name: "elsewhere.qcow2".into(), format: Some("qcow2".into()) };
    let name = Action::NameBacking { node: "mid".into(), name: Some(name) };
    block_on(host.transact(Transaction::new().with(name))).expect("a name");
    assert!(!is_writable(&host, "mid") && scene.is_free_for("mid", LockMode::Read));
    let named = std::fs::read(scene.path("mid")).expect("an image");
    let is_there = named.windows(15).any(|bytes| bytes == b"elsewhere.qcow2");
    assert!(is_there);
    host.shutdown().expect("an end in order");
}
