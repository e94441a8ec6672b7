//! What a throttle is configured with.

use std::time::Duration;

use blockloom_sdk::rate::{Keys, Limit, Limiter, MAX_BURST};
use blockloom_sdk::{ConfigError, Table, rate_keys};

/// How much may pass ahead of the rate after a pause, if the configuration does not say.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);

/// Of requests and of bytes: of reads and writes together, of reads, of writes.
const KEYS: [[Keys; 3]; 2] = [
    [rate_keys!("iops"), rate_keys!("iops-read"), rate_keys!("iops-write")],
    [rate_keys!("bps"), rate_keys!("bps-read"), rate_keys!("bps-write")],
];
/// Which of reads and writes they limit.
const LANES: [[bool; 2]; 3] = [[true, true], [true, false], [false, true]];

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
        let mut wrong = Vec::new();
        let config = Self::read(json, &mut wrong);
        match wrong.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    /// The same, as far as it is right: all that is wrong goes to `wrong`.
    #[cold]
    pub fn read(json: &str, wrong: &mut Vec<ConfigError>) -> Self {
        let mut config = Self::default();
        let mut table = match Table::parse(json) {
            Ok(table) => table,
            Err(error) => {
                wrong.push(error);
                return config;
            }
        };
        let mut are_requests_right = true;
        for (unit, read) in [Table::integer, Table::rate].into_iter().enumerate() {
            let (limits, keys, known) = (&mut config.limits[unit], &KEYS[unit], wrong.len());
            for (limit, keys) in limits.iter_mut().zip(keys) {
                *limit = Limit::read_noting(&mut table, keys, read, wrong);
            }
            let [total, reads, writes] = *limits;
            if total.rate > 0 && reads.rate + writes.rate > 0 {
                let message = "limits reads and writes together; give either it or ";
                let message = String::from(message) + keys[1].rate + " and " + keys[2].rate;
                wrong.push(table.error(keys[0].rate, message));
            }
            are_requests_right &= unit > 0 || wrong.len() == known;
        }
        config.iops_size = ConfigError::note(table.size("iops-size"), wrong).unwrap_or(0);
        let is_limited = config.limits[0].iter().any(|limit| limit.rate > 0);
        if config.iops_size > 0 && are_requests_right && !is_limited {
            wrong.push(table.error("iops-size", "has a meaning only with a limit of requests"));
        }
        let burst = ConfigError::note(table.duration("burst"), wrong);
        config.burst = burst.unwrap_or(DEFAULT_BURST);
        if config.burst > MAX_BURST {
            wrong.push(table.error("burst", "must be at most 1h"));
        }
        table.finish_noting(wrong);
        config
    }

    /// What keeps the limits, named by their places.
    pub(crate) fn limiters(&self) -> Vec<Limiter<2>> {
        let mut limiters = Vec::new();
        for (unit, limits) in self.limits.iter().enumerate() {
            for (which, limit) in limits.iter().enumerate() {
                let id = (unit << 16 | which << 8) as u64;
                limiters.extend(limit.limiters(self.burst, (id, unit, LANES[which])));
            }
        }
        limiters
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
    fn all_that_is_wrong_is_told() {
        let check = |json: &str, expect: &[&str]| {
            let mut wrong = Vec::new();
            ThrottleConfig::read(json, &mut wrong);
            let paths: Vec<&str> = wrong.iter().map(|error| error.path.as_str()).collect();
            assert_eq!(paths, expect, "{json}");
        };
        check(r#"{"iopz":1,"bps":"x","iops":-3,"zz":0}"#, &["iops", "bps", "iopz", "zz"]);
        // What follows from a wrong key is no fault of another.
        check(r#"{"iops":"x","iops-max":5,"iops-size":512}"#, &["iops"]);
        check(r#"{"iops-size":512,"burst":"2h","bps-max":1}"#, &["bps-max", "iops-size", "burst"]);
        check("{", &[""]);
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
