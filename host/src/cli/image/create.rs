//! `blockloom image create`: a new image, or none.
//!
//! A file that is there is not touched without `--force`, unlike by `qemu-img`. With it the new image takes
//! its place in one step, when it is complete. What a failed command has made, it removes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use blockloom_qcow2::ErrorKind;
use blockloom_qcow2::create::create;

use super::failure::{Failure, Result};
use super::layer::{Format, Layer, beside};
use super::options::Wanted;
use crate::io::{path_facts, remove_file, replace_file};
use crate::node::{Access, FileStorage};

/// Makes an image.
///
/// `size_of`: an image whose disk is as long as that of the new one.
pub(super) async fn create_image(
    path: PathBuf,
    mut wanted: Wanted,
    size_of: Option<PathBuf>,
    force: bool,
) -> Result<()> {
    if let Some(like) = size_of {
        wanted.size_bytes = Some(Layer::open(&like, None, Access::Read).await?.size_bytes);
    }
    wanted.validate()?;
    let backing_bytes = match &wanted.backing {
        Some(name) => Some(backing_size(&path, name, wanted.backing_format.as_deref()).await?),
        None => None,
    };
    let size_bytes = wanted.size_bytes.or(backing_bytes).unwrap_or(0);
    let size_bytes = super::layer::sectors(size_bytes);
    let options = wanted.options(size_bytes)?;
    let data = wanted.data_file.as_ref().map(|name| beside(&path, name.as_ref()));
    if data.as_ref() == Some(&path) {
        let message = "is the image itself: name another file";
        return Err(Failure::usage(format!("--data-file {}: {message}", path.display())));
    }
    let image = Fresh::make(&path, force)?;
    let data = data.map(|data| Fresh::make(&data, force)).transpose()?;
    if let Some(data) = &data {
        let filled = data.storage.fill_as_data_file(&options).await;
        filled.map_err(|error| Failure::of_file(&data.path, error))?;
    }
    let created = create(&image.storage, &options).await;
    created.map_err(|error| match error.kind() {
        // The options do not go together with the size; nothing has been written.
        ErrorKind::Invalid => Failure::usage(error.to_string()),
        _ => Failure::of_file(&path, error),
    })?;
    if let Some(data) = data {
        data.keep()?;
    }
    image.keep()
}

/// The size of the disk behind the new image, which has to be there.
async fn backing_size(image: &Path, name: &str, format: Option<&str>) -> Result<u64> {
    let path = beside(image, name.as_ref());
    let layer = Layer::open(&path, format.and_then(Format::of_name), Access::Read).await;
    let layer = layer.map_err(|failure| Failure {
        message: format!("--backing {name}: {}", failure.message),
        ..failure
    })?;
    Ok(layer.size_bytes)
}

/// A file that is removed again unless it is kept.
#[derive(Debug)]
struct Fresh {
    storage: FileStorage,
    path: PathBuf,
    /// What it becomes when it is kept.
    target: PathBuf,
    /// What was there, held so that nobody opens it meanwhile.
    _replaced: Option<FileStorage>,
    /// Whether it is this command's to remove.
    removable: bool,
}

impl Fresh {
    fn make(target: &Path, force: bool) -> Result<Self> {
        let facts = path_facts(target).map_err(|error| Failure::of_file(target, error))?;
        let (path, target) = (target.to_owned(), target.to_owned());
        if facts.exists && facts.is_directory {
            return Err(Failure::of_file(&path, "is a directory: name a file"));
        }
        if facts.exists && !force {
            return Err(Failure::of_file(&path, "exists: --force overwrites it"));
        }
        if facts.exists && facts.is_block_device {
            let storage = FileStorage::open(&path, Access::Write)?;
            return Ok(Self { storage, path, target, _replaced: None, removable: false });
        }
        let (path, replaced) = match facts.exists {
            true => (new_name(&target), Some(FileStorage::open(&target, Access::Write)?)),
            false => (path, None),
        };
        let storage = FileStorage::open(&path, Access::Create)?;
        Ok(Self { storage, path, target, _replaced: replaced, removable: true })
    }

    fn keep(mut self) -> Result<()> {
        if self.path != self.target {
            let replaced = replace_file(&self.path, &self.target);
            replaced.map_err(|error| Failure::of_file(&self.target, error))?;
        }
        self.removable = false;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.removable
            && let Err(error) = remove_file(&self.path)
        {
            tracing::warn!("`{}` is incomplete and stays: {error}", self.path.display());
        }
    }
}

/// The name of a file that is to replace another one, beside it.
fn new_name(target: &Path) -> PathBuf {
    let mut name = target.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    target.with_file_name(name)
}
