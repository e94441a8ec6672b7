//! Filters of a scene that are plugins: the real ones, in WebAssembly.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::{ChildDecl, PermissionSet};
use crate::error::{Error, ErrorKind, Result};
use crate::node::Node;
use crate::plugin::{Grants, Instance, PluginLimits, PluginModule, PluginNode, PluginRuntime};

/// Compiled once for all scenes.
static COPY_ON_READ: Mutex<Option<Arc<PluginModule>>> = Mutex::new(None);

fn module() -> Result<Arc<PluginModule>> {
    let mut known = COPY_ON_READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = &*known {
        return Ok(Arc::clone(module));
    }
    let runtime = Arc::new(PluginRuntime::new()?);
    let module = Arc::new(PluginModule::load_bundled(&runtime, "copy-on-read")?);
    *known = Some(Arc::clone(&module));
    Ok(module)
}

/// The plugin `copy-on-read` over a child, with an instance of its own.
pub(in crate::graph) fn copy_on_read(child: &str) -> Result<(Arc<dyn Node>, Vec<ChildDecl>)> {
    let instance = Instance::new(&module()?, "{}", PluginLimits::default());
    let instance =
        instance.map_err(|error| Error::new(ErrorKind::Invalid, format!("{error:?}")))?;
    let grants = Grants::READ.union(Grants::WRITE_UNCHANGED);
    let node = PluginNode::with_children(&instance, &[("file".to_owned(), grants)])?;
    let child = ChildDecl { grants: PermissionSet::HARMLESS, ..ChildDecl::filtered(child) };
    Ok((Arc::new(node), vec![child]))
}
