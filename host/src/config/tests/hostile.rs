//! Whatever a file holds, parsing ends in a graph or in diagnostics that can be shown.

use std::panic::catch_unwind;
use std::path::Path;

use super::super::{check_surroundings, parse};
use super::qcow2::CHAIN;
use super::world::World;
use super::{EXAMPLE, KITCHEN_SINK, dot, tree};

/// A small generator of pseudo-random numbers (xorshift), so that a seed replays its case.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

const FRAGMENTS: [&str; 28] = [
    "\"",
    "=",
    "\n",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "#",
    "\t",
    "\r",
    "\u{1b}",
    "é",
    "界",
    "\u{202e}",
    "[node.disk]\n",
    "driver = \"raw\"\n",
    "file = \"part\"\n",
    "\"\"",
    "-1",
    "99999999999999999999",
    "read-only = true\n",
    "writable = true\n",
    "driver = \"qcow2\"\n",
    "backing = \"part\"\n",
    "create = { size = 512 }\n",
    "persist = \"root\"\n",
];

fn mutate(text: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let until = (at + random.below(12)).min(bytes.len());
        match random.below(5) {
            0 => drop(bytes.drain(at..until)),
            1 => drop(bytes.splice(at..at, FRAGMENTS[random.below(FRAGMENTS.len())].bytes())),
            2 => drop(bytes.splice(at..until, FRAGMENTS[random.below(FRAGMENTS.len())].bytes())),
            3 => drop(bytes.splice(at..until, [random.below(256) as u8])),
            _ => {
                let from = random.below(bytes.len() + 1);
                let to = (from + random.below(60)).min(bytes.len());
                let copied = bytes[from..to].to_vec();
                drop(bytes.splice(at..at, copied));
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn try_out(text: &str) {
    match parse("graph.toml", text) {
        Ok(mut spec) => {
            assert!(!tree(&spec).contains('\u{1b}') && dot(&spec).ends_with("}\n"));
            let found = check_surroundings(&mut spec, &World, Path::new("/base")).to_string();
            assert!(found.ends_with("graph.toml"));
            assert_eq!(spec.build_order().len(), spec.nodes.len());
            assert!(spec.edges.iter().all(|edge| spec.node(&edge.child).is_some()));
        }
        Err(found) => {
            let shown = found.to_string();
            assert!(!found.is_empty());
            assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown}");
            for diagnostic in &found {
                assert!(diagnostic.span.start <= diagnostic.span.end);
                assert!(diagnostic.span.end <= text.len(), "{diagnostic:?}");
            }
        }
    }
}

#[test]
fn mutated_files() {
    for seed in 1..=20_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let text = mutate([EXAMPLE, KITCHEN_SINK, CHAIN][seed as usize % 3], &mut random);
        if catch_unwind(|| try_out(&text)).is_err() {
            panic!("seed {seed} of `mutated_files` fails, on:\n{text}");
        }
    }
}

#[test]
fn deep_and_long_chains() {
    let deep = format!("a = {}1{}", "[".repeat(10_000), "]".repeat(10_000));
    try_out(&deep);
    let chain: String = (0..1020)
        .map(|n| format!("[node.n{n}]\ndriver = \"raw\"\nfile = \"n{}\"\n", n + 1))
        .collect();
    try_out(&format!("{chain}[node.n1020]\ndriver = \"memory\"\nsize = 512\n"));
    try_out(&format!("{chain}[node.n1020]\ndriver = \"raw\"\nfile = \"n0\"\n"));
}
