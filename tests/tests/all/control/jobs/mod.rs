//! Jobs by commands, on real images: against qemu-storage-daemon where it is right.

mod answers;
mod backups;
mod compressed;
mod errors;
mod groups;
mod lives;
pub(super) mod scene;
mod transactions;
