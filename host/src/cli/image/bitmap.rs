//! `blockloom image bitmap`: changes of the persistent bitmaps of an image.
//!
//! The actions of one command are worked out in memory and take effect together: a crash, or an error in
//! the last of them, leaves the image as it was.

use std::path::{Path, PathBuf};

use blockloom_qcow2::bitmaps::Trust;

use super::bitmap_options::{Action, Actions, Extras};
use super::bitmaps::{Bitmaps, Change, Content, open_image};
use super::failure::{Failure, Result};
use super::layer::Format;
use crate::bitmap::BitmapName;
use crate::io::real_path;
use crate::node::Access;

/// Does what the actions say with one bitmap.
pub(super) async fn change(
    path: PathBuf,
    format: Option<Format>,
    name: String,
    actions: Actions,
    extras: Extras,
) -> Result<()> {
    actions.check(&extras)?;
    let renamed = actions.0.iter().filter_map(|action| match action {
        Action::Rename(to) => Some(to),
        _ => None,
    });
    for name in [&name].into_iter().chain(renamed) {
        BitmapName::new(name).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let (layer, image) = open_image(&path, format, Access::Write).await?;
    let mut bitmaps = Bitmaps::load(&path, &layer.storage, &image).await?;
    let source = match &extras.source_file {
        Some(source) if !is_same(source, &path) => {
            Some(open_image(source, extras.source_format, Access::Read).await?)
        }
        _ => None,
    };
    let source = match &source {
        Some((layer, image)) => Some(Bitmaps::load(&layer.path, &layer.storage, image).await?),
        None => None,
    };
    let changes = {
        let source = source.as_ref().unwrap_or(&bitmaps);
        let granularity_bytes = extras.granularity_bytes;
        let mut draft = Draft::new(&bitmaps, source, granularity_bytes, name);
        for action in &actions.0 {
            draft.act(action).await?;
        }
        draft.finish()
    };
    let changed = bitmaps.change(&changes).await;
    let closed = image.close(&layer.storage).await;
    let closed = closed.map_err(|error| Failure::of_file(&path, error));
    changed.and(closed)
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((real_path(a), real_path(b)), (Ok(a), Ok(b)) if a == b)
}

/// The bitmap as the actions so far have made it.
enum Now {
    Absent,
    /// As the image has it.
    Stored(Trust),
    /// To be stored.
    New(Content),
}

struct Draft<'b> {
    bitmaps: &'b Bitmaps<'b>,
    /// Where bitmaps are merged from.
    source: &'b Bitmaps<'b>,
    granularity_bytes: Option<u64>,
    name: String,
    /// Its name in the image, unless it is removed or was not there.
    stored_as: Option<String>,
    now: Now,
    changes: Vec<Change>,
}

impl<'b> Draft<'b> {
    fn new(
        bitmaps: &'b Bitmaps<'b>,
        source: &'b Bitmaps<'b>,
        granularity_bytes: Option<u64>,
        name: String,
    ) -> Self {
        let entry = bitmaps.entry(&name).ok();
        let now = entry.map_or(Now::Absent, |entry| Now::Stored(bitmaps.trust(entry)));
        let stored_as = entry.map(|_| name.clone());
        let changes = Vec::new();
        Self { bitmaps, source, granularity_bytes, name, stored_as, now, changes }
    }

