//! Images in a host of another program.

use blockloom::graph::{Action, ChildDecl, Transaction};
use blockloom::node::{FileNode, FileOptions, Qcow2Options};
use blockloom::{Host, block_on};
use blockloom_tests::tools::{have, succeed};
use serde_json::Value;

use crate::{MIB, scratch};

/// A disk over a longer backing grows, shrinks and grows: what is added is zero, for QEMU, too.
#[test]
fn a_disk_changes_its_size() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    const ODD: u64 = MIB + 5 * 512;
    let scratch = scratch();
    let path = |name: &str| scratch.image(name).display().to_string();
    let (base, top) = (path("base.qcow2"), path("top.qcow2"));
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &base, "4M"]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 3 0 4M", &base]);
    let backing = ["-b", &base, "-F", "qcow2"];
    let create = ["create", "-q", "-f", "qcow2"].into_iter().chain(backing);
    succeed("qemu-img", create.chain([top.as_str(), &ODD.to_string()]));
    succeed("qemu-io", ["-f", "qcow2", "-c", &format!("write -P 4 1M {}", ODD - MIB), &top]);
    let file = |name: &str, write| {
        let path = scratch.image(name);
        let options = FileOptions { path, write, discard: true, ..FileOptions::default() };
        FileNode::open(&options).expect("a file")
    };
    let backing = Some(1);
    let options = Qcow2Options { write: true, backing, ..Qcow2Options::default() };
    let host = Host::builder()
        .node("base-file", file("base.qcow2", false), vec![])
        .open_node("base", Qcow2Options::default(), vec![ChildDecl::storage("base-file")])
        .node("file", file("top.qcow2", true), vec![])
        .open_node("disk", options, vec![ChildDecl::storage("file"), ChildDecl::backing("base")])
        .drive("vda", "disk", true)
        .start()
        .expect("a host");
    let drive = host.drive("vda").expect("a drive");
    let try_resize = |size_bytes| {
        let resize = Action::Resize { node: "disk".into(), size_bytes };
        block_on(host.transact(Transaction::new().with(resize)))
    };
    let resize = |size_bytes| drop(try_resize(size_bytes).expect("another size"));
    let read = |offset, len| block_on(drive.read(offset, len)).expect("a read").to_vec();
    // QEMU would not show all of the last sector.
    let error = try_resize(8 * MIB + 1).expect_err("a size that is no whole sectors").to_string();
    assert!(error.contains("`disk`") && error.contains("a multiple of 512"), "{error}");
    resize(8 * MIB);
    assert_eq!(read(ODD - 512, 512), [4; 512]);
    assert_eq!(read(ODD, MIB as usize), [0; MIB as usize]);
    block_on(drive.write(6 * MIB, &[5; 4096])).expect("a write");
    resize(2 * MIB);
    resize(7 * MIB);
    assert_eq!(read(0, 512), [3; 512]);
    assert_eq!(read(2 * MIB, (5 * MIB) as usize), vec![0; (5 * MIB) as usize]);
    block_on(drive.write(7 * MIB - 512, &[6; 512])).expect("a write");
    host.shutdown().expect("an end in order");
    // It holds on to the graph as it was, and so to the files and their locks.
    drop(drive);
    let info: Value =
        serde_json::from_str(&succeed("qemu-img", ["info", "--output=json", &top])).expect("JSON");
    assert_eq!(info["virtual-size"], 7 * MIB);
    let commands = [
        "read -P 3 0 1M".to_owned(),
        format!("read -P 4 1M {}", ODD - MIB),
        format!("read -P 0 {ODD} {}", 7 * MIB - 512 - ODD),
        format!("read -P 6 {} 512", 7 * MIB - 512),
    ];
    super::scene::qemu_io("qcow2", &top, &commands);
    let checked = succeed("qemu-img", ["check", "-f", "qcow2", &top]);
    assert!(checked.contains("No errors were found"), "{checked}");
}
