//! An image that is opened in another way while it runs. What it knows of the image goes on: nobody else has
//! changed that.

use std::sync::Arc;

use super::Qcow2Node;
use super::storage::from_engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::node::{Node, NodeFuture, OpenMode, Reopen, Reopening};

impl Reopening for Qcow2Node {
    fn mode(&self) -> OpenMode {
        self.mode
    }

    fn reopened(&self, how: &Reopen) -> Result<Arc<dyn Node>> {
        let write = how.write.unwrap_or(self.mode.write);
        if how.direct.is_some() || how.discard.is_some() {
            let message = "how its bytes come to a file is for the node below to say";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        if write && self.info.dirty {
            let message = "the image was not closed by who wrote it last, and counts its clusters \
                           late: `blockloom image check --repair=all` counts them again";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Arc::new(Self {
            image: Arc::clone(&self.image),
            info: self.info.clone(),
            mode: OpenMode { write, auto: false, for_job: how.for_job },
            data: self.data,
            backing: self.backing,
            bitmaps: Arc::clone(&self.bitmaps),
            under_way: Arc::clone(&self.under_way),
            alarm: Arc::clone(&self.alarm),
        }))
    }

    fn hand_over<'a>(&'a self, cx: Cx<'a>, to: OpenMode) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let container = self.container(cx)?;
            if !self.mode.write {
                return Ok(());
            }
            if to.write {
                // What is below may be opened in another way, too.
                return self.image.flush(&container).await.map_err(from_engine);
            }
            let stored = self.bitmaps.keeping.store(self, cx, false).await;
            // Whoever goes on with them has to mark them as in use again.
            self.forget_bitmaps();
            stored?;
            self.image.make_read_only(&container).await.map_err(from_engine)
        })
    }

    fn take_over<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            if !self.mode.write {
                return Ok(());
            }
            let container = self.container(cx)?;
            self.image.make_writable(&container).await.map_err(from_engine)?;
            self.begin_to_follow(cx).await
        })
    }
}
