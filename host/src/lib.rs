//! Blockloom: virtual disks served from a graph of native nodes and sandboxed WebAssembly filters.
#![deny(unsafe_code)]
// They panic when nobody reads.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use files, threads and the clock"
    )
)]

pub mod bitmap;
pub mod cli;
pub mod config;
pub mod control;
pub mod draw;
pub mod error;
pub mod export;
pub mod filter;
pub mod graph;
pub mod host;
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the one module that touches the kernel"
)]
pub mod io;
pub mod job;
pub mod limits;
pub mod node;
pub mod plugin;
mod text;

pub use error::{Error, ErrorKind, Result};
pub use host::{
    ChangedPlugin, DirtyBitmap, Drive, Host, HostBuilder, Keep, PluginBinary, block_on,
};
