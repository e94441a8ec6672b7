//! A plugin over children in memory that fail now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::model::VALUES;
use super::suite::Random;
use super::wanted;
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Change, Filter};
use crate::graph::{BitmapScope, ChildDecl, Cx};
use crate::host::{Drive, Host, block_on};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, WorkerOptions};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags,
};
use crate::plugin::{ByteAccess, Instance, InstanceError, PluginLimits, PluginModule, PluginNode};

/// Of each child, bytes.
pub(super) const SIZE_BYTES: u64 = 256 << 10;
/// The node whose bitmaps are lent, and the drive that marks them.
const BITS: &str = "bits";
const MARKS: &str = "marks";
/// Time that a plugin may keep a request.
const HOLD: Duration = Duration::from_secs(5);

/// What is below the filtered child, which holds nothing itself at first.
pub(super) fn first_bytes() -> Vec<u8> {
    (0..SIZE_BYTES).map(|at| (at / 512 % u64::from(VALUES)) as u8).collect()
}

/// What a case has around the plugin.
#[derive(Clone, Copy, Default)]
pub(super) struct Surroundings {
    /// Children that the plugin can do without.
    pub(super) has_children: bool,
    /// Bitmaps that it can do without.
    pub(super) has_bitmaps: bool,
    /// By which bits are set in what is lent.
    pub(super) seed: u64,
}

impl Surroundings {
    /// All that there are, the least first.
    pub(super) fn all() -> [Self; 4] {
        [(false, false), (true, false), (false, true), (true, true)]
            .map(|(has_children, has_bitmaps)| Self { has_children, has_bitmaps, seed: 0 })
    }

    /// What is marked in the bitmaps that are lent: where it starts, how long it is.
    fn marks(self) -> impl Iterator<Item = (u64, u64)> {
        let mut random = Random(self.seed);
        let count = if self.has_bitmaps { random.below(8) } else { 0 };
        (0..count).map(move |_| {
            let len = 1 + random.below(SIZE_BYTES / 4);
            (random.below(SIZE_BYTES - len), len)
        })
    }
}

/// A running plugin.
pub(super) struct Checked {
    pub(super) drive: Drive,
    pub(super) instance: Arc<Instance>,
    pub(super) faults: Arc<Faults>,
    host: Host,
}

impl Checked {
    /// The plugin over an overlay `file`, and as many more disks as it requires, or knows, with all that it
    /// wants granted. Of a plugin that transforms data the disk is written once, so that what it shows is known.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub(super) fn start(
        module: &Arc<PluginModule>,
        config: &str,
        surroundings: Surroundings,
    ) -> Result<Self> {
        let limits = PluginLimits { hold: HOLD, ..PluginLimits::default() };
        let instance = Instance::new(module, config, limits).map_err(|error| match error {
            InstanceError::Plugin(error) => error,
            InstanceError::Config(error) => Error::new(ErrorKind::Invalid, error.to_string()),
        })?;
        let faults = Arc::new(Faults::default());
        let engine = EngineChoice::Exactly(EngineKind::Threads);
        let options = WorkerOptions { workers: 1, engine, ..WorkerOptions::default() };
        let overlay = MemoryNode::overlay(SIZE_BYTES, 512)?;
        let mut builder = Host::builder()
            .workers(options)
            .node("base", Base, vec![])
            .node("overlay", overlay, vec![ChildDecl::backing("base")])
            .node("file", Faulty::of(&faults, true), vec![ChildDecl::filtered("overlay")]);
        let it = module.inspection();
        let node_of = |name: &str| match it.children.first().is_none_or(|file| file.name == name) {
            true => "file".to_owned(),
            false => format!("child {name}"),
        };
        let (granted, children) = wanted::children(module, surroundings.has_children, node_of);
        for child in children.iter().skip(1) {
            let disk = format!("disk of {}", child.node);
            builder = builder.node(&disk, MemoryNode::new(SIZE_BYTES, 1)?, vec![]).node(
                &child.node,
                Faulty::of(&faults, false),
                vec![ChildDecl::filtered(disk)],
            );
        }
        let is_lent = |required: bool| required || surroundings.has_bitmaps;
        let mut lent = Vec::new();
        for (name, _) in it.bitmaps.iter().filter(|(_, required)| is_lent(*required)) {
            lent.push((name.clone(), BitmapScope::Node(BITS.into()), name.clone()));
            let bitmap = BitmapName::new(name)
                .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
            builder = builder.bitmap(BitmapScope::Node(BITS.into()), bitmap, Granularity::MIN);
        }
        let node = PluginNode::with_children(&instance, &granted)?
            .with_bitmaps(&lent)?
            .with_bytes(it.wants_bytes)?;
        let host = builder
            .node(BITS, MemoryNode::new(SIZE_BYTES, 1)?, vec![])
            .drive(MARKS, BITS, true)
            .node("plugin", node, children)
            .drive("drive", "plugin", true)
            .start()?;
        let drive = host.drive("drive")?;
        let marks = host.drive(MARKS)?;
        for (offset, len) in surroundings.marks() {
            block_on(marks.zero(offset, len, WriteFlags::NONE))?;
        }
        if it.wants_bytes == ByteAccess::Transform {
            block_on(drive.write(0, &first_bytes()))?;
        }
        Ok(Self { drive, instance, faults, host })
    }

    pub(super) fn end(self) -> Result<()> {
        self.host.shutdown()
    }
}

