//! Keeps in the child what is read from below it, so that the next read finds it there.
//!
//! A copy onto itself writes what the child already shows: the host proves that, so nothing gets dirty.
//! A copy that fails costs the reader nothing: the bytes are read where they are. With a child `bottom`, a
//! node on which the filtered one stands, nothing is copied that is found below that node.
#![deny(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use blockloom_sdk::{
    ChildIndex, ChildWant, Condition, ConfigError, Cx, Description, Errno, ExtentFlags, FILE,
    Filter, Grants, Kinds, MAX_COPY_BYTES, Node, NodeId, Request, Rule, Table, Verdict, set_rules,
};

const BOTTOM: ChildIndex = ChildIndex(1);

/// The filter.
#[derive(Debug, Default)]
pub struct CopyOnRead {
    /// Of nodes that have a child `bottom`, its size.
    bounded: RefCell<BTreeMap<NodeId, u64>>,
}

impl Filter for CopyOnRead {
    const KINDS: Kinds = Kinds::READ;

    fn describe() -> Description {
        Description::new("copy-on-read", env!("CARGO_PKG_VERSION"))
            .wants(Grants::READ.with(Grants::WRITE_UNCHANGED))
            .child(ChildWant { required: false, ..ChildWant::new("bottom") })
            .may_bypass()
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Table::parse(config)?.finish().map(|()| Self::default())
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        if let Some(bottom) = node.child(BOTTOM) {
            self.bounded.borrow_mut().insert(node.index, bottom.size_bytes);
        }
        // What the child has itself needs no thought.
        let only = Condition::Unallocated(FILE);
        set_rules(node.index, &[Rule { kinds: Kinds::READ, only, budget: None }], 0)
    }

    async fn read(&self, request: Request, cx: &Cx) -> Verdict {
        let range = request.range();
        let bottom_bytes = self.bounded.borrow().get(&cx.node()).copied();
        // Whatever becomes of it, the child has the bytes.
        match bottom_bytes {
            None if request.len <= MAX_COPY_BYTES => {
                if cx.copy(FILE, FILE, range).claim().serve().await.is_ok() {
                    return Verdict::Served;
                }
            }
            None => drop(copy(cx, range).await),
            Some(bytes) => drop(copy_above(cx, range, bytes).await),
        }
        Verdict::Forward
    }
}

/// Copies what the child has not, and is found above the bottom, or in it.
async fn copy_above(cx: &Cx, range: Range<u64>, bottom_bytes: u64) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let (run, is_there) = first_run(cx, FILE, None, at..range.end).await?;
        at = run.end;
        if !is_there {
            copy_to_bottom(cx, run, bottom_bytes).await?;
        }
    }
    Ok(())
}

/// Copies what is found above the bottom, or in it.
async fn copy_to_bottom(cx: &Cx, range: Range<u64>, bottom_bytes: u64) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let (mut run, mut is_there) = first_run(cx, FILE, Some(BOTTOM), at..range.end).await?;
        if !is_there && run.start < bottom_bytes {
            let shown = run.start..run.end.min(bottom_bytes);
            (run, is_there) = first_run(cx, BOTTOM, None, shown).await?;
        }
        at = run.end;
        if is_there {
            copy(cx, run).await?;
        }
    }
    Ok(())
}

/// A copy onto itself leaves what the child has as it is.
async fn copy(cx: &Cx, range: Range<u64>) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let piece = at..range.end.min(at + MAX_COPY_BYTES);
        at = piece.end;
        cx.copy(FILE, FILE, piece).claim().await?;
    }
    Ok(())
}

/// The first run of a range that has one status, and whether it is allocated.
async fn first_run(
    cx: &Cx,
    child: ChildIndex,
    above: Option<ChildIndex>,
    range: Range<u64>,
) -> Result<(Range<u64>, bool), Errno> {
    let extents = cx.status_above(child, above, range.clone()).await?;
    let Some(first) = extents.first() else { return Ok((range, false)) };
    let end = range.end.min(first.offset.saturating_add(first.len));
    Ok((range.start..end, first.flags.contains(ExtentFlags::ALLOCATED)))
}

blockloom_sdk::export_filter!(CopyOnRead);
