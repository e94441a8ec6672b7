//! A host with a hostile plugin and a neighbour, and what must hold of both in every test.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::graph::{BitmapScope, ChildDecl, Events, Role};
use blockloom::io::WorkerOptions;
use blockloom::node::MemoryNode;
use blockloom::plugin::{
    ByteAccess, Grants, Instance, InstanceError, OnFault, PluginLimits, PluginModule, PluginNode,
    PluginRuntime,
};
use blockloom::{Drive, ErrorKind, Host, Result};
use blockloom_tests::{DEADLINE, eventually};

use super::disk::{BLOCK, BLOCKS, Books, Disk, DiskNode, End, Fan, Meter};
use super::guest::Guest;

/// What a neighbour may be late besides the time of one call: other work on this machine.
const SLACK: Duration = Duration::from_secs(1);

/// Waits for `future`, but not for ever.
pub(super) fn finish<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, end) = (pin!(future), Instant::now() + DEADLINE);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no end within {DEADLINE:?}");
        thread::park_timeout(left);
    }
}

/// Waits until `condition` holds.
pub(super) fn until(what: &str, condition: impl Fn() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// What a [`Scene`] is made of.
pub(super) struct Setup<'a> {
    pub(super) guest: Guest<'a>,
    pub(super) limits: PluginLimits,
    pub(super) workers: usize,
    pub(super) policy: OnFault,
    /// What the plugin may do to the disk.
    pub(super) grants: Grants,
    /// What it may do with data.
    pub(super) bytes: ByteAccess,
}

fn bitmap_name() -> BitmapName {
    BitmapName::new("all").expect("a name")
}

impl Guest<'_> {
    /// The children that it has, with all that it wants of them, and `more` of the first.
    pub(super) fn children(
        &self,
        more: Grants,
        role: Role,
    ) -> (Vec<(String, Grants)>, Vec<ChildDecl>) {
        let of_file = self.wants.union(more);
        let grants = of_file.permissions();
        let file = ChildDecl { grants, role, ..ChildDecl::filtered("disk") };
        let mut all = (vec![("file".to_owned(), of_file)], vec![file]);
        if let Some(target) = self.target {
            let (name, role, grants) =
                ("target".to_owned(), Role::Target, target.wants.permissions());
            all.0.push((name.clone(), target.wants));
            all.1.push(ChildDecl { name, role, grants, ..ChildDecl::filtered("target") });
        }
        all
    }
}

impl<'a> Setup<'a> {
    /// One worker, so that the neighbour shares it; a call may take 20 ms.
    pub(super) fn of(guest: Guest<'a>) -> Self {
        let limits = PluginLimits { call: Duration::from_millis(20), ..PluginLimits::default() };
        Self {
            guest,
            limits,
            workers: 1,
            policy: OnFault::Fail,
            grants: Grants::NONE,
            bytes: ByteAccess::None,
        }
    }

    /// The plugin alone.
    pub(super) fn instance(&self) -> Result<Arc<Instance>, InstanceError> {
        let runtime = Arc::new(PluginRuntime::new()?);
        let module = PluginModule::load(&runtime, "evil", &self.guest.module())?;
        Instance::with_policy(&Arc::new(module), "{}", self.limits, self.policy)
    }

