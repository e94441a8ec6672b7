//! `blockloom image create`: a new image, or none.
//!
//! A file that is there is not touched without `--force`, unlike by `qemu-img`. With it the new image takes
//! its place in one step, when it is complete. What a failed command has made, it removes.

use std::path::{Path, PathBuf};

use blockloom_qcow2::ErrorKind;
use blockloom_qcow2::create::{CreateOptions, create};

use super::failure::{Failure, Result};
use super::layer::{Format, Layer, beside, sectors};
use super::options::Wanted;
use crate::io::{create_parent_missing, path_facts};
use crate::node::{Access, FileStorage, FreshFile, Place};

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
    let size_bytes = wanted.size_bytes.or(backing_bytes).ok_or_else(|| {
        Failure::usage("SIZE is missing: it can be left out only with --backing or --size-of")
    })?;
    let options = wanted.options(sectors(size_bytes))?;
    let (image, _storage) = NewImage::make(&path, &options, force, Place::Replace).await?;
    image.keep()
}

/// An empty image that is not kept yet.
#[derive(Debug)]
pub(super) struct NewImage {
    image: FreshFile,
    data: Option<FreshFile>,
}

impl NewImage {
    /// Makes the image that is to be at `path`; gives its container, with the data file if there is one.
    pub(super) async fn make(
        path: &Path,
        options: &CreateOptions,
        force: bool,
        place: Place,
    ) -> Result<(Self, FileStorage)> {
        let name = options.data_file.as_ref().and_then(|file| file.name.as_ref());
        let data = name.map(|name| beside(path, name.as_ref()));
        if data.as_deref() == Some(path) {
            let message = "is the image itself: name another file";
            return Err(Failure::usage(format!("--data-file {}: {message}", path.display())));
        }
        let (image, storage) = fresh(path, force, place)?;
        let (data, data_storage) = match data {
            None => (None, None),
            Some(path) => {
                let (data, storage) = fresh(&path, force, place)?;
                let filled = storage.fill_as_data_file(options).await;
                filled.map_err(|error| Failure::of_file(&path, error))?;
                (Some(data), Some(storage))
            }
        };
        let created = create(&storage, options).await;
        created.map_err(|error| match error.kind() {
            // The options do not go together with the size; nothing has been written.
            ErrorKind::Invalid => Failure::usage(error.to_string()),
            _ => Failure::of_file(path, error),
        })?;
        Ok((Self { image, data }, storage.with_data_file(data_storage)))
    }

    /// Puts it in its place.
    pub(super) fn keep(self) -> Result<()> {
        if let Some(data) = self.data {
            data.keep()?;
        }
        Ok(self.image.keep()?)
    }
}

/// The size of the disk behind the new image, which has to be there.
pub(super) async fn backing_size(image: &Path, name: &str, format: Option<&str>) -> Result<u64> {
    let path = beside(image, name.as_ref());
    let layer = Layer::open(&path, format.and_then(Format::of_name), Access::Read).await;
    let layer = layer.map_err(|failure| Failure {
        message: format!("--backing {name}: {}", failure.message),
        ..failure
    })?;
    Ok(layer.size_bytes)
}

/// A file for a new image. What is there is replaced only if that is allowed.
pub(super) fn fresh(target: &Path, force: bool, place: Place) -> Result<(FreshFile, FileStorage)> {
    let facts = path_facts(target).map_err(|error| Failure::of_file(target, error))?;
    if facts.is_directory {
        return Err(Failure::of_file(target, "is a directory: name a file"));
    }
    if create_parent_missing(target) {
        return Err(Failure::of_file(target, "its directory is not there: make that first"));
    }
    if facts.exists && !force {
        return Err(Failure::of_file(target, "exists: --force overwrites it"));
    }
    Ok(FreshFile::make(target, place)?)
}
