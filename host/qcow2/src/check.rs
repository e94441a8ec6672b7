//! Checks an image and repairs it, from its header and nothing else.
//!
//! A check counts the uses of every cluster and compares them with the refcounts. It reads each table once,
//! whatever the image claims: a table that overlaps another one is a corruption and is not followed. So its
//! work is bounded by the length of the container, and its memory by [`CheckOptions::memory_bytes`]: about
//! 4 bytes a cluster and 48 a table.
//!
//! # Repair, and power loss
//! Every write leaves an image that is no worse: refcounts in place go straight to the number of uses;
//! new refcounts are durable before the header refers to them; a flag is set only after the refcount that
//! it repeats is durable. Where some uses could not be counted, nothing is freed and nothing is rebuilt.

mod copied;
mod counts;
#[cfg(test)]
mod power;
mod rebuild;
mod refcounts;
mod regions;
mod report;
#[cfg(test)]
mod tests;
mod uses;
mod walk;

use std::collections::BTreeMap;

pub use report::{CheckReport, FINDINGS_MAX};

use counts::{Budget, Counts};
use regions::Regions;
use walk::L2Use;

use crate::error::Result;
use crate::format::header::{features, fields};
use crate::format::{ClusterSize, Header, HostOffset, L2Format, RefcountWidth};
use crate::header_io::read_header;
use crate::image::{Image, OpenOptions};
use crate::storage::Storage;

/// What a check may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Refcounts that are too large.
    Leaks,
    /// Everything that can be repaired without a guess.
    All,
}

/// How to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// What may be changed.
    pub repair: Repair,
    /// Most memory that the check allocates, bytes.
    pub memory_bytes: u64,
}

impl Default for CheckOptions {
    /// Changes nothing; 1 GiB, enough for 16 TiB in clusters of 64 KiB.
    fn default() -> Self {
        Self { repair: Repair::None, memory_bytes: 1 << 30 }
    }
}

/// Checks the image in `storage`, which nobody else may have open if something is to be repaired. The
/// report tells what is left after the repair.
///
/// A repair of an image that was left open also takes away what a shrink has left behind the disk's end: others
/// would show it again when they make the disk longer.
///
/// # Errors
/// What opening the image would answer, if the header is not valid; `ENOSPC` if more memory or room is
/// needed than there is; the container's errors. Everything else is in the report.
pub async fn check<S: Storage>(storage: &S, options: &CheckOptions) -> Result<CheckReport> {
    let was_left_open = read_header(storage).await?.autoclear & features::OPEN != 0;
    let mut report = check_unmarked(storage, options).await?;
    if options.repair == Repair::None || report.is_damaged() {
        return Ok(report);
    }
    if was_left_open {
        mark_repaired(storage, false).await?;
        if finish_shrink(storage).await? {
            report = look_again(storage, options, report).await?;
        }
    }
    mark_repaired(storage, report.leaks == 0).await?;
    Ok(report)
}

/// As [`check`], with the marks of a repaired image as they were.
async fn check_unmarked<S: Storage>(storage: &S, options: &CheckOptions) -> Result<CheckReport> {
    let header = read_header(storage).await?;
    let mut scan = Scan::new(storage, &header, options).await?;
    scan.analyse().await?;
    if options.repair == Repair::None {
        scan.check_copied(false).await?;
        return Ok(scan.report);
    }
    prepare_to_write(storage, &header).await?;
    if scan.is_in_order().await? {
        return Ok(scan.report);
    }
    scan.repair(options.repair).await?;
    // Its memory is given back before a second look.
    look_again(storage, options, scan.into_report()).await
}

/// What is left of an image after a repair, with what that has found and done.
async fn look_again<S: Storage>(
    storage: &S,
    options: &CheckOptions,
    repaired: CheckReport,
) -> Result<CheckReport> {
    let header = read_header(storage).await?;
    let mut scan = Scan::new(storage, &header, options).await?;
    scan.analyse().await?;
    scan.check_copied(false).await?;
    let mut report = scan.report;
    (report.leaks_fixed, report.corruptions_fixed) =
        (repaired.leaks_fixed, repaired.corruptions_fixed);
    let mut findings = repaired.findings;
    findings.append(&mut report.findings);
    findings.truncate(FINDINGS_MAX);
    report.findings = findings;
    Ok(report)
}

/// Repairs an image whose writer was cut short, as far as the header says so: refcounts where they may be
/// wrong in any way, leaks where clusters may have leaked. `None`: it was closed.
///
/// # Errors
/// Those of [`check`].
pub async fn mend<S: Storage>(storage: &S, memory_bytes: u64) -> Result<Option<CheckReport>> {
    let header = read_header(storage).await?;
    let repair = if header.incompatible & features::DIRTY != 0 {
        Repair::All
    } else if header.autoclear & features::OPEN != 0 {
        Repair::Leaks
    } else {
        return Ok(None);
    };
    check(storage, &CheckOptions { repair, memory_bytes }).await.map(Some)
}

