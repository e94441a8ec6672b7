//! Blockloom inside another program: a graph from code with a node of our own, and one from TOML.
//!
//! ```text
//! cargo run -p blockloom --example embed
//! ```
//!
//! The program blocks on each call ([`block_on`]); under an async executor, `.await` them instead.

#![allow(clippy::disallowed_methods, reason = "the host uses the file system as it likes")]

use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockloom::bitmap::{BitmapName, BitmapState, Granularity};
use blockloom::filter::PassNode;
use blockloom::graph::{BitmapDecl, BitmapScope, ChildDecl, Cx};
use blockloom::host::{Overrides, start};
use blockloom::io::{Buf, BufMut};
use blockloom::node::{Extent, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags};
use blockloom::{Host, block_on};

/// A filter of our own: passes everything on and counts the bytes that are written through it.
#[derive(Default)]
struct CountNode {
    written_bytes: Arc<AtomicU64>,
}

impl Node for CountNode {
    fn driver(&self) -> &'static str {
        "count"
    }

    fn info(&self, children: &[NodeInfo]) -> blockloom::Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move { cx.child(0)?.read(offset, buf).await })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let len_bytes = buf.len() as u64;
            cx.child(0)?.write(offset, buf, flags).await?;
            self.written_bytes.fetch_add(len_bytes, Ordering::Relaxed);
            Ok(())
        })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.zero(offset, len, flags).await })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.discard(offset, len).await })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.flush().await })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { cx.child(0)?.block_status(offset, len).await })
    }
}

const MIB: u64 = 1 << 20;

/// Drive `vda` → our counter → the native `pass` → 64 MiB of memory, with a bitmap on the drive.
fn from_code() -> Result<(), Box<dyn Error>> {
    let count = CountNode::default();
    let written_bytes = Arc::clone(&count.written_bytes);
    let vda = BitmapScope::Drive("vda".into());
    let host = Host::builder()
        .node("memory", MemoryNode::new(64 * MIB, 1)?, vec![])
        .node("pass", PassNode, vec![ChildDecl::filtered("memory")])
        .node("count", count, vec![ChildDecl::filtered("pass")])
        .drive("vda", "count", true)
        .bitmap(vda.clone(), BitmapName::new("daily")?, Granularity::DEFAULT)
        .start()?;

    let drive = host.drive("vda")?;
    block_on(drive.write(MIB, b"hello"))?;
    block_on(drive.zero(2 * MIB, MIB, WriteFlags::FUA))?;
    block_on(drive.discard(3 * MIB, MIB))?;
    block_on(drive.flush())?;
    assert_eq!(&block_on(drive.read(MIB, 5))?[..], b"hello");
    assert_eq!(written_bytes.load(Ordering::Relaxed), 5);

    // A read dirties nothing; a change dirties every granule that it touches.
    let daily = host.bitmap(&vda, "daily")?;
    let dirty: Vec<_> = daily.ranges(0..64 * MIB).collect();
    assert_eq!(dirty, [MIB..MIB + 65536, 2 * MIB..4 * MIB]);

    // A backup freezes what it is about to copy: what is dirty moves to a second bitmap.
    let decl = BitmapDecl {
        scope: vda,
        name: BitmapName::new("backup")?,
        granularity: Granularity::from_bytes(4096)?,
        enabled: false,
    };
    let backup = block_on(host.add_bitmap(decl))?;
    block_on(daily.disable())?;
    block_on(backup.merge(&[&daily]))?;
    block_on(daily.clear())?;
    block_on(daily.enable())?;
    block_on(drive.write(0, &[7; 512]))?;
    assert_eq!(backup.dirty_bytes(), 2 * MIB + 65536);
    assert_eq!((backup.state(), daily.state()), (BitmapState::Disabled, BitmapState::Recording));
    assert_eq!(daily.count(), 1);
    block_on(backup.remove())?;

    println!("{}", host.report());
    Ok(host.shutdown()?)
}

/// A file behind the bundled `throttle` plugin, as a graph file says it.
fn from_toml() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("graph.toml");
    fs::write(
        &path,
        r#"
            [node.disk]
            driver = "file"
            path = "disk.img"          # beside this file
            create = "16MiB"

            [node.slow]
            driver = "plugin"
            plugin = "throttle"
            child.file = "disk"
            config = { iops = 100000 }

            [drive.vda]
            root = "slow"
            writable = true
        "#,
    )?;
    let (host, _exports) = start(&path, Overrides::default())?;
    let drive = host.drive("vda")?;
    block_on(drive.write(4096, b"through a plugin"))?;
    block_on(drive.flush())?;
    println!("{}", host.report());
    host.shutdown()?;

    let image = fs::read(directory.path().join("disk.img"))?;
    assert_eq!(image.len() as u64, 16 * MIB);
    assert_eq!(&image[4096..4112], b"through a plugin");
    Ok(())
}

/// Runs both.
pub fn main() -> Result<(), Box<dyn Error>> {
    from_code()?;
    from_toml()
}
