//! The gate for files that an image names: an image may come from anywhere, and must not lead the host to
//! files that its owner could not have meant.
//!
//! A file passes if it lies, symbolic links resolved, in the directory of the image that names it, in that of
//! the configuration file, or in one of `backing-dirs`, or below. The directory of the first image is also the
//! one by whose name it was given in the configuration; of an image that another one names only that in which
//! it really is.
//!
//! A file that is to be written does not pass by being near the image, where other disks lie: who brings an image
//! must not choose what is overwritten. It is named in the configuration, or it is in one of `backing-dirs`. (QEMU
//! opens the data file of an image, for writing, wherever it is, and leaves it to who starts it to refuse such
//! images: CVE-2024-4467, CVE-2024-32498.)

use std::path::{Path, PathBuf};

use super::Surroundings;
use super::diagnostic::{Diagnostic, Diagnostics};
use super::qcow2_options::Qcow2Spec;
use super::render::clip;

pub(super) struct Gate {
    /// Real path of the directory of the configuration file.
    base_dir: Option<PathBuf>,
    /// Real paths of the directories that the operator allows.
    dirs: Vec<PathBuf>,
}

impl Gate {
    /// Of the images of a node; directories that cannot be used are reported.
    pub(super) fn new(
        surroundings: &dyn Surroundings,
        image: &Qcow2Spec,
        base_dir: &Path,
        found: &mut Diagnostics,
    ) -> Self {
        let mut dirs = Vec::new();
        for dir in &image.backing_dirs {
            let path = base_dir.join(&dir.value);
            let shown = clip(&dir.value);
            let wrong = match surroundings.file(&path) {
                Err(why) => format!("cannot look at directory `{shown}`: {why}"),
                Ok(facts) if !facts.exists => format!("directory `{shown}` does not exist"),
                Ok(facts) if !facts.is_dir => format!("`{shown}` is no directory"),
                Ok(_) => match surroundings.real_path(&path) {
                    Ok(real) => {
                        dirs.push(real);
                        continue;
                    }
                    Err(why) => format!("cannot look at directory `{shown}`: {why}"),
                },
            };
            found.push(Diagnostic::error(dir.span, wrong));
        }
        // Without the configuration's own directory there is one less.
        Self { base_dir: surroundings.real_path(or_here(base_dir)).ok(), dirs }
    }

    /// Whether the file at `path` may be read for an image in one of `own` directories; real paths, all.
    pub(super) fn lets_through(&self, path: &Path, own: &[PathBuf]) -> bool {
        let mut near = self.base_dir.iter().chain(own);
        near.any(|dir| path.starts_with(dir)) || self.lets_write(path)
    }

    /// Whether the file at `path`, a real one, may be written because an image names it.
    pub(super) fn lets_write(&self, path: &Path) -> bool {
        self.dirs.iter().any(|dir| path.starts_with(dir))
    }
}

/// `dir`, or the process's own where that is empty.
pub(super) fn or_here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}
