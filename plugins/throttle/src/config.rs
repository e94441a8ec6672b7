//! What a throttle is configured with.

use std::time::Duration;

use blockloom_sdk::{ConfigError, Table};

use crate::bucket::nanos_of;

/// How much may pass ahead of the rate after a pause, if the configuration does not say.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);
/// The longest burst.
pub const MAX_BURST: Duration = Duration::from_secs(3600);
/// The highest limit, in requests or bytes a second: 16 GiB.
pub const MAX_RATE: u64 = 1 << 34;
/// What a burst may be at most, as the time that it takes at the rate itself.
const MAX_DEPTH: Duration = Duration::from_secs(1 << 32);

/// Limits of a throttle. Rates are a second's; none is no limit.
///
/// | key | meaning |
/// |---|---|
/// | `iops` | requests a second, reads and writes together |
/// | `iops-read`, `iops-write` | the same, separately |
/// | `bps` | bytes a second (`"400MiB"`), reads and writes together |
/// | `bps-read`, `bps-write` | the same, separately |
/// | `LIMIT-max` | of each of these, the rate of a burst: after a pause as much passes above the limit as this rate brings in `LIMIT-max-length` |
/// | `LIMIT-max-length` | whole seconds (`"10s"`): one if absent, which passes at once; with more the burst, too, keeps to its rate |
/// | `burst` | what may pass at once after a pause, as the time that it takes at the rate (with `LIMIT-max-length`, that of the burst); 100 ms if absent |
/// | `iops-size` | bytes that count as one request (`"64KiB"`): a longer one counts as several. Absent: each is one |
///
/// A limit of 0 is none. One quantity is limited either together or separately. These are what QEMU's throttle
/// groups have, with its defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleConfig {
    /// Of requests and of bytes: of reads and writes together, of reads, of writes.
    pub limits: [[Limit; 3]; 2],
    /// Bytes that count as one request; 0 if each counts as one.
    pub iops_size: u64,
    /// What may pass ahead of the rate after a pause.
    pub burst: Duration,
}

/// A limit; in requests or bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// The rate; 0 for no limit.
    pub rate: u64,
    /// The rate of a burst; 0 if it has none of its own.
    pub max: u64,
    /// How long a burst has that rate.
    pub max_seconds: u64,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self { limits: Default::default(), iops_size: 0, burst: DEFAULT_BURST }
    }
}

impl ThrottleConfig {
    /// Reads a JSON object.
    ///
    /// # Errors
    ///
    /// What is wrong with it: the key, and what would be right.
    ///
    /// ```
    /// use blockloom_plugin_throttle::ThrottleConfig;
    ///
    /// let config = ThrottleConfig::from_json(r#"{ "iops": 20000, "bps": "400MiB" }"#)?;
    /// assert_eq!(config.limits[1][0].rate, 400 << 20);
    /// assert!(ThrottleConfig::from_json(r#"{ "iops": 5, "iops-read": 5 }"#).is_err());
    /// # Ok::<(), blockloom_sdk::ConfigError>(())
    /// ```
    #[cold]
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let mut config = Self::default();
        for (quantity, keys) in KEYS.iter().enumerate() {
            for (which, keys) in keys.iter().enumerate() {
                config.limits[quantity][which] = limit(&mut table, keys, quantity == 1)?;
            }
            let [total, reads, writes] = config.limits[quantity];
            if total.rate > 0 && reads.rate + writes.rate > 0 {
                let message = "limits reads and writes together; give either it or ";
                let message = String::from(message) + keys[1][0] + " and " + keys[2][0];
                return Err(table.error(keys[0][0], message));
            }
        }
        config.iops_size = table.size("iops-size")?.unwrap_or(0);
        if config.iops_size > 0 && config.limits[0].iter().all(|limit| limit.rate == 0) {
            return Err(table.error("iops-size", "has a meaning only with a limit of requests"));
        }
        config.burst = table.duration("burst")?.unwrap_or(DEFAULT_BURST);
        if config.burst > MAX_BURST {
            return Err(table.error("burst", "must be at most 1h"));
        }
        table.finish()?;
        Ok(config)
    }
}

impl Limit {
    /// Rate and depth in nanoseconds of what makes it: of itself, and of its burst.
    pub(crate) fn buckets(self, burst: Duration) -> impl Iterator<Item = (bool, (u64, u64))> {
        let burst_ns = burst.as_nanos() as u64;
        let depth_ns = match self.max {
            0 => burst_ns,
            max => nanos_of(max * self.max_seconds, self.rate.max(1)),
        };
        let itself = (self.rate > 0).then_some((false, (self.rate, depth_ns)));
        let is_long = self.max > 0 && self.max_seconds > 1;
        itself.into_iter().chain(is_long.then_some((true, (self.max, burst_ns))))
    }
}

/// Of each limit: its own key, that of its burst, and of how long that lasts.
const KEYS: [[[&str; 3]; 3]; 2] = [
    [
        ["iops", "iops-max", "iops-max-length"],
        ["iops-read", "iops-read-max", "iops-read-max-length"],
        ["iops-write", "iops-write-max", "iops-write-max-length"],
    ],
    [
        ["bps", "bps-max", "bps-max-length"],
        ["bps-read", "bps-read-max", "bps-read-max-length"],
        ["bps-write", "bps-write-max", "bps-write-max-length"],
    ],
];

