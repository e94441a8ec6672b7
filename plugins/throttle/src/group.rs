//! What the members of a throttle share: the limits, and the queues of those that wait for them.

use blockloom_sdk::Kind;
use blockloom_sdk::rate::FairQueue;

use crate::ThrottleConfig;

/// The limits of a throttle, what they have admitted, and what waits for them, by keys of the caller's: a
/// [`FairQueue`] of reads and writes, which cost requests and bytes.
///
/// ```
/// use blockloom_plugin_throttle::{Throttle, ThrottleConfig};
/// use blockloom_sdk::Kind;
/// use blockloom_sdk::rate::Next;
///
/// let config = ThrottleConfig::from_json(r#"{ "iops": 1000, "burst": "1ms" }"#)?;
/// let mut throttle = Throttle::new(&config);
/// let now_ns = 7_000_000;
/// assert!(throttle.offer(0, Kind::Read, 4096, 'a', now_ns));
/// assert!(throttle.offer(0, Kind::Read, 4096, 'b', now_ns));
/// assert!(!throttle.offer(0, Kind::Read, 4096, 'c', now_ns), "it waits");
/// assert_eq!(throttle.queue.next(now_ns), Next::At(8_000_000));
/// # Ok::<(), blockloom_sdk::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Throttle<K> {
    iops_size: u64,
    /// What waits, and what was admitted.
    pub queue: FairQueue<K, 2, 2>,
}

impl<K: Copy + PartialEq> Throttle<K> {
    /// A throttle that has admitted nothing.
    #[must_use]
    pub fn new(config: &ThrottleConfig) -> Self {
        Self { iops_size: config.iops_size, queue: FairQueue::new(config.limiters()) }
    }

    /// Puts other limits in force. What was admitted under the former ones counts on: where a quantity stays
    /// limited, the new rate begins when the old has leaked out.
    pub fn reconfigure(&mut self, config: &ThrottleConfig) {
        self.iops_size = config.iops_size;
        self.queue.reconfigure(config.limiters());
    }

    /// Offers a request of a member: whether it may start at once. If not, it waits under `key` until
    /// [`FairQueue::next`] names it.
    ///
    /// Zeroing and discarding count as writes, as one request each and as no bytes: their length is not what
    /// they cost, and no data comes from the client. A flush or a resize never waits.
    #[inline]
    pub fn offer(&mut self, member: u16, kind: Kind, len: u64, key: K, now_ns: u64) -> bool {
        let (lane, bytes) = match kind {
            Kind::Read => (0, len),
            Kind::Write => (1, len),
            Kind::Zero | Kind::Discard => (1, 0),
            Kind::Flush | Kind::Resize => return true,
        };
        let requests = match self.iops_size {
            0 => 1,
            size => bytes.div_ceil(size).max(1),
        };
        self.queue.offer((member, lane), [requests, bytes], key, now_ns)
    }
}
