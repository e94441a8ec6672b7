//! Which engine a worker runs on: chosen once at start.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::str::FromStr;

use super::Io;
use super::reactor::Reactor;
use super::threads::ThreadEngine;
use super::uring::RingEngine;

/// An engine that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Files on an io_uring ring.
    IoUring,
    /// Files on blocking threads.
    Threads,
    /// Everything by chance: tests start it by themselves.
    #[cfg(test)]
    Simulated,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io-uring",
            Self::Threads => "threads",
            #[cfg(test)]
            Self::Simulated => "simulated",
        })
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it works, else threads.
    #[default]
    Auto,
    /// This one, or an error.
    Exactly(EngineKind),
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "io-uring" => Ok(Self::Exactly(EngineKind::IoUring)),
            "threads" => Ok(Self::Exactly(EngineKind::Threads)),
            other => Err(format!("unknown engine `{other}`: one of auto, io-uring, threads")),
        }
    }
}

impl EngineChoice {
    /// Finds out once, on the current thread, which engine all workers will use.
    ///
    /// # Errors
    /// When the engine asked for does not work here; the message says which would.
    pub(super) fn resolve(self) -> io::Result<EngineKind> {
        let ring = || RingEngine::new(Rc::new(Reactor::new()?)).map(drop);
        match self {
            Self::Exactly(EngineKind::Threads) => Ok(EngineKind::Threads),
            #[cfg(test)]
            Self::Exactly(EngineKind::Simulated) => Err(io::ErrorKind::Unsupported.into()),
            Self::Exactly(EngineKind::IoUring) => {
                ring().map(|()| EngineKind::IoUring).map_err(|error| {
                    let message =
                        format!("io_uring does not work here ({error}); use the engine `threads`");
                    io::Error::new(error.kind(), message)
                })
            }
            Self::Auto => Ok(match ring() {
                Ok(()) => EngineKind::IoUring,
                Err(error) => {
                    tracing::info!("io_uring does not work here ({error}): using threads");
                    EngineKind::Threads
                }
            }),
        }
    }
}

/// The engine of the current thread.
pub(super) fn create(kind: EngineKind, reactor: Rc<Reactor>) -> io::Result<Rc<dyn Io>> {
    Ok(match kind {
        EngineKind::IoUring => Rc::new(RingEngine::new(reactor)?),
        EngineKind::Threads => Rc::new(ThreadEngine::new(reactor)),
        #[cfg(test)]
        EngineKind::Simulated => return Err(io::ErrorKind::Unsupported.into()),
    })
}
