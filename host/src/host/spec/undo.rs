//! Taking back what was added before something failed.

use std::path::{Path, PathBuf};

use super::super::Host;
use super::super::call::block_on;
use super::adding::Readied;
use super::builder::bitmap_scope;
use super::exports::drive_of;
use crate::config::{DriverSpec, GraphSpec, Scope};
use crate::export::nbd::RemovalMode;
use crate::graph::{Action, BitmapAction, Transaction};
use crate::io::{path_facts, remove_file};

/// What has been added so far, to be taken back if something fails.
#[derive(Default)]
pub(super) struct Done {
    /// Children first.
    pub(super) nodes: Vec<String>,
    /// Drives and bitmaps, too.
    pub(super) is_all: bool,
    /// Files that were made.
    pub(super) files: Vec<PathBuf>,
}

impl Done {
    /// Of what has been read, and nothing more.
    pub(super) fn of(readied: &Readied) -> Self {
        Self { files: files_to_make(&readied.spec, &readied.base), ..Self::default() }
    }
}

impl Host {
    /// Takes back what was added; what stands against that is logged.
    pub(super) fn take_back(&self, spec: &GraphSpec, done: &Done) {
        for export in &spec.exports {
            let id = export.id.value.clone();
            // It may not have been added.
            let _ = block_on(self.remove_export_only(&id, RemovalMode::Hard));
        }
        let graph = self.graph();
        let mut transaction = Transaction::new();
        if done.is_all {
            let bitmaps = spec.bitmaps.iter().filter_map(|bitmap| {
                let scope = bitmap_scope(&bitmap.scope);
                graph.find_bitmap(&scope, &bitmap.name.value)
            });
            let bitmaps = bitmaps.map(|bitmap| BitmapAction::Remove.of(bitmap));
            transaction = bitmaps.fold(transaction, Transaction::with);
            let of_nodes = spec.exports.iter().filter(|it| matches!(it.scope, Scope::Node(_)));
            let drives = spec.drives.iter().map(|drive| drive.id.value.clone());
            let drives = drives.chain(of_nodes.map(drive_of));
            let there = drives.filter(|id| graph.find_drive(id).is_some());
            let remove = there.map(|drive| Action::RemoveDrive { drive });
            transaction = remove.fold(transaction, Transaction::with);
        }
        let there = |name: &&String| graph.find_node(name).is_some();
        for node in done.nodes.iter().rev().filter(there) {
            transaction = transaction.with(Action::RemoveNode { node: node.clone() });
        }
        drop(graph);
        if transaction.actions().next().is_some()
            && let Err(error) = block_on(self.inner.transact(transaction))
        {
            tracing::error!("what was added before something failed is still there: {error}");
            return;
        }
        for file in &done.files {
            // It may not have come to that.
            let _ = remove_file(file);
        }
    }
}

/// The files that are made for a specification, as they are not there.
fn files_to_make(spec: &GraphSpec, base: &Path) -> Vec<PathBuf> {
    let made = spec.nodes.iter().filter_map(|node| match &node.driver {
        DriverSpec::File(file) if file.create_bytes.is_some() => Some(file.path_in(base)),
        DriverSpec::Qcow2(image) if image.create.is_some() => {
            spec.image_file(node).map(|file| file.path_in(base))
        }
        _ => None,
    });
    made.filter(|path| path_facts(path).is_ok_and(|facts| !facts.exists)).collect()
}
