//! A plugin over children in memory that fail now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::model::VALUES;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PassNode;
use crate::graph::{ChildDecl, Cx, PermissionSet, Role};
use crate::host::{Drive, Host};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, WorkerOptions};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags,
};
use crate::plugin::{Grants, Instance, InstanceError, PluginLimits, PluginModule, PluginNode};

/// Of each child, bytes.
pub(super) const SIZE_BYTES: u64 = 256 << 10;
/// Time that a plugin may keep a request.
const HOLD: Duration = Duration::from_secs(5);

/// What is below the filtered child, which holds nothing itself at first.
pub(super) fn first_bytes() -> Vec<u8> {
    (0..SIZE_BYTES).map(|at| (at / 512 % u64::from(VALUES)) as u8).collect()
}

/// A running plugin.
pub(super) struct Checked {
    pub(super) drive: Drive,
    pub(super) instance: Arc<Instance>,
    pub(super) faults: Arc<Faults>,
    host: Host,
}

impl Checked {
    /// The plugin over an overlay `file`, and as many more disks as it requires, with all that it wants
    /// granted.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub(super) fn start(module: &Arc<PluginModule>, config: &str) -> Result<Self> {
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
            .node("file", Faulty(Arc::clone(&faults)), vec![ChildDecl::filtered("overlay")]);
        let (mut children, mut grants) = (Vec::new(), Vec::new());
        let wanted = module.inspection().children.iter();
        for (at, child) in wanted.enumerate().filter(|(_, child)| child.required) {
            let node = if at == 0 { "file".to_owned() } else { format!("child {}", child.name) };
            let permissions = child.wants.permissions();
            let role = match at {
                0 => Role::Filtered,
                _ if permissions.intersection(PermissionSet::CHANGES).is_empty() => Role::Source,
                _ => Role::Target,
            };
            if at > 0 {
                builder = builder.node(&node, MemoryNode::new(SIZE_BYTES, 1)?, vec![]);
            }
            grants.push((child.name.clone(), child.wants));
            let name = child.name.clone();
            children.push(ChildDecl { name, node, role, grants: permissions, proven_for: None });
        }
        if grants.is_empty() {
            grants.push(("file".to_owned(), Grants::NONE));
            children.push(ChildDecl::filtered("file"));
        }
        let node = PluginNode::with_children(&instance, &grants)?;
        let host = builder.node("plugin", node, children).drive("drive", "plugin", true).start()?;
        let drive = host.drive("drive")?;
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
}

impl Faults {
    pub(super) fn set(&self, one_in: u64) {
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    /// Flushes that reached the child and succeeded.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
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
struct Faulty(Arc<Faults>);

impl Node for Faulty {
    fn driver(&self) -> &'static str {
        "faulty"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.0.check()?;
            PassNode.read(cx, offset, buf).await
        })
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.check()?;
            PassNode.write(cx, at, buf, flags).await
        })
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.check()?;
            PassNode.zero(cx, at, len, flags).await
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.check()?;
            PassNode.discard(cx, at, len).await
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.check()?;
            PassNode.flush(cx).await?;
            self.0.flushes.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        PassNode.block_status(cx, at, len)
    }
}
