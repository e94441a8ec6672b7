//! `query-blockstats`, from the counters of edges.

use super::super::qapi::{qapi_struct, qapi_union};
use crate::control::context::Context;
use crate::control::error::QmpResult;
use crate::control::registry::{Empty, Registry};
use crate::graph::{CountersSnapshot, EXPORT_DRIVE, Edge, Graph, GraphNode, OpKind, Role};
use crate::node::DiscardCounts;

qapi_struct! {
    pub(crate) struct QueryBlockStats {
        /// Each node, instead of drives with what they show.
        query_nodes: Option<bool>,
    }
}

qapi_struct! {
    /// Counters. Those of merged, invalid and timed requests are there for clients that expect them.
    pub(crate) struct BlockDeviceStats {
        rd_bytes as "rd_bytes": u64,
        wr_bytes as "wr_bytes": u64,
        zone_append_bytes as "zone_append_bytes": u64,
        unmap_bytes as "unmap_bytes": u64,
        rd_operations as "rd_operations": u64,
        wr_operations as "wr_operations": u64,
        zone_append_operations as "zone_append_operations": u64,
        flush_operations as "flush_operations": u64,
        unmap_operations as "unmap_operations": u64,
        rd_total_time_ns as "rd_total_time_ns": u64,
        wr_total_time_ns as "wr_total_time_ns": u64,
        zone_append_total_time_ns as "zone_append_total_time_ns": u64,
        flush_total_time_ns as "flush_total_time_ns": u64,
        unmap_total_time_ns as "unmap_total_time_ns": u64,
        wr_highest_offset as "wr_highest_offset": u64,
        rd_merged as "rd_merged": u64,
        wr_merged as "wr_merged": u64,
        zone_append_merged as "zone_append_merged": u64,
        unmap_merged as "unmap_merged": u64,
        failed_rd_operations as "failed_rd_operations": u64,
        failed_wr_operations as "failed_wr_operations": u64,
        failed_zone_append_operations as "failed_zone_append_operations": u64,
        failed_flush_operations as "failed_flush_operations": u64,
        failed_unmap_operations as "failed_unmap_operations": u64,
        invalid_rd_operations as "invalid_rd_operations": u64,
        invalid_wr_operations as "invalid_wr_operations": u64,
        invalid_zone_append_operations as "invalid_zone_append_operations": u64,
        invalid_flush_operations as "invalid_flush_operations": u64,
        invalid_unmap_operations as "invalid_unmap_operations": u64,
        account_invalid as "account_invalid": bool,
        account_failed as "account_failed": bool,
        timed_stats as "timed_stats": Vec<TimedStats>,
        /// Requests that failed, of all kinds.
        failed_operations as "failed_operations": u64,
    }
}

qapi_struct! {
    /// Latencies over a time: none are measured.
    pub(crate) struct TimedStats {
        interval_length as "interval_length": u64,
        min_rd_latency_ns as "min_rd_latency_ns": u64,
        max_rd_latency_ns as "max_rd_latency_ns": u64,
        avg_rd_latency_ns as "avg_rd_latency_ns": u64,
        min_wr_latency_ns as "min_wr_latency_ns": u64,
        max_wr_latency_ns as "max_wr_latency_ns": u64,
        avg_wr_latency_ns as "avg_wr_latency_ns": u64,
        min_zone_append_latency_ns as "min_zone_append_latency_ns": u64,
        max_zone_append_latency_ns as "max_zone_append_latency_ns": u64,
        avg_zone_append_latency_ns as "avg_zone_append_latency_ns": u64,
        min_flush_latency_ns as "min_flush_latency_ns": u64,
        max_flush_latency_ns as "max_flush_latency_ns": u64,
        avg_flush_latency_ns as "avg_flush_latency_ns": u64,
        avg_rd_queue_depth as "avg_rd_queue_depth": f64,
        avg_wr_queue_depth as "avg_wr_queue_depth": f64,
        avg_zone_append_queue_depth as "avg_zone_append_queue_depth": f64,
    }
}

qapi_struct! {
    /// Discards that a file was asked for.
    pub(crate) struct BlockStatsSpecificFile {
        discard_nb_ok: u64,
        discard_nb_failed: u64,
        discard_bytes_ok: u64,
    }
}

qapi_union! {
    /// What one driver alone counts.
    pub(crate) union BlockStatsSpecific by "driver": BlockStatsSpecificKind {
        base: Empty,
        /// By driver.
        branches: BlockStatsSpecificBranch {
            File(BlockStatsSpecificFile) = "file",
        }
    }
}

