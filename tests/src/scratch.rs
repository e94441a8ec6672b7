//! A temporary place for one test.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Two directories that vanish with the value: one with a short path for graph files and sockets,
/// whose addresses are short, and one on a real disk for images, which direct I/O needs.
#[derive(Debug)]
pub struct Scratch {
    graphs: TempDir,
    images: TempDir,
}

impl Scratch {
    /// Images go below `disk_dir`.
    ///
    /// # Panics
    /// When directories cannot be made.
    pub fn new(disk_dir: &Path) -> Self {
        fs::create_dir_all(disk_dir).expect("a directory for images");
        let make = tempfile::Builder::new().prefix("bl-").to_owned();
        Self {
            graphs: make.tempdir().expect("a temporary directory"),
            images: make.tempdir_in(disk_dir).expect("a directory for images"),
        }
    }

    /// The path of an image.
    pub fn image(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    /// Makes an image file that holds `bytes`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn image_of(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.image(name);
        fs::write(&path, bytes).expect("write an image");
        path
    }

    /// Makes a sparse image file.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sparse_image(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.image(name);
        let file = fs::File::create(&path).expect("create an image");
        file.set_len(size_bytes).expect("set the length of an image");
        path
    }

    /// Writes into an image file from outside.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn poke(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.image(name)).expect("open");
        file.write_all_at(bytes, offset).expect("write");
    }

    /// Some bytes of an image file.
    ///
    /// # Panics
    /// When it is shorter or cannot be read.
    pub fn peek(&self, name: &str, offset: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        let file = fs::File::open(self.image(name)).expect("open");
        file.read_exact_at(&mut bytes, offset).expect("read");
        bytes
    }

    /// A path beside the graph file: for sockets.
    pub fn path(&self, name: &str) -> PathBuf {
        self.graphs.path().join(name)
    }

    /// Writes a graph file; its relative paths are taken from [`Scratch::path`].
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn graph(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("write a graph file");
        path
    }
}
