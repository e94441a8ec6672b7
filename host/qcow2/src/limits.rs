//! Bounds of everything that an image can ask for, in one place.

/// Most bytes of an active L1 table: 4 Mi entries, as in QEMU. With 64 KiB clusters that is 2 PiB.
pub const L1_MAX_BYTES: u64 = 32 << 20;
/// Most bytes of a refcount table: 1 Mi entries, as in QEMU.
pub const REFCOUNT_TABLE_MAX_BYTES: u64 = 8 << 20;
/// Most internal snapshots, as in QEMU.
pub const SNAPSHOTS_MAX: u32 = 65_536;
/// Most bytes of the snapshot table: 1024 a snapshot, as in QEMU.
pub const SNAPSHOT_TABLE_MAX_BYTES: u64 = 1024 * SNAPSHOTS_MAX as u64;
/// Most bytes of extra data of one snapshot, as in QEMU.
pub const SNAPSHOT_EXTRA_MAX_BYTES: u32 = 1024;
/// Most persistent bitmaps of an image, as in QEMU.
pub const BITMAPS_MAX: u32 = 65_535;
/// Most files of which is recorded what they were, each 40 bytes: more are recorded by their digest.
pub const RECORD_FILES_MAX: u32 = 1024;
/// Most bytes of the bitmap directory: 1024 a bitmap, as in QEMU.
pub const BITMAP_DIRECTORY_MAX_BYTES: u64 = 1024 * BITMAPS_MAX as u64;
/// Most bytes of one bitmap's bits, as in QEMU: 512 MiB, 256 TiB at 64 KiB.
pub const BITMAP_MAX_BYTES: u64 = 0x2000_0000;
/// Longest backing file name, bytes (specification, header, `backing_file_size`).
pub const BACKING_NAME_MAX_BYTES: u32 = 1023;
/// Most bytes of all header extensions together: the header with them has to fit the first cluster.
pub const HEADER_MAX_BYTES: u64 = 2 << 20;
/// Largest window of a zstd frame, as bits: 8 MiB, what the compressor's highest ordinary levels use.
pub const ZSTD_WINDOW_MAX_BITS: u32 = 23;
/// Bytes of refcount blocks in memory, or four blocks if these are larger.
pub const REFCOUNT_CACHE_BYTES: u64 = 4 << 20;
/// Host offsets have 56 bits (specification, "Cluster mapping").
pub const HOST_BYTES_MAX: u64 = 1 << 56;
/// Most runs of clusters that wait until what freed them is durable: then metadata is written.
pub const PENDING_FREES_MAX: usize = 1 << 16;
/// Most bytes of clusters that wait so: by that much an image may be longer than what it holds needs, however
/// seldom its guest flushes.
pub const PENDING_FREES_MAX_BYTES: u64 = 64 << 20;
/// Largest cluster, as in QEMU.
pub const CLUSTER_MAX_BYTES: u64 = 2 << 20;
