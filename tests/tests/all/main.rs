//! End-to-end and interoperability tests: the program and the library as their users see them.

mod authors;
mod backup;
mod bitmaps;
mod bundled;
mod clients;
mod control;
mod copy_on_read;
mod corpus;
mod demo;
mod diagnostics;
mod embed;
mod embed_bitmaps;
mod executor;
mod exports;
mod footprint;
mod frozen;
mod hostile;
mod image_cli;
mod images;
mod jobs;
mod lifecycle;
mod load;
mod locks;
mod own_node;
mod pull;
mod qcow2;
mod reload;
mod requests;
mod running;
mod small_filters;
mod stack;
mod throttle;
mod under_fire;
mod xor;

use std::path::Path;

use blockloom_tests::{Daemon, Refused, Scratch};

/// Both engines, as `--engine` calls them.
const ENGINES: [&str; 2] = ["io-uring", "threads"];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blockloom-under-test"))
}

/// A place whose images are on the disk that the build is on: direct I/O works there.
fn scratch() -> Scratch {
    Scratch::new(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Serves a graph file with this text.
fn serve(scratch: &Scratch, text: &str, arguments: &[&str]) -> Daemon {
    Daemon::start(program(), &scratch.graph("graph.toml", text), arguments)
}

/// Serves a graph file with this text, where a refusal is possible.
fn try_serve(scratch: &Scratch, text: &str, arguments: &[&str]) -> Result<Daemon, Refused> {
    Daemon::try_start(program(), &scratch.graph("graph.toml", text), arguments)
}

/// A graph of one memory node called `disk` behind the drive `vda`, exported writable.
fn memory_disk(size_bytes: u64) -> String {
    format!(
        "[node.disk]\ndriver = \"memory\"\nsize = {size_bytes}\n\
         [drive.vda]\nroot = \"disk\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = true\n"
    )
}

/// Everything at once: an image on a base, filters, a drive, a bitmap that is kept, an export.
const WHOLE_GRAPH: &str = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
create = { size = "8MiB" }

[node.top]
driver = "qcow2"
file = { driver = "file", path = "top.qcow2" }
backing = "base"
create = { size = "8MiB" }

[node.slow]
driver = "throttle"
child.file = "top"
instance = "group"
config = { iops = 1000000 }

[node.filter]
driver = "plugin"
plugin = "copy-on-read"
child.file = "slow"
grant.file = ["read", "write-unchanged"]

[drive.vda]
root = "filter"
writable = true

[bitmap.daily]
drive = "vda"
persist = "root"

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:nbd.sock"
writable = true
bitmaps = ["daily"]
"#;

/// A graph of the image file `path` behind the drive `vda`, exported.
fn file_disk(path: &Path, writable: bool) -> String {
    format!(
        "[node.disk]\ndriver = \"file\"\npath = \"{}\"\n\
         [drive.vda]\nroot = \"disk\"\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
         writable = {writable}\n",
        path.display()
    )
}
