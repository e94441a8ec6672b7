//! qcow2 images, with QEMU's tools as the other reader and writer.

pub(crate) mod bitmaps;
mod chain;
mod creation;
mod embedded;
mod identity;
mod killed;
mod matrix;
mod scene;
