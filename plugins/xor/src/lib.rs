//! Keeps in the child other bytes than it shows: each one is combined (XOR) with a byte of a key, by its place.
//!
//! It shows what a filter looks like that changes data, and is no encryption: whoever knows some bytes of the
//! disk knows the key. Whole configuration: `{ "key": "any text" }`. Zeroing writes zeros, as the child's own
//! would not be zeros here, and discards do nothing.
#![deny(unsafe_code)]

use blockloom_sdk::{
    ByteAccess, ConfigError, Cx, Description, Errno, Filter, Kinds, Request, Table, Verdict,
};

/// Longest key, bytes.
const KEY_MAX_BYTES: usize = 4096;

/// The filter.
#[derive(Debug)]
pub struct Xor {
    key: Vec<u8>,
}

impl Filter for Xor {
    const KINDS: Kinds = Kinds::WRITE;
    // What has been read is changed when the child has given it.
    const NOTIFY: Kinds = Kinds::READ;

    fn describe() -> Description {
        Description::new("xor", env!("CARGO_PKG_VERSION")).bytes(ByteAccess::Transform)
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(config)?;
        let key = table.string("key")?.ok_or_else(|| table.error("key", "is required"))?;
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(table.error("key", "must have 1 to 4096 bytes"));
        }
        table.finish()?;
        Ok(Self { key: key.into_bytes() })
    }

    async fn write(&self, request: Request, cx: &Cx) -> Verdict {
        match self.change(&request, cx) {
            Ok(()) => Verdict::Forward,
            Err(errno) => Verdict::Fail(errno),
        }
    }

    async fn done(
        &self,
        request: Request,
        result: Result<(), Errno>,
        cx: &Cx,
    ) -> Result<(), Errno> {
        result.and_then(|()| self.change(&request, cx))
    }
}

impl Xor {
    fn change(&self, request: &Request, cx: &Cx) -> Result<(), Errno> {
        let period = self.key.len() as u64;
        cx.bytes().alter(|at, bytes| {
            // The key begins anew at each multiple of its length.
            let start = (request.offset + at) % period;
            let key = self.key.iter().cycle().skip(start as usize);
            bytes.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        })
    }
}

blockloom_sdk::export_filter!(Xor);
