//! What a crash, or an end in order, has left of images, by the eyes of the engine: no graph, no host.

use std::collections::BTreeMap;

use blockloom_qcow2::Image;
use blockloom_qcow2::bitmaps::{Directory, Trust};
use blockloom_qcow2::check::{CheckOptions, CheckReport, Repair, check as check_image};
use blockloom_qcow2::image::OpenOptions;
use blockloom_qcow2::testing::{MemoryStorage, block_on};

fn report(storage: &MemoryStorage, repair: Repair) -> Result<CheckReport, String> {
    let options = CheckOptions { repair, ..CheckOptions::default() };
    block_on(check_image(storage, &options)).map_err(|error| format!("a check: {error}"))
}

/// Leaks of an image in which nothing worse is wrong.
///
/// # Errors
/// What is worse.
pub(super) fn leaks(storage: &MemoryStorage) -> Result<u64, String> {
    let report = report(storage, Repair::None)?;
    if report.is_damaged() {
        return Err(format!("a check finds {:?}", report.findings));
    }
    Ok(report.leaks)
}

/// # Errors
/// What is wrong with an image, leaks included.
pub(super) fn is_clean(storage: &MemoryStorage) -> Result<(), String> {
    let report = report(storage, Repair::None)?;
    match report.is_clean() {
        true => Ok(()),
        false => Err(format!("a check finds {:?}", report.findings)),
    }
}

/// Repairs the leaks of an image in which nothing worse is wrong.
///
/// # Errors
/// What is worse, or is left.
pub(super) fn repair(storage: &MemoryStorage) -> Result<(), String> {
    leaks(storage)?;
    let repaired = report(storage, Repair::Leaks)?;
    match repaired.is_clean() {
        true => Ok(()),
        false => Err(format!("a repair leaves {:?}", repaired.findings)),
    }
}

/// What is stored of a bitmap that counts.
pub(super) struct Bits {
    /// As many as the image's size needs.
    pub(super) count: u64,
    pub(super) words: Vec<u64>,
}

impl Bits {
    /// Whether they are those of `words`, as far as they go.
    pub(super) fn are(&self, words: &[u64]) -> bool {
        let bit = |words: &[u64], at: u64| {
            words.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
        };
        (0..self.count).all(|at| bit(&self.words, at) == bit(words, at))
    }
}

/// The bitmaps that an image keeps, by name: what they hold, if that counts.
///
/// # Errors
/// One that counts cannot be read.
pub(super) fn bitmaps(storage: &MemoryStorage) -> Result<BTreeMap<String, Option<Bits>>, String> {
    let told = |error: blockloom_qcow2::Error| format!("bitmaps: {error}");
    block_on(async {
        let image = Image::open(storage, &OpenOptions::default()).await.map_err(told)?;
        let file = image.file(storage);
        let directory = Directory::load(&file).await.map_err(told)?;
        let mut found = BTreeMap::new();
        for entry in directory.entries() {
            let words = match directory.trust(entry) {
                Trust::Stored => {
                    let words = directory.load_words(&file, &entry.name, image.size_bytes()).await;
                    let count = image.size_bytes().div_ceil(1 << entry.granularity_bits);
                    Some(Bits { count, words: words.map_err(told)? })
                }
                Trust::Inconsistent | Trust::Unknown => None,
            };
            found.insert(entry.name_lossy().into_owned(), words);
        }
        Ok(found)
    })
}
