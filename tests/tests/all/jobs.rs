//! Jobs on real images, with NBD clients at work, judged by qemu-img. Names of the kind `E1` are those of
//! experiments with qemu-storage-daemon 10.0.2, whose answer each test states.

use std::sync::atomic::{AtomicBool, Ordering};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::export::nbd::{Export, ExportBitmap, ListenAddress};
use blockloom::graph::{Action, BitmapScope, ChildDecl, Transaction};
use blockloom::io::{EngineChoice, EngineKind, WorkerOptions};
use blockloom::job::{
    CommitSpec, CopyMode, JobEnd, JobHandle, JobKind, JobSpec, JobStatus, MirrorSpec, StreamSpec,
};
use blockloom::node::{FileNode, FileOptions, Qcow2Options};
use blockloom::{Host, block_on};
use blockloom_tests::nbd::Client;
use blockloom_tests::tools::{have, nbd_map, qemu_io, succeed};
use blockloom_tests::{Random, Scratch};
use serde_json::Value;

use crate::{KIB, MIB, scratch};

const SIZE: u64 = 24 * MIB;
/// Granule of the drive's bitmap.
const GRANULE: u64 = 64 * KIB;

/// base.qcow2 ← mid.qcow2 ← top.qcow2, and copy.qcow2 beside; what they show together as expect.raw.
struct Chain {
    scratch: Scratch,
}

impl Chain {
    fn new() -> Self {
        let this = Self { scratch: scratch() };
        let size = SIZE.to_string();
        let create = ["create", "-q", "-f", "qcow2"];
        let path = |name: &str| this.path(name);
        succeed("qemu-img", create.into_iter().chain([&*path("base.qcow2"), &size]));
        for (name, below) in [("mid.qcow2", "base.qcow2"), ("top.qcow2", "mid.qcow2")] {
            let backing = ["-b", below, "-F", "qcow2", &*path(name), &size].map(str::to_owned);
            succeed("qemu-img", create.map(str::to_owned).into_iter().chain(backing));
        }
        succeed("qemu-img", create.into_iter().chain([&*path("copy.qcow2"), &size]));
        this.scratch.sparse_image("expect.raw", SIZE);
        for (name, commands) in [
            ("base.qcow2", ["write -P 1 0 9M", "write -P 2 20M 300k"]),
            ("mid.qcow2", ["write -P 3 4M 1M", "write -z 6M 192k"]),
            ("top.qcow2", ["write -P 4 4500k 100k", "write -P 5 12M 1M"]),
        ] {
            for command in commands {
                succeed("qemu-io", ["-f", "qcow2", "-c", command, &path(name)]);
                succeed("qemu-io", ["-f", "raw", "-c", command, &path("expect.raw")]);
            }
        }
        this
    }

    fn path(&self, name: &str) -> String {
        self.scratch.image(name).to_str().expect("UTF-8").to_owned()
    }

    /// The images as nodes, the topmost behind `vda`, with a bitmap that an export shows.
    fn host(&self, engine: EngineKind) -> (Host, String) {
        let engine = EngineChoice::Exactly(engine);
        let options = WorkerOptions { engine, ..WorkerOptions::default() };
        let mut builder = Host::builder().workers(options);
        for (name, below) in
            [("base", None), ("mid", Some("base")), ("top", Some("mid")), ("copy", None)]
        {
            let file = format!("{name}-file");
            let path = self.scratch.image(&format!("{name}.qcow2"));
            let options =
                FileOptions { path, write: true, discard: true, ..FileOptions::default() };
            builder = builder.node(&file, FileNode::open(&options).expect("a file"), vec![]);
            let mut children = vec![ChildDecl::storage(&file)];
            children.extend(below.map(ChildDecl::backing));
            let backing = below.map(|_| 1);
            let image = Qcow2Options { write: true, backing, ..Qcow2Options::default() };
            builder = builder.open_node(name, image, children);
        }
        let scope = BitmapScope::Drive("vda".into());
        let name = BitmapName::new("daily").expect("a name");
        let granularity = Granularity::from_bytes(GRANULE).expect("a granularity");
        let host = builder.drive("vda", "top", true).bitmap(scope.clone(), name, granularity);
        let host = host.start().expect("a host");
        let export = Export {
            name: "vda".into(),
            description: String::new(),
            drive: "vda".into(),
            writable: true,
            writethrough: false,
            allocation_depth: false,
            bitmaps: vec![ExportBitmap { name: "daily".into(), scope, is_frozen: false }],
        };
        let socket = self.scratch.path("jobs.sock");
        let address = ListenAddress::Unix(socket.clone());
        host.serve_nbd(&address, vec![export]).expect("an export");
        (host, format!("nbd+unix:///vda?socket={}", socket.display()))
    }

    /// The image is in order, and shows what it should.
    fn check(&self, name: &str) {
        let path = self.path(name);
        succeed("qemu-img", ["check", "-q", "-f", "qcow2", &path]);
        let (expect, formats) = (self.path("expect.raw"), ["-f", "raw", "-F", "qcow2"]);
        let compared = ["compare"].into_iter().chain(formats).chain([&*expect, &*path]);
        assert!(succeed("qemu-img", compared).contains("identical"), "{name}");
    }

    /// The file that an image names as its backing.
    fn backing(&self, name: &str) -> Option<String> {
        let info = succeed("qemu-img", ["info", "--output=json", &self.path(name)]);
        let info: Value = serde_json::from_str(&info).expect("JSON");
        info["backing-filename"].as_str().map(str::to_owned)
    }
}

fn engines() -> [EngineKind; 2] {
    [EngineKind::IoUring, EngineKind::Threads]
}

