//! The control socket: QMP.

mod backing;
mod basics;
mod blockdev;
mod checkpoint;
mod clients;
mod corrupt;
mod ctl;
mod differential;
mod experiments;
mod exports;
mod grown;
mod images;
mod jobs;
mod moves;
mod mutations;
mod plugins;
mod python;
mod queries;
mod read_only;
mod readme;
mod sequences;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Daemon, Scratch};

use crate::{memory_disk, scratch, serve};

/// A daemon with a control socket.
pub(crate) struct Controlled {
    pub(crate) daemon: Daemon,
    socket: PathBuf,
    pub(crate) scratch: Scratch,
}

/// Ends what goes on beside a test, also if the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Controlled {
    fn start(text: &str, arguments: &[&str]) -> Self {
        Self::start_in(scratch(), text, arguments)
    }

    /// The same, where there are images already.
    pub(crate) fn start_in(scratch: Scratch, text: &str, arguments: &[&str]) -> Self {
        let socket = scratch.path("control.sock");
        let path = socket.display().to_string();
        let arguments: Vec<&str> =
            ["--control", path.as_str()].into_iter().chain(arguments.iter().copied()).collect();
        let daemon = serve(&scratch, text, &arguments);
        Self { daemon, socket, scratch }
    }

    /// One memory node `disk` behind the drive `vda`, exported.
    fn memory() -> Self {
        Self::start(&memory_disk(crate::MIB), &[])
    }

    pub(crate) fn client(&self) -> Qmp {
        Qmp::open(&self.socket)
    }

    /// It is killed; its images are there still.
    fn kill(self) -> Scratch {
        self.daemon.kill();
        self.scratch
    }

    /// It must end well, and leave nothing.
    pub(crate) fn finish(self) -> String {
        self.end().0
    }

    /// The same; what it has left of images is there still.
    fn end(self) -> (String, Scratch) {
        let log = self.daemon.finish();
        assert!(!self.scratch.path("control.sock").exists(), "the socket is removed");
        (log, self.scratch)
    }
}
