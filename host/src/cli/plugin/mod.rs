//! `blockloom plugin …`: what a plugin is, a crate for a new one, whether one keeps the rules.

mod bench;
mod checked;
mod model;
mod scaffold;
mod suite;
mod wanted;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockloom_abi::{Kind, Kinds};

use clap::Subcommand;

use super::println;
use crate::error::{Error, ErrorKind};
use crate::host::StartError;
use crate::plugin::{PluginLimits, PluginModule, PluginRuntime};

#[derive(Subcommand)]
pub(super) enum PluginCommand {
    /// Shows what a plugin is: ABI version, imports, exports, wants.
    Inspect {
        /// A .wasm file (component or core module), or the name of a bundled plugin.
        plugin: String,
    },
    /// Makes a crate for a new plugin, with tests.
    New {
        /// The plugin's name: lower-case letters, digits and hyphens.
        name: String,
        /// Where the crate goes; a folder of the plugin's name if absent.
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
        /// Where `blockloom-sdk` lies; if absent, in the checkout around the crate, or else as published.
        #[arg(long, value_name = "PATH")]
        sdk: Option<PathBuf>,
    },
    /// Measures what a request costs by a plugin, beside no filter and a native pass-through.
    Bench {
        /// A .wasm file, or the name of a bundled plugin.
        plugin: String,
        /// Its configuration.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        config: String,
        /// Samples of each figure.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Requests of one sample.
        #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
        requests: u32,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sends random requests through a plugin and compares what it shows with a model.
    Test {
        /// A .wasm file, or the name of a bundled plugin.
        plugin: String,
        /// Its configuration.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        config: String,
        /// The first case's seed; each further one has the next.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// How many cases.
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
        cases: u64,
    },
}

pub(super) fn run(command: PluginCommand) -> Result<(), StartError> {
    match command {
        PluginCommand::Inspect { plugin } => inspect(&plugin),
        PluginCommand::New { name, path, sdk } => scaffold::new(&name, path, sdk),
        PluginCommand::Bench { plugin, config, rounds, requests, json } => {
            check_config(&load(&plugin)?, &config)?;
            bench::bench(bench::Options { plugin, config, rounds, requests, json })
        }
        PluginCommand::Test { plugin, config, seed, cases } => {
            let module = Arc::new(load(&plugin)?);
            check_config(&module, &config)?;
            suite::test(&module, &config, seed, cases)
        }
    }
}

/// What is wrong with the command line.
fn usage(message: String) -> StartError {
    StartError::File(Error::new(ErrorKind::Invalid, message))
}

/// A configuration must be one that the plugin takes.
fn check_config(module: &PluginModule, config: &str) -> Result<(), StartError> {
    if let Err(error) = serde_json::from_str::<serde_json::Value>(config) {
        return Err(usage(format!("--config is not JSON: {error}")));
    }
    let checked = module.check_config(config, &PluginLimits::default());
    checked.map_err(|error| usage(format!("--config: {error}")))
}

/// A file that ends in `.wasm`, or else a bundled plugin of the name.
fn load(plugin: &str) -> Result<PluginModule, StartError> {
    let runtime = Arc::new(PluginRuntime::new()?);
    let is_file = Path::new(plugin).extension().is_some_and(|it| it == "wasm");
    let loaded = match is_file {
        true => PluginModule::load_file(&runtime, Path::new(plugin)),
        false => PluginModule::load_bundled(&runtime, plugin),
    };
    loaded.map_err(|error| match error.kind() {
        ErrorKind::NotFound => StartError::File(error),
        _ => StartError::Failed(error),
    })
}

/// Shows what a plugin is.
fn inspect(plugin: &str) -> Result<(), StartError> {
    let module = load(plugin)?;
    let it = module.inspection();
    let form = if it.is_core_module { "core module" } else { "component" };
    println(format_args!("plugin    {} {}", it.name, it.version));
    println(format_args!("file      {} bytes, {form}", it.file_bytes));
    println(format_args!("abi       {}, layout {}", it.abi, it.layout));
    println(format_args!("kinds     {}", kinds(it.kinds)));
    println(format_args!("bytes     {}", it.wants_bytes.name()));
    for child in &it.children {
        let needed = if child.required { "required" } else { "optional" };
        let wants: Vec<&str> = child.wants.names().collect();
        let wants = if wants.is_empty() { "nothing of its own".into() } else { wants.join(", ") };
        let alone = if child.exclusive { "; nobody else may change it" } else { "" };
        println(format_args!("child     {}, {needed}; wants {wants}{alone}", child.name));
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