fn limit(
    table: &mut Table<'_>,
    [key, key_max, key_length]: &[&'static str; 3],
    in_bytes: bool,
) -> Result<Limit, ConfigError> {
    let (rate, max) = (number(table, key, in_bytes)?, number(table, key_max, in_bytes)?);
    let length = table.duration(key_length)?;
    let wrong = |key, message| Err(table.error(key, message));
    if max > 0 && max < rate {
        return wrong(key_max, String::from("must not be lower than ") + key);
    }
    if max > 0 && rate == 0 {
        return wrong(
            key_max,
            String::from("is the rate of a burst above ") + key + ": give that, too",
        );
    }
    let Some(length) = length else {
        return Ok(Limit { rate, max, max_seconds: u64::from(max > 0) });
    };
    let max_seconds = length.as_secs();
    if max == 0 {
        return wrong(
            key_length,
            String::from("is how long a burst has the rate ") + key_max + ": give that, too",
        );
    }
    if length.subsec_nanos() > 0 || max_seconds == 0 || length > MAX_BURST {
        return wrong(key_length, "must be whole seconds, from 1s to 1h".into());
    }
    if max * max_seconds / rate > MAX_DEPTH.as_secs() {
        return wrong(key_length, String::from("is too long for the rate ") + key_max);
    }
    Ok(Limit { rate, max, max_seconds })
}

#[inline(never)]
fn number(table: &mut Table<'_>, key: &'static str, in_bytes: bool) -> Result<u64, ConfigError> {
    match if in_bytes { table.rate(key)? } else { table.integer(key)? } {
        Some(rate) if rate > MAX_RATE => {
            Err(table.error(key, "is too high; leave it out for no limit"))
        }
        rate => Ok(rate.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: &str) {
        let error = ThrottleConfig::from_json(json).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn everything_is_optional_and_zero_is_no_limit() {
        let none = ThrottleConfig::default();
        assert_eq!(ThrottleConfig::from_json("{}"), Ok(none.clone()));
        assert_eq!(ThrottleConfig::from_json(r#"{"iops":0,"bps":"0","bps-read":0}"#), Ok(none));
        let json = r#"{"iops-read":1,"iops-write":2,"bps-write":"1KiB","burst":"2s",
            "iops-size":512,"iops-write-max":4,"bps-write-max":"2KiB","bps-write-max-length":"10s"}"#;
        let config = ThrottleConfig::from_json(json).expect("valid");
        let limit = |rate, max, max_seconds| Limit { rate, max, max_seconds };
        let none = Limit::default();
        assert_eq!(config.limits[0], [none, limit(1, 0, 0), limit(2, 4, 1)]);
        assert_eq!(config.limits[1], [none, none, limit(1024, 2048, 10)]);
        assert_eq!((config.burst, config.iops_size), (Duration::from_secs(2), 512));
    }

    #[test]
    fn errors_name_the_key_and_what_is_right() {
        check(r#"{"iops":"fast"}"#, "iops: expected a whole number, found \"fast\"");
        check(r#"{"burst":1}"#, "burst: expected a time such as \"250ms\" or \"1s\", found 1");
        check(r#"{"burst":"2h"}"#, "burst: must be at most 1h");
        check(
            r#"{"bps":"1PiB"}"#,
            "bps: expected bytes a second such as \"100MiB\", found \"1PiB\"",
        );
        check(r#"{"bps":"17GiB"}"#, "bps: is too high; leave it out for no limit");
        check(r#"{"iops-max":5}"#, "iops-max: is the rate of a burst above iops: give that, too");
        check(
            r#"{"bps-read":5,"bps-read-max":4}"#,
            "bps-read-max: must not be lower than bps-read",
        );
        check(
            r#"{"iops":5,"iops-max-length":"2s"}"#,
            "iops-max-length: is how long a burst has the rate iops-max: give that, too",
        );
        for length in ["0s", "1500ms", "2h"] {
            check(
                &format!(r#"{{"iops":5,"iops-max":5,"iops-max-length":"{length}"}}"#),
                "iops-max-length: must be whole seconds, from 1s to 1h",
            );
        }
        check(
            r#"{"bps":1,"bps-max":"16GiB","bps-max-length":"1h"}"#,
            "bps-max-length: is too long for the rate bps-max",
        );
        check(r#"{"iops-size":512}"#, "iops-size: has a meaning only with a limit of requests");
        check(
            r#"{"bps":1,"bps-write":1}"#,
            "bps: limits reads and writes together; give either it or bps-read and bps-write",
        );
        check(
            r#"{"iosp":1}"#,
            "iosp: unknown key; known are: iops, iops-max, iops-max-length, iops-read, iops-read-max, \
             iops-read-max-length, iops-write, iops-write-max, iops-write-max-length, bps, bps-max, \
             bps-max-length, bps-read, bps-read-max, bps-read-max-length, bps-write, bps-write-max, \
             bps-write-max-length, iops-size, burst",
        );
    }
}
