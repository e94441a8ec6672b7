//! Images that the graph file makes.

use blockloom_tests::nbd::Client;
use blockloom_tests::tools::{compare, have, qemu_io, run, succeed};
use serde_json::Value;

use crate::{MIB, scratch, serve, try_serve};

const EXPORT: &str = "[drive.vda]\nroot = \"disk\"\n[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\n\
                      listen = \"unix:nbd.sock\"\nwritable = true\n";

fn info(path: &str) -> Value {
    let json = succeed("qemu-img", ["info", "--output=json", path]);
    serde_json::from_str(&json).expect("JSON")
}

/// Made at the first start, used at the next, with what was asked for.
#[test]
fn an_image_is_made_once() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let path = scratch.image("disk.qcow2").display().to_string();
    let graph = format!(
        "[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n\
         create = {{ size = \"16MiB\", cluster-size = \"16KiB\", extended-l2 = true, \
         compression-type = \"zstd\", refcount-bits = 8 }}\n{EXPORT}"
    );
    for round in 1..3 {
        let daemon = serve(&scratch, &graph, &[]);
        let (here, before) = (round * MIB, (round - 1) * MIB);
        if round > 1 {
            qemu_io(daemon.uri("vda"), &[&format!("read -P {} {before} 64k", round - 1)]);
        }
        qemu_io(daemon.uri("vda"), &[&format!("write -P {round} {here} 64k")]);
        daemon.finish();
        let info = info(&path);
        assert_eq!(info["virtual-size"], 16 * MIB);
        assert_eq!(info["cluster-size"], 16 << 10);
        let data = &info["format-specific"]["data"];
        assert_eq!(data["extended-l2"], true, "{data}");
        assert_eq!(data["compression-type"], "zstd", "{data}");
        assert_eq!(data["refcount-bits"], 8, "{data}");
        succeed("qemu-img", ["check", &path]);
    }
}

/// An overlay names the backing that the graph gives it, as long as it is, so that QEMU finds it.
#[test]
fn an_overlay_is_made_over_its_backing() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let path = |name: &str| scratch.image(name).display().to_string();
    let (base, top, expect) = (path("base.qcow2"), path("top.qcow2"), path("expect.raw"));
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &base, "5M"]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 3 1M 2M", &base]);
    let graph = format!(
        "[node.base]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{base}\" }}\n\
         read-only = true\n\
         [node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{top}\" }}\n\
         backing = \"base\"\ncreate = {{ }}\n{EXPORT}"
    );
    let daemon = serve(&scratch, &graph, &[]);
    qemu_io(daemon.uri("vda"), &["read -P 3 1M 2M", "write -P 4 2M 4k", "read -P 0 3M 2M"]);
    succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", daemon.uri("vda"), &expect]);
    daemon.finish();
    let info = info(&top);
    assert_eq!(info["virtual-size"], 5 * MIB);
    assert_eq!(info["backing-filename"], "base.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    let raw = path("top.raw");
    succeed("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", &top, &raw]);
    compare(&expect, &raw);
}

/// The size of a backing that the same file makes is known before it is there; one that cannot be known is said, and
/// nothing is made.
#[test]
fn an_overlay_is_as_long_as_a_backing_that_is_made_with_it() {
    let header_size = |path: &std::path::Path| {
        let image = std::fs::read(path).expect("the image");
        u64::from_be_bytes(image[24..32].try_into().expect("eight bytes"))
    };
    let raw = "[node.base]\ndriver = \"file\"\npath = \"base.img\"\ncreate = \"2MiB\"\n";
    let section = "[node.base]\ndriver = \"raw\"\nfile = { driver = \"file\", path = \"base.img\", \
                   create = \"3MiB\" }\noffset = \"1MiB\"\n";
    let image = "[node.base]\ndriver = \"qcow2\"\nfile = { driver = \"file\", path = \"base.img\" }\n\
                 create = { size = \"2MiB\" }\n";
    for base in [raw, section, image] {
        let scratch = scratch();
        let graph = format!(
            "{base}[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"top.qcow2\" }}\n\
             backing = \"base\"\ncreate = {{ }}\n{EXPORT}"
        );
        let daemon = serve(&scratch, &graph, &[]);
        assert_eq!(Client::open(daemon.uri("vda")).size_bytes(), 2 * MIB, "{base}");
        daemon.finish();
        assert_eq!(header_size(&scratch.path("top.qcow2")), 2 * MIB, "{base}");
    }
}

/// What is no image is said with the key that names it; nothing is made of it.
#[test]
fn a_file_that_is_no_image_stays_as_it_is() {
    let scratch = scratch();
    let path = scratch.image_of("disk.qcow2", &[7; 4096]);
    let graph = format!(
        "[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}\n\
         create = {{ size = \"16MiB\" }}\n{EXPORT}",
        path.display()
    );
    let Err(refused) = try_serve(&scratch, &graph, &[]) else { panic!("it is no image") };
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("qcow2"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&path).expect("the file"), [7; 4096]);
}

/// An image whose writer counted its clusters late and was killed is mended before it is written.
#[test]
fn an_image_that_was_not_closed_is_mended() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let path = scratch.image("disk.qcow2").display().to_string();
    let options = "lazy_refcounts=on,cluster_size=4k";
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, &path, "16M"]);
    // Aborts QEMU with the dirty bit set and refcounts not written.
    let killed = run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 1M 1M", "-c", "abort", &path]);
    assert!(!killed.status.success());
    let graph = format!(
        "[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n\
         {EXPORT}"
    );
    assert_ne!(scratch.peek("disk.qcow2", 72, 8)[7] & 1, 0, "the dirty bit is set");
    let daemon = serve(&scratch, &graph, &[]);
    qemu_io(daemon.uri("vda"), &["read -P 9 1M 1M", "write -P 8 4M 1M"]);
    let log = daemon.finish();
    assert!(log.contains("was not closed"), "{log}");
    let checked = succeed("qemu-img", ["check", "-f", "qcow2", &path]);
    assert!(checked.contains("No errors were found"), "{checked}");
    succeed("qemu-io", ["-f", "qcow2", "-c", "read -P 9 1M 1M", "-c", "read -P 8 4M 1M", &path]);
}
