//! Bitmaps that make the view `snapshot` (see `wit/filter.wit`): from when `begun` is set they are the host's to rely
//! on. Then copies alone clear `todo`, and who gives the view up, and nothing takes back that the view is broken, which the host says itself
//! before anything goes past the plugin ([`PluginBitmaps::lose_view`]).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use blockloom_abi::NodeIndex;

use super::{Content, Entry, Known, PluginBitmaps};
use crate::bitmap::Granules;
use crate::error::{Error, ErrorKind, Result as HostResult};
use crate::filter::PointInTime;

/// The bitmaps that make the view `snapshot`.
const OF_SNAPSHOT: [&str; 4] = ["todo", "covered", "begun", "broken"];

impl PluginBitmaps {
    /// Whether a bitmap of this name makes a view.
    pub(super) fn is_of_view(&self, name: &str) -> bool {
        self.makes_views && OF_SNAPSHOT.contains(&name)
    }

    /// A node comes into the graph, and its plugin is about to be told of it: its view is of the size that it has now.
    pub(in crate::plugin) fn begin_view(&self, node: NodeIndex) {
        if let Some(known) = self.nodes().iter_mut().find(|known| known.node == node) {
            known.view_bytes = Some(known.size_bytes);
        }
    }

    /// The size of a node's view, once it has come into the graph, bytes.
    pub(in crate::plugin) fn view_bytes(&self, node: NodeIndex) -> Option<u64> {
        self.nodes().iter().find(|known| known.node == node)?.view_bytes
    }

    /// Whether they make the view `snapshot`.
    pub(in crate::plugin) fn makes_views(&self) -> bool {
        self.makes_views
    }

    /// What a node's view showed is not kept from now on: to be told before what is not kept changes. Returns
    /// whether somebody may have relied on it until now.
    pub(in crate::plugin) fn lose_view(&self, node: NodeIndex) -> bool {
        let known = |nodes: &mut Vec<Known>| {
            let known = nodes.iter_mut().find(|known| known.node == node)?;
            Some(!std::mem::replace(&mut known.is_lost, true))
        };
        let is_new = known(&mut self.nodes()).unwrap_or(false);
        let broken = self.own_named(node, "broken");
        let was_whole = broken.as_ref().is_none_or(|broken| broken.next_dirty(0).is_none());
        if let Some(broken) = broken {
            broken.set_all();
        }
        // Pairs with the one of whoever reads the view, and looks at it once more.
        fence(Ordering::SeqCst);
        is_new && was_whole
    }

    /// Whether a node's view has been lost.
    pub(super) fn is_lost(&self, node: NodeIndex) -> bool {
        self.nodes().iter().any(|known| known.node == node && known.is_lost)
    }

    /// What makes the view `snapshot` of a node, once its plugin has all of it.
    ///
    /// # Errors
    /// `EIO` if it never will.
    pub(in crate::plugin) fn point_in_time(
        &self,
        node: NodeIndex,
    ) -> HostResult<Option<PointInTime>> {
        let own = |name| self.own_named(node, name);
        let find = || {
            let (todo, covered) = (own("todo")?, own("covered")?);
            // Nobody of the host's own frees what a plugin has kept.
            let given_up = Granules::new(todo.size_bytes(), todo.granularity()).ok()?;
            Some(PointInTime::of([todo, covered, own("begun")?, own("broken")?], given_up))
        };
        match find() {
            None if self.is_lost(node) => {
                let message = "its plugin was lost before the point in time";
                Err(Error::new(ErrorKind::Io, message))
            }
            found => Ok(found),
        }
    }

    /// A node's own bitmap of this name, if there is one.
    fn own_named(&self, node: NodeIndex, name: &str) -> Option<Arc<Granules>> {
        let entries = self.lock();
        let mut of_node = entries.iter().flatten().filter(|entry| entry.node == node);
        match &of_node.find(|entry| entry.name == name)?.content {
            Content::Own(granules) => Some(Arc::clone(granules)),
            Content::Lent(_) => None,
        }
    }

    /// Whether the guest may set, or clear, bits of a bitmap by itself: those that make a view are the host's to
    /// rely on once it has begun.
    pub(super) fn check_alterable(&self, index: u32, value: bool) -> Result<(), String> {
        if !self.makes_views {
            return Ok(());
        }
        let entries = self.lock();
        let entry = entries.get(index as usize).and_then(Option::as_ref);
        let Some(Entry { node, name, content: Content::Own(_) }) = entry else {
            return Ok(());
        };
        let is_begun = entries.iter().flatten().any(|entry| {
            let is_it = entry.node == *node && entry.name == "begun";
            is_it && matches!(&entry.content, Content::Own(set) if set.next_dirty(0).is_some())
        });
        match name.as_str() {
            "todo" | "covered" if is_begun => {
                Err(format!("bitmap `{name}` makes a view that has begun: copies alone alter it"))
            }
            "begun" | "broken" if !value => {
                Err(format!("what bitmap `{name}` says of a view is not taken back"))
            }
            _ => Ok(()),
        }
    }
}
