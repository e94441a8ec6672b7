//! The host of a demonstration: images in a directory, served over NBD.

use std::time::Duration;

use super::super::progress::{Bars, Progress};
use super::ledger::{GRANULE, Granules};
use super::place::Place;
use crate::block_on;
use crate::graph::{Applied, Transaction};
use crate::host::{Fragment, Host, Overrides, start};
use crate::job::{JobEnd, JobHandle, JobSpec, JobStatus};

/// Size of the disk.
pub(super) const SIZE: u64 = 64 << 20;
/// Granules that the base has: what was installed on it.
const INSTALLED: u64 = 384;

const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The installed image, alone.
const BASE: &str = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
create = { size = "64MiB" }

[drive.vda]
root = "base"
writable = true
"#;

/// A fresh overlay of it, behind plugins.
const GRAPH: &str = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }

[node.overlay]
driver = "qcow2"
file = { driver = "file", path = "overlay.qcow2" }
backing = "base"
create = { size = "64MiB" }

[node.slow]
driver = "plugin"
plugin = "throttle"
child.file = "overlay"
on-fault = "restart"
config = { iops = 20000 }

[node.cor]
driver = "plugin"
plugin = "copy-on-read"
child.file = "slow"
grant.file = ["read", "write-unchanged"]
on-fault = "restart"

[node.kept]
driver = "memory"
size = "64MiB"

[node.before]
driver = "plugin"
plugin = "backup"
child.file = "cor"
child.target = "kept"
grant.file = ["read"]
grant.target = ["write"]
config = { sync = "none" }

[node.then]
driver = "plugin-view"
of = "before"
view = "snapshot"

[drive.vda]
root = "before"

[bitmap.daily]
drive = "vda"
granularity = "64KiB"

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:vda.sock"
writable = true
bitmaps = ["daily"]
"#;

/// See the module.
pub(super) struct Scene<'a> {
    pub(super) place: &'a Place,
    pub(super) host: Host,
    bars: Bars,
}

/// What can be shown of an error.
pub(super) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<'a> Scene<'a> {
    /// Installs something, and serves an overlay of it; gives what the disk shows, and which granules that is.
    ///
    /// # Errors
    /// In words.
    pub(super) fn start(place: &'a Place) -> Result<(Self, Vec<u8>, Granules), String> {
        let shown = install(place)?;
        let host = serve(place, GRAPH)?;
        Ok((Self { place, host, bars: Bars::new() }, shown, (0..INSTALLED).collect()))
    }

    /// Says what comes.
    pub(super) fn say(&mut self, line: &str) {
        self.bars.print(line);
    }

    /// Adds an image: `more` is what its description says beside its file.
    ///
    /// # Errors
    /// In words.
    pub(super) fn add_image(&self, name: &str, more: &str) -> Result<(), String> {
        let text = format!(
            "[node.{name}]\ndriver = \"qcow2\"\n\
             file = {{ driver = \"file\", path = \"{name}.qcow2\" }}\n\
             create = {{ size = \"64MiB\" }}\n{more}"
        );
        let fragment = Fragment::toml(name, &text).in_dir(self.place.directory());
        self.host.add(&fragment).map(drop).map_err(words)
    }

    /// Starts a job, at the instant of a transaction.
    ///
    /// # Errors
    /// In words.
    pub(super) fn start_job(
        &self,
        job: JobSpec,
        with: Transaction,
    ) -> Result<(Applied, JobHandle), String> {
        let started = block_on(self.host.start_jobs(vec![job], false, with)).map_err(words)?;
        let (applied, jobs) = started;
        let job = jobs.into_iter().next().ok_or("there is no job")?;
        Ok((applied, job))
    }

    /// Shows how far a job is until it has ended well; gives the bytes that it has copied.
    ///
    /// # Errors
    /// In words; also when all is to end early.
    pub(super) fn follow(&mut self, job: &JobHandle) -> Result<u64, String> {
        loop {
            let info = job.info();
            let progress = Progress {
                kind: info.kind.to_owned(),
                name: info.id.to_string(),
                state: info.status.to_string(),
                done_bytes: info.progress.done_bytes,
                total_bytes: info.progress.total_bytes,
            };
            self.bars.show(vec![progress.bar()]);
            if info.end.is_some() {
                self.bars.show(Vec::new());
                return match block_on(job.wait()) {
                    JobEnd::Completed => Ok(info.progress.done_bytes),
                    JobEnd::Cancelled => Err(format!("job `{}` was cancelled", info.id)),
                    JobEnd::Failed(error) => Err(format!("job `{}`: {error}", info.id)),
                };
            }
            if info.status == JobStatus::Ready {
                // It may have been asked already.
                let _ = job.complete();
            }
            self.place.wait(LOOK_PAUSE)?;
        }
    }

    /// What a node shows.
    ///
    /// # Errors
    /// In words.
    pub(super) fn read_node(&self, node: &str) -> Result<Vec<u8>, String> {
        const DRIVE: &str = "restored";
        block_on(self.host.add_drive(DRIVE, Some(node), false)).map_err(words)?;
        let shown = self.read_all(DRIVE);
        block_on(self.host.remove_drive(DRIVE)).map_err(words)?;
        shown
    }

    fn read_all(&self, drive: &str) -> Result<Vec<u8>, String> {
        const PIECE: usize = 1 << 20;
        let drive = self.host.drive(drive).map_err(words)?;
        let mut shown = Vec::new();
        while (shown.len() as u64) < SIZE {
            let read = block_on(drive.read(shown.len() as u64, PIECE)).map_err(words)?;
            shown.extend_from_slice(&read);
        }
        Ok(shown)
    }
}

fn serve(place: &Place, text: &str) -> Result<Host, String> {
    let graph = place.path("graph.toml");
    crate::io::write_file(&graph, text.as_bytes()).map_err(words)?;
    let (host, _) = start(&graph, Overrides::default()).map_err(words)?;
    Ok(host)
}

/// Makes the base, with something on it.
fn install(place: &Place) -> Result<Vec<u8>, String> {
    let host = serve(place, BASE)?;
    let drive = host.drive("vda").map_err(words)?;
    let mut shown = vec![0; SIZE as usize];
    for granule in 0..INSTALLED {
        let value = u8::try_from(granule % 251).unwrap_or(0) + 1;
        let at = (granule * GRANULE) as usize;
        shown[at..at + GRANULE as usize].fill(value);
        let bytes = &shown[at..at + GRANULE as usize];
        block_on(drive.write(granule * GRANULE, bytes)).map_err(words)?;
        place.wait(Duration::ZERO)?;
    }
    drop(drive);
    host.shutdown().map_err(words)?;
    Ok(shown)
}
