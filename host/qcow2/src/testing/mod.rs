//! For tests: containers in memory that lose power and fail, an executor with a seed, images to start
//! from, guest I/O; files, and `qemu-img` to look at them.

#![allow(clippy::disallowed_types, reason = "foreign tools look at files, and are programs")]

mod disk;
mod executor;
mod file;
pub mod fuzz;
mod image;
mod storage;
pub mod tools;

pub use disk::{COMPRESSED, Container, Disk};
pub use executor::{Random, block_on, run_all};
pub use file::FileStorage;
pub use image::{Geometry, blank_image};
pub use storage::MemoryStorage;
