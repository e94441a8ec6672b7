//! For tests: containers in memory that lose power and fail, an executor with a seed, images to start
//! from.

mod executor;
mod image;
mod storage;

pub use executor::{Random, block_on, run_all};
pub use image::{Geometry, blank_image};
pub use storage::{MemoryStorage, Operation};
