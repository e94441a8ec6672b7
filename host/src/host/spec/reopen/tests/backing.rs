//! Backings that come, change and go.

use super::*;
use crate::config::BackingReference;
use crate::graph::Transaction;
use crate::host::image_facts::image_facts;

/// What an image says of its backing.
fn named(scene: &Scene, image: &str) -> Option<BackingReference> {
    image_facts(&scene.path(image)).expect("an image").expect("a qcow2 image").backing
}

/// The overlay gets the node as its backing, and takes its place.
fn snapshot(host: &Host, node: &str, overlay: &str) -> crate::Result<()> {
    let (edge, child) = ("backing".into(), Some(node.into()));
    let stand = Action::SetChild { node: overlay.into(), edge, child };
    let replace = Action::Replace { node: node.into(), by: overlay.into() };
    block_on(host.transact(Transaction::new().with(stand).with(replace))).map(drop)
}

/// E3, for an overlay that was opened without the backing that it gets.
#[test]
fn an_overlay_that_is_there_gets_a_backing() {
    let scene = Scene::new();
    scene.make(&["base", "over", "full"]);
    let host = host();
    for name in ["base", "over", "full"] {
        add(&host, scene.image(name, json!({ "backing": null })));
    }
    drive(&host, "vda", "base", true);
    (0..6).for_each(|granule| write(&host, "vda", granule, 1));
    drive(&host, "vdb", "full", true);
    write(&host, "vdb", 3, 9);
    block_on(host.remove_drive("vdb")).expect("a drive");
    let bitmap = {
        let scope = BitmapScope::Drive("vda".into());
        let granularity = Granularity::from_bytes(GRANULE).expect("a granularity");
        let name = BitmapName::new("b").expect("a name");
        let decl = BitmapDecl { scope, name, granularity, enabled: true };
        block_on(host.add_bitmap(decl)).expect("a bitmap")
    };
    // One that shows something else is no snapshot.
    let error = snapshot(&host, "base", "full").expect_err("it has bytes of its own");
    assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
    snapshot(&host, "base", "over").expect("an empty overlay");
    assert_eq!(dirty(&bitmap), [0_u64; 0]);
    // What is around the bytes of a new cluster is the base's, and what is given up reads as zeros.
    write(&host, "vda", 2, 5);
    let vda = host.drive("vda").expect("a drive");
    let granule = |at: u64| block_on(vda.read(at * GRANULE, 1024)).expect("a read").to_vec();
    assert_eq!(granule(2), [[5_u8; 512], [0; 512]].concat());
    assert_eq!(granule(1), [[1_u8; 512], [0; 512]].concat());
    block_on(vda.write(3 * GRANULE + 512, &[6; 512])).expect("a write");
    assert_eq!(granule(3), [[1_u8; 512], [6; 512]].concat());
    block_on(vda.discard(3 * GRANULE, 2 * GRANULE)).expect("a discard");
    assert_eq!((granule(3), granule(4)), (vec![0; 1024], vec![0; 1024]));
    assert_eq!(dirty(&bitmap), [2, 3, 4]);
    // Nothing has named it: that is for who made the image.
    assert_eq!(named(&scene, "over"), None);
    let to_base = Action::NameBacking {
        node: "over".into(),
        name: Some(BackingName { name: "base.qcow2".into(), format: Some("qcow2".into()) }),
    };
    block_on(host.transact(Transaction::new().with(to_base))).expect("a name");
    host.shutdown().expect("an end in order");

    let base = BackingReference { name: "base.qcow2".into(), format: Some("qcow2".into()) };
    assert_eq!(named(&scene, "over"), Some(base));
    let host = self::host();
    add(&host, scene.image("over", json!({})));
    drive(&host, "vda", "over", true);
    assert_eq!((0..6).map(|at| read(&host, "vda", at)).collect::<Vec<u8>>(), [1, 1, 5, 0, 0, 1]);
    host.shutdown().expect("an end in order");
}

