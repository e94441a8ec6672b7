//! Limits requests and bytes a second by delaying requests; it never fails one.
//!
//! Each request is forwarded with a time before which the host holds it, so the plugin is called
//! once a request and needs no timer. Nodes that name the same instance share its limits: a group.
//! [`ThrottleConfig`] lists the keys, [`Throttle`] is the arithmetic, which the host's own throttle
//! shares.
#![deny(unsafe_code)]

mod bucket;
mod config;

use std::cell::{Cell, RefCell};

use blockloom_sdk::{
    ConfigError, Description, Filter, Kind, Kinds, Request, RequestId, Time, Verdict,
};

pub use bucket::Throttle;
pub use config::{DEFAULT_BURST, Limits, MAX_BURST, MAX_RATE, ThrottleConfig};

/// A request that the host holds, until a time.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: RequestId,
    kind: Kind,
    len: u64,
    until_ns: u64,
}

/// The throttle as a plugin.
#[derive(Debug)]
pub struct ThrottleFilter {
    throttle: RefCell<Throttle>,
    /// The last one of each slot of the host's.
    held: RefCell<Vec<Option<Held>>>,
    has_changed: Cell<bool>,
}

impl Filter for ThrottleFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::DISCARD);

    fn describe() -> Description {
        Description::new("throttle", env!("CARGO_PKG_VERSION")).may_bypass()
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let throttle = RefCell::new(Throttle::new(&ThrottleConfig::from_json(config)?));
        Ok(Self { throttle, held: RefCell::default(), has_changed: Cell::new(false) })
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let config = ThrottleConfig::from_json(config)?;
        self.throttle.borrow_mut().reconfigure(&config);
        self.has_changed.set(true);
        Ok(())
    }

    /// Those that are held wait as long as the new limits ask.
    fn retime(&self, now: Time) -> Vec<(RequestId, Time)> {
        if !self.has_changed.replace(false) {
            return Vec::new();
        }
        let now_ns = now.as_nanos();
        let mut held = self.held.borrow_mut();
        let mut waiting: Vec<&mut Held> =
            held.iter_mut().flatten().filter(|held| held.until_ns > now_ns).collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        waiting.sort_by_key(|held| held.until_ns);
        let mut throttle = self.throttle.borrow_mut();
        throttle.begin_again(now_ns);
        let mut times = Vec::with_capacity(waiting.len());
        for held in waiting {
            held.until_ns = throttle.admit(held.kind, held.len, now_ns);
            times.push((held.id, Time::from_nanos(held.until_ns)));
        }
        times
    }

    fn save(&self) -> Vec<u8> {
        self.throttle.borrow().save()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        self.throttle.borrow_mut().restore(state).map_err(str::to_owned)
    }

    #[inline]
    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        // Borrowed only within a call, and calls do not nest: what is left undecided is forwarded.
        let mut throttle = self.throttle.try_borrow_mut().ok()?;
        let until_ns = throttle.admit(request.kind, request.len, now.as_nanos());
        if until_ns == 0 {
            return Some(Verdict::Forward);
        }
        self.keep(request, until_ns);
        Some(Verdict::ForwardAt(Time::from_nanos(until_ns)))
    }
}

impl ThrottleFilter {
    fn keep(&self, request: &Request, until_ns: u64) {
        let slot = usize::from(request.id.slot());
        let mut held = self.held.borrow_mut();
        if held.len() <= slot {
            held.resize(slot + 1, None);
        }
        held[slot] = Some(Held { id: request.id, kind: request.kind, len: request.len, until_ns });
    }
}

blockloom_sdk::export_filter!(ThrottleFilter);
