//! NAME: refuses changes to the first bytes of a disk.
#![deny(unsafe_code)]

use blockloom_sdk::{
    ConfigError, Cx, Description, Errno, Filter, Kinds, Request, Table, Verdict,
};

/// The filter. What changes while it runs belongs into `Cell`s and `RefCell`s.
#[derive(Debug)]
pub struct TYPE {
    protected_bytes: u64,
}

impl Filter for TYPE {
    // The kinds of requests for which a body stands below; the others pass.
    const KINDS: Kinds = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);

    fn describe() -> Description {
        Description::new("NAME", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(config)?;
        let protected_bytes = table.size("protected")?.unwrap_or(1 << 20);
        table.finish()?;
        Ok(Self { protected_bytes })
    }

    // Zeroing and discarding come here, too, as they have no bodies of their own.
    async fn write(&self, request: Request, _: &Cx) -> Verdict {
        if request.offset < self.protected_bytes {
            return Verdict::Fail(Errno::EPERM);
        }
        Verdict::Forward
    }
}

blockloom_sdk::export_filter!(TYPE);
