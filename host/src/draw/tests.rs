use expect_test::expect;

use super::*;
use crate::bitmap::{BitmapName, Granularity};
use crate::control::qapi::{Place, QapiType};
use crate::filter::PassNode;
use crate::graph::{BitmapScope, ChildDecl};
use crate::node::MemoryNode;
use crate::{Host, block_on};

fn host() -> Host {
    let scope = BitmapScope::Drive("vda".into());
    let host = Host::builder()
        .node("disk", MemoryNode::new(1 << 20, 1).expect("a size"), vec![])
        .node("filter", PassNode, vec![ChildDecl::filtered("disk")])
        .drive("vda", "filter", true)
        .bitmap(scope, BitmapName::new("daily<&>").expect("a name"), Granularity::MIN)
        .start()
        .expect("a host");
    block_on(host.drive("vda").expect("a drive").write(0, b"x")).expect("a write");
    host
}

#[test]
fn a_live_graph_as_tree() {
    let host = host();
    expect![[r#"
        drive vda
        ├── bitmap daily<&>: granularity 512, 512 dirty
        └── root: filter (pass 1MiB) [root, uses cr+w, shares cr+wu]
            └── file: disk (memory 1MiB) [filtered, uses cr+w, shares cr+wu]
    "#]]
    .assert_eq(&tree(&of_host(&host)));
    host.shutdown().expect("an end in order");
}

/// What is drawn of a graph that was sent is what is drawn of it here.
#[test]
fn a_description_is_sent_and_read() {
    let host = host();
    let description = of_host(&host);
    let sent = description.clone().emit().expect("a value");
    let read = GraphDescription::parse(sent, &Place::ROOT).expect("a description");
    assert_eq!(read, description);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_picture_has_everything_once_and_no_text_ends_it() {
    let host = host();
    let picture = svg(&of_host(&host));
    for text in ["drive vda", "filter (pass 1MiB)", "daily&lt;&amp;&gt;", "root (root), uses cr+w"]
    {
        assert_eq!(picture.matches(text).count(), 1, "{text}: {picture}");
    }
    assert_eq!(picture.matches("<rect").count(), 3);
    assert!(picture.ends_with("</svg>\n"));
    host.shutdown().expect("an end in order");
}

/// Somebody else's description may say anything: circles, and names of nothing.
#[test]
fn a_description_without_sense_is_drawn() {
    let edge = |parent: &str, child: &str| DescribedEdge {
        parent_kind: Kind::Node,
        parent: parent.into(),
        name: "file".into(),
        child: child.into(),
        role: EdgeRole::Filtered,
        uses: vec![],
        shares: vec![],
    };
    let node = |name: &str| DescribedNode {
        name: name.into(),
        driver: "pass".into(),
        detail: None,
        instance: None,
        read_only: false,
        unnamed: false,
        size: None,
    };
    let graph = GraphDescription {
        drives: vec![],
        exports: vec![],
        nodes: vec![node("a"), node("b"), node("c")],
        bitmaps: vec![],
        edges: vec![edge("a", "b"), edge("b", "a"), edge("c", "none"), edge("none", "c")],
    };
    assert!(svg(&graph).ends_with("</svg>\n") && dot(&graph).ends_with("}\n"));
    assert_eq!(tree(&graph), "");
}
