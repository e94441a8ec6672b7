//! Drawings.

use expect_test::expect;

use super::{EXAMPLE, KITCHEN_SINK, dot, good, tree};

#[test]
fn example_as_tree() {
    expect![[r#"
        drive vda
        ├── export vda: nbd on unix:/run/blockloom/vda.sock, writable, bitmaps daily
        ├── bitmap daily: granularity 64KiB
        └── root: slow (plugin throttle) [root, uses cr+w, shares cr+wu]
            └── file: disk (file disk.img) [filtered, uses cr+w, shares cr+wu]
    "#]]
    .assert_eq(&tree(&good(EXAMPLE)));
}

#[test]
fn kitchen_sink_as_tree() {
    expect![[r#"
        drive vda
        ├── export vda: nbd on unix:vda.sock, writable, bitmaps daily, below
        ├── bitmap daily: granularity 128KiB
        └── root: slow (plugin throttle, instance group) [root, uses cr+w, shares cr+wu]
            └── file: pass (plugin pass) [filtered, uses cr+w, shares cr+wu]
                └── file: disk (file disk.img) [filtered, uses cr+w+wu, shares cr+wu]
                    └── bitmap below: name "lower", granularity 64KiB, disabled
        drive vdb
        ├── export vdb: nbd on tcp:[::1]:10809, name "second", read-only
        └── root: native (throttle) [root, uses cr, shares cr+wu]
            └── file: ram (memory 64MiB) [filtered, uses cr, shares cr+wu]
        drive cdrom
        └── no medium
        export peek: nbd on unix:vda.sock, read-only
        └── node: part (raw from 1MiB size 1GiB, read-only) [root, uses cr, shares cr+w+wu+r]
            └── file: #part.file (raw) [storage, uses cr, shares cr+wu]
                └── file: #part.file/file (null 1TiB) [filtered, uses cr, shares cr+wu]
    "#]]
    .assert_eq(&tree(&good(KITCHEN_SINK)));
}

#[test]
fn shared_and_unused_nodes() {
    let text = r#"
[node.m]
driver = "memory"
size = 512
[node.p]
driver = "pass"
child.file = "m"
[node.idle]
driver = "pass"
child.file = "p"
[drive.a]
root = "p"
[drive.b]
root = "p"
"#;
    expect![[r#"
        drive a
        └── root: p (pass) [root, uses cr, shares cr+wu]
            └── file: m (memory 512) [filtered, uses cr, shares cr+wu]
        drive b
        └── root: p (pass) [root, uses cr, shares cr+wu] (*)
        idle (pass), not used
        └── file: p (pass) [filtered, uses -, shares cr+w+wu+r] (*)
    "#]]
    .assert_eq(&tree(&good(text)));
}

#[test]
fn example_as_dot() {
    expect![[r#"
        digraph blockloom {
            node [shape=box, fontname="monospace"];
            edge [fontname="monospace"];
            "drive vda" [label="drive vda", shape=ellipse, style=bold];
            "export vda" [label="export vda: nbd on unix:/run/blockloom/vda.sock, writable, bitmaps daily", shape=ellipse];
            "export vda" -> "drive vda";
            "node disk" [label="disk (file disk.img)", style=solid];
            "node slow" [label="slow (plugin throttle)", style=solid];
            "bitmap daily" [label="bitmap daily: granularity 64KiB", shape=note];
            "bitmap daily" -> "drive vda" [style=dotted, arrowhead=none];
            "drive vda" -> "node slow" [label="root: root\nuses cr+w\nshares cr+wu", style=solid];
            "node slow" -> "node disk" [label="file: filtered\nuses cr+w\nshares cr+wu", style=solid];
        }
    "#]].assert_eq(&dot(&good(EXAMPLE)));
}

#[test]
fn dot_quotes() {
    let text =
        "[node.a]\ndriver = \"file\"\npath = 'a\"b\\n'\n[bitmap.\"x\\\"y\\\\\"]\nnode = \"a\"\n";
    expect![[r#"
        digraph blockloom {
            node [shape=box, fontname="monospace"];
            edge [fontname="monospace"];
            "node a" [label="a (file a\"b\\n)", style=solid];
            "bitmap x\"y\\" [label="bitmap x\"y\\: granularity 64KiB", shape=note];
            "bitmap x\"y\\" -> "node a" [style=dotted, arrowhead=none];
        }
    "#]]
    .assert_eq(&dot(&good(text)));
}

#[test]
fn overlays() {
    let text = r#"
[node.base]
driver = "memory"
size = "1MiB"
[node.left]
driver = "memory"
child.backing = "base"
[node.right]
driver = "memory"
size = "2MiB"
child.backing = "base"
[drive.a]
root = "left"
writable = true
[drive.b]
root = "right"
writable = true
"#;
    expect![[r#"
        drive a
        └── root: left (memory 1MiB) [root, uses cr+w, shares cr+wu]
            └── backing: base (memory 1MiB) [backing, uses cr, shares cr+wu]
        drive b
        └── root: right (memory 2MiB) [root, uses cr+w, shares cr+wu]
            └── backing: base (memory 1MiB) [backing, uses cr, shares cr+wu]
    "#]]
    .assert_eq(&tree(&good(text)));
    expect![[r#"
        digraph blockloom {
            node [shape=box, fontname="monospace"];
            edge [fontname="monospace"];
            "drive a" [label="drive a", shape=ellipse, style=bold];
            "drive b" [label="drive b", shape=ellipse, style=bold];
            "node base" [label="base (memory 1MiB)", style=solid];
            "node left" [label="left (memory 1MiB)", style=solid];
            "node right" [label="right (memory 2MiB)", style=solid];
            "drive a" -> "node left" [label="root: root\nuses cr+w\nshares cr+wu", style=solid];
            "drive b" -> "node right" [label="root: root\nuses cr+w\nshares cr+wu", style=solid];
            "node left" -> "node base" [label="backing: backing\nuses cr\nshares cr+wu", style=solid];
            "node right" -> "node base" [label="backing: backing\nuses cr\nshares cr+wu", style=solid];
        }
    "#]].assert_eq(&dot(&good(text)));
}
