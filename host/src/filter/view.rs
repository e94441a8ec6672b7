//! `plugin-view`: what a node that copies before writes showed at its point in time. It can be read, and given up.
//! It is given up only if the backup copies nothing by itself: else the target is to be whole. Of the host's own backup
//! that is known (`sync = "none"`); of a plugin's, whoever asks for the view has to say so.
//!
//! It has the size that the node had then, for as long as it lives, however the disk grows: what is added is no part
//! of it. The disk does not shrink while something of it is still to be copied.
//!
//! Bytes that are still to be copied are read where they are; if they have been copied by the time they are
//! there, from the target. So nobody who writes waits for a reader. What the backup does not cover cannot be
//! read (`EIO`), and is [`ExtentKind::Unreadable`] in block status, which never fails as a whole. Before the
//! point in time reading fails with `EBUSY`, once the backup is broken with `EIO`; a complete backup is read
//! from its target.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::backup::BackupNode;
use super::point_in_time::{Place, PointInTime, not_begun};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{ChildDecl, Cx, OwnAccord, PermissionSet, Role};
use crate::io::{Buf, BufMut};
use crate::limits::EXTENTS_MAX;
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};
use crate::plugin::{OwnSets, PluginNode};

/// Number of the edge to what the backup copies.
const SOURCE: usize = 0;
/// Number of the edge to what it copies to.
const TARGET: usize = 1;
/// Number of the edge to the backup itself.
const OF: usize = 2;

/// Whose view it is.
enum Of {
    Plugin(OwnSets),
    Native(Arc<OnceLock<PointInTime>>),
}

/// The view of a backup's point in time; for its edges see [`ViewNode::children`].
pub struct ViewNode {
    of: Of,
    can_be_given_up: bool,
    /// Kept once found.
    found: OnceLock<PointInTime>,
}

impl ViewNode {
    /// The one view that this host makes.
    pub const SNAPSHOT: &str = "snapshot";

    /// Of the host's own backup.
    pub fn of_backup(node: &BackupNode) -> Self {
        let (of, can_be_given_up) = (Of::Native(node.state()), node.is_for_its_view());
        Self { of, can_be_given_up, found: OnceLock::new() }
    }

    /// Of a plugin's node. What the plugin has copied is taken for the backup, of which no reader gives up anything, unless
    /// [`Self::with_discards`] says that it is there for the view alone.
    ///
    /// # Errors
    /// `ENOENT` for a view that the plugin does not offer, or this host does not know.
    pub fn of_plugin(node: &PluginNode, view: &str) -> Result<Self> {
        let sets = node.own_sets_of_view(view)?;
        if view != Self::SNAPSHOT {
            let message = format!("this host makes the view `{}` alone", Self::SNAPSHOT);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        Ok(Self { of: Of::Plugin(sets), can_be_given_up: false, found: OnceLock::new() })
    }

    /// Whether discards give it up. Of the host's own backup that copies by itself nothing is given up, whatever this
    /// says.
    #[must_use]
    pub fn with_discards(self, are_allowed: bool) -> Self {
        let can_be_given_up = match self.of {
            Of::Plugin(_) => are_allowed,
            Of::Native(_) => are_allowed && self.can_be_given_up,
        };
        Self { can_be_given_up, ..self }
    }

    /// Its edges: to the backup's child and target, and to the backup itself, which is to stay as long as it.
    pub fn children(source: &str, target: &str, of: &str) -> Vec<ChildDecl> {
        let edges = [("source", source), ("target", target), ("of", of)];
        let child = |(name, node): (&str, &str)| ChildDecl {
            name: name.to_owned(),
            node: node.to_owned(),
            role: Role::Source,
            grants: PermissionSet::NONE,
            proven_for: None,
        };
        edges.map(child).into()
    }

    /// Bytes of what it shows; `None` until the node is there of which it is.
    fn size_bytes(&self) -> Option<u64> {
        match &self.of {
            Of::Native(state) => state.get().map(|sets| sets.todo.size_bytes()),
            Of::Plugin(sets) => sets.size_bytes(),
        }
    }

    fn sets(&self) -> Result<&PointInTime> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found = match &self.of {
            Of::Native(state) => state.get().cloned(),
            Of::Plugin(sets) => sets.point_in_time()?,
        };
        let found = found.ok_or_else(not_begun)?;
        Ok(self.found.get_or_init(|| found))
    }

    async fn read_then(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let range = offset..offset + buf.len() as u64;
        let sets = self.sets()?;
        sets.check()?;
        sets.check_covered(&range)?;
        if !sets.is_todo(&range) {
            let buf = cx.child(TARGET)?.read(offset, buf).await?;
            // If it was given up meanwhile, nothing was ever copied there.
            sets.check_covered(&range)?;
            return Ok(buf);
        }
        let mut buf = cx.child(SOURCE)?.read(offset, buf).await?;
        for part in sets.copied(&range) {
            let len = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
            let bytes = cx.child(TARGET)?.read(part.start, BufMut::new(len)).await?;
            let at = usize::try_from(part.start - offset).unwrap_or(usize::MAX);
            buf[at..at + len].copy_from_slice(&bytes);
        }
        // If it broke, or was given up, while this read the source, what was read may be what came later.
        sets.check()?;
        sets.check_covered(&range)?;
        Ok(buf)
    }

    /// Nobody needs a range any more: it cannot be read from now on, is not kept, and is freed in the target.
    fn give_up(&self, range: &Range<u64>) -> Result<()> {
        let sets = self.sets()?;
        sets.check()?;
        let whole = sets.give_up(range);
        if !whole.is_empty() {
            sets.given_up.add(whole, async |own: OwnAccord, range| {
                own.on_behalf().await?.discard_changed(TARGET, range).await
            });
        }
        Ok(())
    }

