//! One instance that serves two nodes: what it does for one never reaches the other's children, bitmaps, or
//! requests.

use std::sync::Arc;
use std::time::Duration;

use blockloom::graph::ChildDecl;
use blockloom::plugin::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use blockloom::{Drive, ErrorKind, Host};

use super::disk::{BLOCK, Disk, DiskNode, first_byte};
use super::guest::Guest;
use super::scene::{finish, until};

/// `$node` of a request.
const ITEMS: &str = r#"(global $kept (mut i64) (i64.const 0)) (global $step (mut i32) (i32.const 0))
    (global $other (mut i64) (i64.const 0))
    (func $node (param $head i64) (result i32)
        (i32.wrap_i64 (i64.shr_u (local.get $head) (i64.const 32))))
    (data (i32.const 0x600) "mine")
    (func $make (param $node i32)
        (call $own (local.get $node) (i32.const 0x600) (i32.const 4) (i64.const 4096) (i32.const 0x700))
        (call $set (i32.load (i32.const 0x704)) (i64.const 0) (i64.const 262144) (i32.const 1)
            (i32.const 0x710)))"#;
const IMPORTS: &str = r#"(import "blockloom:filter/host@0.1.0" "bitmap-own"
        (func $own (param i32 i32 i32 i64 i32)))
    (import "blockloom:filter/host@0.1.0" "bitmap-count" (func $marked (param i32) (result i64)))
    (import "blockloom:filter/host@0.1.0" "bitmap-set"
        (func $set (param i32 i64 i64 i32 i32)))"#;

struct Scene {
    host: Host,
    disks: [Arc<Disk>; 2],
    instance: Arc<Instance>,
}

impl Scene {
    fn of(event: &str) -> Self {
        let wants = Grants::READ.union(Grants::WRITE).union(Grants::WRITE_UNCHANGED);
        let add_node = "(call $make (local.get $index)) (i32.const 0x100)";
        let guest = Guest {
            event,
            items: ITEMS,
            imports: IMPORTS,
            add_node,
            wants,
            kinds: 2,
            ..Guest::PASS
        };
        let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
        let module = PluginModule::load(&runtime, "evil", &guest.module()).expect("a module");
        let limits = PluginLimits { call: Duration::from_millis(20), ..PluginLimits::default() };
        let instance = Instance::new(&Arc::new(module), "{}", limits);
        let instance = instance.unwrap_or_else(|error| panic!("{error:?}"));
        let disks = [Disk::new(), Disk::new()];
        let node =
            || PluginNode::with_children(&instance, &[("file".to_owned(), wants)]).expect("a node");
        let child =
            |disk: &str| ChildDecl { grants: wants.permissions(), ..ChildDecl::filtered(disk) };
        let host = Host::builder()
            .node("one", DiskNode(Arc::clone(&disks[0])), vec![])
            .node("two", DiskNode(Arc::clone(&disks[1])), vec![])
            .node("first", node(), vec![child("one")])
            .node("second", node(), vec![child("two")])
            .drive("vda", "first", true)
            .drive("vdb", "second", true)
            .start()
            .expect("a host");
        Self { host, disks, instance }
    }

    fn drive(&self, id: &str) -> Drive {
        self.host.drive(id).expect("the drive")
    }

    fn write(&self, id: &str, block: usize, byte: u8) -> blockloom::Result<()> {
        finish(self.drive(id).write((block * BLOCK) as u64, &[byte; BLOCK]))
    }
}

/// The first node's request is kept, and answered with the second one's.
fn crossing(answer: &str) -> String {
    format!(
        "(if (i32.ne (call $tag (local.get $head)) (i32.const 1)) (then (return)))
        (if (i32.eqz (call $node (local.get $head)))
            (then (global.set $kept (local.get $id)))
            (else {answer}))"
    )
}

/// Writes `1` by the first drive, which is kept; then `2` by the second. How both ended.
fn cross(scene: &Scene) -> [blockloom::Result<()>; 2] {
    let drive = scene.drive("vda");
    let first = std::thread::spawn(move || finish(drive.write(BLOCK as u64, &[1; BLOCK])));
    until("it is kept", || scene.instance.counters().asked == 1);
    let second = scene.write("vdb", 1, 2);
    [first.join().expect("a result"), second]
}

