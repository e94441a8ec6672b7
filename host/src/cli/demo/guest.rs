//! Load as of a guest: reads that are checked, writes that are remembered. It can be stopped between two requests,
//! so that what a disk shows at that moment is known.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::{GRANULE, Ledger};
use super::nbd::Disk;
use crate::io::background;

/// Bytes of a request.
const REQUEST_BYTES: u64 = 4096;

/// What a guest knows of its disk.
pub(super) struct Known {
    /// What it shows.
    pub(super) bytes: Vec<u8>,
    pub(super) ledger: Ledger,
    pub(super) requests: u64,
    /// Granules that are written, from this one on.
    pub(super) hot: u64,
    /// Granules that are read, from the first one on.
    pub(super) read: u64,
    /// What went wrong.
    pub(super) failed: Option<String>,
    ends: bool,
    random: u64,
}

/// See the module.
pub(super) struct Guest {
    known: Arc<Mutex<Known>>,
    ended: Receiver<()>,
}

/// Granules that are written in one phase.
const HOT_GRANULES: u64 = 24;

impl Guest {
    /// Begins, on a disk that shows this.
    ///
    /// # Errors
    /// In words.
    pub(super) fn start(
        socket: &Path,
        export: &str,
        bytes: Vec<u8>,
        ledger: Ledger,
    ) -> Result<Self, String> {
        let disk = Disk::open(socket, export)?;
        let (requests, failed, ends, random) = (0, None, false, 0x9e37_79b9_7f4a_7c15);
        let (hot, read) = (0, 1);
        let known = Known { bytes, ledger, requests, hot, read, failed, ends, random };
        let known = Arc::new(Mutex::new(known));
        let (end, ended) = channel();
        let shared = Arc::clone(&known);
        let started = background("guest", move || run(disk, &shared, end));
        started.map_err(|error| error.to_string())?;
        Ok(Self { known, ended })
    }

    /// Stops it as long as what is returned lives.
    pub(super) fn pause(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Ends it; gives the number of its requests.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(super) fn end(self) -> Result<u64, String> {
        self.pause().ends = true;
        // An error only says that it has gone already.
        let _ = self.ended.recv();
        let known = self.pause();
        known.failed.clone().map_or(Ok(known.requests), Err)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pause().ends = true;
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut disk: Disk, known: &Mutex<Known>, end: Sender<()>) {
    loop {
        {
            let mut known = lock(known);
            if known.ends || known.failed.is_some() {
                break;
            }
            if let Err(error) = known.request(&mut disk) {
                known.failed = Some(error);
            }
        }
        // Who wants it to stand still is to have it.
        std::thread::yield_now();
    }
    disk.close();
    drop(end);
}

impl Known {
    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*: any sequence does, as long as it is the same each time.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    /// One read or write.
    fn request(&mut self, disk: &mut Disk) -> Result<(), String> {
        self.requests += 1;
        let size = self.bytes.len() as u64;
        let within = self.below(GRANULE / REQUEST_BYTES) * REQUEST_BYTES;
        if self.below(3) == 0 {
            let granule = (self.hot + self.below(HOT_GRANULES)) % (size / GRANULE);
            let value = u8::try_from(self.below(255)).unwrap_or(0) + 1;
            let offset = granule * GRANULE + within;
            // From its beginning on it may be there.
            self.ledger.write(granule);
            let at = offset as usize;
            self.bytes[at..at + REQUEST_BYTES as usize].fill(value);
            return disk.write(offset, &[value; REQUEST_BYTES as usize]);
        }
        let granule = self.below(self.read.min(size / GRANULE));
        let offset = granule * GRANULE + within;
        self.ledger.read(granule);
        let read = disk.read(offset, REQUEST_BYTES as u32)?;
        let at = offset as usize;
        match read == self.bytes[at..at + REQUEST_BYTES as usize] {
            true => Ok(()),
            false => Err(format!("what was read at {offset} is not what was written there")),
        }
    }
}