    async fn extents(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let end = offset + len;
        let sets = self.sets().and_then(|sets| sets.check().map(|()| sets));
        let Ok(sets) = sets else {
            let kind = ExtentKind::Unreadable;
            return Ok(vec![Extent { offset, len, kind, host_offset: None }]);
        };
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < EXTENTS_MAX {
            let (run, place) = sets.first(at..end);
            let child = match place {
                Place::Nowhere => {
                    let (offset, len) = (run.start, run.end - run.start);
                    let kind = ExtentKind::Unreadable;
                    extents.push(Extent { offset, len, kind, host_offset: None });
                    at = run.end;
                    continue;
                }
                Place::Source => SOURCE,
                Place::Target => TARGET,
            };
            let found = cx.child(child)?.block_status(run.start, run.end - run.start).await?;
            let found = found.into_iter().map(shown);
            // What has been copied meanwhile is looked at again: that happens once to each granule.
            let is_still = match place {
                Place::Target => sets.check_covered(&run).is_ok(),
                _ => sets.copied(&run).is_empty(),
            };
            if is_still {
                extents.extend(found.take(EXTENTS_MAX - extents.len()));
                at = extents.last().map_or(end, |last| last.offset.saturating_add(last.len));
            }
        }
        Ok(extents)
    }
}

/// What shows of an extent of a child, of whose backings and files nobody is told.
fn shown(extent: Extent) -> Extent {
    let kind = match extent.kind {
        ExtentKind::Unallocated => ExtentKind::Data,
        kind => kind,
    };
    Extent { kind, host_offset: None, ..extent }
}

fn not_written<'a, T>(cx: Cx<'a>) -> NodeFuture<'a, T> {
    Box::pin(async move {
        let message = "a point in time can be given up, by discards, and not written: write to the disk of which it is";
        Err(Error::new(ErrorKind::NotSupported, message).at_node(cx.node_name()))
    })
}

impl Node for ViewNode {
    fn driver(&self) -> &'static str {
        "plugin-view"
    }

    fn needs_itself(&self, edge: usize) -> bool {
        edge == OF
    }

    fn is_only_given_up(&self) -> bool {
        true
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let missing = || Error::new(ErrorKind::Invalid, "a view needs a child `source`");
        let source_bytes = children.first().ok_or_else(missing)?.size_bytes;
        // If the two come together, there is no other size yet.
        let size_bytes = self.size_bytes().unwrap_or(source_bytes);
        let caps = Caps {
            zero: Support::None,
            discard: if self.can_be_given_up { Support::Native } else { Support::None },
            fua: Support::Native,
            flush: Support::Native,
        };
        // Who has it for writing can give it up, and no more.
        Ok(NodeInfo { size_bytes, limits: Limits::NONE, caps, read_only: false, growable: false })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(self.read_then(cx, offset, buf))
    }

    fn write<'a>(&'a self, cx: Cx<'a>, _: u64, _: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        not_written(cx)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        not_written(cx)
    }

    fn discard<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { self.give_up(&(offset..offset.saturating_add(len))) })
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(self.extents(cx, offset, len))
    }
}

#[cfg(test)]
mod tests {
    use blockloom_plugin_backup::BackupConfig;

    use super::*;
    use crate::node::MemoryNode;
    use crate::plugin::{Grants, Instance, PluginRuntime};

    /// Whatever is in its plugin's configuration, which is the plugin's alone.
    #[test]
    fn a_view_of_a_plugin_is_given_up_if_its_user_says_so() {
        let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
        let disk = MemoryNode::new(1 << 20, 512).expect("a size").info(&[]).expect("a disk");
        let discard = |config: &str, said: Option<bool>| {
            let instance = Instance::bundled(&runtime, "backup", config).expect("a plugin");
            let children =
                [("file".to_owned(), Grants::READ), ("target".to_owned(), Grants::WRITE)];
            let node = PluginNode::with_children(&instance, &children).expect("a node");
            let view = ViewNode::of_plugin(&node, ViewNode::SNAPSHOT).expect("a view");
            let view = match said {
                Some(are_allowed) => view.with_discards(are_allowed),
                None => view,
            };
            view.info(&[disk]).expect("a view of a disk").caps.discard
        };
        for config in ["{}", "{\"sync\": \"full\"}", "{\"sync\": \"none\"}"] {
            assert_eq!(discard(config, None), Support::None, "{config}");
            assert_eq!(discard(config, Some(false)), Support::None, "{config}");
            assert_eq!(discard(config, Some(true)), Support::Native, "{config}");
        }
    }

    /// Of the host's own one that is known, and what is to be whole is not given up at anybody's word.
    #[test]
    fn a_view_of_the_hosts_own_backup_is_given_up_if_that_is_for_it_alone() {
        let disk = MemoryNode::new(1 << 20, 512).expect("a size").info(&[]).expect("a disk");
        for (config, by_itself) in [("{\"sync\": \"none\"}", true), ("{}", false)] {
            let config = BackupConfig::from_json(config).expect("a configuration");
            let backup = BackupNode::new(config, None).expect("a backup");
            let discard = |view: ViewNode| view.info(&[disk]).expect("a view").caps.discard;
            let expect = if by_itself { Support::Native } else { Support::None };
            assert_eq!(discard(ViewNode::of_backup(&backup)), expect);
            assert_eq!(discard(ViewNode::of_backup(&backup).with_discards(true)), expect);
            let kept = ViewNode::of_backup(&backup).with_discards(false);
            assert_eq!(discard(kept), Support::None);
        }
    }
}
