//! `-o key=value,…`: the options of `qemu-img create -o`, read once and then trusted.

use blockloom_qcow2::create::{Backing, CreateOptions, DataFile, Preallocation};
use blockloom_qcow2::format::{ClusterSize, CompressionType, RefcountWidth, Version};

use super::failure::{Failure, Result};
use super::layer::{Format, has_protocol};
use crate::config;

const KEYS: &str = "size, compat, cluster_size, refcount_bits, backing_file, backing_fmt, \
                    extended_l2, data_file, data_file_raw, lazy_refcounts, preallocation, \
                    compression_type";

/// What is to be made, as the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the disk, bytes; absent: the backing's.
    pub size_bytes: Option<u64>,
    /// The backing file's name, for the header.
    pub backing: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The data file's name, for the header.
    pub data_file: Option<String>,
    data_file_raw: bool,
    /// The data are those of a node that whoever opens the image knows.
    pub data_node: bool,
    compat: Option<Version>,
    cluster_size: Option<ClusterSize>,
    refcount_width: Option<RefcountWidth>,
    extended_l2: bool,
    lazy_refcounts: bool,
    preallocation: Preallocation,
    compression: Option<CompressionType>,
}

impl Wanted {
    /// Takes one `-o` argument: several options, the later one counts.
    pub(super) fn read(&mut self, text: &str) -> Result<()> {
        for option in split(text) {
            let Some((key, value)) = option.split_once('=') else {
                // As everywhere in QEMU: a switch without a value is on.
                self.set(&option, "on")?;
                continue;
            };
            self.set(key, value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let wrong = |problem: String| Failure::usage(format!("-o {key}={value}: {problem}"));
        let size = || parse_size(value).map_err(|problem| wrong(format!("the value {problem}")));
        match key {
            "size" => self.size_bytes = Some(size()?),
            "backing_file" => self.backing = Some(value.to_owned()),
            "backing_fmt" => self.backing_format = Some(value.to_owned()),
            "data_file" => self.data_file = Some(value.to_owned()),
            "data_file_raw" => self.data_file_raw = switch(value).map_err(wrong)?,
            "extended_l2" => self.extended_l2 = switch(value).map_err(wrong)?,
            "lazy_refcounts" => self.lazy_refcounts = switch(value).map_err(wrong)?,
            "cluster_size" => {
                let cluster = ClusterSize::from_bytes(size()?);
                self.cluster_size = Some(cluster.map_err(|error| wrong(error.to_string()))?);
            }
            "refcount_bits" => {
                let width = value.parse().ok().and_then(|bits| RefcountWidth::from_bits(bits).ok());
                let width = width.ok_or_else(|| wrong("1, 2, 4, 8, 16, 32 or 64 is needed".into()));
                self.refcount_width = Some(width?);
            }
            "compat" => {
                self.compat = Some(match value {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(wrong("0.10 or 1.1 is needed".into())),
                });
            }
            "compression_type" => {
                self.compression = Some(match value {
                    "zlib" => CompressionType::Deflate,
                    "zstd" => CompressionType::Zstd,
                    _ => return Err(wrong("zlib or zstd is needed".into())),
                });
            }
            "preallocation" => {
                self.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => return Err(wrong("off, metadata, falloc or full is needed".into())),
                };
            }
            "encryption" if value == "off" => {}
            _ if key == "encryption" || key.starts_with("encrypt.") => {
                return Err(wrong("encrypted images cannot be made: leave it out".into()));
            }
            _ => return Err(Failure::usage(format!("-o {key}: no such option; there are {KEYS}"))),
        }
        Ok(())
    }

    /// The options of an image with a disk of so many bytes.
    pub(super) fn options(&self, size_bytes: u64) -> Result<CreateOptions> {
        let mut options = CreateOptions::new(size_bytes);
        options.version = self.compat.unwrap_or(options.version);
        options.cluster_size = self.cluster_size.unwrap_or(options.cluster_size);
        options.refcount_width = self.refcount_width.unwrap_or(options.refcount_width);
        options.compression = self.compression.unwrap_or(options.compression);
        (options.extended_l2, options.lazy_refcounts) = (self.extended_l2, self.lazy_refcounts);
        options.preallocation = self.preallocation;
        options.backing = self
            .backing
            .as_ref()
            .map(|name| Backing { name: name.clone(), format: self.backing_format.clone() });
        options.data_file = self
            .data_file
            .as_ref()
            .map(|name| DataFile { name: Some(name.clone()), raw: self.data_file_raw })
            .or_else(|| self.data_node.then_some(DataFile { name: None, raw: true }));
        options.validate().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(options)
    }

    /// Whether room is taken beforehand.
    pub(super) fn is_preallocated(&self) -> bool {
        self.preallocation != Preallocation::Off
    }

    /// Whether a raw image can be what is wanted.
    pub(super) fn check_raw(&self) -> Result<()> {
        if self.preallocation == Preallocation::Metadata {
            let message = "-o preallocation=metadata: a raw image has none; off, falloc or full";
            return Err(Failure::usage(message));
        }
        let others = Self {
            size_bytes: self.size_bytes,
            preallocation: self.preallocation,
            ..Self::default()
        };
        if *self == others {
            return Ok(());
        }
        let message = "a raw image has no backing and of the options only preallocation: -O qcow2 makes \
                       a qcow2 image";
        Err(Failure::usage(message))
    }

    /// What does not depend on any file.
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Failure::usage(message));
        match (&self.backing, &self.backing_format) {
            (None, Some(_)) => return fail("--backing-format: needs --backing FILE".into()),
            (Some(name), None) => {
                return fail(format!(
                    "--backing {name}: say its format, --backing-format raw|qcow2"
                ));
            }
            (Some(_), Some(format)) if Format::of_name(format).is_none() => {
                return fail(format!("--backing-format {format}: raw or qcow2 is needed"));
            }
            _ => {}
        }
        for (option, name) in [("--backing", &self.backing), ("--data-file", &self.data_file)] {
            if let Some(name) = name
                && has_protocol(name.as_ref())
            {
                let message = "only files can be used; a name with a colon needs a path, `./a:b`";
                return fail(format!("{option} {name}: {message}"));
            }
        }
        if self.data_node && (self.data_file.is_some() || self.backing.is_some()) {
            let message = "--data-node: all bytes are those of the node: leave the data file, or the backing, out";
            return fail(message.into());
        }
        if self.data_file_raw && self.data_file.is_none() && !self.data_node {
            return fail("-o data_file_raw=on: needs --data-file FILE".into());
        }
        Ok(())
    }
}

