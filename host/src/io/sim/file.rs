//! A simulated file: a name and a medium, in the place of a descriptor.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::time::Time;
use super::super::{FileStamp, OpenOptions};
use super::media::Media;
use super::simulation;

/// See the module. Files are opened and dropped; this one outlives a crash.
#[derive(Debug)]
pub(crate) struct SimFile {
    /// In the order of creation.
    pub(super) number: u64,
    media: Mutex<Media>,
    /// When it was changed last, nanoseconds.
    changed: AtomicU64,
}

/// File times are multiples of this, as those of a kernel are.
const TICK: Duration = Duration::from_millis(10);

impl SimFile {
    pub(super) fn new(number: u64, bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { number, media: Mutex::new(Media::new(bytes)), changed: AtomicU64::new(0) })
    }

    pub(super) fn media(&self) -> MutexGuard<'_, Media> {
        self.media.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.media().len()
    }

    pub(super) fn touch(&self, now: Time) {
        self.changed.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn stamp(&self) -> FileStamp {
        let tick = TICK.as_nanos() as u64;
        let changed_ns = self.changed.load(Ordering::Relaxed) / tick * tick;
        let now = simulation::current().map_or_else(Time::default, |shared| shared.now());
        FileStamp {
            size_bytes: self.len_bytes(),
            modified_ns: changed_ns,
            changed_ns,
            inode: self.number,
            age: now.since(Time::from_nanos(changed_ns)),
        }
    }
}

/// The file of the current thread's simulation; `None` outside of one.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Option<io::Result<Arc<SimFile>>> {
    let simulation = simulation::current()?;
    let name = path.to_string_lossy();
    Some(match (simulation.find_file(&name), options.create_bytes) {
        (Some(file), _) => Ok(file),
        (None, Some(len)) => {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            Ok(simulation.add_file(&name, vec![0; len]))
        }
        (None, None) => Err(io::ErrorKind::NotFound.into()),
    })
}
