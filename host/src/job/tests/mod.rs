//! Jobs on graphs in memory, through the host.

mod scene;
mod stream;
