//! Write a block filter for Blockloom in safe Rust and ship it as one `.wasm` file.
//!
//! A filter stands between a node of the block graph and its child. Data and requests stay in the
//! host: the filter sees what is asked (kind, offset, length) and says what becomes of it. It
//! implements [`Filter`], names itself to [`export_filter!`], and is built as a `cdylib` with
//!
//! ```text
//! cargo build --release --target wasm32-unknown-unknown
//! ```
//!
//! The host takes the resulting file as it is. A whole filter, which refuses writes to the first
//! bytes of a disk and lets one write through after another:
//!
//! ```
//! use blockloom_sdk::testing::{Answer, Harness};
//! use blockloom_sdk::{
//!     ConfigError, Cx, Description, Errno, Filter, Kind, Kinds, RangeLocks, Request, Table, Verdict,
//! };
//!
//! struct Boot {
//!     protected_bytes: u64,
//! }
//!
//! impl Filter for Boot {
//!     const KINDS: Kinds = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);
//!
//!     fn describe() -> Description {
//!         Description::new("protect-boot", env!("CARGO_PKG_VERSION"))
//!     }
//!
//!     fn configure(config: &str) -> Result<Self, ConfigError> {
//!         let mut table = Table::parse(config)?;
//!         let protected_bytes = table.size("protected")?.unwrap_or(1 << 20);
//!         table.finish()?;
//!         Ok(Self { protected_bytes })
//!     }
//!
//!     // Zeroing and discarding come here too, unless they have bodies of their own.
//!     async fn write(&self, request: Request, cx: &Cx) -> Verdict {
//!         if request.offset < self.protected_bytes {
//!             return Verdict::Fail(Errno::EPERM);
//!         }
//!         cx.sleep_until(cx.now() + std::time::Duration::from_millis(1)).await;
//!         Verdict::Forward
//!     }
//! }
//!
//! blockloom_sdk::export_filter!(Boot);
//!
//! let mut host = Harness::<Boot>::new(r#"{ "protected": "64KiB" }"#)?;
//! let boot = host.submit(Kind::Write, 4096, 4096);
//! assert_eq!(host.answer(boot), Some(Answer::Completed(Err(Errno::EPERM))));
//! let data = host.submit(Kind::Write, 1 << 20, 4096);
//! assert_eq!(host.answer(data), None);
//! host.advance(std::time::Duration::from_millis(1));
//! assert_eq!(host.answer(data), Some(Answer::forwarded_now()));
//! # Ok::<(), blockloom_sdk::ConfigError>(())
//! ```
//!
//! - `GUIDE.md` beside this crate goes from nothing to a filter that others use.
//! - Everything compiles natively too, so a filter's tests are ordinary tests: [`testing`].
//! - A panic reaches the host's log with its message, file and line; then the instance ends.
//! - A plugin that forbids `unsafe_code` must only deny it: the export is generated code.
#![deny(unsafe_code)]

/// The guide's examples are compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../GUIDE.md")]
mod guide {}

#[doc(hidden)]
#[rustfmt::skip]
#[allow(
    missing_docs, unreachable_pub, unsafe_code, unsafe_op_in_unsafe_fn, unused_qualifications,
    clippy::all, clippy::pedantic, clippy::restriction, clippy::nursery,
    rustdoc::all,
    reason = "generated, and compared by a test"
)]
pub mod bindings;
mod bytes;
mod config;
mod cx;
mod exec;
mod filter;
#[doc(hidden)]
pub mod guest;
#[cfg(any(target_family = "wasm", test))]
mod heap;
mod host;
mod lock;
mod random;
mod runtime;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod text;
mod together;

pub use blockloom_abi::{
    BitmapIndex, ChildIndex, Control, ControlKind, Errno, Extent, ExtentFlags, Kind, Kinds,
    MAX_COPY_BYTES, NodeIndex, Request, RequestFlags, RequestId,
};
pub use bytes::Bytes;
pub use config::{ConfigError, Table};
pub use cx::{Buffer, Copy, Cx};
#[doc(hidden)]
pub use exec::Instance;
pub use filter::{
    Bitmap, ByteAccess, Child, ChildWant, Description, FILE, Filter, Grants, Node, NodeId, Time,
    Verdict,
};
pub use host::{
    Budget, Condition, Level, Rule, bitmap_count, bitmap_merge, bitmap_next, bitmap_own,
    bitmap_set, log, set_rules,
};
pub use lock::{RangeGuard, RangeLocks};
pub use random::Random;
pub use together::{Signal, each_of, either};

/// Makes a [`Filter`] the one that this component exports. Expands to nothing on other targets.
#[macro_export]
macro_rules! export_filter {
    ($filter:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the exports of a component")]
        const _: () = {
            struct Plugin;

            impl $crate::guest::Plugin for Plugin {
                type Filter = $filter;

                #[inline]
                fn with<R>(
                    act: impl ::core::ops::FnOnce(
                        &::core::cell::RefCell<::core::option::Option<$crate::Instance<$filter>>>,
                    ) -> R,
                ) -> R {
                    ::std::thread_local! {
                        static INSTANCE: ::core::cell::RefCell<
                            ::core::option::Option<$crate::Instance<$filter>>,
                        > = const { ::core::cell::RefCell::new(::core::option::Option::None) };
                    }
                    INSTANCE.with(act)
                }
            }

    $crate::bindings::export!(Plugin with_types_in $crate::bindings);
        };
    };
}
