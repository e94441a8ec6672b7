//! Jobs on graphs in memory, through the host.

mod backup;
mod backups;
mod commit;
mod discards;
mod mirror;
mod populate;
mod random;
mod scene;
mod speed;
mod starting;
mod stream;
mod trouble;