/// What one job of a group puts in the place of another one's base is what the image names: as it was said for that.
#[test]
fn an_image_names_what_it_stands_on_when_a_group_has_ended() {
    for said in [None, Some("./base.qcow2")] {
        let scene = Scene::new();
        let names = ["base", "mid", "over", "top"];
        scene.make(&names);
        let host = host();
        let over = |below: Value, name: &str| scene.image(name, json!({ "backing": below }));
        add(&host, names.into_iter().fold(Value::Null, over));
        drive(&host, "vda", "top", true);
        write(&host, "vda", 2, 7);
        let name = |name: &str| Some(BackingName { name: name.into(), format: None });
        let stream = StreamSpec {
            base: Some("mid".into()),
            backing_name: name("./mid.qcow2"),
            ..StreamSpec::of("top")
        };
        let commit = CommitSpec {
            top: Some("mid".into()),
            backing_name: said.and_then(name),
            ..CommitSpec::of("vda", "base")
        };
        let jobs = [("s", JobKind::Stream(stream)), ("c", JobKind::Commit(commit))];
        let jobs = jobs.map(|(id, what)| JobSpec::new(id, what)).to_vec();
        let (_, jobs) = block_on(host.start_jobs(jobs, true, Transaction::new())).expect("jobs");
        for job in jobs {
            let end = block_on(job.wait());
            assert!(matches!(end, JobEnd::Completed), "{end:?}");
        }
        {
            let graph = host.graph();
            let edges = graph.nodes()[graph.find_node("top").expect("a node")].edges();
            let below = edges.iter().find(|edge| edge.name() == "backing").expect("a backing");
            assert_eq!(graph.nodes()[below.child()].name(), "base");
        }
        let by_file = scene.path("base").to_str().expect("a name").to_owned();
        let name = said.map_or(by_file, str::to_owned);
        let base = BackingReference { name, format: Some("qcow2".into()) };
        assert_eq!(named(&scene, "top"), Some(base));
        host.shutdown().expect("an end in order");
    }
}

/// `base` and `copy`, and on `base` the overlays `near`, and `over`, which is read-only by its description, and so
/// is its file.
fn overlays(scene: &Scene) -> Host {
    scene.make(&["base", "copy", "near", "over"]);
    let host = host();
    for name in ["base", "copy"] {
        add(&host, scene.image(name, json!({ "backing": null })));
    }
    add(&host, scene.image("near", json!({ "backing": "base" })));
    let mut over = scene.image("over", json!({ "backing": "base", "read-only": true }));
    over["file"]["read-only"] = json!(true);
    add(&host, over);
    host
}

fn backing_of(host: &Host, node: &str) -> String {
    let graph = host.graph();
    let edges = graph.nodes()[graph.find_node(node).expect("a node")].edges();
    let below = edges.iter().find(|edge| edge.name() == "backing").expect("a backing");
    graph.nodes()[below.child()].name().to_owned()
}

#[test]
fn an_image_that_is_read_only_goes_on_naming_what_was_mirrored() {
    let scene = Scene::new();
    let host = overlays(&scene);
    let job = JobSpec::new("j", JobKind::Mirror(MirrorSpec::of("base", "copy")));
    let job = block_on(host.start_job(job)).expect("a job");
    assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
    job.complete().expect("a job that is ready");
    let end = block_on(job.wait());
    assert!(matches!(end, JobEnd::Completed), "{end:?}");
    assert_eq!(["near", "over"].map(|node| backing_of(&host, node)), ["copy", "copy"]);
    assert!(!is_writable(&host, "over"));
    host.shutdown().expect("an end in order");
    let name = scene.path("copy").to_str().expect("a name").to_owned();
    let copy = BackingReference { name, format: Some("qcow2".into()) };
    assert_eq!(["near", "over"].map(|image| named(&scene, image)), [Some(copy), None]);
}

