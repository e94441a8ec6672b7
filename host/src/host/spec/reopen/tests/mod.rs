//! Files and images that are opened in another way, and that get other backings, while they are used.

mod access;
mod auto;
mod backing;
mod bitmaps;
mod jobs;
mod names;
mod read_only;
mod throttle;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bitmap::{BitmapName, BitmapState, Granularity};
use crate::block_on;
use crate::error::ErrorKind;
use crate::graph::{Action, BitmapDecl, BitmapScope, Event, Transaction, Unproven};
use crate::host::{DirtyBitmap, Fragment, Host, Keep};
use crate::io::{File, ImageLock, LockMode, OpenOptions, WorkerOptions};
use crate::job::{CommitSpec, JobEnd, JobKind, JobSpec, JobStatus, MirrorSpec, StreamSpec};
use crate::node::BackingName;

const SIZE: u64 = 4 << 20;
const GRANULE: u64 = 64 << 10;

struct Scene {
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, image: &str) -> PathBuf {
        self.directory.path().join(format!("{image}.qcow2"))
    }

    /// An image as a node of its name, over a file that is called after it.
    fn image(&self, name: &str, more: Value) -> Value {
        let file = format!("{name}-file");
        let file = json!({ "driver": "file", "node-name": file, "filename": self.path(name) });
        let mut image = json!({ "driver": "qcow2", "node-name": name, "file": file });
        let (Value::Object(image_keys), Value::Object(more)) = (&mut image, more) else {
            panic!("an object")
        };
        image_keys.extend(more);
        image
    }

    /// Makes images of zeros.
    fn make(&self, names: &[&str]) {
        let host = host();
        for name in names {
            let more = json!({ "backing": null, "create": { "size": SIZE } });
            add(&host, self.image(name, more));
        }
        host.shutdown().expect("an end in order");
    }

    fn locked(&self, image: &str, mode: LockMode) -> std::io::Result<ImageLock> {
        let write = mode == LockMode::Write;
        let options = OpenOptions { write, ..OpenOptions::default() };
        ImageLock::acquire(&Arc::new(File::open(&self.path(image), &options)?), mode)
    }

    fn is_free_for(&self, image: &str, mode: LockMode) -> bool {
        self.locked(image, mode).is_ok()
    }

    /// What a bitmap of an image is to who opens the image now, as it would be after a crash.
    fn kept(&self, image: &str, bitmap: &str) -> (BitmapState, Vec<u64>) {
        let copy = Self::new();
        std::fs::copy(self.path(image), copy.path(image)).expect("a copy");
        let host = host();
        add(&host, copy.image(image, json!({ "read-only": true, "backing": null })));
        let scope = BitmapScope::Node(image.into());
        let bitmap = host.bitmap(&scope, bitmap).expect("a bitmap that is kept");
        let kept = (bitmap.state(), dirty(&bitmap));
        host.shutdown().expect("an end in order");
        kept
    }
}

fn host() -> Host {
    let workers = WorkerOptions { workers: 2, ..WorkerOptions::default() };
    Host::builder().workers(workers).start().expect("a host")
}

fn add(host: &Host, options: Value) {
    host.add(&Fragment::blockdev(options)).unwrap_or_else(|error| panic!("{error}"));
}

fn reopen(host: &Host, nodes: &[Value]) {
    host.reopen_nodes(nodes, Unproven::Refuse).unwrap_or_else(|error| panic!("{error}"));
}

fn refused(host: &Host, nodes: &[Value]) -> String {
    host.reopen_nodes(nodes, Unproven::Refuse).expect_err("refused").brief()
}

fn qcow2(name: &str, read_only: bool) -> Value {
    let file = format!("{name}-file");
    json!({ "driver": "qcow2", "node-name": name, "file": file, "read-only": read_only })
}

fn is_writable(host: &Host, node: &str) -> bool {
    let graph = host.graph();
    !graph.nodes()[graph.find_node(node).expect("a node")].info().read_only
}

fn drive(host: &Host, id: &str, root: &str, writable: bool) {
    block_on(host.add_drive(id, Some(root), writable)).expect("a drive");
}

fn write(host: &Host, id: &str, granule: u64, value: u8) {
    let drive = host.drive(id).expect("a drive");
    block_on(drive.write(granule * GRANULE, &[value; 512])).expect("a write");
}

fn read(host: &Host, id: &str, granule: u64) -> u8 {
    let drive = host.drive(id).expect("a drive");
    block_on(drive.read(granule * GRANULE, 1)).expect("a read")[0]
}

fn bitmap(host: &Host, node: &str) -> DirtyBitmap {
    let (scope, name) = (BitmapScope::Node(node.into()), BitmapName::new("b").expect("a name"));
    let granularity = Granularity::from_bytes(GRANULE).expect("a granularity");
    let decl = BitmapDecl { scope, name, granularity, enabled: true };
    let bitmap = block_on(host.add_bitmap(decl)).expect("a bitmap");
    block_on(bitmap.keep(Keep::Node(node.into()))).expect("an image that keeps it");
    bitmap
}

fn known(host: &Host, node: &str) -> DirtyBitmap {
    host.bitmap(&BitmapScope::Node(node.into()), "b").expect("a bitmap")
}

fn dirty(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.ranges(0..SIZE).flat_map(|run| run.start / GRANULE..run.end / GRANULE).collect()
}

/// base ← mid ← top, of which only `top` is opened for writing; each with its number in a granule of its own, and in
/// one that is below it.
fn chain(scene: &Scene) -> Host {
    scene.make(&["base", "mid", "top"]);
    let host = host();
    for (number, name) in (1_u8..).zip(["base", "mid", "top"]) {
        add(&host, scene.image(name, json!({ "backing": null })));
        drive(&host, "vda", name, true);
        write(&host, "vda", u64::from(number), number);
        write(&host, "vda", u64::from(number) + 1, number);
        block_on(host.remove_drive("vda")).expect("a drive");
    }
    host.shutdown().expect("an end in order");
    let host = self::host();
    let base = scene.image("base", json!({ "backing": null }));
    let mid = scene.image("mid", json!({ "backing": base }));
    add(&host, scene.image("top", json!({ "backing": mid })));
    drive(&host, "vda", "top", true);
    assert!(["base", "mid", "base-file"].iter().all(|name| !is_writable(&host, name)));
    assert!(is_writable(&host, "top"));
    // Files end within their last clusters.
    assert_eq!(shows(&host), SHOWN);
    host
}

fn shows(host: &Host) -> Vec<u8> {
    let all = block_on(host.drive("vda").expect("a drive").read(0, 6 * GRANULE as usize));
    let all = all.expect("a read");
    all.chunks(GRANULE as usize).map(|granule| granule[0]).collect()
}

const SHOWN: [u8; 6] = [0, 1, 2, 3, 3, 0];

fn ends(host: &Host, what: JobKind) -> JobEnd {
    let job = block_on(host.start_job(JobSpec::new("j", what))).expect("a job");
    block_on(job.wait())
}
