//! New bits, a new directory, and the switch to it.

use super::load::{BATCH_BYTES, bits_of, read_table};
use super::{BitmapImage, Directory};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{BitmapCluster, BitmapEntry, encode_directory, flag};
use crate::format::extension::BitmapsExtension;
use crate::format::record::Record;
use crate::format::{ClusterSize, Header, HostOffset, Version};
use crate::limits::BITMAPS_MAX;
use crate::storage::Storage;

/// A bitmap as it is to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewBitmap<'a> {
    /// 1 to 1023 bytes, UTF-8 for QEMU.
    pub name: &'a [u8],
    /// A bit stands for `1 << granularity_bits` bytes, 512 B to 2 GiB.
    pub granularity_bits: u8,
    /// Records from the opening of the image on.
    pub auto: bool,
    /// Its bits are not to be trusted yet.
    pub in_use: bool,
    /// Bytes of the virtual disk.
    pub size_bytes: u64,
    /// Granule 0 is the lowest bit of the first; words that are missing are zero, and those past the last
    /// granule do not count.
    pub words: &'a [u64],
}

/// One change of what is stored.
#[derive(Clone, Copy, Debug)]
pub enum BitmapChange<'a> {
    /// Stores a bitmap: a new one, or in place of one of the same name.
    Store(NewBitmap<'a>),
    /// Takes one out, whatever it is.
    Remove(&'a [u8]),
    /// Gives one another name.
    Rename {
        /// Its name now.
        from: &'a [u8],
        /// Its new name, which nobody has.
        to: &'a [u8],
    },
}

/// An entry of the directory to come.
struct Planned<'a> {
    entry: BitmapEntry,
    /// What is to be its content; `None`: the table that it has.
    bits: Option<(u64, &'a [u64])>,
}

impl Directory {
    /// Makes changes, all of them at one durable instant: at a crash before it is as before, or inconsistent
    /// as a whole for the time of two writes of the header if that has to be laid out anew.
    ///
    /// Of an inconsistent directory nothing is taken over but names and granularities: what it refers to may
    /// belong to others by now. So its bitmaps stay inconsistent, and its clusters are leaked.
    ///
    /// # Errors
    /// Nothing has changed after `ENOTSUP` for version 2 of the format, `EINVAL` for a name or granularity
    /// that QEMU would refuse, `ENOENT`, `EEXIST`; `ENOSPC` if the header, the directory or the container have
    /// no room. After an error of the container all of the changes have been made, or none, or the
    /// directory is inconsistent; the next call finds out.
    ///
    /// What is recorded of bitmaps that stay, stays, and is not current.
    pub async fn change<I: BitmapImage>(
        &mut self,
        image: &I,
        changes: &[BitmapChange<'_>],
    ) -> Result<()> {
        self.settle(image).await?;
        let mut record = self.record.clone();
        for change in changes {
            let Some(record) = &mut record else { break };
            match *change {
                BitmapChange::Store(_) => {}
                BitmapChange::Remove(name) => record.set_identity(name, None),
                BitmapChange::Rename { from, to } => {
                    let identity = record.identity(from);
                    record.set_identity(from, None);
                    record.set_identity(to, identity);
                }
            }
        }
        self.change_recorded(image, changes, record, false).await
    }

    /// As [`Self::change`], and the same instant makes this the record, of bitmaps that are there afterwards:
    /// with all that it says, or with a digest of the files where there is no room for more.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn change_recorded<I: BitmapImage>(
        &mut self,
        image: &I,
        changes: &[BitmapChange<'_>],
        record: Option<Record>,
        is_current: bool,
    ) -> Result<()> {
        self.settle(image).await?;
        if image.header().version < Version::V3 {
            let message =
                "version 2 of qcow2 has no bitmaps: `qemu-img amend -o compat=1.1` makes it 3";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        let mut planned = self.planned(image);
        changes.iter().try_for_each(|change| plan(&mut planned, change))?;
        let mut rooms = Rooms { image, cluster: image.header().cluster_size, taken: Vec::new() };
        let place = match rooms.write_all(&mut planned).await {
            Ok(place) => place,
            Err(error) => {
                rooms.give_back().await;
                return Err(error);
            }
        };
        let unused = self.unused_after(image, &planned).await;
        let record = record.filter(|_| place.is_some()).map(|mut record| {
            record.retain(planned.iter().map(|planned| &planned.entry.name[..]));
            record
        });
        // Checked before, when nothing is lost by it.
        let record = match fitting(&super::with_bitmaps(&image.header(), place), record) {
            Ok(record) => record,
            Err(error) => {
                rooms.give_back().await;
                return Err(error);
            }
        };
        self.doubtful = true;
        image.set_bitmaps(place, record.as_ref(), is_current).await?;
        let entries = planned.into_iter().map(|planned| planned.entry).collect();
        *self = Self::switched(entries, place, record, is_current);
        for (offset, clusters) in unused {
            // What is not given back is a leak, which a check finds; the change has been made.
            let _ = image.free(offset, clusters).await;
        }
        Ok(())
    }

    fn planned<'a, I: BitmapImage>(&self, image: &I) -> Vec<Planned<'a>> {
        let size_bytes = image.header().size_bytes;
        let keep = |entry: &BitmapEntry| {
            let mut entry = entry.clone();
            if self.is_consistent() {
                return Some(Planned { entry, bits: None });
            }
            entry.flags |= flag::IN_USE;
            bits_of(size_bytes, entry.granularity_bits).ok()?;
            Some(Planned { entry, bits: Some((size_bytes, &[])) })
        };
        self.entries.iter().filter_map(keep).collect()
    }

    /// What the directory refers to and `planned` does not, to be freed. What cannot be read, or is referred
    /// to twice, is left alone.
    async fn unused_after<I: BitmapImage>(
        &self,
        image: &I,
        planned: &[Planned<'_>],
    ) -> Vec<(HostOffset, u64)> {
        let (Some(place), true) = (self.place, self.is_consistent()) else { return Vec::new() };
        let cluster = image.header().cluster_size;
        let mut unused =
            vec![(place.directory_offset, cluster.clusters_of(place.directory_len_bytes))];
        let is_kept = |old: &&BitmapEntry| planned.iter().any(|new| new.entry.table == old.table);
        for old in self.entries.iter().filter(|old| !is_kept(old)) {
            let Ok(table) = read_table(image, old).await else { continue };
            unused.push((old.table.0, cluster.clusters_of(u64::from(old.table_entries) * 8)));
            unused.extend(table.iter().filter_map(|entry| match entry {
                BitmapCluster::Stored(host) => Some((host.0, 1)),
                _ => None,
            }));
        }
        unused.retain(|(_, clusters)| *clusters > 0);
        unused.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (offset, clusters) in unused {
            match runs.last_mut() {
                Some((start, len)) => match *start + *len * cluster.bytes() {
                    end if end > offset => return Vec::new(),
                    end if end == offset => *len += clusters,
                    _ => runs.push((offset, clusters)),
                },
                None => runs.push((offset, clusters)),
            }
        }
        runs.into_iter().map(|(offset, clusters)| (HostOffset(offset), clusters)).collect()
    }
}

/// The record as the header has room for it.
///
/// # Errors
/// `ENOSPC` if it has none.
fn fitting(header: &Header, record: Option<Record>) -> Result<Option<Record>> {
    let fits = |record: Option<&Record>| {
        let mut header = header.clone();
        header.set_record(record, false);
        header.encode().map(drop)
    };
    match fits(record.as_ref()) {
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            let folded = record.map(|record| record.folded());
            fits(folded.as_ref()).map(|()| folded)
        }
        other => other.map(|()| record),
    }
}

/// Adds a change to the plan.
fn plan<'a>(planned: &mut Vec<Planned<'a>>, change: &BitmapChange<'a>) -> Result<()> {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let find = |planned: &[Planned<'_>], name: &[u8]| {
        planned.iter().position(|planned| planned.entry.name == name)
    };
    let missing = |name: &[u8]| {
        let message = format!("the image has no bitmap '{}'", shown(name));
        Error::new(ErrorKind::NotFound, message)
    };
    match *change {
        BitmapChange::Remove(name) => {
            let at = find(planned, name).ok_or_else(|| missing(name))?;
            planned.remove(at);
        }
        BitmapChange::Rename { from, to } => {
            check_name(to)?;
            let at = find(planned, from).ok_or_else(|| missing(from))?;
            if find(planned, to).is_some_and(|other| other != at) {
                let message = format!("the image has a bitmap '{}' already", shown(to));
                return Err(Error::new(ErrorKind::Exists, message));
            }
            planned[at].entry.name = to.to_vec();
        }
        BitmapChange::Store(new) => {
            check_name(new.name)?;
            bits_of(new.size_bytes, new.granularity_bits)?;
            let flag_if = |is: bool, flag: u32| if is { flag } else { 0 };
            let flags = flag_if(new.auto, flag::AUTO) | flag_if(new.in_use, flag::IN_USE);
            let entry = BitmapEntry {
                table: HostOffset(0),
                table_entries: 0,
                flags,
                kind: BitmapEntry::DIRTY_TRACKING,
                granularity_bits: new.granularity_bits,
                extra: Vec::new(),
                name: new.name.to_vec(),
            };
            let bits = Some((new.size_bytes, new.words));
            let Some(at) = find(planned, new.name) else {
                planned.push(Planned { entry, bits });
                return check_count(planned.len());
            };
            let old = &planned[at].entry;
            if !old.is_usable() {
                let message = format!(
                    "bitmap '{}' is of a kind that is not known: remove it first",
                    shown(new.name)
                );
                return Err(Error::new(ErrorKind::Exists, message));
            }
            let flags = flags | old.flags & flag::EXTRA_DATA_COMPATIBLE;
            planned[at] =
                Planned { entry: BitmapEntry { flags, extra: old.extra.clone(), ..entry }, bits };
        }
    }
    Ok(())
}

fn check_count(count: usize) -> Result<()> {
    if count as u64 > u64::from(BITMAPS_MAX) {
        let message = format!("an image keeps {BITMAPS_MAX} bitmaps at most");
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > BitmapEntry::NAME_MAX_BYTES {
        return Err(Error::invalid("the name of a bitmap has 1 to 1023 bytes"));
    }
    Ok(())
}

/// What is written before the switch, so that it can be given back.
struct Rooms<'i, I> {
    image: &'i I,
    cluster: ClusterSize,
    taken: Vec<(HostOffset, u64)>,
}

impl<I: BitmapImage> Rooms<'_, I> {
    async fn allocate(&mut self, clusters: u64) -> Result<HostOffset> {
        let offset = self.image.allocate(clusters).await?;
        self.taken.push((offset, clusters));
        Ok(offset)
    }

    async fn give_back(&mut self) {
        for (offset, clusters) in self.taken.drain(..) {
            // Else it is a leak.
            let _ = self.image.free(offset, clusters).await;
        }
    }

    /// Writes bits, tables and directory, durably; `None` for an empty one.
    async fn write_all(&mut self, planned: &mut [Planned<'_>]) -> Result<Option<BitmapsExtension>> {
        for Planned { entry, bits } in planned.iter_mut() {
            if let Some((size_bytes, words)) = *bits {
                let bits = bits_of(size_bytes, entry.granularity_bits)?;
                let table = self.write_bits(words, bits).await?;
                entry.table = self.write_metadata(&table).await?;
                // At most 2^29 bytes in clusters of at least 2^9.
                entry.table_entries = (table.len() / 8) as u32;
            }
        }
        let entries: Vec<BitmapEntry> =
            planned.iter().map(|planned| planned.entry.clone()).collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let directory = encode_directory(&entries)?;
        let directory_offset = self.write_metadata(&directory).await?.0;
        self.image.flush().await?;
        Ok(Some(BitmapsExtension {
            bitmaps: entries.len() as u32,
            directory_len_bytes: directory.len() as u64,
            directory_offset,
        }))
    }

    /// Writes a table or directory into clusters of its own, padded with zeros: a file that ended within
    /// the last of them could not be read whole.
    async fn write_metadata(&mut self, bytes: &[u8]) -> Result<HostOffset> {
        let clusters = self.cluster.clusters_of(bytes.len() as u64);
        let offset = self.allocate(clusters).await?;
        let mut padded = bytes.to_vec();
        padded.resize((clusters << self.cluster.bits()) as usize, 0);
        self.image.storage().write(offset.0, &padded).await?;
        Ok(offset)
    }

    /// Writes the clusters that are neither all zero nor all one; returns the table. It has an entry at
    /// least: QEMU refuses an image with an empty one.
    async fn write_bits(&mut self, words: &[u64], bits: u64) -> Result<Vec<u8>> {
        let source = Bits { words, bits, cluster_words: self.cluster.bytes() / 8 };
        let clusters = self.cluster.clusters_of(bits.div_ceil(8)).max(1);
        let batch_clusters = (BATCH_BYTES / self.cluster.bytes()).max(1);
        let mut table = Vec::with_capacity(clusters as usize * 8);
        let mut at = 0;
        while at < clusters {
            if let Some(plain) = source.plain(at) {
                table.extend(plain.encode().to_be_bytes());
                at += 1;
                continue;
            }
            let limit = clusters.min(at + batch_clusters);
            let end = (at..limit).find(|&index| source.plain(index).is_some()).unwrap_or(limit);
            let mut bytes = Vec::with_capacity(((end - at) << self.cluster.bits()) as usize);
            for index in at * source.cluster_words..end * source.cluster_words {
                bytes.extend(source.word(index).to_le_bytes());
            }
            let host = self.allocate(end - at).await?;
            self.image.storage().write(host.0, &bytes).await?;
            for index in 0..end - at {
                let stored = HostOffset(host.0 + (index << self.cluster.bits()));
                table.extend(BitmapCluster::Stored(stored).encode().to_be_bytes());
            }
            at = end;
        }
        Ok(table)
    }
}

/// Bits by the word and by the cluster.
struct Bits<'a> {
    words: &'a [u64],
    bits: u64,
    cluster_words: u64,
}

impl Bits<'_> {
    fn word(&self, index: u64) -> u64 {
        let word = usize::try_from(index).ok().and_then(|index| self.words.get(index));
        let used = self.bits.saturating_sub(index.saturating_mul(64));
        let mask = if used >= 64 { u64::MAX } else { (1 << used) - 1 };
        word.map_or(0, |word| word & mask)
    }

    /// Whether the cluster `index` needs no data. One that the bits do not fill is never all ones: its
    /// unused bits are zero (specification, "Bitmap data").
    fn plain(&self, index: u64) -> Option<BitmapCluster> {
        let words = index * self.cluster_words..(index + 1) * self.cluster_words;
        if words.start >= self.words.len() as u64 || words.clone().all(|at| self.word(at) == 0) {
            return Some(BitmapCluster::Zeros);
        }
        words.clone().all(|at| self.word(at) == u64::MAX).then_some(BitmapCluster::Ones)
    }
}
