//! Rates: limits, with bursts, and fair queues of what waits for them.
//!
//! - [`Limit`] is a limit as a configuration gives it, which it reads; [`Limit::limiters`] puts it to work.
//! - [`FairQueue`] has some of them in force: what they allow starts at once, the rest waits, and those that share
//!   the limits get equal parts.
//! - [`Bucket`] is the arithmetic of one limit, for who needs no queue.
//!
//! All of it is arithmetic: it looks at no clock, and takes times in nanoseconds. It fits [`decide`], [`release`]
//! and [`gone`], as in the plugin `throttle`, and works natively as well.
//!
//! [`decide`]: crate::Filter::decide
//! [`release`]: crate::Filter::release
//! [`gone`]: crate::Filter::gone

mod bucket;
mod limit;
mod queue;

use std::time::Duration;

pub use bucket::Bucket;
pub use limit::{Keys, Limit};
pub use queue::{CREDIT_NS, FairQueue, Limiter, Next};

/// The highest rate, in units a second: of bytes, 16 GiB.
pub const MAX_RATE: u64 = 1 << 34;
/// The longest burst.
pub const MAX_BURST: Duration = Duration::from_secs(3600);
