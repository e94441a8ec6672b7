//! The bitmaps of an image that nobody else has open.

use std::path::Path;

use blockloom_qcow2::Error;
use blockloom_qcow2::bitmaps::{BitmapChange, Directory, NewBitmap, Trust};
use blockloom_qcow2::format::bitmap::BitmapEntry;
use blockloom_qcow2::image::Image;

use super::failure::{Failure, Result};
use super::layer::{Format, Layer};
use crate::bitmap::{BitmapError, Granularity, Granules};
use crate::node::{Access, FileStorage};

/// The bitmaps of an open image.
pub(super) struct Bitmaps<'i> {
    path: &'i Path,
    storage: &'i FileStorage,
    image: &'i Image,
    directory: Directory,
}

/// What a bitmap holds.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) granules: Granules,
    /// Records from the opening of the image on.
    pub(super) auto: bool,
}

/// A change of what is stored.
#[derive(Debug)]
pub(super) enum Change {
    Store(String, Content),
    Remove(String),
    Rename { from: String, to: String },
}

impl Change {
    fn engine<'a>(&'a self, size_bytes: u64, words: &'a [u64]) -> BitmapChange<'a> {
        match self {
            Self::Store(name, content) => BitmapChange::Store(NewBitmap {
                name: name.as_bytes(),
                granularity_bits: content.granules.granularity().shift() as u8,
                auto: content.auto,
                in_use: false,
                size_bytes,
                words,
            }),
            Self::Remove(name) => BitmapChange::Remove(name.as_bytes()),
            Self::Rename { from, to } => {
                BitmapChange::Rename { from: from.as_bytes(), to: to.as_bytes() }
            }
        }
    }
}

/// Opens an image that can have bitmaps.
pub(super) async fn open_image(
    path: &Path,
    format: Option<Format>,
    access: Access,
) -> Result<(Layer, Image)> {
    let layer = Layer::open(path, format, access).await?;
    if layer.header.is_none() {
        let message = "a raw image keeps no bitmaps: this works on qcow2 images";
        return Err(Failure::of_file(path, message));
    }
    let image = layer.image(access == Access::Write).await?;
    Ok((layer, image))
}

impl<'i> Bitmaps<'i> {
    pub(super) async fn load(
        path: &'i Path,
        storage: &'i FileStorage,
        image: &'i Image,
    ) -> Result<Self> {
        let directory = Directory::load(&image.file(storage)).await;
        let directory = directory.map_err(|error| Failure::of_file(path, error))?;
        Ok(Self { path, storage, image, directory })
    }

    /// Of the image, for messages.
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    /// Bytes of the disk.
    pub(super) fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    /// What a bitmap has unless told otherwise: QEMU's choice.
    pub(super) fn default_granularity_bytes(&self) -> u64 {
        self.image.cluster_bytes().clamp(4096, 65_536)
    }

    pub(super) fn entries(&self) -> &[BitmapEntry] {
        self.directory.entries()
    }

    pub(super) fn trust(&self, entry: &BitmapEntry) -> Trust {
        self.directory.trust(entry)
    }

    /// The entry of this name.
    pub(super) fn entry(&self, name: &str) -> Result<&BitmapEntry> {
        self.directory.entry(name.as_bytes()).map_err(|error| self.failed(error))
    }

    /// What a bitmap holds.
    ///
    /// # Errors
    /// Of one that is inconsistent, or of an unknown kind: what can be done about it.
    pub(super) async fn content(&self, entry: &BitmapEntry) -> Result<Content> {
        match self.trust(entry) {
            Trust::Stored => {}
            Trust::Inconsistent => return Err(self.inconsistent(&entry.name_lossy())),
            Trust::Unknown => return Err(self.unknown(&entry.name_lossy())),
        }
        let size_bytes = self.size_bytes();
        let granules = self.granules(1 << entry.granularity_bits)?;
        let file = self.image.file(self.storage);
        let words = self.directory.load_words(&file, &entry.name, size_bytes).await;
        granules.mark_words(&words.map_err(|error| self.failed(error))?);
        Ok(Content { granules, auto: entry.auto() })
    }

    /// A clean set for the disk.
    pub(super) fn granules(&self, granularity_bytes: u64) -> Result<Granules> {
        let granules = Granularity::from_bytes(granularity_bytes)
            .and_then(|granularity| Granules::new(self.size_bytes(), granularity));
        granules.map_err(|error: BitmapError| Failure::of_file(self.path(), error))
    }

    /// Says of all that can be used that they are, durably: until they are stored they count as inconsistent,
    /// and the disk can be changed.
    pub(super) async fn begin_use(&mut self) -> Result<()> {
        if self.entries().is_empty() || !self.directory.is_consistent() {
            return Ok(());
        }
        self.image.follow_bitmaps();
        let file = self.image.file(self.storage);
        let begun = self.directory.begin_use(&file, BitmapEntry::is_usable).await;
        begun.map_err(|error| self.failed(error))
    }

    /// Makes all changes at one durable instant, or none.
    pub(super) async fn change(&mut self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let size_bytes = self.size_bytes();
        let words: Vec<Vec<u64>> = changes
            .iter()
            .map(|change| match change {
                Change::Store(_, content) => content.granules.to_words(),
                _ => Vec::new(),
            })
            .collect();
        let changes: Vec<BitmapChange<'_>> =
            changes.iter().zip(&words).map(|(it, words)| it.engine(size_bytes, words)).collect();
        // Nobody changes guest data here: what is not named stays as good as it was.
        self.image.follow_bitmaps();
        let file = self.image.file(self.storage);
        let changed = self.directory.change(&file, &changes).await;
        changed.map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, error: Error) -> Failure {
        Failure::of_file(self.path(), error)
    }

    pub(super) fn inconsistent(&self, name: &str) -> Failure {
        let message = format!(
            "bitmap `{name}` is inconsistent: it was not stored after its last use, and what it holds \
             means nothing; --repair makes all of it dirty, --remove takes it away"
        );
        Failure::of_file(self.path(), message)
    }

    pub(super) fn unknown(&self, name: &str) -> Failure {
        let message = format!(
            "bitmap `{name}` is of a kind that is not known here: it is kept as it is, and can only be \
             removed, by --remove"
        );
        Failure::of_file(self.path(), message)
    }
}
