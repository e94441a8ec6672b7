//! `copy-on-read`, the plugin and the host's own: what is read is kept, and nothing gets dirty by it.

use blockloom_tests::tools::{have, nbd_map, qemu_io, succeed};
use blockloom_tests::{Daemon, Scratch};
use serde_json::Value;

use crate::{KIB, MIB, scratch, serve};

const SIZE: &str = "16M";
const TOOLS: [&str; 3] = ["qemu-img", "qemu-io", "nbdinfo"];

/// Both, as a graph file has them over the node `below`.
fn filters(name: &str, below: &str, more: &str) -> [String; 2] {
    let plugin = "driver = \"plugin\"\nplugin = \"copy-on-read\"\n\
         grant.file = [\"read\", \"write-unchanged\"]";
    let native = "driver = \"copy-on-read\"";
    [plugin, native]
        .map(|driver| format!("[node.{name}]\n{driver}\nchild.file = \"{below}\"\n{more}\n"))
}

/// `top.qcow2` on `mid.qcow2` on `base.qcow2`: the first MiB is the base's, the second the middle's.
fn images(scratch: &Scratch) {
    let path = |name: &str| scratch.image(name).to_str().expect("UTF-8").to_owned();
    let chain = ["base.qcow2", "mid.qcow2", "top.qcow2"];
    for (at, name) in chain.into_iter().enumerate() {
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        if at > 0 {
            create.extend(["-b", chain[at - 1], "-F", "qcow2"]);
        }
        let path = path(name);
        succeed("qemu-img", create.into_iter().chain([path.as_str(), SIZE]));
    }
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 11 0 1M", &path("base.qcow2")]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 22 1M 1M", &path("mid.qcow2")]);
}

/// Serves `filters` over the overlay `top`, of which the last is `root`; all that could get dirty has a bitmap.
fn serve_over(scratch: &Scratch, filters: &str, root: &str) -> Daemon {
    let disk = |name: &str| scratch.image(name).display().to_string();
    let graph = format!(
        "[node.base]\ndriver = \"qcow2\"\nread-only = true\n\
         file = {{ driver = \"file\", path = \"{}\" }}\n\
         [node.mid]\ndriver = \"qcow2\"\nread-only = true\nbacking = \"base\"\n\
         file = {{ driver = \"file\", path = \"{}\" }}\n\
         [node.top]\ndriver = \"qcow2\"\nbacking = \"mid\"\n\
         file = {{ driver = \"file\", path = \"{}\" }}\n\
         {filters}\n\
         [drive.vda]\nroot = \"{root}\"\n\
         [bitmap.drive]\ndrive = \"vda\"\n\
         [bitmap.node]\nnode = \"top\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\nbitmaps = [\"drive\", \"node\"]\n",
        disk("base.qcow2"),
        disk("mid.qcow2"),
        disk("top.qcow2")
    );
    serve(scratch, &graph, &[])
}

fn dirty(uri: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let map = nbd_map(uri, &format!("qemu:dirty-bitmap:{bitmap}"));
    map.into_iter().filter(|(.., kind)| kind & 1 != 0).map(|(at, len, _)| (at, len)).collect()
}

fn assert_clean(uri: &str, what: &str) {
    for bitmap in ["drive", "node"] {
        assert_eq!(dirty(uri, bitmap), [], "{what}: `{bitmap}`");
    }
}

/// What the overlay itself holds.
fn allocated(scratch: &Scratch) -> Vec<(u64, u64)> {
    let top = scratch.image("top.qcow2");
    let json =
        succeed("qemu-img", ["map", "--output=json", "-f", "qcow2", top.to_str().expect("UTF-8")]);
    let list: Value = serde_json::from_str(&json).expect("JSON");
    let field = |it: &Value, name: &str| it[name].as_u64().expect("a number");
    let own = list.as_array().expect("a list").iter().filter(|it| field(it, "depth") == 0);
    let own: Vec<_> = own.filter(|it| it["present"] == true).collect();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (start, len) in own.iter().map(|it| (field(it, "start"), field(it, "length"))) {
        match runs.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += len,
            _ => runs.push((start, len)),
        }
    }
    runs
}

#[test]
fn a_read_is_kept_and_dirties_nothing() {
    if !have(&TOOLS) {
        return;
    }
    let throttle = "[node.slow]\ndriver = \"plugin\"\nplugin = \"throttle\"\nchild.file = \"top\"\n\
         config = { iops = 100000 }\n";
    for filter in filters("cor", "slow", "") {
        let scratch = scratch();
        images(&scratch);
        let daemon = serve_over(&scratch, &format!("{throttle}{filter}"), "cor");
        let uri = daemon.uri("vda").to_owned();
        qemu_io(&uri, &["read -P 11 0 1M"]);
        assert_clean(&uri, &filter);
        // What is there already, and what nobody has.
        qemu_io(&uri, &["read -P 11 512k 1k", "read -P 0 4M 64k", "write -P 33 8M 64k"]);
        assert_eq!(dirty(&uri, "drive"), [(8 * MIB, 64 * KIB)], "{filter}");
        daemon.finish();
        let expect = [(0, MIB), (4 * MIB, 64 * KIB), (8 * MIB, 64 * KIB)];
        assert_eq!(allocated(&scratch), expect, "{filter}");
    }
}

#[test]
fn two_of_them_over_each_other() {
    if !have(&TOOLS) {
        return;
    }
    for lower in filters("lower", "top", "") {
        for upper in filters("upper", "lower", "") {
            let scratch = scratch();
            images(&scratch);
            let daemon = serve_over(&scratch, &format!("{lower}{upper}"), "upper");
            let uri = daemon.uri("vda").to_owned();
            qemu_io(&uri, &["read -P 11 100k 100k", "read -P 22 1M 1M"]);
            assert_clean(&uri, &upper);
            daemon.finish();
            let expect = [(64 * KIB, 192 * KIB), (MIB, MIB)];
            assert_eq!(allocated(&scratch), expect, "{lower}{upper}");
        }
    }
}

#[test]
fn nothing_is_copied_from_below_the_bottom() {
    if !have(&TOOLS) {
        return;
    }
    for filter in filters("cor", "top", "child.bottom = \"mid\"") {
        let scratch = scratch();
        images(&scratch);
        let daemon = serve_over(&scratch, &filter, "cor");
        let uri = daemon.uri("vda").to_owned();
        qemu_io(&uri, &["read -P 11 0 1M", "read 1000k 100k", "read -P 0 4M 64k"]);
        assert_clean(&uri, &filter);
        daemon.finish();
        assert_eq!(allocated(&scratch), [(MIB, 128 * KIB)], "{filter}");
    }
}
