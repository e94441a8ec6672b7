//! A file for a new image, which is there when it is complete, and not before.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::plain_file::{Access, FileStorage};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{path_facts, remove_file, replace_file, sync_directory_of};

/// Where a new file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where it is to be; one that is there is used, and stays if it is not kept.
    Direct,
    /// Where it is to be; beside one that is there, which it replaces when it is kept.
    Replace,
    /// Beside where it is to be, even if nothing is there.
    Beside,
}

/// A file that is removed again unless it is kept.
#[derive(Debug)]
pub(crate) struct FreshFile {
    path: PathBuf,
    /// What it becomes when it is kept.
    target: PathBuf,
    /// What was there, held so that nobody opens it meanwhile.
    _replaced: Option<FileStorage>,
    /// Whether it was made here.
    is_new: bool,
}

impl FreshFile {
    /// Makes a file, or opens the one that is used. A block device is never replaced.
    ///
    /// # Errors
    /// The operating system's; `EAGAIN` if another process has what is there.
    pub(crate) fn make(target: &Path, place: Place) -> Result<(Self, FileStorage)> {
        let facts = path_facts(target);
        let facts =
            facts.map_err(|error| Error::os(format_args!("`{}`", target.display()), &error))?;
        let (path, target) = (target.to_owned(), target.to_owned());
        if facts.exists && (facts.is_block_device || place == Place::Direct) {
            let storage = FileStorage::open(&path, Access::Write)?;
            return Ok((Self { path, target, _replaced: None, is_new: false }, storage));
        }
        let replaced = match facts.exists {
            true => Some(FileStorage::open(&target, Access::Write)?),
            false => None,
        };
        let is_beside = facts.exists || place == Place::Beside;
        let path = if is_beside { new_name(&target) } else { path };
        let storage = FileStorage::open(&path, Access::Create).map_err(|error| {
            if is_beside && error.kind() == ErrorKind::Exists {
                let message = format!(
                    "`{}`: exists, as a command leaves it that was interrupted: remove it",
                    path.display()
                );
                return Error::new(ErrorKind::Exists, message);
            }
            error
        })?;
        Ok((Self { path, target, _replaced: replaced, is_new: true }, storage))
    }

    /// It is complete: it takes its place, durably.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn keep(mut self) -> Result<()> {
        let done = match (self.path == self.target, self.is_new) {
            (false, _) => replace_file(&self.path, &self.target),
            (true, true) => sync_directory_of(&self.path),
            (true, false) => Ok(()),
        };
        done.map_err(|error| Error::os(format_args!("`{}`", self.target.display()), &error))?;
        self.is_new = false;
        Ok(())
    }
}

impl Drop for FreshFile {
    fn drop(&mut self) {
        if self.is_new
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
