//! A limit as a configuration gives it.

use std::time::Duration;

use super::bucket::nanos_of;
use super::{Bucket, Limiter, MAX_BURST, MAX_RATE};
use crate::text::text;
use crate::{ConfigError, Table};

/// What a burst may be at most, as the time that it takes at the rate itself.
const MAX_DEPTH: Duration = Duration::from_secs(1 << 32);

/// A limit, in requests, bytes or other units a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// The rate; 0 for no limit.
    pub rate: u64,
    /// The rate of a burst; 0 if it has none of its own.
    pub max: u64,
    /// How long a burst has that rate.
    pub max_seconds: u64,
}

/// The keys of a limit, as [`rate_keys!`](crate::rate_keys) makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Of its rate.
    pub rate: &'static str,
    /// Of the rate of a burst.
    pub max: &'static str,
    /// Of how long that lasts.
    pub length: &'static str,
}

/// The [`Keys`](crate::rate::Keys) of a limit: `KEY`, `KEY-max` and `KEY-max-length`.
#[macro_export]
macro_rules! rate_keys {
    ($key:literal) => {
        $crate::rate::Keys {
            rate: $key,
            max: concat!($key, "-max"),
            length: concat!($key, "-max-length"),
        }
    };
}

impl Limit {
    /// Reads a limit, whose rates `read` reads. `KEY-max` is the rate of a burst: after a pause as much passes
    /// above the limit as this rate brings in `KEY-max-length`, whole seconds, one if absent. A rate of 0 is no
    /// limit, as is none.
    ///
    /// ```
    /// use blockloom_sdk::rate::Limit;
    /// use blockloom_sdk::{Table, rate_keys};
    ///
    /// let mut table = Table::parse(r#"{ "bps": "1MiB", "bps-max": "4MiB" }"#)?;
    /// let limit = Limit::read(&mut table, &rate_keys!("bps"), Table::rate)?;
    /// assert_eq!(limit, Limit { rate: 1 << 20, max: 4 << 20, max_seconds: 1 });
    /// # Ok::<(), blockloom_sdk::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with it: the key, and what would be right.
    #[cold]
    pub fn read<'a>(
        table: &mut Table<'a>,
        keys: &Keys,
        read: fn(&mut Table<'a>, &'static str) -> Result<Option<u64>, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let mut wrong = Vec::new();
        let limit = Self::read_noting(table, keys, read, &mut wrong);
        match wrong.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(limit),
        }
    }

    /// The same, of which all that is wrong goes to `wrong`: it is no limit then.
    #[cold]
    pub fn read_noting<'a>(
        table: &mut Table<'a>,
        keys: &Keys,
        read: fn(&mut Table<'a>, &'static str) -> Result<Option<u64>, ConfigError>,
        wrong: &mut Vec<ConfigError>,
    ) -> Self {
        let known = wrong.len();
        let mut number = |key| {
            let rate = match read(table, key) {
                Ok(Some(rate)) if rate > MAX_RATE => {
                    Err(table.error(key, "is too high; leave it out for no limit"))
                }
                rate => rate,
            };
            ConfigError::note(rate, wrong).unwrap_or(0)
        };
        let (rate, max) = (number(keys.rate), number(keys.max));
        let length = ConfigError::note(table.duration(keys.length), wrong);
        if wrong.len() > known {
            return Self::default();
        }
        ConfigError::note(Self::fitting(table, keys, (rate, max), length), wrong)
    }

    fn fitting(
        table: &Table<'_>,
        keys: &Keys,
        (rate, max): (u64, u64),
        length: Option<Duration>,
    ) -> Result<Self, ConfigError> {
        let wrong = |key, message: &[&str]| Err(table.error(key, text(message)));
        if max > 0 && max < rate {
            return wrong(keys.max, &["must not be lower than ", keys.rate]);
        }
        let missing = ": give that, too";
        if max > 0 && rate == 0 {
            return wrong(keys.max, &["is the rate of a burst above ", keys.rate, missing]);
        }
        let Some(length) = length else {
            return Ok(Self { rate, max, max_seconds: u64::from(max > 0) });
        };
        let max_seconds = length.as_secs();
        if max == 0 {
            return wrong(keys.length, &["is how long a burst has the rate ", keys.max, missing]);
        }
        if length.subsec_nanos() > 0 || max_seconds == 0 || length > MAX_BURST {
            return wrong(keys.length, &["must be whole seconds, from 1s to 1h"]);
        }
        if max * max_seconds / rate > MAX_DEPTH.as_secs() {
            return wrong(keys.length, &["is too long for the rate ", keys.max]);
        }
        Ok(Self { rate, max, max_seconds })
    }

    /// What keeps it: none without a limit, and two if it has a burst longer than a second, which has a rate of its
    /// own. `burst` is what passes at once after a pause, as the time that it takes at the rate, where the limit
    /// does not say. `id` names it, in its lowest bit the burst. It is a limit of the costs number `unit` of
    /// requests in some lanes.
    pub fn limiters<const LANES: usize>(
        self,
        burst: Duration,
        (id, unit, lanes): (u64, usize, [bool; LANES]),
    ) -> impl Iterator<Item = Limiter<LANES>> {
        let burst_ns = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
        let depth_ns = match self.max {
            0 => burst_ns,
            max => nanos_of(max.saturating_mul(self.max_seconds), self.rate.max(1)),
        };
        let itself = (self.rate > 0).then_some((id & !1, self.rate, depth_ns));
        let is_long = self.max > 0 && self.max_seconds > 1;
        let of_burst = is_long.then_some((id | 1, self.max, burst_ns));
        itself.into_iter().chain(of_burst).map(move |(id, rate, depth_ns)| {
            let bucket = Bucket::new(rate, depth_ns);
            Limiter { id, unit, lanes, bucket }
        })
    }
}
