//! Compressed clusters: where one lies, and its bytes (specification, "Compressed Clusters Descriptor").

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::{ClusterSize, HostOffset};
use crate::error::{Error, Result};
use crate::limits::ZSTD_WINDOW_MAX_BITS;

/// Unit of a compressed cluster's length on disk, bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Bits of the window that raw deflate is written with: QEMU's readers accept no larger one.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// Bits of the window that is accepted: all that deflate has.
const DEFLATE_WINDOW_READ_BITS: u8 = 15;
/// Bits of an L2 entry that a standard or compressed descriptor fills.
const DESCRIPTOR_BITS: u32 = 62;
/// Bits of a host offset that the format can express.
const HOST_OFFSET_BITS: u32 = 56;

/// How an image compresses clusters (header, `compression_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompressionType {
    /// Raw deflate (RFC 1951), which QEMU's tools call `zlib`.
    #[default]
    Deflate,
    /// Zstandard frames (RFC 8878).
    Zstd,
}

impl CompressionType {
    /// From the header's field.
    ///
    /// # Errors
    /// `ENOTSUP` for a number that the specification does not have.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Deflate),
            1 => Ok(Self::Zstd),
            _ => Err(Error::new(
                crate::ErrorKind::NotSupported,
                format!("compression type {number} is not known: 0 (zlib) and 1 (zstd) are"),
            )),
        }
    }

    /// The header's field.
    pub fn number(self) -> u8 {
        match self {
            Self::Deflate => 0,
            Self::Zstd => 1,
        }
    }

    /// The name that `qemu-img` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deflate => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// Where a compressed cluster lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// First byte: aligned to nothing.
    pub host: HostOffset,
    /// 512-byte sectors touched beyond the one that holds the first byte.
    pub extra_sectors: u64,
}

impl CompressedCluster {
    /// Number of bits of the offset.
    fn offset_bits(cluster: ClusterSize) -> u32 {
        DESCRIPTOR_BITS - (cluster.bits() - 8)
    }

    /// From bits 0 to 61 of an L2 entry; the others are not looked at.
    ///
    /// # Errors
    /// `EIO` for an offset past the 56 bits that the format has.
    pub fn decode(entry: u64, cluster: ClusterSize) -> Result<Self> {
        let bits = Self::offset_bits(cluster);
        let host = entry & ((1 << bits) - 1);
        let extra_sectors = (entry & ((1 << DESCRIPTOR_BITS) - 1)) >> bits;
        if host >> HOST_OFFSET_BITS != 0 {
            let message = format!("compressed cluster at {host:#x}: reserved bits of the offset");
            return Err(Error::corrupt(message));
        }
        Ok(Self { host: HostOffset(host), extra_sectors })
    }

    /// Of `len_bytes` bytes (not zero) from `host`.
    ///
    /// # Errors
    /// `ENOSPC` if the descriptor cannot express the offset: large clusters shorten it. `EINVAL` for a
    /// length that is zero or more than a cluster.
    pub fn new(host: HostOffset, len_bytes: u64, cluster: ClusterSize) -> Result<Self> {
        if len_bytes == 0 || len_bytes > cluster.bytes() {
            return Err(Error::invalid(format!("compressed cluster of {len_bytes} bytes")));
        }
        let bits = Self::offset_bits(cluster).min(HOST_OFFSET_BITS);
        if host.0 >> bits != 0 {
            let message =
                format!("compressed cluster at {:#x}: its offset has {bits} bits", host.0);
            return Err(Error::new(crate::ErrorKind::NoSpace, message));
        }
        let last_sector = (host.0 + len_bytes - 1) / SECTOR_BYTES;
        Ok(Self { host, extra_sectors: last_sector - host.0 / SECTOR_BYTES })
    }

    /// Bits 0 to 61 of the L2 entry.
    pub fn encode(self, cluster: ClusterSize) -> u64 {
        self.host.0 | self.extra_sectors << Self::offset_bits(cluster)
    }

    /// Bytes from the first one to the end of the last sector: the compressed data end somewhere in the
    /// last 512 of them.
    pub fn len_bytes(self) -> u64 {
        (self.extra_sectors + 1) * SECTOR_BYTES - self.host.0 % SECTOR_BYTES
    }
}

/// Compresses one cluster; `None` if that would not make it smaller.
///
/// # Errors
/// `EIO` if the compressor fails.
pub fn compress(kind: CompressionType, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
    // One byte less than the cluster: what does not fit is not smaller.
    let room = cluster.len().saturating_sub(1);
    match kind {
        CompressionType::Deflate => {
            let level = flate2::Compression::default();
            let mut deflate = Compress::new_with_window_bits(level, false, DEFLATE_WINDOW_BITS);
            let mut out = vec![0; room];
            let status = deflate.compress(cluster, &mut out, FlushCompress::Finish);
            match status.map_err(|error| failed("deflate", &error))? {
                Status::StreamEnd => {
                    out.truncate(deflate.total_out() as usize);
                    Ok(Some(out))
                }
                Status::Ok | Status::BufError => Ok(None),
            }
        }
        CompressionType::Zstd => {
            let level = zstd::DEFAULT_COMPRESSION_LEVEL;
            let out =
                zstd::bulk::compress(cluster, level).map_err(|error| failed("zstd", &error))?;
            Ok((out.len() <= room).then_some(out))
        }
    }
}

/// Decompresses one cluster into `out`, which is as long as a cluster. `bytes` may go on after the end of
/// the compressed data.
///
/// # Errors
/// `EIO` for data that are broken or do not fill the cluster.
pub fn decompress(kind: CompressionType, bytes: &[u8], out: &mut [u8]) -> Result<()> {
    let len = match kind {
        CompressionType::Deflate => inflate(bytes, out)?,
        CompressionType::Zstd => unzstd(bytes, out)?,
    };
    if len == out.len() {
        return Ok(());
    }
    let cluster = out.len();
    Err(Error::corrupt(format!("compressed cluster ends after {len} of {cluster} bytes")))
}

