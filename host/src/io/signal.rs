//! Signals that the daemon reacts to.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator;

/// One signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end.
    Terminate,
    /// SIGUSR1: log the counters.
    Report,
    /// SIGHUP: load again what has changed.
    Reload,
}

/// The signals of this process, from the moment on at which this is made.
#[derive(Debug)]
pub struct Signals {
    inner: iterator::Signals,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT, SIGUSR1 and SIGHUP.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inner: iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])? })
    }

    /// Waits for the next one, blocking the calling thread.
    pub fn wait(&mut self) -> Signal {
        loop {
            match self.inner.forever().next() {
                Some(SIGUSR1) => return Signal::Report,
                Some(SIGHUP) => return Signal::Reload,
                Some(_) => return Signal::Terminate,
                None => {}
            }
        }
    }
}

/// Sends this process SIGTERM: whoever waits for [`Signals`] learns of it.
pub fn ask_to_end() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
}
