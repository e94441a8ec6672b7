//! The keys of the configuration, which the host's own `backup` shares.

use std::time::Duration;

use blockloom_sdk::{ConfigError, Table};

/// Granules: the smallest and the largest, bytes. One is copied at once.
pub const GRANULARITY: (u64, u64) = (512, 1 << 20);
/// Most copies at once.
pub const MAX_WORKERS: u64 = 64;

/// What is copied of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Everything.
    Full,
    /// What the bitmap `changes` says.
    Incremental,
    /// Nothing but what is about to be overwritten.
    None,
}

/// What becomes of a write whose old bytes cannot be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It fails, and the backup stays what it is to be.
    BreakGuestWrite,
    /// It goes on, and the backup is worth nothing.
    BreakSnapshot,
}

/// The configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupConfig {
    /// What is copied of its own accord.
    pub sync: Sync,
    /// Bytes that are copied together at least: `min-cluster-size`.
    pub granularity: u64,
    /// What becomes of a write whose old bytes cannot be copied: `on-cbw-error`.
    pub on_error: OnError,
    /// How long a write may wait for its copy: `cbw-timeout`; none for as long as it takes.
    pub timeout: Option<Duration>,
    /// Bytes a second of what is copied of its own accord; none for no limit.
    pub speed: Option<u64>,
    /// Copies of its own accord at once: `max-workers`.
    pub workers: usize,
}

impl BackupConfig {
    /// Reads the configuration, a JSON object.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut wrong = Vec::new();
        let config = Self::read(Table::parse(json)?, &mut wrong);
        match wrong.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    /// All that is wrong with a configuration.
    #[must_use]
    pub fn check(json: &str) -> Vec<ConfigError> {
        let mut wrong = Vec::new();
        let read = Table::parse(json).map(|table| Self::read(table, &mut wrong));
        wrong.extend(read.err());
        wrong
    }

    /// Reads it as far as it is right: all that is wrong goes to `wrong`.
    fn read(mut table: Table<'_>, wrong: &mut Vec<ConfigError>) -> Self {
        let sync = match ConfigError::note(table.string("sync"), wrong).as_deref() {
            None | Some("full") => Sync::Full,
            Some("incremental") => Sync::Incremental,
            Some("none") => Sync::None,
            Some(_) => {
                wrong.push(table.error("sync", "is `full`, `incremental` or `none`"));
                Sync::Full
            }
        };
        let granularity = ConfigError::note(table.size("min-cluster-size"), wrong);
        let granularity = granularity.unwrap_or(64 << 10);
        if !granularity.is_power_of_two() || !(GRANULARITY.0..=GRANULARITY.1).contains(&granularity)
        {
            let message = "is a power of two from 512 to 1MiB";
            wrong.push(table.error("min-cluster-size", message));
        }
        let on_error = match ConfigError::note(table.string("on-cbw-error"), wrong).as_deref() {
            None | Some("break-guest-write") => OnError::BreakGuestWrite,
            Some("break-snapshot") => OnError::BreakSnapshot,
            Some(_) => {
                let message = "is `break-guest-write` or `break-snapshot`";
                wrong.push(table.error("on-cbw-error", message));
                OnError::BreakGuestWrite
            }
        };
        let timeout = ConfigError::note(table.duration("cbw-timeout"), wrong);
        let speed = ConfigError::note(table.rate("speed"), wrong);
        let workers = ConfigError::note(table.integer("max-workers"), wrong).unwrap_or(8);
        if !(1..=MAX_WORKERS).contains(&workers) {
            wrong.push(table.error("max-workers", "is 1 to 64"));
        }
        table.finish_noting(wrong);
        Self {
            sync,
            granularity,
            on_error,
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
            speed: speed.filter(|speed| *speed > 0),
            workers: workers as usize,
        }
    }

    /// The granules that hold a range.
    #[must_use]
    pub fn granules_of(&self, range: &std::ops::Range<u64>) -> std::ops::Range<u64> {
        let mask = self.granularity - 1;
        range.start & !mask..range.end.checked_add(mask).map_or(u64::MAX, |end| end & !mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let config = BackupConfig::from_json("{}").expect("all have a default");
        assert_eq!((config.sync, config.granularity, config.workers), (Sync::Full, 65536, 8));
        assert_eq!(config.granules_of(&(1..65537)), 0..131_072);
        for (json, key) in [
            (r#"{ "sync": "top" }"#, "sync"),
            (r#"{ "min-cluster-size": 1000 }"#, "min-cluster-size"),
            (r#"{ "min-cluster-size": "2MiB" }"#, "min-cluster-size"),
            (r#"{ "on-cbw-error": "ignore" }"#, "on-cbw-error"),
            (r#"{ "max-workers": 0 }"#, "max-workers"),
            (r#"{ "sped": 1 }"#, "sped"),
        ] {
            let error = BackupConfig::from_json(json).expect_err(json);
            assert_eq!(error.path, key, "{error}");
        }
        let json = r#"{ "sped": 1, "sync": 5, "speed": "x", "max-workers": 65, "zz": {} }"#;
        let wrong = BackupConfig::check(json);
        let paths: Vec<&str> = wrong.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["sync", "speed", "max-workers", "sped", "zz"]);
        assert_eq!(BackupConfig::check("[]").len(), 1);
    }
}
