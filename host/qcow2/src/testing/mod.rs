//! Containers for tests, and `qemu-img` as an oracle.

#![allow(clippy::disallowed_types, reason = "foreign tools look at files, and are programs")]

mod file;
mod memory;
pub mod tools;

pub use file::FileStorage;
pub use memory::MemoryStorage;
