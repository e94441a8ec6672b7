//! A consistency check that shares no code with the engine but the format's: what the mappings refer to
//! is counted and compared with the refcounts.

use std::collections::BTreeMap;

use super::MemoryStorage;
use crate::format::{Cluster, Header, L1Entry, L2Entry};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Clusters that count as used more often than they are.
    pub leaks: usize,
    /// Everything else.
    pub corruptions: Vec<String>,
}

/// Checks an image that has no snapshots and no bitmaps.
///
/// # Panics
/// If the header cannot be parsed.
pub fn check(storage: &MemoryStorage) -> Findings {
    let bytes = storage.content();
    let word = |offset: u64| {
        let at = offset as usize;
        let mut word = [0; 8];
        if let Some(found) = bytes.get(at..at + 8) {
            word.copy_from_slice(found);
        }
        u64::from_be_bytes(word)
    };
    let mut prefix = [0; Header::PREFIX_BYTES];
    prefix.copy_from_slice(&bytes[..Header::PREFIX_BYTES]);
    let cluster_size = Header::cluster_size_in(&prefix).expect("an image");
    let mut first = bytes.clone();
    first.resize(first.len().max(cluster_size.bytes() as usize), 0);
    let header = Header::parse(&first).expect("a header");
    let format = header.l2_format();
    let cluster = cluster_size.bytes();
    let mut findings = Findings::default();
    let mut used: BTreeMap<u64, u64> = BTreeMap::new();
    let mut refer = |offset: u64, len: u64| {
        for index in offset / cluster..(offset + len).div_ceil(cluster) {
            *used.entry(index).or_default() += 1;
        }
    };
    refer(0, 1);
    refer(header.l1_offset.0, u64::from(header.l1_entries) * 8);
    let table = header.refcount_table_offset.0;
    let table_bytes = u64::from(header.refcount_table_clusters) * cluster;
    refer(table, table_bytes);
    for at in (0..table_bytes).step_by(8) {
        if word(table + at) != 0 {
            refer(word(table + at), cluster);
        }
    }
    let mut copied = Vec::new();
    for index in 0..u64::from(header.l1_entries) {
        let entry = L1Entry(word(header.l1_offset.0 + index * 8));
        let Some(l2) = entry.table(cluster_size).expect("valid") else { continue };
        refer(l2.0, cluster);
        copied.push((l2.0, entry.copied(), "L2 table"));
        for at in (0..cluster).step_by(format.entry_bytes() as usize) {
            let bitmap = if format.extended { word(l2.0 + at + 8) } else { 0 };
            let entry = L2Entry { descriptor: word(l2.0 + at), bitmap };
            match format.decode(entry) {
                Err(error) => findings.corruptions.push(error.to_string()),
                Ok(Cluster::Compressed(data)) => refer(data.host.0, data.len_bytes),
                Ok(Cluster::Standard(standard)) => {
                    if let Some(host) = standard.host.filter(|_| !format.external_data) {
                        refer(host.0, cluster);
                        copied.push((host.0, standard.copied, "data"));
                    }
                }
            }
        }
    }
    let entries = header.refcount_width.block_entries(cluster_size);
    let count_of = |index: u64| {
        let block = word(table + index / entries * 8);
        if block == 0 || index / entries * 8 >= table_bytes {
            return 0;
        }
        let mut content = vec![0; cluster as usize];
        let end = bytes.len().min((block + cluster) as usize);
        let found = bytes.get(block as usize..end).unwrap_or_default();
        content[..found.len()].copy_from_slice(found);
        header.refcount_width.get(&content, (index % entries) as usize)
    };
    for (&index, &uses) in &used {
        let count = count_of(index);
        if count < uses {
            findings.corruptions.push(format!("cluster {index}: {uses} uses, refcount {count}"));
        }
    }
    for (offset, flag, what) in copied {
        if flag && count_of(offset / cluster) != 1 {
            findings.corruptions.push(format!("{what} at {offset:#x}: flagged as its own"));
        }
    }
    let end = (bytes.len() as u64).div_ceil(cluster) + 64;
    findings.leaks =
        (0..end).filter(|index| count_of(*index) > used.get(index).copied().unwrap_or(0)).count();
    findings
}
