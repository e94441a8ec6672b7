//! A specification becomes declarations of nodes, drives and bitmaps.

use std::fmt;
use std::path::Path;

use super::super::persist::Wanted;
use super::super::start::{Driver, Plan, PlannedNode};
use super::super::surroundings::Machine;
use super::StartError;
use super::exports::drive_of;
use super::registry::{Living, Made};
use crate::bitmap::{BitmapName, Granularity};
use crate::config::{
    self, BitmapSpec, Diagnostic, DriverSpec, GraphSpec, LentBitmap, NodeSpec, Persist, Scope, Span,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapDecl, BitmapScope, ChildDecl, DriveDecl, PermissionSet};
use crate::host::Keep;

/// See the module.
pub(super) struct Builder<'a> {
    pub(super) spec: &'a GraphSpec,
    pub(super) base: &'a Path,
    pub(super) machine: &'a Machine,
    /// What others that are there can share.
    pub(super) living: Living,
    /// What is made for the specification, and can be shared from then on.
    pub(super) made: Made,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        spec: &'a GraphSpec,
        base: &'a Path,
        machine: &'a Machine,
        living: Living,
    ) -> Self {
        Self { spec, base, machine, living, made: Made::default() }
    }
}

impl Builder<'_> {
    /// Everything that it says, with its drivers: files are opened and locked.
    ///
    /// # Errors
    /// What cannot be made, where it is described.
    pub(super) fn plan(&mut self) -> Result<Plan, StartError> {
        let mut plan = Plan::default();
        let is_view = |node: &&NodeSpec| matches!(node.driver, DriverSpec::View(_));
        let nodes = self.spec.nodes.iter();
        // Views need the nodes whose views they are.
        for spec in nodes.clone().filter(|node| !is_view(node)).chain(nodes.filter(is_view)) {
            let driver = self.driver(spec)?;
            let name = spec.name.value.clone();
            let children = self.children(&name);
            // What an image names is as whoever uses it wants it.
            let is_said = spec.read_only.value && !spec.is_implicit;
            let holds_nothing =
                matches!(&driver, Driver::Ready(driver) if driver.reopening().is_none());
            let is_closed = is_said && holds_nothing;
            plan.nodes.push(PlannedNode { name, driver, children, is_closed });
        }
        for drive in &self.spec.drives {
            plan.drives.push(DriveDecl {
                id: drive.id.value.clone(),
                root: drive.root.as_ref().map(|root| root.value.clone()),
                writable: drive.is_writable(self.spec),
                only_shows: false,
            });
        }
        for export in &self.spec.exports {
            if let Scope::Node(node) = &export.scope {
                plan.drives.push(DriveDecl {
                    id: drive_of(export),
                    root: Some(node.value.clone()),
                    writable: export.writable.value,
                    only_shows: true,
                });
            }
        }
        for bitmap in &self.spec.bitmaps {
            plan.bitmaps.push(bitmap_decl(bitmap)?);
        }
        plan.kept = self.kept()?;
        Ok(plan)
    }

    /// The bitmaps that images keep, in the order of the file.
    fn kept(&self) -> Result<Vec<Wanted>> {
        let mut kept = Vec::new();
        for bitmap in &self.spec.bitmaps {
            let keep = match &bitmap.persist.value {
                Persist::None => continue,
                Persist::Root => Keep::Root,
                Persist::Meta => Keep::Meta,
                Persist::Node(node) => Keep::Node(node.value.clone()),
            };
            let BitmapDecl { scope, name, .. } = bitmap_decl(bitmap)?;
            let uuid = bitmap.uuid.as_ref().map(|uuid| uuid.value);
            kept.push(Wanted { scope, name, keep, uuid });
        }
        Ok(kept)
    }

    fn children(&self, parent: &str) -> Vec<ChildDecl> {
        let node = self.spec.node(parent);
        let child = |edge: &config::EdgeSpec| ChildDecl {
            name: edge.name.clone(),
            node: edge.child.clone(),
            role: edge.role,
            grants: node.map_or(PermissionSet::NONE, |node| config::grants_of(node, &edge.name)),
            proven_for: None,
        };
        self.spec.edges_from(parent).map(child).collect()
    }

    /// Bitmaps that are lent to a filter: what it calls them, and where they are.
    pub(super) fn lent(&self, lent: &[LentBitmap]) -> Vec<(String, BitmapScope, String)> {
        let lent = lent.iter().filter_map(|lent| {
            let (scope, name) = self.spec.lent_bitmap(&lent.bitmap.value)?;
            Some((lent.name.value.clone(), bitmap_scope(&scope), name))
        });
        lent.collect()
    }

    pub(super) fn at(&self, span: Span, error: &Error) -> StartError {
        let mut found = self.spec.diagnostics();
        found.push(Diagnostic::error(span, error.to_string()));
        StartError::Config(Box::new(found))
    }
}

fn bitmap_decl(spec: &BitmapSpec) -> Result<BitmapDecl> {
    let invalid = |error: &dyn fmt::Display| Error::new(ErrorKind::Invalid, error.to_string());
    Ok(BitmapDecl {
        scope: bitmap_scope(&spec.scope),
        name: BitmapName::new(&spec.name.value).map_err(|error| invalid(&error))?,
        granularity: Granularity::from_bytes(spec.granularity_bytes.value.into())
            .map_err(|error| invalid(&error))?,
        enabled: spec.enabled.value,
    })
}

pub(super) fn bitmap_scope(scope: &Scope) -> BitmapScope {
    match scope {
        Scope::Drive(id) => BitmapScope::Drive(id.value.as_str().into()),
        Scope::Node(name) => BitmapScope::Node(name.value.as_str().into()),
    }
}
