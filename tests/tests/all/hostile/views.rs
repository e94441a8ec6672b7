//! Views of a point in time whose plugin fails, lies, or lets changes pass: what has changed behind it is never
//! shown, and nothing is shown that it did not keep.

use std::sync::Arc;
use std::time::Duration;

use blockloom::filter::ViewNode;
use blockloom::graph::{Event, Role};
use blockloom::plugin::Instance;
use blockloom::plugin::{Grants, OnFault, PluginLimits, PluginModule, PluginNode, PluginRuntime};
use blockloom::{ErrorKind, Host};

use super::disk::{BLOCK, BLOCKS, Disk, DiskNode, first_byte};
use super::guest::{Guest, Target};
use super::scene::{finish, until};

const IMPORTS: &str = r#"(import "blockloom:filter/host@0.1.0" "bitmap-own"
        (func $own (param i32 i32 i32 i64 i32)))
    (import "blockloom:filter/host@0.1.0" "bitmap-set"
        (func $set (param i32 i64 i64 i32 i32)))
    (import "blockloom:filter/host@0.1.0" "set-rules"
        (func $rules (param i32 i32 i32 i32 i32)))"#;
/// Makes the bitmaps of a view, which begins, with all of it still to be copied.
const ITEMS: &str = r#"(data (i32.const 0x600) "todo") (data (i32.const 0x610) "covered")
    (data (i32.const 0x620) "begun") (data (i32.const 0x630) "broken")
    (func $make (param $name i32) (param $bytes i32) (param $fills i32)
        (call $own (i32.const 0) (local.get $name) (local.get $bytes) (i64.const 4096) (i32.const 0x700))
        (if (local.get $fills) (then
            (call $set (i32.load (i32.const 0x704)) (i64.const 0) (i64.const 262144) (i32.const 1)
                (i32.const 0x710)))))
    (func $begin
        (call $make (i32.const 0x630) (i32.const 6) (i32.const 0))
        (call $make (i32.const 0x610) (i32.const 7) (i32.const 1))
        (call $make (i32.const 0x600) (i32.const 4) (i32.const 1))
        (call $make (i32.const 0x620) (i32.const 5) (i32.const 1)))
    (func $clear
        (call $own (i32.const 0) (i32.const 0x600) (i32.const 4) (i64.const 4096) (i32.const 0x700))
        (call $set (i32.load (i32.const 0x704)) (i64.const 0) (i64.const 262144) (i32.const 0)
            (i32.const 0x710))
        (if (i32.ne (i32.load8_u (i32.const 0x710)) (i32.const 1)) (then unreachable)))"#;

const KEEPER: Guest<'_> = Guest {
    imports: IMPORTS,
    items: ITEMS,
    add_node: "(call $begin) (i32.const 0x100)",
    may_bypass: true,
    view: Some("snapshot"),
    wants: Grants::READ,
    target: Some(Target { wants: Grants::WRITE }),
    ..Guest::PASS
};

struct Scene {
    host: Host,
    disk: Arc<Disk>,
    instance: Arc<Instance>,
}

impl Scene {
    fn of(guest: Guest<'_>, policy: OnFault) -> Self {
        let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
        let module = PluginModule::load(&runtime, "evil", &guest.module()).expect("a module");
        let limits = PluginLimits::default();
        let instance = Instance::with_policy(&Arc::new(module), "{}", limits, policy);
        let instance = instance.unwrap_or_else(|error| panic!("{error:?}"));
        let (granted, children) = guest.children(Grants::NONE, Role::Filtered);
        let node = PluginNode::with_children(&instance, &granted).expect("a node");
        let view = ViewNode::of_plugin(&node, ViewNode::SNAPSHOT).expect("its view");
        let disk = Disk::new();
        let host = Host::builder()
            .node("disk", DiskNode(Arc::clone(&disk)), vec![])
            .node("target", DiskNode(Disk::new()), vec![])
            .node("evil", node, children)
            .node("then", view, ViewNode::children("disk", "target", "evil"))
            .drive("vda", "evil", true)
            .drive("past", "then", false)
            .start()
            .expect("a host");
        Self { host, disk, instance }
    }

    fn write(&self, block: usize, byte: u8) -> blockloom::Result<()> {
        let drive = self.host.drive("vda").expect("the drive");
        finish(drive.write((block * BLOCK) as u64, &[byte; BLOCK]))
    }

