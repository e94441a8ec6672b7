//! Exports: how clients outside the process use drives.

pub mod nbd;
