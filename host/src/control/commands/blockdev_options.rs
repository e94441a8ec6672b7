//! Nodes as they are described: QEMU's `BlockdevOptions`, with the drivers that there are and their own options.
//!
//! What is read here is written again for [`Fragment`](crate::host::Fragment), which knows what the options mean.

use serde_json::Value;

use super::bitmaps::BlockDirtyBitmap;
use crate::control::qapi::{Null, qapi_alternate, qapi_enum, qapi_struct, qapi_union};

qapi_enum! {
    pub(crate) enum BlockdevDiscardOptions {
        Ignore = "ignore",
        Unmap = "unmap",
    }
}

qapi_enum! {
    pub(crate) enum BlockdevDetectZeroesOptions {
        Off = "off",
        On = "on",
        Unmap = "unmap",
    }
}

qapi_struct! {
    pub(crate) struct BlockdevCacheOptions {
        direct: Option<bool>,
        no_flush: Option<bool>,
    }
}

qapi_enum! {
    pub(crate) enum OnOffAuto {
        Auto = "auto",
        On = "on",
        Off = "off",
    }
}

qapi_enum! {
    pub(crate) enum BlockdevAioOptions {
        Threads = "threads",
        Native = "native",
        IoUring = "io_uring",
    }
}

qapi_enum! {
    pub(crate) enum Qcow2OverlapCheckMode {
        None = "none",
        Constant = "constant",
        Cached = "cached",
        All = "all",
    }
}

qapi_alternate! {
    /// How many checks: a word, or flags, of which there are none here.
    pub(crate) alternate Qcow2OverlapChecks {
        Mode(Qcow2OverlapCheckMode),
        Flags(Value),
    }
}

qapi_enum! {
    pub(crate) enum OnCbwError {
        BreakGuestWrite = "break-guest-write",
        BreakSnapshot = "break-snapshot",
    }
}

qapi_alternate! {
    /// Bytes, or a size as in TOML: `"64KiB"`.
    pub(crate) alternate SizeOrStr {
        Bytes(u64),
        Text(String),
    }
}

qapi_alternate! {
    /// A node: described here, or one that is there, by its name.
    pub(crate) alternate BlockdevRef {
        Definition(Box<BlockdevOptions>),
        Reference(String),
    }
}

qapi_alternate! {
    /// A node, or none.
    pub(crate) alternate BlockdevRefOrNull {
        Definition(Box<BlockdevOptions>),
        Reference(String),
        Null(Null),
    }
}