#[test]
fn nothing_is_committed_where_an_image_could_not_name_another_backing() {
    let scene = Scene::new();
    let host = overlays(&scene);
    add(&host, scene.image("under", json!({ "backing": null, "create": { "size": SIZE } })));
    let (node, edge, child) = ("base".into(), "backing".into(), Some("under".into()));
    let stand = Action::SetChild { node, edge, child };
    let stand = Transaction::new().with_unproven(stand, Unproven::MarkWhole);
    block_on(host.transact(stand)).expect("a backing of zeros");
    let spec = CommitSpec { top: Some("base".into()), ..CommitSpec::of("near", "under") };
    let error = block_on(host.start_job(JobSpec::new("j", JobKind::Commit(spec.clone()))));
    let error = error.map(drop).expect_err("refused").to_string();
    assert!(error.contains("over-file") && error.contains("read-only by its"), "{error}");
    block_on(host.remove_node("over")).expect("nobody uses it");
    assert!(matches!(ends(&host, JobKind::Commit(spec)), JobEnd::Completed));
    assert_eq!(backing_of(&host, "near"), "under");
    host.shutdown().expect("an end in order");
}

#[test]
fn a_backing_goes_and_another_one_comes() {
    let scene = Scene::new();
    let host = chain(&scene);
    // A format that is not said is that of the backing, and of nothing there is no name.
    let of_base = StreamSpec { base: Some("base".into()), ..StreamSpec::of("top") };
    let name = Some(BackingName { name: "./base.qcow2".into(), format: None });
    let nothing = StreamSpec { backing_name: name.clone(), ..StreamSpec::of("top") };
    let spec = JobSpec::new("j", JobKind::Stream(nothing));
    let error = block_on(host.start_job(spec)).map(drop).expect_err("no base");
    assert!(error.to_string().contains("nothing is left below"), "{error}");
    let of_base = StreamSpec { backing_name: name, ..of_base };
    assert!(matches!(ends(&host, JobKind::Stream(of_base)), JobEnd::Completed));
    let base = BackingReference { name: "./base.qcow2".into(), format: Some("qcow2".into()) };
    assert_eq!(named(&scene, "top"), Some(base));
    assert!(matches!(ends(&host, JobKind::Stream(StreamSpec::of("top"))), JobEnd::Completed));
    assert_eq!((named(&scene, "top"), shows(&host)), (None, SHOWN.to_vec()));

    // Without a backing what is given up is free, and reads as zeros.
    let vda = host.drive("vda").expect("a drive");
    block_on(vda.discard(3 * GRANULE, GRANULE)).expect("a discard");
    let allocated = |at: u64| {
        let extents = block_on(vda.block_status(at * GRANULE, GRANULE)).expect("a status");
        extents[0].kind
    };
    assert_eq!(allocated(3), crate::node::ExtentKind::Hole);
    let with = |backing: Value| {
        let mut top = qcow2("top", false);
        top["backing"] = backing;
        top
    };
    let error = refused(&host, &[with(json!("base"))]);
    assert!(error.contains("nothing proves that they show the same"), "{error}");
    let reopened = host.reopen_nodes(&[with(json!("base"))], Unproven::MarkWhole);
    reopened.unwrap_or_else(|error| panic!("{error}"));
    // What the overlay does not have shows through; what is given up now does not.
    write(&host, "vda", 5, 4);
    block_on(vda.discard(2 * GRANULE, GRANULE)).expect("a discard");
    assert_eq!(shows(&host), [0, 1, 0, 0, 3, 4]);
    let reopened = host.reopen_nodes(&[with(json!("mid"))], Unproven::MarkWhole);
    reopened.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shows(&host), [0, 1, 0, 2, 3, 4]);
    let reopened = host.reopen_nodes(&[with(Value::Null)], Unproven::MarkWhole);
    reopened.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shows(&host), [0, 1, 0, 0, 3, 4]);
    host.shutdown().expect("an end in order");
}
