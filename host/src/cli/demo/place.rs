//! Where a demonstration takes place: a directory that goes with it, and the wish to end early.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::io::{Signal, Signals, TemporaryDirectory, background};

/// See the module.
pub(super) struct Place {
    directory: TemporaryDirectory,
    interrupted: Arc<Interrupted>,
}

#[derive(Default)]
struct Interrupted {
    is_so: Mutex<bool>,
    changed: Condvar,
}

impl Place {
    /// Makes it. From here on a signal only asks for the end: whoever waits by [`Self::wait`] learns of it.
    ///
    /// # Errors
    /// In words.
    pub(super) fn new() -> Result<Self, String> {
        let signals = Signals::new().map_err(|error| format!("cannot take over signals: {error}"));
        let mut signals = signals?;
        let directory = TemporaryDirectory::new("blockloom-demo-");
        let directory = directory.map_err(|error| format!("there is no room for it: {error}"))?;
        let interrupted = Arc::<Interrupted>::default();
        let told = Arc::clone(&interrupted);
        let watch = move || {
            while signals.wait() != Signal::Terminate {}
            *told.is_so.lock().unwrap_or_else(PoisonError::into_inner) = true;
            told.changed.notify_all();
        };
        background("signals", watch).map_err(|error| error.to_string())?;
        Ok(Self { directory, interrupted })
    }

    /// Lets some time pass.
    ///
    /// # Errors
    /// When it is to end early.
    pub(super) fn wait(&self, time: Duration) -> Result<(), String> {
        let is_so = self.interrupted.is_so.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.interrupted.changed.wait_timeout_while(is_so, time, |is_so| !*is_so);
        let (is_so, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *is_so { Err("interrupted".into()) } else { Ok(()) }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }
}