/// Writes at random until it is told to end; what it has written, in order.
fn guest(uri: &str, over: &AtomicBool, seed: u64) -> Vec<(u64, u64, u8)> {
    let (mut client, mut random) = (Client::open(uri), Random::new(seed));
    let mut written = Vec::new();
    while !over.load(Ordering::SeqCst) && written.len() < 2000 {
        let len = (random.below(64) + 1) * 512;
        let offset = random.below((SIZE - len) / 512) * 512;
        let value = random.below(255) as u8 + 1;
        assert_eq!(client.write(0, offset, &vec![value; len as usize]), 0);
        if random.below(8) == 0 {
            let read = client.read(offset, len as u32).expect("a read");
            assert!(read.iter().all(|byte| *byte == value), "at {offset}");
        }
        written.push((offset, len, value));
    }
    client.disconnect();
    written
}

/// Runs a job under load, and has it end; what was written goes to what is expected.
fn run_under_load(chain: &Chain, host: &Host, uri: &str, spec: JobSpec) {
    let over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest(uri, &over, 7));
        let job = block_on(host.start_job(spec)).expect("a job");
        let end = finish(&job);
        over.store(true, Ordering::SeqCst);
        let written = guest.join().expect("a guest");
        assert!(matches!(end, JobEnd::Completed), "{end:?}");
        written
    });
    let commands: Vec<String> = written
        .iter()
        .map(|(offset, len, value)| format!("write -P {value} {offset} {len}"))
        .collect();
    for some in commands.chunks(200) {
        let expect = chain.path("expect.raw");
        let arguments = some.iter().flat_map(|command| ["-c", command]);
        succeed("qemu-io", ["-f", "raw"].into_iter().chain(arguments).chain([&*expect]));
    }
    let mut dirty = vec![false; (SIZE / GRANULE) as usize];
    for (offset, len, _) in &written {
        for granule in offset / GRANULE..(offset + len).div_ceil(GRANULE) {
            dirty[granule as usize] = true;
        }
    }
    let bitmap = host.bitmap(&BitmapScope::Drive("vda".into()), "daily").expect("a bitmap");
    let shown: Vec<bool> = (0..SIZE / GRANULE)
        .map(|granule| bitmap.ranges(granule * GRANULE..(granule + 1) * GRANULE).next().is_some())
        .collect();
    assert_eq!(shown, dirty, "the drive's bitmap is of what the guest wrote, and nothing else");
    let map = nbd_map(uri, "qemu:dirty-bitmap:daily");
    for (offset, len, kind) in map {
        for granule in offset / GRANULE..(offset + len) / GRANULE {
            assert_eq!(kind & 1 != 0, dirty[granule as usize], "the export's bitmap at {offset}");
        }
    }
}

fn finish(job: &JobHandle) -> JobEnd {
    if block_on(job.reaches(JobStatus::Ready)) == JobStatus::Ready {
        job.complete().expect("a job that is ready");
    }
    block_on(job.wait())
}

/// E1a, E5b: QSD, too, dirties nothing where the job is given the overlay itself; E18: given a filter, it calls
/// everything dirty.
#[test]
fn an_image_is_streamed_under_load() {
    if !have(&["qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    for (engine, base) in engines().into_iter().zip([None, Some("base")]) {
        let chain = Chain::new();
        let (host, uri) = chain.host(engine);
        let stream = StreamSpec { base: base.map(Into::into), ..StreamSpec::of("vda") };
        run_under_load(&chain, &host, &uri, JobSpec::new("s", JobKind::Stream(stream)));
        host.shutdown().expect("an end in order");
        chain.check("top.qcow2");
        let backing = chain.backing("top.qcow2");
        assert_eq!(backing.as_deref(), base.map(|_| "base.qcow2"));
    }
}

/// E2b, E4: QSD calls clean what is written after the pivot.
#[test]
fn an_image_is_committed_under_load() {
    if !have(&["qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    for engine in engines() {
        let chain = Chain::new();
        let (host, uri) = chain.host(engine);
        let middle = CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") };
        let job = JobSpec::new("c", JobKind::Commit(middle));
        let job = block_on(host.start_job(job)).expect("a job");
        let end = block_on(job.wait());
        assert!(matches!(end, JobEnd::Completed), "{end:?}");
        // Like a drive, it keeps files open for as long as it is held.
        drop(job);
        // It stands on the base still, and would see what is written there.
        let gone = ["mid", "mid-file"].map(|node| Action::RemoveNode { node: node.into() });
        let remove = gone.into_iter().fold(Transaction::new(), Transaction::with);
        block_on(host.transact(remove)).expect("no such node any more");
        let active = CommitSpec::of("vda", "base");
        run_under_load(&chain, &host, &uri, JobSpec::new("c", JobKind::Commit(active)));
        host.shutdown().expect("an end in order");
        chain.check("base.qcow2");
        assert_eq!(chain.backing("top.qcow2").as_deref(), Some("base.qcow2"));
    }
}

/// E5: in QSD the bitmap stays behind.
#[test]
fn an_image_is_mirrored_under_load() {
    if !have(&["qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    for (engine, copy_mode) in
        engines().into_iter().zip([CopyMode::Background, CopyMode::WriteBlocking])
    {
        let chain = Chain::new();
        let (host, uri) = chain.host(engine);
        let spec = MirrorSpec { copy_mode, ..MirrorSpec::of("vda", "copy") };
        run_under_load(&chain, &host, &uri, JobSpec::new("m", JobKind::Mirror(spec)));
        let mut client = Client::open(&uri);
        assert_eq!(client.write(0, 23 * MIB, &[9; 512]), 0);
        client.disconnect();
        host.shutdown().expect("an end in order");
        qemu_io(&chain.path("expect.raw"), &["write -P 9 23M 512"]);
        chain.check("copy.qcow2");
    }
}
