//! For tests: containers in memory that lose power and fail, an executor with a seed, images to start
//! from, guest I/O, and a check.

mod check;
mod disk;
mod executor;
mod image;
mod storage;

pub use check::{Findings, check};
pub use disk::{COMPRESSED, Container, Disk};
pub use executor::{Random, block_on, run_all};
pub use image::{Geometry, blank_image};
pub use storage::MemoryStorage;