    /// What the view shows of a block.
    fn then(&self, block: usize) -> Result<u8, ErrorKind> {
        let view = self.host.drive("past").expect("the view");
        let read = finish(view.read((block * BLOCK) as u64, BLOCK));
        read.map(|bytes| bytes[0]).map_err(|error| error.kind())
    }

    fn check_lost(&self) {
        for block in 0..BLOCKS {
            assert_eq!(self.then(block), Err(ErrorKind::Io), "block {block}");
        }
    }
}

/// While the first request that goes past it is on its way to the disk, the view shows nothing any more.
#[test]
fn a_bypass_ends_the_view_before_anything_goes_past() {
    for event in
        ["unreachable", "(call $forever)", "(call $complete (local.get $id) (i64.const 0))"]
    {
        let scene = Scene::of(Guest { event, ..KEEPER }, OnFault::Bypass);
        assert_eq!(scene.then(3), Ok(first_byte(3)), "it is read where it is");
        let mut events = scene.host.events();
        scene.disk.slow_down(Duration::from_millis(100));
        let drive = scene.host.drive("vda").expect("the drive");
        let writing = std::thread::spawn(move || finish(drive.write(0, &[9; BLOCK])));
        until("it goes past", || scene.disk.books().writes == 1);
        assert_eq!(scene.disk.byte(0), first_byte(0), "it has not arrived");
        assert_eq!(scene.then(3), Err(ErrorKind::Io));
        writing.join().expect("a result").expect("without the plugin");
        scene.disk.slow_down(Duration::ZERO);
        scene.check_lost();
        let told: Vec<Event> =
            std::iter::from_fn(|| events.try_next()).map(|it| it.event).collect();
        let lost = |event: &Event| matches!(event, Event::PluginViewLost { node, .. } if &**node == "evil");
        assert_eq!(told.iter().filter(|event| lost(event)).count(), 1, "{told:?}");
        scene.host.shutdown().expect("an end in order");
    }
}

/// One that fails for good lets nothing pass: what it kept, and what is where it was, is still right.
#[test]
fn a_failure_leaves_the_view_as_it_is() {
    let scene = Scene::of(Guest { event: "unreachable", ..KEEPER }, OnFault::Fail);
    scene.write(0, 9).expect_err("it failed");
    assert!(scene.instance.failure().is_some());
    assert!((0..BLOCKS).all(|block| scene.then(block) == Ok(first_byte(block))));
    assert!(scene.disk.is_untouched());
    scene.host.shutdown().expect("an end in order");
}

/// A guest that forwards what it has not kept, by its word or its rules, has no view.
#[test]
fn a_change_that_is_not_kept_ends_the_view() {
    let by_rules = "(if (i64.eqz (local.get $offset)) (then
            (call $rules (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0x800))
            (call $complete (local.get $id) (i64.const 5)))
        (else (if (i32.eq (call $tag (local.get $head)) (i32.const 1)) (then unreachable))))";
    for event in ["(call $forward (local.get $id))", by_rules] {
        let scene = Scene::of(Guest { event, kinds: 0b1110, ..KEEPER }, OnFault::Fail);
        let first = scene.write(0, 9);
        assert_eq!(first.is_ok(), event != by_rules);
        if event == by_rules {
            assert_eq!(scene.then(5), Ok(first_byte(5)), "nothing has changed");
        }
        scene.write(5, 9).expect("passed");
        scene.check_lost();
        assert_eq!(scene.instance.failure(), None);
        scene.host.shutdown().expect("an end in order");
    }
}

/// What is still to be copied is said by the host's copies alone: a guest cannot make its view show what is not
/// there.
#[test]
fn a_guest_cannot_say_that_it_has_copied() {
    let event = "(call $clear) (call $complete (local.get $id) (i64.const 5))";
    let scene = Scene::of(Guest { event, kinds: 0b1110, ..KEEPER }, OnFault::Fail);
    scene.write(0, 9).expect_err("failed by the plugin");
    assert_eq!(scene.instance.failure(), None, "it was refused");
    assert!((0..BLOCKS).all(|block| scene.then(block) == Ok(first_byte(block))));
    scene.host.shutdown().expect("an end in order");
}

#[test]
fn a_view_without_all_changes_is_no_view() {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    for kinds in [0, 0b10, 0b110, 0b1010, 0b1100] {
        let module = Guest { kinds, ..KEEPER }.module();
        let error = PluginModule::load(&runtime, "evil", &module).err().expect("refused");
        assert!(
            error.to_string().contains("does not ask for all of write, zero and discard"),
            "{error}"
        );
    }
}