#[test]
fn each_answer_goes_to_the_node_of_its_request() {
    let scene = Scene::of(&crossing(
        "(call $forward (global.get $kept)) (call $complete (local.get $id) (i64.const 30))",
    ));
    let [first, second] = cross(&scene);
    first.expect("forwarded");
    assert_eq!(second.expect_err("refused").kind(), ErrorKind::ReadOnly);
    assert_eq!((scene.disks[0].byte(1), scene.disks[0].books().writes), (1, 1));
    assert!(scene.disks[1].is_untouched());
    scene.host.shutdown().expect("an end in order");
}

/// Naming the other's request in the place of one's own is an answer to that one: the own one is still owed, and
/// what is answered twice is a breach.
#[test]
fn one_nodes_request_is_not_answered_in_the_place_of_anothers() {
    let scene = Scene::of(&crossing(
        "(call $complete (global.get $kept) (i64.const 30)) (call $complete (global.get $kept) (i64.const 1))",
    ));
    let [first, second] = cross(&scene);
    assert_eq!(first.expect_err("refused").kind(), ErrorKind::ReadOnly, "the first answer stands");
    assert_eq!(second.expect_err("out of service").kind(), ErrorKind::Io);
    assert_eq!(scene.instance.counters().violations, 1);
    for disk in &scene.disks {
        assert!(disk.is_untouched());
    }
    for id in ["vda", "vdb"] {
        assert_eq!(scene.write(id, 3, 3).expect_err("out of service").kind(), ErrorKind::Io);
    }
    scene.host.shutdown().expect("an end in order");
}

/// What is done for one node's request is done to that node's children, and clears its own bitmaps alone.
#[test]
fn work_for_one_node_is_not_done_to_another() {
    // With the second node's request: zero by the first one's, which is kept; copy for its own, to clear the
    // bitmap of the first. Both ends are awaited.
    let event = "(if (i32.eq (call $tag (local.get $head)) (i32.const 2)) (then
            (if (i64.eq (local.get $id) (i64.const 8)) (then
                (if (i64.ne (call $errno (local.get $head)) (i64.const 2)) (then unreachable))
                (if (i64.ne (call $marked (i32.const 0)) (i64.const 262144)) (then unreachable))))
            (global.set $step (i32.add (global.get $step) (i32.const 1)))
            (if (i32.eq (global.get $step) (i32.const 2)) (then
                (call $complete (global.get $kept) (i64.const 30))
                (call $complete (global.get $other) (i64.const 30))))
            (return)))
        (if (i32.ne (call $tag (local.get $head)) (i32.const 1)) (then (return)))
        (if (i32.eqz (call $node (local.get $head)))
            (then (global.set $kept (local.get $id)))
            (else
                (global.set $other (local.get $id))
                (call $emit (i64.const 7)
                    (i64.or (i64.const 7) (i64.shl (global.get $kept) (i64.const 32)))
                    (i64.const 16384) (i64.const 4096))
                (call $emit (i64.const 0x8000003)
                    (i64.or (i64.const 8) (i64.shl (local.get $id) (i64.const 32)))
                    (i64.const 8192) (i64.const 4096))))";
    let scene = Scene::of(event);
    let [first, second] = cross(&scene);
    for result in [first, second] {
        assert_eq!(result.expect_err("refused").kind(), ErrorKind::ReadOnly);
    }
    assert_eq!(scene.instance.failure(), None);
    assert_eq!(
        (scene.disks[0].byte(4), scene.disks[0].books().zeros),
        (0, 1),
        "its own request's child"
    );
    assert_eq!((scene.disks[1].byte(4), scene.disks[1].books().zeros), (first_byte(4), 0));
    scene.host.shutdown().expect("an end in order");
}

/// A fault takes both nodes with it, and no request is lost or done twice.
#[test]
fn a_fault_by_one_nodes_request_ends_each_of_the_others_once() {
    let scene = Scene::of(&crossing("unreachable"));
    for result in cross(&scene) {
        assert_eq!(result.expect_err("out of service").kind(), ErrorKind::Io);
    }
    let counters = scene.instance.counters();
    assert_eq!((counters.faults, counters.violations), (1, 0));
    assert!(scene.disks.iter().all(|disk| disk.is_untouched()));
    scene.host.shutdown().expect("an end in order");
}