qapi_struct! {
    /// The counters of a drive, or of a node.
    pub(crate) struct BlockStats {
        device: Option<String>,
        node_name: Option<String>,
        stats: BlockDeviceStats,
        driver_specific: Option<BlockStatsSpecific>,
        /// What it keeps its bytes in.
        parent: Option<Box<BlockStats>>,
        backing: Option<Box<BlockStats>>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("query-blockstats", query_blockstats);
}

fn query_blockstats(
    context: &Context<'_>,
    arguments: QueryBlockStats,
) -> QmpResult<Vec<BlockStats>> {
    let graph = context.host.graph();
    if arguments.query_nodes == Some(true) {
        let nodes = graph.nodes().iter().rev();
        return Ok(nodes.map(|node| of_node(&graph, node)).collect());
    }
    let drives = graph.drives().iter().filter(|drive| !drive.id().starts_with(EXPORT_DRIVE));
    let drives = drives.map(|drive| {
        let shown = drive.root().map(|root| below(&graph, root));
        let empty = || BlockStats {
            device: None,
            node_name: None,
            stats: stats(CountersSnapshot::default()),
            driver_specific: None,
            parent: None,
            backing: None,
        };
        BlockStats { device: Some(drive.id().to_owned()), ..shown.unwrap_or_else(empty) }
    });
    Ok(drives.collect())
}

/// The counters of an edge, and of those below it. As deep as a graph is.
fn below(graph: &Graph, edge: &Edge) -> BlockStats {
    let node = &graph.nodes()[edge.child()];
    let backing = node.edges().iter().find(|edge| edge.role() == Role::Backing);
    BlockStats {
        device: None,
        node_name: Some(node.name().to_owned()),
        stats: stats(edge.counters().snapshot()),
        driver_specific: specific(node),
        parent: holder(node).map(|edge| Box::new(below(graph, edge))),
        backing: backing.map(|edge| Box::new(below(graph, edge))),
    }
}

/// The counters of all edges to a node, and to those that hold its bytes.
fn of_node(graph: &Graph, node: &GraphNode) -> BlockStats {
    let below = holder(node).map(|edge| &graph.nodes()[edge.child()]);
    BlockStats {
        device: None,
        node_name: Some(node.name().to_owned()),
        stats: stats(sum(edges_to(graph, node))),
        driver_specific: specific(node),
        parent: below.map(|node| Box::new(of_node(graph, node))),
        backing: None,
    }
}

/// The edge to what holds a node's bytes: of an image with a data file, that.
fn holder(node: &GraphNode) -> Option<&Edge> {
    let holds = |edge: &&Edge| matches!(edge.role(), Role::Storage | Role::Filtered | Role::Data);
    node.edges().iter().rfind(holds)
}

fn specific(node: &GraphNode) -> Option<BlockStatsSpecific> {
    let DiscardCounts { done, failed, bytes } = node.driver().discards()?;
    let file = BlockStatsSpecificFile {
        discard_nb_ok: done,
        discard_nb_failed: failed,
        discard_bytes_ok: bytes,
    };
    Some(BlockStatsSpecific { base: Empty {}, branch: BlockStatsSpecificBranch::File(file) })
}

fn edges_to<'g>(graph: &'g Graph, node: &GraphNode) -> impl Iterator<Item = &'g Edge> {
    let generation = node.generation();
    let roots = graph.drives().iter().filter_map(|drive| drive.root());
    let all = roots.chain(graph.nodes().iter().flat_map(|node| node.edges()));
    all.filter(move |edge| graph.nodes()[edge.child()].generation() == generation)
}

fn sum<'g>(edges: impl Iterator<Item = &'g Edge>) -> CountersSnapshot {
    let mut sum = CountersSnapshot::default();
    for counters in edges.map(|edge| edge.counters().snapshot()) {
        for kind in OpKind::ALL.map(OpKind::index) {
            sum.requests[kind] = sum.requests[kind].saturating_add(counters.requests[kind]);
            sum.bytes[kind] = sum.bytes[kind].saturating_add(counters.bytes[kind]);
        }
        sum.errors = sum.errors.saturating_add(counters.errors);
    }
    sum
}

/// Zeroing counts as writing, as in QEMU.
fn stats(counters: CountersSnapshot) -> BlockDeviceStats {
    let requests = |kind: OpKind| counters.requests[kind.index()];
    let bytes = |kind: OpKind| counters.bytes[kind.index()];
    BlockDeviceStats {
        rd_bytes: bytes(OpKind::Read),
        wr_bytes: bytes(OpKind::Write).saturating_add(bytes(OpKind::Zero)),
        zone_append_bytes: 0,
        unmap_bytes: bytes(OpKind::Discard),
        rd_operations: requests(OpKind::Read),
        wr_operations: requests(OpKind::Write).saturating_add(requests(OpKind::Zero)),
        zone_append_operations: 0,
        flush_operations: requests(OpKind::Flush),
        unmap_operations: requests(OpKind::Discard),
        rd_total_time_ns: 0,
        wr_total_time_ns: 0,
        zone_append_total_time_ns: 0,
        flush_total_time_ns: 0,
        unmap_total_time_ns: 0,
        wr_highest_offset: 0,
        rd_merged: 0,
        wr_merged: 0,
        zone_append_merged: 0,
        unmap_merged: 0,
        failed_rd_operations: 0,
        failed_wr_operations: 0,
        failed_zone_append_operations: 0,
        failed_flush_operations: 0,
        failed_unmap_operations: 0,
        invalid_rd_operations: 0,
        invalid_wr_operations: 0,
        invalid_zone_append_operations: 0,
        invalid_flush_operations: 0,
        invalid_unmap_operations: 0,
        account_invalid: false,
        account_failed: false,
        timed_stats: Vec::new(),
        failed_operations: counters.errors,
    }
}
