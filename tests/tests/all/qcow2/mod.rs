//! qcow2 images, with QEMU's tools as the other reader and writer.

mod bitmaps;
mod chain;
mod creation;
mod embedded;
mod killed;
mod matrix;
mod scene;
