//! From descriptions, in TOML or JSON, to what runs.
//!
//! | file | idea |
//! |---|---|
//! | `builder.rs` | a specification becomes declarations of nodes, drives and bitmaps |
//! | `drivers.rs` | a node's description becomes its driver, or what opens it |
//! | `exports.rs` | exports, and their addresses |
//! | `registry.rs` | what a host remembers of all that it was given, for what is added later |
//! | `fragment.rs` | what is added to a host that runs |
//! | `adding.rs`, `stages.rs`, `undo.rs` | adding it: all of it, or nothing |
//! | `composition.rs` | the same with a transaction of somebody else |
//! | `reopen.rs` | options of nodes that change while they run |

mod adding;
mod builder;
mod composition;
mod drivers;
mod exports;
mod fragment;
mod registry;
mod reopen;
mod stages;
mod undo;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use adding::{Added, FilterPlace};
pub(crate) use composition::Composition;
pub use exports::StartedExport;
pub(super) use exports::{anonymous_drive, shown_bitmap};
pub(crate) use exports::{bitmap_shown_by, resolve};
pub use fragment::Fragment;
pub(super) use registry::Registry;
pub(super) use reopen::said_read_only;

use super::Host;
use super::images;
use super::start::Failed;
use super::surroundings::Machine;
use crate::config::{self, Diagnostic, Diagnostics, Engine, GraphSpec, NodeSpec, Persist};
use crate::error::{Error, Result};
use crate::io::{EngineChoice, EngineKind, WorkerOptions, read_text_file};
use builder::Builder;
use registry::Living;

/// Longest graph file, bytes.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// What the command line says over the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides {
    /// Threads.
    pub workers: Option<usize>,
    /// Engine.
    pub engine: Option<EngineChoice>,
}

/// Why a host did not start.
#[derive(Debug)]
pub enum StartError {
    /// The file is wrong.
    Config(Box<Diagnostics>),
    /// The file, or what else it was to go by, cannot be read, or makes no sense.
    File(Error),
    /// Everything else.
    Failed(Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(diagnostics) => diagnostics.fmt(f),
            Self::File(error) | Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl StartError {
    /// The same in one line, with places as they are told where there is no file: by the paths of keys.
    pub fn brief(&self) -> String {
        match self {
            Self::Config(diagnostics) => diagnostics.brief(),
            Self::File(error) | Self::Failed(error) => error.to_string(),
        }
    }
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a file says, what is wrong with it so far, and its directory.
fn read(path: &Path) -> Result<(GraphSpec, Diagnostics, PathBuf), StartError> {
    let name = path.display().to_string();
    let text = read_text_file(path, FILE_MAX_BYTES)
        .map_err(|error| StartError::File(Error::os(format!("cannot read `{name}`"), &error)))?;
    let (spec, found) = config::parse_tolerant(&name, &text);
    Ok((spec, found, path.parent().unwrap_or_else(|| Path::new("")).to_owned()))
}

/// Reads a file and checks what can be without looking at this machine. Images that can be read add the nodes
/// that they name.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_spec(path: &Path) -> Result<GraphSpec, StartError> {
    let (mut spec, found, base) = read(path)?;
    if found.has_errors() {
        return Err(StartError::Config(Box::new(found)));
    }
    // What is wrong with an image concerns those who open it.
    let _ = config::read_images(&mut spec, &Machine::default(), &base);
    Ok(spec)
}

/// Checks a file against this machine, without side effects.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(path: &Path) -> Result<GraphSpec, StartError> {
    let (mut spec, found, base) = read(path)?;
    let machine = Machine::default();
    check_on(&mut spec, found, &base, &machine)?;
    Ok(spec)
}

fn check_on(
    spec: &mut GraphSpec,
    mut found: Diagnostics,
    base: &Path,
    machine: &Machine,
) -> Result<(), StartError> {
    machine.compile_all(spec, base);
    config::check_surroundings(spec, machine, base)
        .into_iter()
        .for_each(|more| found.push(more.clone()));
    if found.has_errors() { Err(StartError::Config(Box::new(found))) } else { Ok(()) }
}

/// Builds the graph of a file, and serves its exports.
///
/// # Errors
/// Everything that is wrong with the file, or what failed.
pub fn start(path: &Path, overrides: Overrides) -> Result<(Host, Vec<StartedExport>), StartError> {
    let (mut spec, found, base) = read(path)?;
    let machine = Machine::default();
    check_on(&mut spec, found, &base, &machine)?;
    images::prepare_all(&spec, &base).map_err(|failed| {
        let node = Some(failed.node.name.value.clone());
        not_started(&spec, Failed { node, kept: None, error: failed.error })
    })?;
    let mut builder = Builder::new(&spec, &base, &machine, Living::default());
    let plan = builder.plan()?;
    let made = builder.made;
    let host = Host::start(&worker_options(&spec, overrides), plan)
        .map_err(|failed| not_started(&spec, failed))?;
    host.inner.registry.begin(&base, machine);
    host.inner.registry.take(&host.graph(), &spec, &base, made);
    let exports = exports::serve(&host, &spec, &base)?;
    Ok((host, exports))
}

/// A node that does not open is shown where it is named, a bitmap that cannot be kept where it is said that
/// it is to be.
fn not_started(spec: &GraphSpec, failed: Failed) -> StartError {
    let is_it = |node: &&NodeSpec| Some(&node.name.value) == failed.node.as_ref();
    let node = spec.nodes.iter().find(is_it).map(|node| node.name.span);
    let mut kept = spec.bitmaps.iter().filter(|bitmap| bitmap.persist.value != Persist::None);
    let bitmap = failed.kept.and_then(|at| kept.nth(at));
    match node.or_else(|| bitmap.map(|bitmap| bitmap.persist.span)) {
        None => StartError::Failed(failed.error),
        Some(span) => {
            let mut found = spec.diagnostics();
            let problem = Diagnostic::error(span, failed.error.to_string());
            let uuid = bitmap.and_then(|bitmap| bitmap.uuid.as_ref());
            found.push(match uuid {
                Some(uuid) => problem.note(uuid.span, "the UUID that it is to have"),
                None => problem,
            });
            StartError::Config(Box::new(found))
        }
    }
}

fn worker_options(spec: &GraphSpec, overrides: Overrides) -> WorkerOptions {
    let default = WorkerOptions::default();
    let settings = &spec.host;
    let workers = settings.workers.as_ref().and_then(|it| usize::try_from(it.value).ok());
    let engine = settings.engine.as_ref().map(|it| match it.value {
        Engine::Auto => EngineChoice::Auto,
        Engine::IoUring => EngineChoice::Exactly(EngineKind::IoUring),
        Engine::Threads => EngineChoice::Exactly(EngineKind::Threads),
    });
    let poll: Option<Duration> = settings.poll.as_ref().map(|it| it.value);
    WorkerOptions {
        workers: overrides.workers.or(workers).unwrap_or(default.workers),
        engine: overrides.engine.or(engine).unwrap_or(default.engine),
        poll: poll.unwrap_or(default.poll),
    }
}
