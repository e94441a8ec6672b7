//! The host's own filters: native twins of bundled plugins, with the same configuration.

mod backup;
mod copy_on_read;
mod pass;
mod point_in_time;
mod throttle;
mod view;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

pub use backup::BackupNode;
pub use copy_on_read::CopyOnReadNode;
pub use pass::PassNode;
pub(crate) use point_in_time::PointInTime;
pub use throttle::{ThrottleGroup, ThrottleNode};
pub use view::ViewNode;

use crate::graph::Cx;
use crate::io::{Time, sleep_until, turn_now};

/// Keeps a request until its time, or until the node is drained.
async fn hold_until(cx: Cx<'_>, time: Time) {
    if time <= turn_now() {
        return;
    }
    let mut timer = pin!(sleep_until(time));
    poll_fn(|task| if cx.poll_drained(task) { Poll::Ready(()) } else { timer.as_mut().poll(task) })
        .await;
}
