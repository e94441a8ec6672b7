//! The disk that a chain of images shows: what its parts are, and its bytes.

use blockloom_qcow2::format::{CompressedData, compressed};

use super::failure::{Failure, Result};
use super::layer::Layer;
use super::mapper::{Mapper, RunKind};
use crate::io::{Buf, BufMut, Urgency, compute};
use crate::node::Access;

/// The first part of a range that one image answers for, in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes.
    pub len: u64,
    /// Images above the one that answers.
    pub depth: usize,
    /// Whether that image has something of its own here.
    pub is_own: bool,
    pub kind: RunKind,
    /// Where it is in the file, if it has a place there.
    pub host: Option<u64>,
}

/// A chain of images, the top one first.
#[derive(Debug)]
pub(super) struct Disk {
    layers: Vec<(Layer, Mapper)>,
}

impl Disk {
    pub(super) async fn new(layers: Vec<Layer>) -> Result<Self> {
        let mut all = Vec::with_capacity(layers.len());
        for layer in layers {
            let mapper = layer.mapper().await?;
            all.push((layer, mapper));
        }
        Ok(Self { layers: all })
    }

    /// The same with data files, so that bytes can be read.
    pub(super) async fn to_read(layers: Vec<Layer>) -> Result<Self> {
        let layers = layers.into_iter().map(|layer| layer.with_data_file(Access::Read));
        Self::new(layers.collect::<Result<_>>()?).await
    }

    /// The image that has so many above it.
    pub(super) fn layer(&self, depth: usize) -> &Layer {
        &self.layers[depth].0
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().map(|(layer, _)| layer)
    }

    /// Bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.layers.first().map_or(0, |(layer, _)| layer.size_bytes)
    }

    /// What the first part of a range, which is not empty, is.
    pub(super) async fn piece(&self, start: u64, len: u64) -> Result<Piece> {
        self.piece_above(start, len, self.layers.len()).await
    }

    /// The same as if there were no images from `depth_end` on.
    pub(super) async fn piece_above(
        &self,
        start: u64,
        len: u64,
        depth_end: usize,
    ) -> Result<Piece> {
        let unallocated = RunKind::Unallocated;
        let mut piece = Piece { len, depth: 0, is_own: false, kind: unallocated, host: None };
        let sizes = self.layers().take(depth_end).map(|layer| layer.size_bytes);
        let sizes: Vec<u64> = sizes.collect();
        for (depth, (layer, mapper)) in self.layers.iter().take(depth_end).enumerate() {
            let within = piece.len.min(sizes[depth] - start);
            let run = mapper.map(&layer.storage, start, within).await?;
            piece = Piece { len: run.len, depth, is_own: true, kind: run.kind, host: run.host };
            if run.kind != RunKind::Unallocated {
                return Ok(piece);
            }
            piece.is_own = false;
            // Past the end of the one behind, or with none, there are zeros.
            if sizes.get(depth + 1).is_none_or(|size| start >= *size) {
                return Ok(piece);
            }
        }
        Ok(piece)
    }

    /// Fills a buffer with what the disk shows from `offset`, and zeros past its end.
    pub(super) async fn read(&self, offset: u64, mut buf: BufMut) -> Result<BufMut> {
        let mut at = 0;
        while at < buf.len() {
            let start = offset + at as u64;
            let left = self.size_bytes().saturating_sub(start).min((buf.len() - at) as u64);
            if left == 0 {
                buf[at..].fill(0);
                return Ok(buf);
            }
            let piece = self.piece(start, left).await?;
            let len = piece.len as usize;
            match (piece.kind, piece.host) {
                (RunKind::Data, Some(host)) if len == buf.len() => {
                    buf = self.read_data(piece.depth, host, buf).await?;
                }
                (RunKind::Data, Some(host)) => {
                    let part = self.read_data(piece.depth, host, BufMut::new(len)).await?;
                    buf[at..at + len].copy_from_slice(&part);
                }
                (RunKind::Compressed(data), _) => {
                    let (cluster, within) = self.read_compressed(piece.depth, start, data).await?;
                    buf[at..at + len].copy_from_slice(&cluster[within..within + len]);
                }
                _ => buf[at..at + len].fill(0),
            }
            at += len;
        }
        Ok(buf)
    }

    async fn read_data(&self, depth: usize, host: u64, buf: BufMut) -> Result<BufMut> {
        let layer = self.layer(depth);
        let read = layer.storage.data().read_buf(host, buf).await;
        read.map_err(|error| Failure::of_file(&layer.path, error))
    }

    /// The cluster that holds a guest offset, and where that is in it.
    async fn read_compressed(
        &self,
        depth: usize,
        offset: u64,
        data: CompressedData,
    ) -> Result<(Vec<u8>, usize)> {
        let (layer, mapper) = &self.layers[depth];
        let fail = |error| Failure::of_file(&layer.path, error);
        let Some(info) = mapper.image().map(|image| image.info()) else {
            return Err(Failure::of_file(&layer.path, "a raw image has no compressed clusters"));
        };
        let packed = BufMut::new(data.len_bytes as usize);
        let packed: Buf = layer.storage.read_buf(data.host.0, packed).await.map_err(fail)?.freeze();
        let cluster_bytes = info.cluster_bytes;
        let unpacked = compute(Urgency::Later, move || {
            let mut cluster = vec![0; cluster_bytes as usize];
            compressed::decompress(info.compression, &packed, &mut cluster).map(|()| cluster)
        });
        let cluster = unpacked.await.map_err(|error| Failure::of_file(&layer.path, error))?;
        Ok((cluster.map_err(fail)?, (offset % cluster_bytes) as usize))
    }
}
