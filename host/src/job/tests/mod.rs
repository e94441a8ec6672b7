//! Jobs on graphs in memory, through the host.

mod backup;
mod commit;
mod ends;
mod mirror;
mod populate;
mod random;
mod scene;
mod speed;
mod starting;
mod stream;
mod trouble;
