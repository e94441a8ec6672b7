//! Jobs on graphs in memory, through the host.

mod commit;
mod mirror;
mod random;
mod scene;
mod stream;
