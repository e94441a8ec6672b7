//! Filters of a scene that are plugins: the real ones, in WebAssembly.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::{BitmapDecl, BitmapScope, ChildDecl, PermissionSet, Role};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::io::sim::SECTOR;
use crate::node::{FileNode, FileOptions, ImageLocking, Node};
use crate::plugin::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};

/// Compiled once for all scenes.
static MODULES: Mutex<Vec<(&str, Arc<PluginModule>)>> = Mutex::new(Vec::new());

fn module(name: &'static str) -> Result<Arc<PluginModule>> {
    let mut known = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, module)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(Arc::clone(module));
    }
    let runtime = Arc::new(PluginRuntime::new()?);
    let module = Arc::new(PluginModule::load_bundled(&runtime, name)?);
    known.push((name, Arc::clone(&module)));
    Ok(module)
}

fn instance(name: &'static str, config: &str) -> Result<Arc<Instance>> {
    let instance = Instance::new(&module(name)?, config, PluginLimits::default());
    instance.map_err(|error| Error::new(ErrorKind::Invalid, format!("{error:?}")))
}

/// The plugin `copy-on-read` over a child, with an instance of its own.
pub(super) fn copy_on_read(child: &str) -> Result<(Arc<dyn Node>, Vec<ChildDecl>)> {
    let grants = Grants::READ.union(Grants::WRITE_UNCHANGED);
    let children = [("file".to_owned(), grants)];
    let node = PluginNode::with_children(&instance("copy-on-read", "{}")?, &children)?;
    let child = ChildDecl { grants: PermissionSet::HARMLESS, ..ChildDecl::filtered(child) };
    Ok((Arc::new(node), vec![child]))
}

/// The plugin `backup`.
pub(super) struct Backup(Arc<PluginNode>);

/// With this configuration.
pub(super) fn backup(config: &str) -> Result<Backup> {
    let children = [("file".to_owned(), Grants::READ), ("target".to_owned(), Grants::WRITE)];
    let node = PluginNode::with_children(&instance("backup", config)?, &children)?;
    Ok(Backup(Arc::new(node)))
}

impl Backup {
    pub(super) fn driver(&self) -> Arc<dyn Node> {
        Arc::clone(&self.0) as Arc<dyn Node>
    }

    pub(super) fn children(file: &str, target: &str) -> Vec<ChildDecl> {
        let (read, write) = (PermissionSet::CONSISTENT_READ, PermissionSet::WRITE);
        let target = ChildDecl {
            name: "target".into(),
            role: Role::Target,
            grants: write,
            ..ChildDecl::filtered(target)
        };
        vec![ChildDecl { grants: read, ..ChildDecl::filtered(file) }, target]
    }

    /// Bytes that are set in a bitmap of its own.
    pub(super) fn bytes(&self, bitmap: &str) -> u64 {
        self.0.own_bitmap_bytes(bitmap)
    }

    /// Puts the same plugin in its place, under way.
    pub(super) async fn reload(&self) -> std::result::Result<(), String> {
        let module = module("backup").map_err(|error| error.to_string())?;
        let reloaded = self.0.instance().reload(&module, None).await;
        reloaded.map_err(|error| error.to_string())
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.0.instance().failure()
    }
}

/// A file of the simulation.
pub(super) fn file(name: &str) -> Result<Arc<dyn Node>> {
    let options = FileOptions {
        path: PathBuf::from(name),
        write: true,
        discard: true,
        locking: ImageLocking::Off,
        ..FileOptions::default()
    };
    Ok(Arc::new(FileNode::open(&options)?))
}

/// A bitmap `b` of sectors.
pub(super) fn bitmap(scope: BitmapScope) -> Result<BitmapDecl> {
    let granularity = Granularity::from_bytes(SECTOR as u64)?;
    Ok(BitmapDecl { scope, name: BitmapName::new("b")?, granularity, enabled: true })
}
