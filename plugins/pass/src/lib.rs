//! The filter that does nothing, and is called for everything: what a plugin costs at least.
#![deny(unsafe_code)]

use blockloom_sdk::{ConfigError, Description, Filter, Kinds, Table};

/// Forwards every request.
#[derive(Debug)]
pub struct Pass;

impl Filter for Pass {
    const KINDS: Kinds = Kinds::NONE;

    fn describe() -> Description {
        Description::new("pass", env!("CARGO_PKG_VERSION")).also_offered(Kinds::ALL).may_bypass()
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Table::parse(config)?.finish().map(|()| Self)
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        Self::configure(config).map(|_| ())
    }
}

blockloom_sdk::export_filter!(Pass);