    pub(super) fn start(self) -> Scene {
        let instance = self.instance().unwrap_or_else(|error| panic!("{error:?}"));
        self.start_with(&instance).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn start_with(&self, instance: &Arc<Instance>) -> Result<Scene> {
        let (disk, target, fan) = (Disk::new(), Disk::new(), Fan::default());
        let meter = Meter::default();
        let runtime = Arc::new(PluginRuntime::new()?);
        let pass = Instance::bundled(&runtime, "pass", "{}")?;
        let role = match self.bytes {
            ByteAccess::Transform => Role::Storage,
            ByteAccess::None | ByteAccess::Read => Role::Filtered,
        };
        let (granted, children) = self.guest.children(self.grants, role);
        let lent = self.guest.lent.iter().map(|name| {
            let scope = BitmapScope::Node("disk".into());
            ((*name).to_owned(), scope, bitmap_name().to_string())
        });
        let node = PluginNode::with_children(instance, &granted)?.with_bytes(self.bytes)?;
        let node = node.with_bitmaps(&lent.collect::<Vec<_>>())?;
        let host = Host::builder()
            .workers(WorkerOptions { workers: self.workers, ..WorkerOptions::default() })
            .node("disk", DiskNode(Arc::clone(&disk)), vec![])
            .node("target", DiskNode(Arc::clone(&target)), vec![])
            .bitmap(BitmapScope::Node("disk".into()), bitmap_name(), Granularity::MIN)
            .bitmap(BitmapScope::Node("target".into()), bitmap_name(), Granularity::MIN)
            .bitmap(BitmapScope::Node("evil".into()), bitmap_name(), Granularity::MIN)
            .node("evil", node, children)
            .node("fan", fan.clone(), vec![ChildDecl::filtered("evil")])
            .drive("victim", "fan", true)
            .node("memory", MemoryNode::new(1 << 20, 1)?, vec![])
            .node("meter", meter.clone(), vec![ChildDecl::filtered("memory")])
            .node("pass", PluginNode::new(&pass)?, vec![ChildDecl::filtered("meter")])
            .drive("calm", "pass", true)
            .start()?;
        let neighbour = Neighbour::start(host.drive("calm")?);
        let instance = Arc::clone(instance);
        let events = host.events();
        let call = self.limits.call;
        Ok(Scene { host, instance, events, disk, target, meter, fan, neighbour, call })
    }
}

/// A running host.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) instance: Arc<Instance>,
    pub(super) events: Events,
    pub(super) disk: Arc<Disk>,
    /// The plugin's second child, if it has one.
    pub(super) target: Arc<Disk>,
    /// Below the neighbour's drive.
    pub(super) meter: Meter,
    fan: Fan,
    neighbour: Neighbour,
    call: Duration,
}

impl Scene {
    /// The drive with the hostile plugin, on the next worker.
    pub(super) fn victim(&self) -> Drive {
        self.host.drive("victim").expect("the victim")
    }

    /// Writes `byte` to `count` blocks from `block` on, in one turn of the worker.
    pub(super) fn write(&self, block: usize, count: usize, byte: u8) -> Result<()> {
        let data = vec![byte; count * BLOCK];
        finish(self.victim().write((block * BLOCK) as u64, &data))
    }

    /// Reads one block, which is filled with the byte that is returned.
    pub(super) fn read(&self, block: usize) -> Result<u8> {
        let data = finish(self.victim().read((block * BLOCK) as u64, BLOCK))?;
        assert!(data.iter().all(|byte| *byte == data[0]), "block {block} is torn");
        Ok(data[0])
    }

    pub(super) fn discard(&self, block: usize) -> Result<()> {
        finish(self.victim().discard((block * BLOCK) as u64, BLOCK as u64))
    }

    pub(super) fn flush(&self) -> Result<()> {
        finish(self.victim().flush())
    }

