//! Blockloom: virtual disks served from a graph of native nodes and sandboxed WebAssembly filters.
#![deny(unsafe_code)]

pub mod bitmap;
pub mod cli;
pub mod config;
pub mod error;
pub mod export;
pub mod filter;
pub mod graph;
pub mod host;
pub mod io;
pub mod limits;
pub mod node;
pub mod plugin;

pub use error::{Error, ErrorKind, Result};
pub use host::{DirtyBitmap, Drive, Host, HostBuilder, block_on};
