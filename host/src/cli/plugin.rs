//! `blockloom plugin …`.

use std::path::Path;
use std::sync::Arc;

use blockloom_abi::{Kind, Kinds, PACKAGE};

use super::println;
use crate::host::StartError;
use crate::plugin::{PluginModule, PluginRuntime};

/// Shows what a plugin is.
pub(super) fn inspect(plugin: &str) -> Result<(), StartError> {
    let runtime = Arc::new(PluginRuntime::new()?);
    let is_file = Path::new(plugin).extension().is_some_and(|it| it == "wasm");
    let module = if is_file {
        PluginModule::load_file(&runtime, Path::new(plugin))?
    } else {
        PluginModule::load_bundled(&runtime, plugin)?
    };
    let it = module.inspection();
    let form = if it.is_core_module { "core module" } else { "component" };
    println(format_args!("plugin    {} {}", it.name, it.version));
    println(format_args!("file      {} bytes, {form}", it.file_bytes));
    println(format_args!("abi       {PACKAGE}, layout {}", it.layout));
    println(format_args!("kinds     {}", kinds(it.kinds)));
    println(format_args!("transform {}", if it.wants_transform { "yes" } else { "no" }));
    for child in &it.children {
        let needed = if child.required { "required" } else { "optional" };
        let wants: Vec<&str> = child.wants.names().collect();
        let wants = if wants.is_empty() { "nothing of its own".into() } else { wants.join(", ") };
        println(format_args!("child     {}, {needed}; wants {wants}", child.name));
    }
    for (name, required) in &it.bitmaps {
        let needed = if *required { "required" } else { "optional" };
        println(format_args!("bitmap    {name}, {needed}"));
    }
    if it.may_bypass {
        println(format_args!("bypass    allowed"));
    }
    if it.has_job {
        println(format_args!("job       yes"));
    }
    for view in &it.views {
        println(format_args!("view      {view}"));
    }
    for name in &it.imports {
        println(format_args!("import    {name}"));
    }
    for name in &it.exports {
        println(format_args!("export    {name}"));
    }
    Ok(())
}

fn kinds(bits: u32) -> String {
    let Some(kinds) = Kinds::from_bits(bits) else { return format!("{bits:#b}") };
    let all = [Kind::Read, Kind::Write, Kind::Zero, Kind::Discard, Kind::Flush, Kind::Resize];
    let names = all.into_iter().filter(|kind| kinds.contains(*kind));
    let names: Vec<String> = names.map(|kind| format!("{kind:?}").to_lowercase()).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
