//! Limits requests and bytes a second by delaying requests; it never fails one.
//!
//! A request that the limits allow is forwarded at once. The others the host holds until their turn comes:
//! nodes that name the same instance share its limits, and those that wait for them get equal shares.
//! [`ThrottleConfig`] lists the keys, [`Throttle`] decides, which the host's own throttle does with it, too.
#![deny(unsafe_code)]

mod bucket;
mod config;
mod group;

use std::cell::RefCell;
use std::time::Duration;

use blockloom_sdk::{ConfigError, Description, Filter, Kinds, Request, RequestId, Time, Verdict};

pub use config::{DEFAULT_BURST, Limit, MAX_BURST, MAX_RATE, ThrottleConfig};
pub use group::{CREDIT_NS, Next, Throttle};

/// When to look again at the latest: the limits may have changed.
const LOOK: Duration = Duration::from_secs(1);

/// The throttle as a plugin.
#[derive(Debug)]
pub struct ThrottleFilter(RefCell<Throttle<RequestId>>);

impl Filter for ThrottleFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::DISCARD);
    const HOLDS: Kinds = Self::DECIDE;

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

    fn save(&self) -> Vec<u8> {
        self.0.borrow().save()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        self.0.borrow_mut().restore(state).map_err(str::to_owned)
    }

    #[inline]
    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        // Borrowed only within a call, and calls do not nest: what is left undecided is forwarded.
        let mut throttle = self.0.try_borrow_mut().ok()?;
        let &Request { id, node, kind, len, .. } = request;
        let starts = throttle.offer(node.0, kind, len, id, now.as_nanos());
        Some(if starts { Verdict::Forward } else { Verdict::Hold })
    }

    fn release(&self, now: Time, let_go: &mut dyn FnMut(RequestId)) -> Option<Time> {
        let mut throttle = self.0.try_borrow_mut().ok()?;
        loop {
            match throttle.next(now.as_nanos()) {
                Next::Start(id) => let_go(id),
                Next::At(nanos) => return Some(Time::from_nanos(nanos).min(now + LOOK)),
                Next::Idle => return None,
            }
        }
    }

    fn gone(&self, request: &Request) {
        if let Ok(mut throttle) = self.0.try_borrow_mut() {
            throttle.forget(request.node.0, request.id);
        }
    }
}

blockloom_sdk::export_filter!(ThrottleFilter);
