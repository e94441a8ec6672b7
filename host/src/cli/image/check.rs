//! `blockloom image check`: whether an image's metadata are in order, with the numbers and exit codes of
//! `qemu-img check`.

use std::path::PathBuf;

use blockloom_qcow2::check::{CheckOptions, CheckReport, FINDINGS_MAX, Repair, check};
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::failure::{Failure, Result};
use super::layer::{Format, Layer};
use super::output::{Lines, OutputFormat};
use crate::node::Access;

/// Exit codes of `qemu-img check`.
pub(super) mod exit {
    /// The image is in order, or is now.
    pub(super) const CLEAN: u8 = 0;
    /// The check could not be made, or not wholly.
    pub(super) const INCOMPLETE: u8 = 1;
    /// Data are lost, or will be when the image is written.
    pub(super) const CORRUPT: u8 = 2;
    /// Space is lost, nothing else.
    pub(super) const LEAKS: u8 = 3;
    /// The format has nothing to check.
    pub(super) const NOT_SUPPORTED: u8 = 63;
}

/// What `--repair` repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RepairChoice {
    /// Space that is lost.
    Leaks,
    /// Everything that can be repaired without a guess.
    All,
}

/// Checks an image; the exit code says what is left to repair.
pub(super) async fn check_image(
    path: PathBuf,
    format: Option<Format>,
    repair: Option<RepairChoice>,
    access: Access,
    output: OutputFormat,
) -> Result<u8> {
    let layer = Layer::open(&path, format, access).await?;
    if layer.header.is_none() {
        let message = format!("`{}`: a raw image has nothing to check", path.display());
        return Err(Failure { code: exit::NOT_SUPPORTED, message });
    }
    let repair = match repair {
        None => Repair::None,
        Some(RepairChoice::Leaks) => Repair::Leaks,
        Some(RepairChoice::All) => Repair::All,
    };
    let options = CheckOptions { repair, ..CheckOptions::default() };
    let report = check(&layer.storage, &options).await;
    let report = report.map_err(|error| Failure::of_file(&path, error))?;
    let mut lines = Lines::new();
    match output {
        OutputFormat::Json => {
            let mut fields = json(&report);
            fields.insert("filename".into(), path.to_string_lossy().into());
            fields.insert("format".into(), "qcow2".into());
            lines.json(&Value::Object(fields));
        }
        OutputFormat::Human => lines.put(&human(&report)),
    }
    Ok(exit_code(&report))
}

fn exit_code(report: &CheckReport) -> u8 {
    match report {
        _ if report.corruptions > 0 => exit::CORRUPT,
        _ if report.check_errors > 0 => exit::INCOMPLETE,
        _ if report.leaks > 0 => exit::LEAKS,
        _ => exit::CLEAN,
    }
}

/// Counts that are zero are left out, as `qemu-img` does, except the errors.
fn json(report: &CheckReport) -> Map<String, Value> {
    let optional = [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    let known = optional.into_iter().filter(|(_, count)| *count != 0);
    let all = known.chain([("check-errors", report.check_errors)]);
    all.map(|(key, count)| (key.to_owned(), count.into())).collect()
}

fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    let mut line = |line: String| text = std::mem::take(&mut text) + &line + "\n";
    report.findings.iter().for_each(|finding| line(finding.clone()));
    if report.findings.len() >= FINDINGS_MAX {
        line(format!("(only the first {FINDINGS_MAX} findings are shown)"));
    }
    if report.leaks_fixed + report.corruptions_fixed > 0 {
        line(format!(
            "repaired: {} leaked clusters, {} corruptions",
            report.leaks_fixed, report.corruptions_fixed
        ));
    }
    if report.corruptions > 0 {
        line(format!("{} errors were found: data may be corrupted", report.corruptions));
    }
    if report.leaks > 0 {
        line(format!("{} leaked clusters were found: space is lost, no data", report.leaks));
    }
    if report.check_errors > 0 {
        line(format!("{} things could not be checked", report.check_errors));
    }
    if report.is_clean() {
        line("No errors were found on the image.".to_owned());
    }
    if report.total_clusters > 0 {
        let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        let allocated = report.allocated_clusters;
        line(format!(
            "{allocated}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.total_clusters,
            percent(allocated, report.total_clusters),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        ));
    }
    if report.image_end_offset > 0 {
        line(format!("Image end offset: {}", report.image_end_offset));
    }
    text
}
