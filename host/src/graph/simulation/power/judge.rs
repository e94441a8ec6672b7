//! What one crash has left, judged.

use blockloom_qcow2::Image;
use blockloom_qcow2::bitmaps::Directory;
use blockloom_qcow2::image::OpenOptions;
use blockloom_qcow2::testing::{Container, Disk, MemoryStorage, block_on};

use super::history::{Progress, Step};
use super::replay::Files;
use super::workload::{Part, Recording};
use crate::graph::simulation::image::{data_name, file_name};
use crate::graph::simulation::judge;
use crate::graph::simulation::world::{fill, words};
use crate::io::sim::SECTOR;

/// The internal snapshot of images that have one.
pub(super) const SNAPSHOT: &[u8] = b"before";

fn container(files: &Files, part: &Part) -> Container {
    let bytes = |name: &str| files.get(name).cloned();
    Container {
        file: MemoryStorage::new(bytes(&file_name(part.name)).unwrap_or_default()),
        data: bytes(&data_name(part.name)).map(MemoryStorage::new),
    }
}

fn open(
    container: Container,
    backing: Option<Vec<u8>>,
    (writable, snapshot): (bool, Option<Vec<u8>>),
) -> Result<Disk, String> {
    let has_backing = Some(backing.is_some());
    let options = OpenOptions {
        writable,
        l2_cache_bytes: 0,
        has_backing,
        snapshot,
        ..OpenOptions::default()
    };
    let image = block_on(Image::open(&container, &options)).map_err(|error| error.to_string())?;
    Ok(Disk { image, container, backing })
}

fn all_of(disk: &Disk) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; disk.image.size_bytes() as usize];
    block_on(disk.read(0, &mut bytes)).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// What the images under the top one show to it.
fn below(files: &Files, parts: &[Part]) -> Result<Option<Vec<u8>>, String> {
    let mut shown = None;
    for part in parts[1..].iter().rev() {
        shown = Some(all_of(&open(container(files, part), shown, (false, None))?)?);
    }
    Ok(shown)
}

/// What a chain shows, sector by sector; the top comes first.
///
/// # Errors
/// It cannot be read.
pub(super) fn show(files: &Files, parts: &[Part]) -> Result<Vec<u64>, String> {
    let disk = open(container(files, &parts[0]), below(files, parts)?, (false, None))?;
    words(&all_of(&disk)?)
}

impl Recording {
    /// The images that show the drive's view, when a workload has come so far.
    pub(super) fn chain(&self, progress: Progress) -> Vec<Part> {
        let mut chain = self.parts.clone();
        for step in &self.history.steps[..progress.begun] {
            if let Step::Snapshot(name) = step {
                chain.insert(0, Part { name, geometry: self.overlay });
            }
        }
        chain
    }

    /// # Errors
    /// What is wrong with what a crash has left.
    pub(super) fn judge(&self, files: &Files, progress: Progress) -> Result<(), String> {
        let chain = self.chain(progress);
        for part in &chain {
            let told = |wrong: String| format!("image {}: {wrong}", part.name);
            judge::leaks(&container(files, part).file).map_err(told)?;
            self.judge_bitmaps(files, part, progress).map_err(told)?;
        }
        let shown = show(files, &chain)?;
        self.history.check(&shown, progress)?;
        self.judge_snapshot(files)
    }

    /// An internal snapshot shows what the disk showed at first.
    fn judge_snapshot(&self, files: &Files) -> Result<(), String> {
        let bottom = self.parts.last().ok_or("no image")?;
        let current = open(container(files, bottom), None, (false, None))?;
        if current.image.info().snapshots == 0 {
            return Ok(());
        }
        let how = (false, Some(SNAPSHOT.to_vec()));
        let shown = words(&all_of(&open(current.container, None, how)?)?)?;
        match shown == self.history.first {
            true => Ok(()),
            false => Err(format!("the internal snapshot shows {shown:x?}")),
        }
    }

    /// Bitmaps that count are what was stored in the end.
    fn judge_bitmaps(&self, files: &Files, part: &Part, progress: Progress) -> Result<(), String> {
        let closes = self.history.steps.iter().position(|step| matches!(step, Step::Close));
        let has_begun = closes.is_some_and(|at| at < progress.begun);
        let is_closed = closes.is_some_and(|at| at < progress.answered);
        let found = judge::bitmaps(&container(files, part).file)?;
        let counts = found.values().flatten().next();
        match (counts, &self.bitmap) {
            (Some(bits), Some(bitmap)) if has_begun && bits.are(bitmap) => Ok(()),
            (Some(bits), _) => Err(format!("a bitmap counts and holds {:x?}", bits.words)),
            (None, Some(_)) if is_closed && self.chain(progress)[0].name == part.name => {
                Err("the bitmap was stored, and does not count".to_owned())
            }
            (None, _) => Ok(()),
        }
    }

    /// Repairs, writes more, ends in order: nothing is wrong then.
    ///
    /// # Errors
    /// Something is.
    pub(super) fn go_on(&self, files: &Files, progress: Progress) -> Result<(), String> {
        let chain = self.chain(progress);
        let backing = below(files, &chain)?;
        let top = container(files, &chain[0]);
        judge::repair(&top.file)?;
        let disk = open(top, backing, (true, None))?;
        let mut shown = all_of(&disk)?;
        let told = |error: blockloom_qcow2::Error| format!("going on: {error}");
        if self.bitmap.is_some() {
            let file = disk.image.file(&disk.container);
            let mut directory = block_on(Directory::load(&file)).map_err(told)?;
            block_on(directory.begin_use(&file, |_| true)).map_err(told)?;
            disk.image.follow_bitmaps();
        }
        let sectors = shown.len() / SECTOR;
        for (at, len) in [(0, 3), (sectors / 2, 9), (sectors - 5, 5), (sectors / 3, 17)] {
            let bytes: Vec<u8> = (0..len).flat_map(|_| fill(7)).collect();
            let from = at * SECTOR;
            block_on(disk.write(from as u64, &bytes)).map_err(told)?;
            shown[from..from + bytes.len()].copy_from_slice(&bytes);
            block_on(disk.image.flush(&disk.container)).map_err(told)?;
        }
        block_on(disk.image.close(&disk.container)).map_err(told)?;
        judge::is_clean(&disk.container.file).map_err(|wrong| format!("going on: {wrong}"))?;
        let Disk { container, backing, .. } = disk;
        let after = all_of(&open(container, backing, (false, None))?)?;
        match after == shown {
            true => Ok(()),
            false => Err("going on: other bytes than were written".to_owned()),
        }
    }
}
