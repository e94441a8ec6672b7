//! The bytes of compressed clusters.

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::CompressionType;
use crate::error::{Error, Result};
use crate::limits::ZSTD_WINDOW_MAX_BITS;

/// Bits of the window that raw deflate is written with: QEMU's readers accept no larger one.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// Bits of the window that is accepted: all that deflate has.
const DEFLATE_WINDOW_READ_BITS: u8 = 15;

impl CompressionType {
    /// The name that `qemu-img` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deflate => "zlib",
            Self::Zstd => "zstd",
        }
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
                    out.shrink_to_fit();
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

/// Compresses one cluster that begins with `bytes`: zeros follow where the disk ends within it. `None` as for
/// [`compress`].
///
/// # Errors
/// As there; `EINVAL` for more bytes than a cluster has.
pub fn compress_padded(
    kind: CompressionType,
    bytes: &[u8],
    cluster_bytes: usize,
) -> Result<Option<Vec<u8>>> {
    if bytes.len() == cluster_bytes {
        return compress(kind, bytes);
    }
    if bytes.len() > cluster_bytes {
        return Err(Error::invalid(format!("{} bytes are more than a cluster", bytes.len())));
    }
    let mut whole = vec![0; cluster_bytes];
    whole[..bytes.len()].copy_from_slice(bytes);
    compress(kind, &whole)
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
    use crate::format::ClusterSize;
    use crate::testing::Random;

    /// Text-like bytes: they repeat at distances up to the whole cluster.
    fn compressible(len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| (at * at / 7000 % 64) as u8).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut random = Random::new(4);
        (0..len).map(|_| random.number() as u8).collect()
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
    fn a_cluster_in_which_the_disk_ends_is_padded() {
        for kind in [CompressionType::Deflate, CompressionType::Zstd] {
            for len in [1, 511, 4095, 4096] {
                let bytes = noise(len / 2).into_iter().chain(vec![7; len - len / 2]);
                let bytes: Vec<u8> = bytes.collect();
                let packed = compress_padded(kind, &bytes, 4096).unwrap().expect("it gets smaller");
                let mut out = vec![0xaa; 4096];
                decompress(kind, &packed, &mut out).unwrap();
                assert!(out[..len] == bytes && out[len..].iter().all(|byte| *byte == 0), "{len}");
            }
            assert_eq!(compress_padded(kind, &[0; 4097], 4096).unwrap_err().errno(), 22);
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
