//! What a transaction needs beside its actions when it adds and ends nodes and exports: all of it comes to be with
//! the transaction, or nothing.
//!
//! Files are opened and locked before the transaction, and nodes that nobody uses are added then: nobody sees them
//! but who lists all nodes. What changes views, filters that are put in and what stands on them, and exports, are
//! actions and riders of the transaction itself. If it fails, or is never applied, what was added is taken back.

use std::path::PathBuf;

use serde_json::Value;

use super::super::call::{block_on, on_worker};
use super::super::exports::{Exported, NewExport, check_drive, export_of};
use super::super::persist::Wanted;
use super::super::running::{filter_with_own, with_own};
use super::super::start::{Failed, Plan};
use super::super::{Host, check_running, images};
use super::adding::{Added, FilterPlace, Readied, child_at, filter_fragment, insert};
use super::builder::Builder;
use super::exports::anonymous_drive;
use super::fragment::Fragment;
use super::registry::{Living, Made};
use super::stages::{adding, children_first, in_stages};
use super::undo::Done;
use super::{StartError, not_started};
use crate::config::{GraphSpec, Live};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::{Leaving, ListenAddress, RemovalMode};
use crate::graph::{Action, DriveDecl, Graph, Rider, Writing};
use crate::limits::DRAIN_TIME;

/// See the module. Only one is under way at a time: others that add to the host wait.
pub(crate) struct Composition<'h> {
    host: &'h Host,
    turn: Option<Writing<'h>>,
    /// What is there already, and goes if the transaction fails.
    added: Vec<(GraphSpec, Done)>,
    /// What comes with the transaction.
    deferred: Vec<Deferred>,
    riders: Vec<Box<dyn Rider>>,
    /// Ids of exports that begin with it.
    begun: Vec<String>,
    /// What may be going in the end.
    leaving: Vec<Leaving>,
    is_applied: bool,
}

struct Deferred {
    spec: GraphSpec,
    base: PathBuf,
    made: Made,
    kept: Vec<Wanted>,
    done: Done,
}

impl<'h> Composition<'h> {
    /// Of nothing yet.
    pub(crate) fn new(host: &'h Host) -> Self {
        let (added, deferred, riders) = (Vec::new(), Vec::new(), Vec::new());
        let (begun, leaving) = (Vec::new(), Vec::new());
        Self { host, turn: None, added, deferred, riders, begun, leaving, is_applied: false }
    }

    /// Nobody else adds or removes from now on.
    ///
    /// # Errors
    /// `ESHUTDOWN`.
    pub(crate) fn take_turn(&mut self) -> Result<()> {
        check_running(&self.host.inner.ended)?;
        if self.turn.is_none() {
            self.turn = Some(block_on(self.host.inner.registry.turn.lock()));
        }
        Ok(())
    }

    /// What is there, and what comes with the transaction.
    fn live(&self) -> Live {
        let inner = &self.host.inner;
        let mut live = inner.registry.live(&self.host.graph(), &inner.server);
        for Deferred { spec, base, .. } in &self.deferred {
            for node in &spec.nodes {
                if live.has_node(&node.name.value) {
                    continue;
                }
                let child =
                    |it: &crate::config::ChildSpec| (it.name.value.clone(), it.node.value.clone());
                let children: Vec<_> = node.children.iter().map(child).collect();
                let below = children.iter().find(|(edge, _)| edge == "file" || edge == "source");
                let size = below.and_then(|(_, node)| live.sizes.get(node)).copied();
                live.sizes.extend(size.map(|size| (node.name.value.clone(), size)));
                live.nodes.push(node.clone().in_dir(base).as_running(children));
            }
        }
        live
    }

    fn living(&self, graph: &Graph) -> Living {
        let mut living = self.host.inner.registry.living(graph);
        self.deferred.iter().for_each(|deferred| living.add(deferred.made.clone()));
        living
    }

    fn is_deferred(&self, node: &str) -> bool {
        let mut all = self.deferred.iter().flat_map(|deferred| &deferred.spec.nodes);
        all.any(|known| known.name.value == node) && self.host.graph().find_node(node).is_none()
    }

    /// Adds what a fragment says: at once what nobody sees, the rest by the actions that this gives.
    ///
    /// # Errors
    /// As [`Host::add`].
    pub(crate) fn add(&mut self, fragment: &Fragment) -> Result<(Vec<Action>, Added), StartError> {
        self.take_turn()?;
        let readied = self.host.ready(fragment, self.live())?;
        let mut children = readied.spec.nodes.iter().flat_map(|node| &node.children);
        if children.any(|child| self.is_deferred(&child.node.value)) {
            return self.defer(readied, None);
        }
        let mut done = Done::of(&readied);
        let result = self.host.add_spec(&readied, None, &mut done);
        let Readied { spec, root, .. } = readied;
        let added = Added::of(&spec, root);
        self.added.push((spec, done));
        result.map(|exports| (Vec::new(), Added { exports, ..added }))
    }

