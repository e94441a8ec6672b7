//! An overlay that outlives a crash: an allocation map in one simulated file beside the data in another.
//!
//! It stands for drivers with persistent mappings until there is one. Its one rule: what the map says is
//! durable only after the data that it leads to. A flush makes the data durable, then writes the map, then
//! makes that durable; one data sync serves all that was written before. Without that order a crash
//! shows, in place of the backing's bytes, whatever the data file held.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::scene::SECTORS;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::graph::cell::WriterLock;
use crate::graph::mutation::{Mutation, mutated};
use crate::io::sim::{SECTOR, Simulation};
use crate::io::{Buf, BufMut, File, FileOp, OpenOptions};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};

/// Bytes of the map for one sector: the map has several sectors of its own, so it can tear.
const ENTRY: usize = 64;

/// See the module.
pub(super) struct MappedOverlay {
    data: Arc<File>,
    map: Arc<File>,
    state: Mutex<State>,
    flushing: WriterLock,
}

#[derive(Default)]
struct State {
    /// Sectors whose bytes are its own.
    own: BTreeSet<u64>,
    /// Those that the map file names, durably.
    mapped: BTreeSet<u64>,
    /// A sync has failed: nobody knows what the medium has.
    is_broken: bool,
}

/// The data file's bytes at first: nobody's.
fn stale() -> Vec<u8> {
    vec![0xa5; SECTORS as usize * SECTOR]
}

impl MappedOverlay {
    /// Opens `NAME.data` and `NAME.map`, which are made if they are missing.
    pub(super) fn open(name: &str, simulation: &Simulation) -> Result<Self> {
        let (data, map) = (format!("{name}.data"), format!("{name}.map"));
        simulation.file_or(&data, stale);
        simulation.file_or(&map, || vec![0; SECTORS as usize * ENTRY]);
        let bytes = simulation.bytes(&map);
        let own: BTreeSet<u64> =
            (0..SECTORS).filter(|at| bytes[*at as usize * ENTRY] == 1).collect();
        let open = |name: &str| {
            let options = OpenOptions { write: true, ..OpenOptions::default() };
            let file = File::open(Path::new(name), &options);
            file.map(Arc::new).map_err(|error| Error::os(format!("cannot open `{name}`"), &error))
        };
        let state = State { mapped: own.clone(), own, is_broken: false };
        Ok(Self {
            data: open(&data)?,
            map: open(&map)?,
            state: Mutex::new(state),
            flushing: WriterLock::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs of sectors in a range of bytes, and whether they are its own.
    fn runs(&self, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        let state = self.state();
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        for sector in offset / SECTOR as u64..(offset + len) / SECTOR as u64 {
            let is_own = state.own.contains(&sector);
            match runs.last_mut() {
                Some((_, count, last)) if *last == is_own => *count += 1,
                _ => runs.push((sector, 1, is_own)),
            }
        }
        runs
    }

    async fn sync(&self, file: &Arc<File>) -> Result<()> {
        let synced = file.run_op(FileOp::Sync { data_only: true }).await;
        synced.map(drop).map_err(|error| {
            self.state().is_broken = true;
            Error::os("sync", &error)
        })
    }

    async fn write_map(&self, own: &BTreeSet<u64>) -> Result<()> {
        let mut bytes = vec![0; SECTORS as usize * ENTRY];
        own.iter().for_each(|at| bytes[*at as usize * ENTRY..][..ENTRY].fill(1));
        let written = self.map.write_at(0, Buf::copy_of(&bytes)).await;
        written.map_err(|error| Error::os("write of the map", &error))?;
        self.sync(&self.map).await
    }

    async fn flush_all(&self) -> Result<()> {
        let _turn = self.flushing.lock().await;
        let (own, is_mapped) = {
            let state = self.state();
            if state.is_broken {
                return Err(Error::new(ErrorKind::Io, "a sync has failed before"));
            }
            (state.own.clone(), state.own == state.mapped)
        };
        if mutated(Mutation::MapsBeforeData) && !is_mapped {
            self.write_map(&own).await?;
        }
        self.sync(&self.data).await?;
        if !is_mapped {
            self.write_map(&own).await?;
            self.state().mapped = own;
        }
        Ok(())
    }
}

impl Node for MappedOverlay {
    fn driver(&self) -> &'static str {
        "mapped-overlay"
    }

    fn info(&self, _: &[NodeInfo]) -> Result<NodeInfo> {
        let limits = Limits { request_alignment: SECTOR as u32, ..Limits::NONE };
        let caps = Caps {
            zero: Support::Emulated,
            discard: Support::None,
            fua: Support::Emulated,
            flush: Support::Native,
        };
        Ok(NodeInfo {
            size_bytes: SECTORS * SECTOR as u64,
            limits,
            caps,
            read_only: false,
            growable: false,
        })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            for (first, count, is_own) in self.runs(offset, buf.len() as u64) {
                let at = first * SECTOR as u64;
                let part = BufMut::new(count as usize * SECTOR);
                let part = if is_own {
                    let (read, part) = self.data.read_at(at, part).await;
                    read.map_err(|error| Error::os("read", &error))?;
                    part
                } else {
                    cx.child(0)?.read(at, part).await?
                };
                let to = (at - offset) as usize;
                buf[to..to + part.len()].copy_from_slice(&part);
            }
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let sectors = offset / SECTOR as u64..(offset + buf.len() as u64) / SECTOR as u64;
            let written = self.data.write_at(offset, buf).await;
            written.map_err(|error| Error::os("write", &error))?;
            self.state().own.extend(sectors);
            Ok(())
        })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, _: u64, _: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async { Err(Error::new(ErrorKind::NotSupported, "the edge writes zeros")) })
    }

    fn discard<'a>(&'a self, _: Cx<'a>, _: u64, _: u64) -> NodeFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(self.flush_all())
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let extent = |(first, count, is_own): (u64, u64, bool)| Extent {
            offset: first * SECTOR as u64,
            len: count * SECTOR as u64,
            kind: if is_own { ExtentKind::Data } else { ExtentKind::Unallocated },
            host_offset: None,
        };
        Box::pin(async move { Ok(self.runs(offset, len).into_iter().map(extent).collect()) })
    }
}