/// Whether there was anything.
async fn finish_shrink<S: Storage>(storage: &S) -> Result<bool> {
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let image = Image::open(storage, &options).await?;
    // What is behind the end is nothing that bitmaps know of.
    image.follow_bitmaps();
    let has_changed = image.finish_shrink(storage).await?;
    image.close(storage).await?;
    Ok(has_changed)
}

/// Numbers of what was repaired.
#[derive(Clone, Copy, Debug, Default)]
struct Fixed {
    leaks: u64,
    corruptions: u64,
}

/// One look at an image.
#[derive(Debug)]
pub(crate) struct Scan<'a, S> {
    storage: &'a S,
    header: &'a Header,
    format: L2Format,
    width: RefcountWidth,
    cluster: ClusterSize,
    /// Clusters of the container, the last one perhaps in part.
    file_clusters: u64,
    budget: Budget,
    report: CheckReport,
    /// Uses of each cluster.
    references: Counts,
    /// Refcount of each cluster.
    found: Counts,
    regions: Regions,
    /// By cluster index.
    l2_tables: BTreeMap<u64, L2Use>,
    /// By index in the refcount table.
    blocks: BTreeMap<u64, HostOffset>,
    active_l1_walked: bool,
    /// Whether table and blocks of refcounts are where they can be.
    refcounts_usable: bool,
    /// Whether every use of a cluster was counted.
    complete: bool,
    /// Whether the refcounts have been made anew, from the uses.
    rebuilt: bool,
    fixed: Fixed,
}

impl<'a, S: Storage> Scan<'a, S> {
    async fn new(storage: &'a S, header: &'a Header, options: &CheckOptions) -> Result<Self> {
        let cluster = header.cluster_size;
        let total_clusters = cluster.clusters_of(header.size_bytes);
        Ok(Self {
            storage,
            header,
            format: header.l2_format(),
            width: header.refcount_width,
            cluster,
            file_clusters: cluster.clusters_of(storage.len_bytes().await?),
            budget: Budget::new(options.memory_bytes),
            report: CheckReport { total_clusters, ..CheckReport::default() },
            references: Counts::default(),
            found: Counts::default(),
            regions: Regions::default(),
            l2_tables: BTreeMap::new(),
            blocks: BTreeMap::new(),
            active_l1_walked: false,
            refcounts_usable: false,
            complete: true,
            rebuilt: false,
            fixed: Fixed::default(),
        })
    }

    /// What it has found and put right; the rest of it is as before that.
    fn into_report(self) -> CheckReport {
        let Fixed { leaks, corruptions } = self.fixed;
        CheckReport { leaks_fixed: leaks, corruptions_fixed: corruptions, ..self.report }
    }

    async fn analyse(&mut self) -> Result<()> {
        self.walk().await?;
        self.read_refcounts().await?;
        self.compare();
        self.find_overlaps();
        Ok(())
    }

    /// Whether there is nothing to repair, so that what was found is what is left.
    async fn is_in_order(&mut self) -> Result<bool> {
        if !self.complete || !self.report.is_clean() || self.needs_rebuild() {
            return Ok(false);
        }
        self.check_copied(false).await?;
        Ok(self.report.is_clean())
    }

    async fn repair(&mut self, repair: Repair) -> Result<()> {
        if !self.complete {
            let text = "some uses of clusters are not known: nothing is freed or rebuilt";
            self.report.note(|| text.to_owned());
        }
        if repair == Repair::All && self.complete && self.needs_rebuild() {
            let (leaks, corruptions) = (self.report.leaks, self.report.corruptions);
            self.rebuild().await?;
            self.fixed = Fixed { leaks, corruptions };
            self.rebuilt = true;
        } else {
            self.repair_in_place(repair).await?;
            self.storage.flush().await?;
        }
        if repair == Repair::All {
            self.check_copied(true).await?;
            self.storage.flush().await?;
        }
        Ok(())
    }
}

/// An unknown feature that has to be cleared before a change is cleared. Bitmaps that are out of date lose
/// their clusters as leaks: everybody ignores what the header still says of them. What is recorded of files
/// below stays current: a repair changes no guest data.
async fn prepare_to_write<S: Storage>(storage: &S, header: &Header) -> Result<()> {
    let autoclear = header.autoclear & (features::AUTOCLEAR_KNOWN | features::RECORD);
    set_features(storage, header, header.incompatible, autoclear).await
}

/// Takes back the marks that say that something is wrong, or may have leaked.
async fn mark_repaired<S: Storage>(storage: &S, no_leaks: bool) -> Result<()> {
    let header = read_header(storage).await?;
    let incompatible = header.incompatible & !(features::DIRTY | features::CORRUPT);
    let autoclear = header.autoclear & !if no_leaks { features::OPEN } else { 0 };
    set_features(storage, &header, incompatible, autoclear).await
}

async fn set_features<S: Storage>(
    storage: &S,
    header: &Header,
    incompatible: u64,
    autoclear: u64,
) -> Result<()> {
    if (incompatible, autoclear) == (header.incompatible, header.autoclear) {
        return Ok(());
    }
    let header = Header { incompatible, autoclear, ..header.clone() };
    storage.write(fields::FEATURES, &header.features_field()).await?;
    storage.flush().await
}
