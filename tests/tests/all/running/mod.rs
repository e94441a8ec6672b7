//! Nodes, drives, filters and exports that come and go while a host runs and real clients use it.

mod exports;
mod fragments;
mod media;
mod random;
mod resize;

use blockloom::export::nbd::ListenAddress;
use blockloom::host::{Fragment, NewExport};
use blockloom::io::WorkerOptions;
use blockloom::{Host, block_on};
use blockloom_tests::Scratch;
use serde_json::Value;

/// A host without anything.
pub(crate) fn empty() -> Host {
    let options = WorkerOptions { workers: 2, ..WorkerOptions::default() };
    Host::builder().workers(options).start().expect("a host")
}

/// Adds a node as QMP would.
pub(crate) fn add(host: &Host, options: Value) -> String {
    let added = host.add(&Fragment::blockdev(options));
    added.unwrap_or_else(|error| panic!("{error}")).root.expect("a node")
}

/// Why a node is not added, in one line.
fn refusal(host: &Host, options: Value) -> String {
    host.add(&Fragment::blockdev(options)).expect_err("refused").brief()
}

fn socket(scratch: &Scratch) -> ListenAddress {
    ListenAddress::Unix(scratch.path("nbd.sock"))
}

/// Serves something at the socket of a test; gives what a client opens.
pub(crate) fn export(host: &Host, scratch: &Scratch, export: NewExport) -> String {
    let (name, listen) = (export.name.clone(), Some(socket(scratch)));
    block_on(host.add_export(NewExport { listen, ..export })).expect("an export");
    uri(scratch, &name)
}

pub(crate) fn uri(scratch: &Scratch, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", scratch.path("nbd.sock").display())
}

fn nodes(host: &Host) -> Vec<String> {
    let graph = host.graph();
    let mut names: Vec<String> = graph.nodes().iter().map(|node| node.name().to_owned()).collect();
    names.sort();
    names
}
