//! Limits requests and bytes a second by delaying requests; it never fails one.
//!
//! Each request is forwarded with a time before which the host holds it, so the plugin is called
//! once a request and needs no timer. Nodes that name the same instance share its limits: a group.
//! [`ThrottleConfig`] lists the keys, [`Throttle`] is the arithmetic, which the host's own throttle
//! shares.
#![deny(unsafe_code)]

mod bucket;
mod config;

use std::cell::RefCell;

use blockloom_sdk::{ConfigError, Description, Filter, Kinds, Request, Time, Verdict};

pub use bucket::Throttle;
pub use config::{DEFAULT_BURST, Limits, MAX_BURST, MAX_RATE, ThrottleConfig};

/// The throttle as a plugin.
#[derive(Debug)]
pub struct ThrottleFilter(RefCell<Throttle>);

impl Filter for ThrottleFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::DISCARD);

    fn describe() -> Description {
        Description::new("throttle", env!("CARGO_PKG_VERSION")).may_bypass()
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Ok(Self(RefCell::new(Throttle::new(&ThrottleConfig::from_json(config)?))))
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let config = ThrottleConfig::from_json(config)?;
        if let Ok(mut throttle) = self.0.try_borrow_mut() {
            throttle.reconfigure(&config);
        }
        Ok(())
    }

    #[inline]
    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        // Borrowed only within a call, and calls do not nest: what is left undecided is forwarded.
        let mut throttle = self.0.try_borrow_mut().ok()?;
        let not_before_ns = throttle.admit(request.kind, request.len, now.as_nanos());
        Some(match not_before_ns {
            0 => Verdict::Forward,
            nanos => Verdict::ForwardAt(Time::from_nanos(nanos)),
        })
    }
}

blockloom_sdk::export_filter!(ThrottleFilter);