/// When requests of a [`Faulty`] node fail.
#[derive(Default)]
pub(super) struct Faults {
    /// Of so many requests one fails; 0 for none.
    one_in: AtomicU64,
    requests: AtomicU64,
    flushes: AtomicU64,
    durable: AtomicU64,
}

impl Faults {
    pub(super) fn set(&self, one_in: u64) {
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    /// Flushes that reached the child and succeeded.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Flushes, and writes that were to be durable at once, that reached the child and succeeded.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        let one_in = self.one_in.load(Ordering::Relaxed);
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // Spread, but the same each time.
        if one_in > 0 && (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33).is_multiple_of(one_in) {
            return Err(Error::new(ErrorKind::Io, "it is to fail"));
        }
        Ok(())
    }
}

/// Shows [`first_bytes`].
struct Base;

fn read_only<T>() -> NodeFuture<'static, T>
where
    T: 'static,
{
    Box::pin(async { Err(Error::new(ErrorKind::ReadOnly, "the base is not written")) })
}

impl Node for Base {
    fn driver(&self) -> &'static str {
        "pattern"
    }

    fn info(&self, _: &[NodeInfo]) -> Result<NodeInfo> {
        let (limits, caps) = (Limits::NONE, Caps::FILTER);
        let (read_only, growable) = (true, false);
        Ok(NodeInfo { size_bytes: SIZE_BYTES, limits, caps, read_only, growable })
    }

    fn read<'a>(&'a self, _: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let end = offset as usize + buf.len();
            buf.copy_from_slice(&first_bytes()[offset as usize..end]);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, _: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        read_only()
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        read_only()
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        read_only()
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move {
            Ok(vec![Extent { offset, len, kind: ExtentKind::Data, host_offset: None }])
        })
    }
}

/// A filter that lets requests fail.
struct Faulty {
    faults: Arc<Faults>,
    /// It is the filtered child.
    is_file: bool,
}

impl Faulty {
    fn of(faults: &Arc<Faults>, is_file: bool) -> Self {
        Self { faults: Arc::clone(faults), is_file }
    }

    /// What has succeeded is durable.
    fn note(&self, is_durable: bool) {
        self.faults.durable.fetch_add(u64::from(self.is_file && is_durable), Ordering::Relaxed);
    }
}

impl Filter for Faulty {
    fn driver(&self) -> &'static str {
        "faulty"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        self.faults.check()?;
        cx.child(0)?.read(offset, buf).await
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.faults.check()?;
        pass().await?;
        self.note(change.flags.fua);
        Ok(())
    }

    async fn flush(&self, cx: Cx<'_>) -> Result<()> {
        self.faults.check()?;
        cx.child(0)?.flush().await?;
        self.faults.flushes.fetch_add(u64::from(self.is_file), Ordering::Relaxed);
        self.note(true);
        Ok(())
    }
}