    async fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Add => self.add(),
            Action::Remove => self.remove(),
            Action::Rename(to) => self.rename(to),
            Action::Repair => self.repair(),
            Action::Clear => {
                self.content().await?.granules.clear_all();
                Ok(())
            }
            Action::Enable => {
                self.content().await?.auto = true;
                Ok(())
            }
            Action::Disable => {
                self.content().await?.auto = false;
                Ok(())
            }
            Action::Merge(name) => self.merge(name).await,
        }
    }

    fn failed(&self, problem: &str) -> Failure {
        let message = format!("bitmap `{}` {problem}", self.name);
        Failure::of_file(self.bitmaps.path(), message)
    }

    fn missing(&self) -> Failure {
        self.failed("is not there: --list shows those that are, --add makes one")
    }

    /// What it holds, to be changed.
    async fn content(&mut self) -> Result<&mut Content> {
        if let (Now::Stored(_), Some(stored)) = (&self.now, &self.stored_as) {
            // By the name that it has in the image.
            let original = self.original_name(stored).to_owned();
            let entry = self.bitmaps.entry(&original)?;
            self.now = Now::New(self.bitmaps.content(entry).await?);
        }
        let missing = self.missing();
        match &mut self.now {
            Now::New(content) => Ok(content),
            _ => Err(missing),
        }
    }

    /// The name in the image as it is now of what is to be called `name` there.
    fn original_name<'n>(&'n self, name: &'n str) -> &'n str {
        self.changes.iter().rev().fold(name, |name, change| match change {
            Change::Rename { from, to } if to == name => from,
            _ => name,
        })
    }

    fn add(&mut self) -> Result<()> {
        if !matches!(self.now, Now::Absent) {
            return Err(self.failed("is there already: --remove it first, or --clear it"));
        }
        self.check_free(&self.name)?;
        let granularity = self.granularity_bytes;
        let granularity = granularity.unwrap_or_else(|| self.bitmaps.default_granularity_bytes());
        let granules = self.bitmaps.granules(granularity)?;
        self.now = Now::New(Content { granules, auto: true });
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        if matches!(self.now, Now::Absent) {
            return Err(self.missing());
        }
        self.changes.extend(self.stored_as.take().map(Change::Remove));
        self.now = Now::Absent;
        Ok(())
    }

    fn rename(&mut self, to: &str) -> Result<()> {
        match self.now {
            Now::Absent => return Err(self.missing()),
            Now::Stored(Trust::Inconsistent) => return Err(self.bitmaps.inconsistent(&self.name)),
            Now::Stored(Trust::Unknown) => return Err(self.bitmaps.unknown(&self.name)),
            Now::Stored(Trust::Stored) | Now::New(_) => {}
        }
        if to != self.name {
            self.check_free(to)?;
        }
        if let Some(from) = &mut self.stored_as {
            let from = std::mem::replace(from, to.to_owned());
            self.changes.push(Change::Rename { from, to: to.to_owned() });
        }
        self.name = to.to_owned();
        Ok(())
    }

    /// Nobody else has a name.
    fn check_free(&self, name: &str) -> Result<()> {
        let goes = |change: &Change| match change {
            Change::Remove(gone) | Change::Rename { from: gone, .. } => gone == name,
            Change::Store(..) => false,
        };
        if self.bitmaps.entry(name).is_err() || self.changes.iter().any(goes) {
            return Ok(());
        }
        let message =
            format!("bitmap `{name}` is there already: take another name, or --remove it");
        Err(Failure::of_file(self.bitmaps.path(), message))
    }

    fn repair(&mut self) -> Result<()> {
        match self.now {
            Now::Absent => return Err(self.missing()),
            Now::Stored(Trust::Unknown) => return Err(self.bitmaps.unknown(&self.name)),
            Now::Stored(Trust::Stored) | Now::New(_) => {
                return Err(self.failed("is not inconsistent: there is nothing to repair"));
            }
            Now::Stored(Trust::Inconsistent) => {}
        }
        let entry = self.bitmaps.entry(&self.name)?;
        let granules = self.bitmaps.granules(1 << entry.granularity_bits)?;
        granules.set_all();
        self.now = Now::New(Content { granules, auto: entry.auto() });
        Ok(())
    }

    async fn merge(&mut self, name: &str) -> Result<()> {
        let is_own = std::ptr::eq(self.source, self.bitmaps) && name == self.name;
        if is_own {
            return self.content().await.map(drop);
        }
        let (bitmaps, source) = (self.bitmaps, self.source);
        let target = self.content().await?;
        let source = source.content(source.entry(name)?).await?;
        let merged = target.granules.merge_from_drained(&source.granules);
        merged.map_err(|error| Failure::of_file(bitmaps.path(), format!("--merge {name}: {error}")))
    }

    /// What is to be stored.
    fn finish(mut self) -> Vec<Change> {
        if let Now::New(content) = self.now {
            self.changes.push(Change::Store(self.name, content));
        }
        self.changes
    }
}
