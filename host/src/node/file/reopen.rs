//! A file that is opened in another way while it runs: by another descriptor, beside the one that is.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::FileNode;
use super::open::{check_length, mode_of, not_locked};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{File, OpenOptions};
use crate::node::{Node, NodeFuture, OpenMode, Reopen, Reopening};

impl Reopening for FileNode {
    fn mode(&self) -> OpenMode {
        self.mode
    }

    fn reopened(&self, how: &Reopen) -> Result<Arc<dyn Node>> {
        let path = self.file.path();
        let write = how.write.unwrap_or(self.mode.write);
        let auto = how.auto.unwrap_or(self.mode.auto);
        let direct = how.direct.unwrap_or_else(|| self.file.is_direct());
        let file = File::open(path, &OpenOptions { write, direct, ..OpenOptions::default() });
        let failed = |what: &str, error: &std::io::Error| {
            Error::os(format!("cannot {what} `{}`", path.display()), error)
        };
        let file = Arc::new(file.map_err(|error| failed("open", &error))?);
        let (was, is) = (self.file.identity(), file.identity());
        if was.map_err(|error| failed("look at", &error))?
            != is.map_err(|error| failed("look at", &error))?
        {
            let message = format!("`{}` is another file than the one that is open", path.display());
            return Err(Error::new(ErrorKind::Io, message));
        }
        check_length(&file, self.known.len_bytes.load(Ordering::Relaxed))?;
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = held.as_ref().map(|held| held.also(&file, mode_of(write))).transpose();
        let lock = lock.map_err(|error| not_locked(&file, &error))?;
        Ok(Arc::new(Self {
            file,
            known: Arc::clone(&self.known),
            mode: OpenMode { write, auto, for_job: how.for_job },
            discard: how.discard.unwrap_or(self.discard),
            lock: Mutex::new(lock),
        }))
    }

    fn hand_over<'a>(&'a self, _: Cx<'a>, to: OpenMode) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let synced = if self.mode.write { self.sync().await } else { Ok(()) };
            match synced {
                // Its last writer goes, whatever becomes of what it has written: its flushes have said so.
                Err(error) if to.auto && !to.write => {
                    tracing::warn!("{error}");
                    Ok(())
                }
                synced => synced,
            }
        })
    }

    fn take_over<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn leave(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            lock.release();
        }
    }
}
