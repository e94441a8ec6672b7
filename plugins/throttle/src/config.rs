//! What a throttle is configured with.

use std::time::Duration;

use blockloom_sdk::{ConfigError, Table};

/// How much may pass ahead of the rate after a pause, if the configuration does not say.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);
/// The longest burst.
pub const MAX_BURST: Duration = Duration::from_secs(3600);
/// The highest limit, in requests or bytes a second: 16 GiB.
pub const MAX_RATE: u64 = 1 << 34;

/// Limits of a throttle. Rates are a second's; none is no limit.
///
/// | key | meaning |
/// |---|---|
/// | `iops` | requests a second, reads and writes together |
/// | `iops-read`, `iops-write` | the same, separately |
/// | `iops-size` | bytes that count as one request (`"64KiB"`): a longer one counts as several. Absent: each is one |
/// | `bps` | bytes a second (`"400MiB"`), reads and writes together |
/// | `bps-read`, `bps-write` | the same, separately |
/// | `burst` | what may pass at once after a pause, as the time that it takes at the rate; 100 ms if absent |
///
/// A limit of 0 is none. One quantity is limited either together or separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleConfig {
    /// Requests a second.
    pub iops: Limits,
    /// Bytes that count as one request; none if each counts as one.
    pub iops_size: Option<u64>,
    /// Bytes a second.
    pub bps: Limits,
    /// What may pass ahead of the rate after a pause.
    pub burst: Duration,
}

/// Limits of one quantity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of reads and writes together.
    pub total: Option<u64>,
    /// Of reads.
    pub read: Option<u64>,
    /// Of writes.
    pub write: Option<u64>,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        let (iops, bps) = (Limits::default(), Limits::default());
        Self { iops, iops_size: None, bps, burst: DEFAULT_BURST }
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
    /// assert_eq!(config.bps.total, Some(400 << 20));
    /// assert!(ThrottleConfig::from_json(r#"{ "iops": 5, "iops-read": 5 }"#).is_err());
    /// # Ok::<(), blockloom_sdk::ConfigError>(())
    /// ```
    #[cold]
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let iops = limits(&mut table, ["iops", "iops-read", "iops-write"], Table::integer)?;
        let iops_size = table.size("iops-size")?.filter(|size| *size > 0);
        if iops_size.is_some() && iops == Limits::default() {
            return Err(table.error("iops-size", "has a meaning only with a limit of requests"));
        }
        let bps = limits(&mut table, ["bps", "bps-read", "bps-write"], Table::rate)?;
        let burst = table.duration("burst")?.unwrap_or(DEFAULT_BURST);
        if burst > MAX_BURST {
            return Err(table.error("burst", "must be at most 1h"));
        }
        table.finish()?;
        Ok(Self { iops, iops_size, bps, burst })
    }
}

/// How a quantity is read.
type Read<'a> = fn(&mut Table<'a>, &'static str) -> Result<Option<u64>, ConfigError>;

fn limits<'a>(
    table: &mut Table<'a>,
    [total, reads, writes]: [&'static str; 3],
    read: Read<'a>,
) -> Result<Limits, ConfigError> {
    let limits = Limits {
        total: limit(table, total, read)?,
        read: limit(table, reads, read)?,
        write: limit(table, writes, read)?,
    };
    if limits.total.is_some() && (limits.read.is_some() || limits.write.is_some()) {
        let message = "limits reads and writes together; give either it or ";
        return Err(table.error(total, String::from(message) + reads + " and " + writes));
    }
    Ok(limits)
}

#[inline(never)]
fn limit<'a>(
    table: &mut Table<'a>,
    key: &'static str,
    read: Read<'a>,
) -> Result<Option<u64>, ConfigError> {
    match read(table, key)? {
        Some(rate) if rate > MAX_RATE => {
            Err(table.error(key, "is too high; leave it out for no limit"))
        }
        rate => Ok(rate.filter(|rate| *rate > 0)),
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
        let json = r#"{"iops-read":1,"iops-write":2,"bps-write":"1KiB","burst":"2s"}"#;
        let config = ThrottleConfig::from_json(json).expect("valid");
        assert_eq!(config.iops, Limits { total: None, read: Some(1), write: Some(2) });
        assert_eq!(config.bps, Limits { total: None, read: None, write: Some(1024) });
        assert_eq!(config.burst, Duration::from_secs(2));
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
        check(
            r#"{"bps":1,"bps-write":1}"#,
            "bps: limits reads and writes together; give either it or bps-read and bps-write",
        );
        check(
            r#"{"iosp":1}"#,
            "iosp: unknown key; known are: iops, iops-read, iops-write, iops-size, bps, bps-read, bps-write, \
             burst",
        );
    }
}