    /// The actions that put a filter in its place, described as a node without its child `file`.
    ///
    /// # Errors
    /// As [`Host::insert_filter`].
    pub(crate) fn insert_filter(
        &mut self,
        place: &FilterPlace,
        options: &Value,
    ) -> Result<(Vec<Action>, Added), StartError> {
        self.take_turn()?;
        let child = match place {
            FilterPlace::Above { node, .. } if self.is_deferred(node) => node.clone(),
            _ => child_at(&self.host.graph(), place)?,
        };
        let readied = self.host.ready(&filter_fragment(options, child)?, self.live())?;
        let root = readied.root.clone();
        self.defer(readied, root.as_deref().map(|root| (place, root)))
    }

    /// The actions that add what a fragment says, its node `filter` at a place.
    ///
    /// # Errors
    /// As [`Host::add`].
    pub(crate) fn add_placed(
        &mut self,
        fragment: &Fragment,
        place: &FilterPlace,
        filter: &str,
    ) -> Result<(Vec<Action>, Added), StartError> {
        self.take_turn()?;
        let readied = self.host.ready(fragment, self.live())?;
        self.defer(readied, Some((place, filter)))
    }

    fn defer(
        &mut self,
        readied: Readied,
        placed: Option<(&FilterPlace, &str)>,
    ) -> Result<(Vec<Action>, Added), StartError> {
        let mut done = Done::of(&readied);
        let staged = self.stage(&readied, placed, &mut done);
        let Readied { spec, base, root, .. } = readied;
        let added = Added::of(&spec, root);
        let (actions, made, kept) = match staged {
            Ok(staged) => staged,
            Err(error) => {
                self.added.push((spec, done));
                return Err(error);
            }
        };
        self.deferred.push(Deferred { spec, base, made, kept, done });
        Ok((actions, added))
    }

    /// Opens what is to be opened; gives the actions that add the rest.
    fn stage(
        &self,
        readied: &Readied,
        placed: Option<(&FilterPlace, &str)>,
        done: &mut Done,
    ) -> Result<(Vec<Action>, Made, Vec<Wanted>), StartError> {
        let Readied { spec, base, machine, .. } = readied;
        let failed = |failed: Failed| not_started(spec, failed);
        images::prepare_all(spec, base).map_err(|it| {
            let node = Some(it.node.name.value.clone());
            failed(Failed { node, kept: None, error: it.error })
        })?;
        let mut builder = Builder::new(spec, base, machine, self.living(&self.host.graph()));
        let Plan { nodes, drives, bitmaps, kept } = builder.plan()?;
        let made = builder.made;
        let (before, openings, last) = in_stages(nodes);
        let with_it = placed.map(|(_, filter)| filter);
        let early = before.iter().chain(&openings);
        let stands = |node: &str| Some(node) == with_it || self.is_deferred(node);
        if let Some(node) = early.clone().find(|node| {
            stands(&node.name) || node.children.iter().any(|child| stands(&child.node))
        }) {
            let message = "it stands on what comes with the same command, and is to be opened \
                           before that: add it by a command of its own";
            return Err(Error::new(ErrorKind::NotSupported, message).at_node(&node.name).into());
        }
        self.host.add_nodes(before, done).map_err(failed)?;
        self.host.open_in_turn(openings, done).map_err(failed)?;
        let actions = adding(children_first(last), |decl| match placed {
            Some((place, filter)) if decl.name == filter => insert(place, decl),
            _ => Action::AddNode(decl),
        });
        let actions = actions
            .chain(drives.into_iter().map(Action::AddDrive))
            .chain(bitmaps.into_iter().map(Action::AddBitmap));
        Ok((actions.collect(), made, kept))
    }

    /// Whether something was added that is taken back if the transaction fails.
    pub(crate) fn has_added(&self) -> bool {
        !self.added.is_empty()
    }

    /// The actions that remove a node, with what came with it, as [`Host::remove_node`].
    ///
    /// # Errors
    /// `ESHUTDOWN`.
    pub(crate) fn remove_node(&mut self, node: &str) -> Result<Vec<Action>> {
        self.take_turn()?;
        let nodes =
            with_own((&self.host.graph(), &self.host.inner.registry), node, None).into_iter();
        Ok(nodes.map(|node| Action::RemoveNode { node }).collect())
    }