/// A size as in graph files, or with a small letter as `qemu-img` takes it.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    match text.as_bytes() {
        [.., b'0'..=b'9', b'm' | b'g' | b't'] => config::parse_size(&text.to_ascii_uppercase()),
        _ => config::parse_size(text),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err("on or off is needed".into()),
    }
}

/// The options between commas; a doubled comma is one of a value.
fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == ',' && rest.next_if_eq(&',').is_none() {
            options.push(String::new());
        } else if let Some(option) = options.last_mut() {
            option.push(next);
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_at_single_commas() {
        let check = |text: &str, expect: &[&str]| assert_eq!(split(text), expect, "{text}");
        check("", &[]);
        check("a=1,b=2", &["a=1", "b=2"]);
        check("backing_file=a,,b,compat=1.1", &["backing_file=a,b", "compat=1.1"]);
        check("lazy_refcounts,", &["lazy_refcounts"]);
    }

    #[test]
    fn sizes_may_have_small_letters() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(parse_size(text).ok(), expect, "{text}");
        };
        check("10g", Some(10 << 30));
        check("3m", Some(3 << 20));
        check("3MiB", Some(3 << 20));
        check("3mb", None);
        check("m", None);
    }

    #[test]
    fn what_is_wrong_is_named_with_the_fix() {
        let check = |text: &str, expect: &str| {
            let failure = Wanted::default().read(text).expect_err(text);
            assert!(failure.code == 2 && failure.message.contains(expect), "{}", failure.message);
        };
        check("cluster_size=3k", "-o cluster_size=3k: ");
        check("cluster_size=4m", "-o cluster_size=4m: ");
        check("refcount_bits=3", "1, 2, 4, 8, 16, 32 or 64");
        check("compat=2", "0.10 or 1.1");
        check("lazy_refcounts=maybe", "on or off");
        check("cluster-size=64k", "cluster_size");
        check("encryption=on", "leave it out");
        check("preallocation=some", "off, metadata, falloc or full");
    }
}