    /// Does `work` with the victim beside the test.
    pub(super) fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(Drive) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let drive = self.victim();
        thread::spawn(move || work(drive))
    }

    /// What has got dirty of a node's view.
    pub(super) fn dirty(&self, node: &str) -> Vec<Range<u64>> {
        let bitmap = self.host.bitmap(&BitmapScope::Node(node.into()), "all").expect("a bitmap");
        bitmap.ranges(0..u64::MAX).collect()
    }

    /// How the requests of each block ended since the last call.
    pub(super) fn ends(&self) -> Vec<End> {
        self.fan.take_ends()
    }

    /// Requests that the plugin's node has been asked for.
    pub(super) fn offered(&self) -> u64 {
        let graph = self.host.graph();
        let fan = graph.find_node("fan").expect("the fan");
        graph.nodes()[fan].edges()[0].counters().snapshot().requests.iter().sum()
    }

    /// The plugin is dead, for a reason that says so, and its drive fails cleanly: nothing reaches the disk
    /// but flushes.
    pub(super) fn assert_dead(&self, reason: &str) {
        until("the plugin is out of service", || self.instance.failure().is_some());
        let failure = self.instance.failure().expect("a reason");
        assert!(failure.contains(reason), "`{failure}` does not say `{reason}`");
        let before = self.disk.books();
        for result in [self.write(0, 1, 9), self.read(0).map(drop), self.discard(0)] {
            let error = result.expect_err("the plugin is out of service");
            assert_eq!(error.kind(), ErrorKind::Io);
            let text = error.to_string();
            assert!(text.contains("`evil`") && text.contains(reason), "`{text}`");
        }
        self.flush().expect("a flush never depends on the plugin");
        let after = Books { flushes: before.flushes + 1, ..before };
        assert_eq!(self.disk.books(), after, "something went round the dead plugin");
        self.ends();
    }

    /// The plugin lives and does its work.
    pub(super) fn assert_alive(&self) {
        assert_eq!(self.instance.failure(), None);
        self.write(BLOCKS - 1, 1, 0x55).expect("a write");
        assert_eq!(self.read(BLOCKS - 1).expect("a read"), 0x55);
        self.ends();
    }

    /// The neighbour noticed nothing, and the host ends in order.
    pub(super) fn end(self) {
        let Self { host, neighbour, call, .. } = self;
        let late = neighbour.stop();
        end(host);
        assert!(late <= 2 * call + SLACK, "the neighbour waited {late:?}");
    }

    /// The host ends in order; the neighbour did its work, be it late.
    pub(super) fn end_without_neighbour(self) {
        self.neighbour.stop();
        end(self.host);
    }
}

fn end(host: Host) {
    let ending = thread::spawn(move || host.shutdown());
    until("the host ends", || ending.is_finished());
    ending.join().expect("an end").expect("an end in order");
}

/// A thread that writes and reads back a drive of its own, and watches how long that takes.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Neighbour {
    fn start(drive: Drive) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut rounds, mut worst) = (0_u64, Duration::ZERO);
            while !told.load(Ordering::Relaxed) || rounds < 8 {
                let (offset, data) = (rounds % 256 * 4096, rounds.to_le_bytes().repeat(512));
                let start = Instant::now();
                finish(drive.write(offset, &data)).expect("the neighbour writes");
                let read = finish(drive.read(offset, data.len())).expect("the neighbour reads");
                worst = worst.max(start.elapsed());
                assert!(read[..] == data[..], "the neighbour's bytes changed");
                rounds += 1;
                // Leaves the processor to the test.
                thread::park_timeout(Duration::from_micros(200));
            }
            worst
        });
        Self { stop, thread }
    }

    /// Its longest wait.
    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the neighbour noticed nothing")
    }
}

/// How requests come to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coming {
    /// One in a turn: `poll-one`.
    Alone,
    /// Eight in a turn: `poll`.
    Together,
}

/// The plugin fails over its first requests; none of them was forwarded.
pub(super) fn check_fault(guest: Guest<'_>, coming: Coming, reason: &str) {
    let scene = Setup::of(guest).start();
    let count = if coming == Coming::Alone { 1 } else { 8 };
    let error = scene.write(3, count, 7).expect_err("the plugin fails");
    assert_eq!(error.kind(), ErrorKind::Io);
    let ends: Vec<End> = (3..3 + count).map(|block| (block, Some(ErrorKind::Io))).collect();
    assert_eq!(scene.ends(), ends, "each request ends once, with EIO");
    assert_eq!(scene.disk.books(), Books::default(), "none was forwarded");
    scene.assert_dead(reason);
    assert!(scene.disk.is_untouched());
    scene.end();
}