fn inflate(bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let mut inflate = Decompress::new_with_window_bits(false, DEFLATE_WINDOW_READ_BITS);
    // Fewer bytes than wanted, or more that do not fit, are the caller's to judge.
    inflate
        .decompress(bytes, out, FlushDecompress::Finish)
        .map_err(|error| failed("deflate", &error))?;
    Ok(inflate.total_out() as usize)
}

fn unzstd(bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let error = |error| failed("zstd", &error);
    let mut decoder = Decoder::new().map_err(error)?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_MAX_BITS)).map_err(error)?;
    let (mut read, mut written) = (0, 0);
    while written < out.len() {
        let step = decoder.run_on_buffers(&bytes[read..], &mut out[written..]).map_err(error)?;
        if step.bytes_read == 0 && step.bytes_written == 0 {
            break;
        }
        read += step.bytes_read;
        written += step.bytes_written;
    }
    Ok(written)
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::corrupt(format!("compressed cluster, {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(bits: u32) -> ClusterSize {
        ClusterSize::from_bits(bits).unwrap()
    }

    #[test]
    fn a_descriptor_says_what_was_put_in() {
        #[track_caller]
        fn check(bits: u32, host: u64, len: u64, sectors: u64, entry: u64) {
            let cluster = CompressedCluster::new(HostOffset(host), len, size(bits)).unwrap();
            assert_eq!(cluster.extra_sectors, sectors);
            assert_eq!(cluster.encode(size(bits)), entry);
            assert_eq!(CompressedCluster::decode(entry | 3 << 62, size(bits)).unwrap(), cluster);
            assert_eq!((host + cluster.len_bytes()) % 512, 0);
            assert!(cluster.len_bytes() >= len && cluster.len_bytes() < len + 512);
        }
        check(16, 0x5_0000, 512, 0, 0x5_0000);
        check(16, 0x5_0001, 512, 1, 0x5_0001 | 1 << 54);
        check(16, 0x5_01ff, 2, 1, 0x5_01ff | 1 << 54);
        check(16, 0x5_0000, 0xffff, 127, 0x5_0000 | 127 << 54);
        check(9, 0x400, 511, 0, 0x400);
        check(9, 0x401, 512, 1, 0x401 | 1 << 61);
        check(21, 0x60_0000, 1 << 21, 4095, 0x60_0000 | 4095 << 49);
    }

    #[test]
    fn what_a_descriptor_cannot_say_is_refused() {
        let new = |host, len, bits| CompressedCluster::new(HostOffset(host), len, size(bits));
        assert_eq!(new(1 << 49, 1, 21).unwrap_err().errno(), 28);
        assert_eq!(new(1 << 56, 1, 9).unwrap_err().errno(), 28);
        assert_eq!(new(0, 0, 16).unwrap_err().errno(), 22);
        assert_eq!(new(0, 0x1_0001, 16).unwrap_err().errno(), 22);
        assert_eq!(CompressedCluster::decode(1 << 56, size(9)).unwrap_err().errno(), 5);
    }

    /// Text-like bytes: they repeat at distances up to the whole cluster.
    fn compressible(len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| (at * at / 7000 % 64) as u8).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(4);
        (0..len).map(|_| rng.u8(..)).collect()
    }

    #[test]
    fn a_cluster_comes_back_even_with_rubbish_behind_it() {
        for kind in [CompressionType::Deflate, CompressionType::Zstd] {
            for bits in ClusterSize::BITS {
                let cluster = compressible(1 << bits);
                let mut packed = compress(kind, &cluster).unwrap().expect("compressible");
                assert!(packed.len() < cluster.len());
                packed.extend(noise(511));
                let mut out = vec![0xaa; cluster.len()];
                decompress(kind, &packed, &mut out).unwrap();
                assert!(out == cluster, "{kind:?}, 2^{bits}");
            }
            assert_eq!(compress(kind, &noise(65536)).unwrap(), None, "{kind:?}");
        }
    }

    #[test]
    fn deflate_stays_within_the_window_that_qemu_reads() {
        // Two equal halves of noise, 8 KiB apart: a larger window would halve the size.
        let half = noise(8192);
        let cluster = [&half[..], &half, &[0; 512]].concat();
        let packed = compress(CompressionType::Deflate, &cluster).unwrap().expect("the zeros");
        assert!(packed.len() > 16384);
        let mut out = vec![0; cluster.len()];
        let mut narrow = Decompress::new_with_window_bits(false, 12);
        narrow.decompress(&packed, &mut out, FlushDecompress::Finish).unwrap();
        assert!(out == cluster);
    }

    #[test]
    fn broken_data_are_errors() {
        #[track_caller]
        fn check(kind: CompressionType, bytes: &[u8], out_len: usize) {
            let error = decompress(kind, bytes, &mut vec![0; out_len]).unwrap_err();
            assert_eq!(error.errno(), 5, "{error}");
        }
        for kind in [CompressionType::Deflate, CompressionType::Zstd] {
            let packed = compress(kind, &compressible(65536)).unwrap().unwrap();
            check(kind, &packed[..packed.len() / 2], 65536);
            check(kind, &packed, 65537);
            check(kind, &[], 512);
            check(kind, &noise(4096), 65536);
        }
        // A frame whose window would take 128 MiB.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3];
        frame.extend([0x03, 0x00, 0x10, 0xaa]);
        check(CompressionType::Zstd, &frame, 65536);
    }
}
