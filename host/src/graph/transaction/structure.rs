//! The actions, each a change of a [`Draft`] that checks its own sense. What concerns the whole graph
//! (cycles, sizes, permissions) is checked once, when it is assembled.

use std::ops::Range;
use std::sync::Arc;

use super::action::{Action, Unproven, User, Which};
use super::apply::at_action;
use super::bitmap_action::{BitmapAction, BitmapRef};
use super::draft::{By, Draft, DraftBitmap, DraftEdge, DraftNode, Link, in_use, invalid};
use super::naming::Naming;
use super::work::Work;
use crate::bitmap::BitmapName;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::build::NodeDecl;
use crate::graph::permission::{PermissionSet, Role};
use crate::graph::snapshot::BitmapScope;
use crate::graph::user::DriveTitle;
use crate::node::{OpenMode, Reopened};

impl Draft {
    /// Applies actions in turn.
    ///
    /// # Errors
    /// Of the first one that does not make sense, with its number; the draft is to be dropped then.
    pub(super) fn act_all(&mut self, actions: Vec<(Action, Unproven)>) -> Result<()> {
        self.actions = actions.iter().map(|(action, _)| action.to_string()).collect();
        for (number, (action, unproven)) in actions.into_iter().enumerate() {
            self.by = By { action: number, unproven };
            self.actions[number] = self.describe_action(&action);
            self.act(action).map_err(|error| at_action(&self.actions, number, &error))?;
        }
        self.remove_unused();
        Ok(())
    }

    /// Applies one action.
    ///
    /// # Errors
    /// What does not make sense, with who stands against it; the draft is to be dropped then.
    fn act(&mut self, action: Action) -> Result<()> {
        match action {
            Action::AddNode(decl) => self.add_node(decl),
            Action::RemoveNode { node } => self.remove_node(&node),
            Action::RemoveUnused { nodes } => {
                self.unused.extend(nodes);
                Ok(())
            }
            Action::AddDrive(decl) => self.add_drive(decl),
            Action::RemoveDrive { drive } => self.remove_drive(&drive),
            Action::InsertAbove { node, filter, users } => self.insert_above(&node, filter, &users),
            Action::InsertBelow { node, edge, filter } => self.insert_below(&node, &edge, filter),
            Action::Interpose { node, edge } => self.interpose(&node, &edge),
            Action::RemoveFilter { node } => self.remove_filter(&node),
            Action::Replace { node, by } => self.replace(&node, &by),
            Action::Snapshot { drive, overlay } => self.snapshot(&drive, overlay),
            Action::SetRoot { drive, node } => self.set_root(&drive, &node),
            Action::InsertMedium { drive, node } => self.insert_medium(&drive, &node),
            Action::EjectMedium { drive } => self.eject_medium(&drive),
            Action::SetWritable { drive, writable } => {
                let at = self.expect_drive(&drive)?;
                self.drives[at].writable = writable;
                Ok(())
            }
            Action::SetChild { node, edge, child } => {
                self.set_child(&node, &edge, child.as_deref())
            }
            Action::Resize { node, size_bytes } => self.resize(&node, size_bytes),
            Action::Deallocate { node, range } => self.deallocate(&node, range),
            Action::CatchUp { node } => self.catch_up(&node),
            Action::NameBacking { node, name } => self.name_backing(node, Naming::As(name)),
            Action::NameOwnBacking { node, said } => self.name_backing(node, Naming::Own(said)),
            Action::Reopen { node, to } => self.reopen(&node, &to),
            Action::AddBitmap(decl) => self.add_bitmap(decl),
            Action::Bitmap { bitmap, action } => self.act_on_bitmap(&bitmap, action),
            Action::Checkpoint { bitmaps } => self.checkpoint(&bitmaps),
        }
    }

    fn remove_node(&mut self, name: &str) -> Result<()> {
        let at = self.expect_node(name)?;
        self.check_no_job(at)?;
        let users: Vec<String> =
            self.users(name).into_iter().map(|link| self.describe(link)).collect();
        if !users.is_empty() {
            let message = format!(
                "it is in use by {}: remove them or point them elsewhere first",
                users.join(", ")
            );
            return Err(in_use(message).at_node(name));
        }
        self.take_stored_bitmaps(at)?;
        self.check_no_bitmaps(&BitmapScope::Node(name.into()))?;
        self.check_no_work(name)?;
        self.nodes.remove(at);
        self.view_goes(&BitmapScope::Node(name.into()));
        Ok(())
    }

