//! E16c: what edges use of a node and what they share with others, below a guest that writes.

use std::collections::BTreeMap;

use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::super::Controlled;

/// What each edge uses and shares, by parent and name.
fn edges(client: &mut Qmp) -> BTreeMap<String, String> {
    let graph = client.run("query-graph", json!({}));
    let short = |permissions: &Value| {
        let words = permissions.as_array().expect("a list").iter();
        let words: Vec<&str> = words
            .map(|it| match it.as_str().expect("a word") {
                "consistent-read" => "CR",
                "write" => "W",
                "write-unchanged" => "WU",
                other => other,
            })
            .collect();
        words.join("+")
    };
    let text = |edge: &Value, key: &str| edge[key].as_str().expect("a name").to_owned();
    let shown = |edge: &Value| {
        let name = format!("{}.{}", text(edge, "parent"), text(edge, "name"));
        (name, format!("{} | {}", short(&edge["uses"]), short(&edge["shares"])))
    };
    graph["edges"].as_array().expect("a list").iter().map(shown).collect()
}

/// qemu-storage-daemon, with one writable export on top, as `uses | shares`: the export `CR+W | CR+W+WU`; filters the
/// same, copy-on-read `CR+W+WU | CR+W+WU`; copy-before-write of its file `CR+W | CR+WU`, of its target
/// `W | CR+W+WU`. So a second guest may write the same disk, below a filter or beside it, and both destroy what the
/// other relies on; and copy-before-write is refused above a node that an export writes.
///
/// Right: the same uses; but who writes minds other writers, and is told their names. Whoever copies up needs
/// `write-unchanged` of its own, and shares it.
#[test]
fn what_edges_use_and_share() {
    let memory = |name: &str| format!("[node.{name}]\ndriver = \"memory\"\nsize = \"1MiB\"\n");
    let host = Controlled::start(&(memory("disk") + &memory("kept")), &[]);
    let mut client = host.client();
    let path = host.scratch.path("nbd.sock").display().to_string();
    client.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}}));
    let throttle = json!({"iops": 1000});
    let plain = "CR+W | CR+WU";
    for (filter, expect) in [
        (json!({"driver": "pass"}), vec![("f.file", plain)]),
        (json!({"driver": "throttle", "config": throttle}), vec![("f.file", plain)]),
        (
            json!({"driver": "plugin", "plugin": "throttle", "config": throttle}),
            vec![("f.file", plain)],
        ),
        (json!({"driver": "raw"}), vec![("f.file", plain)]),
        (json!({"driver": "copy-on-read"}), vec![("f.file", "CR+W+WU | CR+WU")]),
        (
            json!({"driver": "copy-before-write", "target": "kept"}),
            vec![("f.file", plain), ("f.target", "W | CR+WU")],
        ),
    ] {
        let mut node = filter.clone();
        (node["node-name"], node["file"]) = (json!("f"), json!("disk"));
        client.run("blockdev-add", node);
        let export = |id: &str, of: &str| {
            json!({"type": "nbd", "id": id, "node-name": of,
            "name": id, "writable": true})
        };
        client.run("block-export-add", export("e", "f"));
        let expect = expect.into_iter().chain([("e.node", plain)]);
        let expect: BTreeMap<String, String> =
            expect.map(|(edge, said)| (edge.to_owned(), said.to_owned())).collect();
        assert_eq!(edges(&mut client), expect, "{filter}");
        for other in ["disk", "f"] {
            let (_, desc) = client.fail("block-export-add", export("other", other));
            assert!(desc.contains("export `other`") && desc.contains("does not share"), "{desc}");
        }
        client.run("block-export-del", json!({"id": "e", "mode": "hard"}));
        client.run("blockdev-del", json!({"node-name": "f"}));
    }
    host.finish();
}
