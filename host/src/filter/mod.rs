//! The host's own filters, native twins of bundled plugins with the same configuration, and what any native
//! filter is: a [`Filter`].

mod backup;
mod copy_on_read;
#[cfg(test)]
mod grown;
mod native;
mod pass;
mod point_in_time;
mod throttle;
#[cfg(test)]
mod twins;
mod view;

pub use backup::BackupNode;
pub use copy_on_read::CopyOnReadNode;
pub use native::{Change, ChangeKind, Filter};
pub use pass::PassNode;
pub(crate) use point_in_time::PointInTime;
pub use throttle::{ThrottleGroup, ThrottleNode};
pub use view::ViewNode;