qapi_struct! {
    /// What every node can be given.
    pub(crate) struct BlockdevOptionsBase {
        pub(crate) node_name: Option<String>,
        discard: Option<BlockdevDiscardOptions>,
        cache: Option<BlockdevCacheOptions>,
        active: Option<bool>,
        read_only: Option<bool>,
        auto_read_only: Option<bool>,
        force_share: Option<bool>,
        detect_zeroes: Option<BlockdevDetectZeroesOptions>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsFile {
        pub(crate) filename: String,
        locking: Option<OnOffAuto>,
        aio: Option<BlockdevAioOptions>,
        aio_max_batch: Option<i64>,
        drop_cache: Option<bool>,
        x_check_cache_dropped: Option<bool>,
        /// Made with this size if it is not there.
        pub(crate) create: Option<SizeOrStr>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsNull {
        /// Bytes; 1 GiB unless said.
        pub(crate) size: Option<u64>,
        latency_ns: Option<u64>,
        read_zeroes: Option<bool>,
    }
}

qapi_struct! {
    /// The same in the words of TOML.
    pub(crate) struct BlockdevOptionsOwnNull {
        size: SizeOrStr,
        block_size: Option<SizeOrStr>,
        latency: Option<String>,
        read_zeroes: Option<bool>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsMemory {
        /// An overlay has that of its backing unless said.
        size: Option<SizeOrStr>,
        block_size: Option<SizeOrStr>,
        /// `backing`: what shows where nothing was written.
        child: Option<Value>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsRaw {
        pub(crate) file: BlockdevRef,
        offset: Option<u64>,
        size: Option<u64>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsQcow2 {
        pub(crate) file: BlockdevRef,
        pub(crate) backing: Option<BlockdevRefOrNull>,
        lazy_refcounts: Option<bool>,
        pass_discard_request: Option<bool>,
        pass_discard_snapshot: Option<bool>,
        pass_discard_other: Option<bool>,
        discard_no_unref: Option<bool>,
        overlap_check: Option<Qcow2OverlapChecks>,
        cache_size: Option<u64>,
        l2_cache_size: Option<u64>,
        l2_cache_entry_size: Option<u64>,
        refcount_cache_size: Option<u64>,
        cache_clean_interval: Option<u64>,
        pub(crate) data_file: Option<BlockdevRef>,
        /// An image is made if there is none.
        pub(crate) create: Option<Value>,
    }
}

qapi_struct! {
    /// A filter with limits: those of the group that it is in, or its own.
    pub(crate) struct BlockdevOptionsThrottle {
        throttle_group: Option<String>,
        pub(crate) file: Option<BlockdevRef>,
        pub(crate) child: Option<Value>,
        config: Option<Value>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsCor {
        pub(crate) file: Option<BlockdevRef>,
        pub(crate) bottom: Option<String>,
        pub(crate) child: Option<Value>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsCbw {
        pub(crate) file: Option<BlockdevRef>,
        pub(crate) target: BlockdevRef,
        /// What is to be kept of what changes; all unless said.
        bitmap: Option<BlockDirtyBitmap>,
        on_cbw_error: Option<OnCbwError>,
        cbw_timeout: Option<u32>,
        min_cluster_size: Option<u64>,
    }
}

qapi_struct! {
    /// The host's own copies before writes, in the words of TOML.
    pub(crate) struct BlockdevOptionsBackup {
        pub(crate) file: Option<BlockdevRef>,
        pub(crate) target: Option<BlockdevRef>,
        pub(crate) child: Option<Value>,
        /// `changes`: what an incremental one copies.
        bitmap: Option<Value>,
        config: Option<Value>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsPass {
        pub(crate) file: Option<BlockdevRef>,
        pub(crate) child: Option<Value>,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsSnapshotAccess {
        /// The node whose point in time it is.
        file: String,
    }
}

qapi_struct! {
    pub(crate) struct BlockdevOptionsView {
        of: String,
        view: String,
    }
}

qapi_struct! {
    /// A filter that is a plugin.
    pub(crate) struct BlockdevOptionsPlugin {
        /// A bundled one by its name, or a file that ends in `.wasm`.
        plugin: String,
        pub(crate) file: Option<BlockdevRef>,
        /// Its children by name.
        pub(crate) child: Option<Value>,
        /// What it may do to each child, and to `bytes`.
        grant: Option<Value>,
        bitmap: Option<Value>,
        on_fault: Option<String>,
        restart: Option<Value>,
        limits: Option<Value>,
        /// Shared by nodes that say the same.
        instance: Option<String>,
        config: Option<Value>,
    }
}

qapi_union! {
    /// A node.
    pub(crate) union BlockdevOptions by "driver": BlockdevDriver {
        base: BlockdevOptionsBase,
        /// What depends on the driver.
        branches: BlockdevOptionsBranch {
            Backup(BlockdevOptionsBackup) = "backup",
            CopyBeforeWrite(BlockdevOptionsCbw) = "copy-before-write",
            CopyOnRead(BlockdevOptionsCor) = "copy-on-read",
            File(BlockdevOptionsFile) = "file",
            HostDevice(BlockdevOptionsFile) = "host_device",
            Memory(BlockdevOptionsMemory) = "memory",
            OwnNull(BlockdevOptionsOwnNull) = "null",
            NullAio(BlockdevOptionsNull) = "null-aio",
            NullCo(BlockdevOptionsNull) = "null-co",
            Pass(BlockdevOptionsPass) = "pass",
            Plugin(BlockdevOptionsPlugin) = "plugin",
            View(BlockdevOptionsView) = "plugin-view",
            Qcow2(BlockdevOptionsQcow2) = "qcow2",
            Raw(BlockdevOptionsRaw) = "raw",
            SnapshotAccess(BlockdevOptionsSnapshotAccess) = "snapshot-access",
            Throttle(BlockdevOptionsThrottle) = "throttle",
        }
    }
}
