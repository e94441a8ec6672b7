//! The longest chain of images that is allowed.

use blockloom_tests::tools::{have, qemu_io, succeed};

use crate::{ENGINES, scratch, serve};

/// Backing files below the image, as in libvirt.
const BACKINGS: usize = 200;

/// It is opened, and requests reach its lowest image.
#[test]
fn requests_pass_the_longest_chain() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let path = |number: usize| scratch.image(&format!("{number}.qcow2")).display().to_string();
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &path(0), "1M"]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 7 64k 64k", &path(0)]);
    // An image that names another one differs from the next by nothing but that name.
    for number in 1..=BACKINGS {
        let below = path(number - 1);
        let backing = ["-u", "-F", "qcow2", "-b", &below];
        let create = ["create", "-q", "-f", "qcow2"].into_iter().chain(backing);
        succeed("qemu-img", create.chain([path(number).as_str(), "1M"]));
    }
    let graph = format!(
        "[node.disk]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}\n\
         [drive.vda]\nroot = \"disk\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n",
        path(BACKINGS)
    );
    for engine in ENGINES {
        let daemon = serve(&scratch, &graph, &["--engine", engine]);
        let commands = [
            "read -P 7 64k 6k",
            "write -P 9 70k 1k",
            "flush",
            "read -P 7 64k 6k",
            "read -P 0 0 64k",
        ];
        qemu_io(daemon.uri("vda"), &commands);
        daemon.finish();
    }
    succeed("qemu-img", ["check", "-q", "-f", "qcow2", &path(BACKINGS)]);
}