    /// The actions that take a filter out, with what came with it, as [`Host::remove_filter`].
    ///
    /// # Errors
    /// `ESHUTDOWN`.
    pub(crate) fn remove_filter(&mut self, node: &str) -> Result<Vec<Action>> {
        self.take_turn()?;
        let mut nodes =
            filter_with_own((&self.host.graph(), &self.host.inner.registry), node).into_iter();
        let first = nodes.next().map(|node| Action::RemoveFilter { node });
        let rest = nodes.map(|node| Action::RemoveNode { node });
        Ok(first.into_iter().chain(rest).collect())
    }

    /// An export that begins with the transaction, after the actions that this gives; and where.
    ///
    /// # Errors
    /// As [`Host::add_export`], as far as can be said by now.
    pub(crate) fn add_export(&mut self, export: NewExport) -> Result<(Vec<Action>, ListenAddress)> {
        self.take_turn()?;
        let (host, id) = (self.host, export.id.clone());
        if self.begun.contains(&id) || host.exports().iter().any(|other| other.id == id) {
            let message = format!("there is an export `{id}` already");
            return Err(Error::new(ErrorKind::Exists, message));
        }
        let address = host.address_of(&export)?;
        let mut actions = Vec::new();
        let drive = match &export.of {
            Exported::Drive(id) => id.clone(),
            Exported::Node(node) => {
                let drive = anonymous_drive(&id);
                if host.graph().find_drive(&drive).is_some() {
                    // Of one of this id that ended late.
                    actions.push(Action::RemoveDrive { drive: drive.clone() });
                }
                actions.push(Action::AddDrive(DriveDecl {
                    id: drive.clone(),
                    root: Some(node.clone()),
                    writable: export.writable,
                    only_shows: true,
                }));
                drive
            }
        };
        let resolve = move |graph: &Graph| {
            check_drive(graph, &drive, export.writable)?;
            export_of(graph, &drive, export)
        };
        let adding = host.inner.server.adding(&address, &id, Box::new(resolve))?;
        let bound = adding.address();
        self.leaving.push(adding.leaving());
        self.riders.push(Box::new(adding));
        self.begun.push(id);
        Ok((actions, bound))
    }

    /// An export ends with the transaction, before the actions that this gives.
    ///
    /// # Errors
    /// `ENOENT`.
    pub(crate) fn end_export(&mut self, id: &str, mode: RemovalMode) -> Result<Vec<Action>> {
        self.take_turn()?;
        let host = self.host;
        self.leaving.push(host.inner.server.leaving(id)?);
        self.riders.push(Box::new(host.inner.server.ending(id, mode)));
        let drive = anonymous_drive(id);
        let is_there = host.graph().find_drive(&drive).is_some();
        Ok(is_there.then_some(Action::RemoveDrive { drive }).into_iter().collect())
    }

    /// What the transaction must have with it.
    pub(crate) fn riders(&mut self) -> Vec<Box<dyn Rider>> {
        std::mem::take(&mut self.riders)
    }

    /// The transaction has been applied: what is left to be done. Waits for exports to have ended.
    pub(crate) fn applied(mut self) {
        self.is_applied = true;
        let inner = &self.host.inner;
        for Deferred { spec, base, made, kept, .. } in std::mem::take(&mut self.deferred) {
            inner.registry.take(&self.host.graph(), &spec, &base, made);
            if let Err(failed) = self.host.follow(kept) {
                tracing::error!("bitmaps of what was added are not there: {}", failed.error);
            }
        }
        self.wait();
    }

    /// Waits for exports and listeners to have ended that do.
    fn wait(&mut self) {
        for leaving in std::mem::take(&mut self.leaving) {
            let first = self.host.inner.first();
            let gone = on_worker(first, move || async move { leaving.gone(DRAIN_TIME).await });
            if let Err(error) = block_on(gone) {
                tracing::warn!("{error}: it ends with them");
            }
        }
    }
}

impl Drop for Composition<'_> {
    fn drop(&mut self) {
        if self.is_applied {
            return;
        }
        // Exports that were to come go before what they show.
        self.riders.clear();
        let deferred = self.deferred.drain(..).map(|it| (it.spec, it.done));
        let added: Vec<(GraphSpec, Done)> = self.added.drain(..).chain(deferred).collect();
        for (spec, done) in added.iter().rev() {
            self.host.take_back(spec, done);
        }
        self.wait();
    }
}
