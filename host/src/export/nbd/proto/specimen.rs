//! Exports to try the protocol on, for fuzzing and for the tests.

use super::export_info::{BlockSizes, ExportDirectory, ExportInfo, ExportSummary, Features};

/// An export of 1 MiB that can do everything.
pub(super) fn export(name: &str) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: "a test disk".to_owned(),
        size_bytes: 1 << 20,
        read_only: false,
        features: Features::ALL,
        block_sizes: BlockSizes::default(),
        contexts: vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:daily".to_owned()],
    }
}

/// `disk`, which is also the default export, and `cd`, which is read-only and has sectors.
pub(super) struct Specimens;

impl ExportDirectory for Specimens {
    fn names(&self) -> Vec<ExportSummary> {
        let summary = |name: &str, description: &str| ExportSummary {
            name: name.to_owned(),
            description: description.to_owned(),
        };
        vec![summary("disk", "a test disk"), summary("cd", "")]
    }

    fn lookup(&self, name: &str) -> Option<ExportInfo> {
        match name {
            "" | "disk" => Some(export("disk")),
            "cd" => Some(ExportInfo {
                description: String::new(),
                read_only: true,
                block_sizes: BlockSizes::new(2048, 4096, 1 << 20).unwrap_or_default(),
                contexts: vec!["base:allocation".to_owned()],
                ..export("cd")
            }),
            _ => None,
        }
    }
}