    /// Bitmaps that a node's driver stores when it closes go with the node.
    fn take_stored_bitmaps(&mut self, at: usize) -> Result<()> {
        let node = &self.nodes[at];
        let Some(store) = node.driver.bitmap_store() else { return Ok(()) };
        let scope = BitmapScope::Node(Arc::clone(&node.name));
        let here = self.bitmaps.iter().filter(|entry| entry.scope == scope);
        let stored = here.filter(|entry| store.keeping().name_of(&entry.bitmap).is_some());
        let stored: Vec<(BitmapRef, BitmapName)> =
            stored.map(|entry| ((&entry.bitmap).into(), entry.name.clone())).collect();
        for (bitmap, name) in stored {
            self.act_on_bitmap(&bitmap, BitmapAction::Remove)?;
            self.gone_with_nodes.push((scope.clone(), name));
        }
        Ok(())
    }

    /// Bitmaps of it that were taken out before are of nothing any more, whatever has its name later.
    pub(super) fn view_goes(&mut self, scope: &BitmapScope) {
        for entry in self.removed.iter_mut().filter(|entry| entry.scope == *scope) {
            entry.view_is_gone = true;
        }
    }

    fn check_no_bitmaps(&self, scope: &BitmapScope) -> Result<()> {
        let here = self.bitmaps.iter().filter(|entry| entry.scope == *scope);
        let names: Vec<String> = here.map(|entry| format!("`{}`", entry.name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let message = format!("{scope} has the bitmaps {}: remove them first", names.join(", "));
        Err(in_use(message))
    }

    fn check_no_work(&self, node: &str) -> Result<()> {
        if self.works.iter().any(|work| work.node() == node) {
            let message =
                "an earlier action resizes or deallocates it: do so in a transaction of its own";
            return Err(invalid(message.into()).at_node(node));
        }
        Ok(())
    }

    fn remove_drive(&mut self, id: &str) -> Result<()> {
        let at = self.expect_drive(id)?;
        self.check_no_bitmaps(&BitmapScope::Drive(id.into()))?;
        self.drives.remove(at);
        self.view_goes(&BitmapScope::Drive(id.into()));
        Ok(())
    }

    fn insert_above(&mut self, node: &str, mut filter: NodeDecl, which: &Which) -> Result<()> {
        self.expect_node(node)?;
        expect_edge_to(&filter, node)?;
        // Who uses what a job copies as it is written, does so by the job's node: that stays next to it.
        let top = self.top_of_copying(node);
        let links = match which {
            Which::All if *top == *node => self.followers(node),
            Which::All => [self.followers(&top), self.followers(node)].concat(),
            Which::These(users) => {
                let link = |user: &User| self.user(user, &top).or_else(|_| self.user(user, node));
                users.iter().map(link).collect::<Result<Vec<Link>>>()?
            }
        };
        let children = filter.children.iter_mut();
        children.filter(|child| child.node == node).for_each(|child| child.node = top.to_string());
        let name = filter.name.clone();
        self.add_node(filter)?;
        match which {
            Which::All => self.lead_above(&links, &name),
            Which::These(_) => links.iter().for_each(|link| self.retarget(*link, &name)),
        }
        Ok(())
    }

    /// A node, or the topmost of the jobs' nodes over it through which its users go while it is copied.
    fn top_of_copying(&self, node: &str) -> Arc<str> {
        let mut top: Arc<str> = node.into();
        let is_over = |at: &DraftNode, below: &str| {
            let mut edges = at.edges.iter();
            at.driver.job().is_some_and(|job| job.tracks.is_some())
                && edges.any(|edge| edge.role == Role::Filtered && *edge.child == *below)
        };
        // Each is met once: what stands in a circle is refused when it comes.
        for _ in 0..self.nodes.len() {
            let Some(over) = self.nodes.iter().find(|at| is_over(at, &top)) else { break };
            top = Arc::clone(&over.name);
        }
        top
    }

    /// Lets users go to a filter, but for those that it stands on: an overlay of the node, to which it copies.
    fn lead_above(&mut self, links: &[Link], filter: &str) {
        let below = self.at_or_below(filter);
        let is_above = |link: &&Link| match **link {
            Link::Root(_) => true,
            Link::Child(parent, _) => !below[parent],
        };
        let links: Vec<Link> = links.iter().filter(is_above).copied().collect();
        links.into_iter().for_each(|link| self.retarget(link, filter));
    }

    fn interpose(&mut self, name: &str, edge: &str) -> Result<()> {
        let at = self.expect_node(name)?;
        let place = self.expect_edge(at, edge)?;
        let DraftNode { driver, edges, .. } = &self.nodes[at];
        if driver.job().is_none() || edges[place].role != Role::Source || !driver.is_transparent() {
            let message = format!("its edge `{edge}` is not that of a job to what it copies");
            return Err(invalid(message).at_node(name));
        }
        let links = self.followers(&edges[place].child.clone());
        self.nodes[at].edges[place].role = Role::Filtered;
        self.lead_above(&links, name);
        Ok(())
    }

    fn insert_below(&mut self, node: &str, edge: &str, filter: NodeDecl) -> Result<()> {
        let at = self.expect_node(node)?;
        self.check_no_job(at)?;
        let link = Link::Child(at, self.expect_edge(at, edge)?);
        self.check_movable(link)?;
        if let Some(edge) = self.edge(link) {
            expect_edge_to(&filter, &edge.child)?;
        }
        self.insert(filter, &[link])
    }

    fn insert(&mut self, filter: NodeDecl, links: &[Link]) -> Result<()> {
        let name = filter.name.clone();
        self.add_node(filter)?;
        links.iter().for_each(|link| self.retarget(*link, &name));
        Ok(())
    }

    fn remove_filter(&mut self, name: &str) -> Result<()> {
        let at = self.expect_node(name)?;
        let view = self.nodes[at].edges.iter().find(|edge| edge.role == Role::Filtered);
        let Some(child) = view.map(|edge| Arc::clone(&edge.child)) else {
            let message = "it has no `filtered` edge, so it is no filter: replace it instead";
            return Err(invalid(message.into()).at_node(name));
        };
        self.check_no_work(name)?;
        self.check_no_job(at)?;
        for link in self.users(name) {
            self.check_untracked(link, name)?;
            self.check_movable(link)?;
            self.retarget(link, &child);
        }
        self.move_bitmaps(name, &child)?;
        self.nodes.remove(at);
        self.view_goes(&BitmapScope::Node(name.into()));
        Ok(())
    }

    /// A job that tracks where two nodes differ goes on with these, and no others.
    fn check_untracked(&self, link: Link, node: &str) -> Result<()> {
        let Link::Child(parent, _) = link else { return Ok(()) };
        match self.nodes[parent].driver.job().filter(|job| job.tracks.is_some()) {
            Some(job) if !self.ended_jobs.contains(&job.id) => {
                let message =
                    format!("job `{}` copies it: wait for the job's end, or cancel it", job.id);
                Err(in_use(message).at_node(node))
            }
            _ => Ok(()),
        }
    }

    /// A node's bitmaps go to a node that is to show the same view.
    fn move_bitmaps(&mut self, from: &str, to: &Arc<str>) -> Result<()> {
        let (from, to) = (BitmapScope::Node(from.into()), BitmapScope::Node(Arc::clone(to)));
        for at in 0..self.bitmaps.len() {
            if self.bitmaps[at].scope == from {
                self.move_bitmap(at, &to)?;
            }
        }
        Ok(())
    }

    /// A bitmap is of something else that is to show the same view.
    pub(super) fn move_bitmap(&mut self, at: usize, to: &BitmapScope) -> Result<()> {
        let DraftBitmap { name, scope: from, .. } = &self.bitmaps[at];
        let mut others = self.bitmaps.iter().enumerate();
        if others.any(|(other, it)| other != at && it.scope == *to && it.name == *name) {
            let message = format!(
                "bitmap `{name}` of {from} would go to {to}, which has one of that name: remove one of them first"
            );
            return Err(Error::new(ErrorKind::Exists, message));
        }
        let entry = &mut self.bitmaps[at];
        let from = std::mem::replace(&mut entry.scope, to.clone());
        let first = entry.moved.take().map_or(from, |(first, _)| first);
        entry.moved = Some((first, self.by));
        Ok(())
    }

    fn replace(&mut self, node: &str, by: &str) -> Result<()> {
        self.expect_node(node)?;
        self.expect_node(by)?;
        if node == by {
            return Err(invalid("it cannot replace itself".into()).at_node(node));
        }
        // Its successor, and what that stands on, would form a cycle.
        let below = self.at_or_below(by);
        let is_above = |link: &Link| match *link {
            Link::Root(_) => true,
            Link::Child(parent, _) => !below[parent],
        };
        let links: Vec<Link> = self.followers(node).into_iter().filter(is_above).collect();
        links.into_iter().for_each(|link| self.retarget(link, by));
        Ok(())
    }

    /// By node: whether `top` reaches it. Unknown children are left to `assemble`.
    fn at_or_below(&self, top: &str) -> Vec<bool> {
        let mut reached = vec![false; self.nodes.len()];
        let find = |name: &str| self.nodes.iter().position(|node| *node.name == *name);
        let mut pending: Vec<usize> = find(top).into_iter().collect();
        while let Some(at) = pending.pop() {
            if !std::mem::replace(&mut reached[at], true) {
                pending.extend(self.nodes[at].edges.iter().filter_map(|edge| find(&edge.child)));
            }
        }
        reached
    }

    fn snapshot(&mut self, drive: &str, overlay: NodeDecl) -> Result<()> {
        let (link, root) = self.expect_medium(drive)?;
        let stands_on_it = overlay
            .children
            .iter()
            .any(|child| child.role == Role::Backing && *child.node == *root);
        if !stands_on_it {
            let message = format!(
                "the overlay `{}` needs a `backing` edge to `{root}`, which {} shows",
                overlay.name,
                DriveTitle(drive)
            );
            return Err(invalid(message));
        }
        self.insert(overlay, &[link])
    }

    /// A drive's root edge, and where it leads.
    fn expect_medium(&self, drive: &str) -> Result<(Link, Arc<str>)> {
        let at = self.expect_drive(drive)?;
        let root = self.drives[at].root.as_ref().map(|root| Arc::clone(&root.child));
        let root = root.ok_or_else(|| {
            let message = format!("drive `{drive}` has no medium: insert one instead");
            Error::new(ErrorKind::NoMedium, message)
        })?;
        Ok((Link::Root(at), root))
    }

    fn set_root(&mut self, drive: &str, node: &str) -> Result<()> {
        let (link, _) = self.expect_medium(drive)?;
        self.expect_node(node)?;
        self.retarget(link, node);
        Ok(())
    }

    fn insert_medium(&mut self, drive: &str, node: &str) -> Result<()> {
        let at = self.expect_drive(drive)?;
        self.expect_node(node)?;
        if let Some(root) = &self.drives[at].root {
            let message = format!(
                "drive `{drive}` has the medium `{}`: eject it first, or set the drive's root",
                root.child
            );
            return Err(Error::new(ErrorKind::Exists, message));
        }
        self.drives[at].root = Some(Self::root_edge(node.into()));
        self.note(Link::Root(at));
        Ok(())
    }

    fn eject_medium(&mut self, drive: &str) -> Result<()> {
        let (link, _) = self.expect_medium(drive)?;
        self.note(link);
        let at = self.expect_drive(drive)?;
        self.drives[at].root = None;
        Ok(())
    }

    fn set_child(&mut self, node: &str, edge: &str, child: Option<&str>) -> Result<()> {
        let at = self.expect_node(node)?;
        self.check_no_job(at)?;
        let Some(child) = child else { return self.end_backing(at, edge) };
        self.expect_node(child)?;
        let shows_none = !self.nodes[at].edges.iter().any(|edge| edge.role.is_view());
        if edge == "backing" && shows_none {
            let (name, grants) = (edge.into(), PermissionSet::NONE);
            let edges = &mut self.nodes[at].edges;
            edges.push(DraftEdge::new(name, child.into(), Role::Backing, grants));
            let position = edges.len() - 1;
            self.note(Link::Child(at, position));
            return Ok(());
        }
        let link = Link::Child(at, self.expect_edge(at, edge)?);
        self.check_movable(link)?;
        self.retarget(link, child);
        Ok(())
    }

    fn end_backing(&mut self, at: usize, edge: &str) -> Result<()> {
        let position = self.expect_edge(at, edge)?;
        let node = &self.nodes[at];
        let why_not = if node.edges[position].role != Role::Backing {
            "it is no `backing` edge: the node cannot do without it"
        } else if position + 1 != node.edges.len() {
            "the driver knows its children by their position, and another one comes after it"
        } else {
            self.note(Link::Child(at, position));
            self.nodes[at].edges.pop();
            return Ok(());
        };
        Err(invalid(format!("edge `{edge}` cannot end: {why_not}")).at_node(&node.name))
    }

    fn expect_old(&self, name: &str) -> Result<usize> {
        let at = self.expect_node(name)?;
        if self.nodes[at].is_new {
            let message = "it is added by the same transaction: add it as it is to be";
            return Err(invalid(message.into()).at_node(name));
        }
        self.check_no_work(name)?;
        Ok(at)
    }

    fn resize(&mut self, name: &str, size_bytes: u64) -> Result<()> {
        let at = self.expect_old(name)?;
        self.check_not_copied(at)?;
        self.nodes[at].resized = Some(size_bytes);
        self.resize_data(at, size_bytes);
        self.note_shape();
        self.works.push(Work::Resize { node: name.into(), size_bytes });
        Ok(())
    }

    /// What a job copies keeps its size: at the end what it was copied to is to take its place.
    fn check_not_copied(&self, at: usize) -> Result<()> {
        let copied = self.nodes.iter().find_map(|node| {
            let job = node.driver.job()?;
            let (from, to) = job.tracks?;
            let (from, to) = (node.edges.get(from)?, node.edges.get(to)?);
            let from = self.nodes.iter().position(|it| it.name == from.child)?;
            // A filter has the size of what it shows.
            let is_copied = to.role == Role::Target && self.filtered(from).any(|it| it == at);
            is_copied.then(|| job.id.clone())
        });
        let Some(job) = copied else { return Ok(()) };
        let message =
            format!("job `{job}` copies it: wait for the job's end, or cancel it, to resize it");
        Err(Error::new(ErrorKind::Busy, message).at_node(&self.nodes[at].name))
    }

    /// A data file goes with the node that shows it: its driver sees to that by itself.
    fn resize_data(&mut self, at: usize, size_bytes: u64) {
        let data = self.nodes[at].edges.iter().find(|edge| edge.role == Role::Data);
        let data = data.and_then(|edge| self.nodes.iter().position(|it| it.name == edge.child));
        // A filter has the size of what it shows.
        let sized = data.and_then(|data| self.filtered(data).last());
        if let Some(sized) = sized.filter(|at| self.nodes[*at].is_growable) {
            self.nodes[sized].resized = Some(size_bytes);
        }
    }

    fn catch_up(&mut self, name: &str) -> Result<()> {
        let node = &self.nodes[self.expect_node(name)?];
        let tracker = node
            .driver
            .tracker()
            .ok_or_else(|| invalid("it does not track what it copies".to_owned()).at_node(name))?;
        self.catching_up.push((tracker, self.by));
        Ok(())
    }

    fn name_backing(&mut self, node: String, naming: Naming) -> Result<()> {
        let at = self.expect_node(&node)?;
        if !self.nodes[at].driver.names_backing() {
            let message = "it is in no image that can name a backing";
            return Err(Error::new(ErrorKind::NotSupported, message).at_node(&node));
        }
        self.backing_names.push((node, naming));
        Ok(())
    }

    fn reopen(&mut self, name: &str, to: &Reopened) -> Result<()> {
        if to.keeps_driver() {
            return self.set_mode(name, to.mode());
        }
        let at = self.expect_old(name)?;
        let node = &mut self.nodes[at];
        let Some(driver) = to.in_place_of(&node.driver) else {
            let message = "it has been opened in another way meanwhile: try again";
            return Err(in_use(message.into()).at_node(name));
        };
        node.driver = Arc::clone(driver);
        node.is_reopened = true;
        Ok(())
    }

    /// A node whose driver holds nothing open can be changed from now on, or not.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` for a driver that does.
    pub(in crate::graph) fn set_mode(&mut self, name: &str, mode: OpenMode) -> Result<()> {
        let at = self.expect_node(name)?;
        let node = &mut self.nodes[at];
        if node.driver.reopening().is_some() {
            let message = "it holds a file open: it is to be opened in another way";
            return Err(invalid(message.into()).at_node(name));
        }
        node.mode = mode;
        Ok(())
    }

    fn deallocate(&mut self, name: &str, range: Range<u64>) -> Result<()> {
        self.expect_old(name)?;
        if range.is_empty() {
            let message = format!("range {}..{} is empty", range.start, range.end);
            return Err(invalid(message).at_node(name));
        }
        self.works.push(Work::Deallocate { node: name.into(), range, by: self.by });
        Ok(())
    }
}

fn expect_edge_to(filter: &NodeDecl, node: &str) -> Result<()> {
    if filter.children.iter().any(|child| child.node == node) {
        return Ok(());
    }
    let message =
        format!("the filter `{}` needs an edge to `{node}`, over which it goes", filter.name);
    Err(invalid(message))
}
