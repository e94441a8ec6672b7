//! Nodes, edges and names that do not make a graph.

use expect_test::expect;

use super::check;

#[test]
fn missing_children() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[node.slow]
driver = "throttle"
child.file = "dsik"
[node.part]
driver = "raw"
[node.bare]
driver = "plugin"
plugin = "pass"
[drive.vda]
root = "gone"
"#,
        &expect![[r#"
            error: child `file` of node `slow` refers to node `dsik`, which does not exist
              --> DIR/graph.toml:7:14
               |
             7 | child.file = "dsik"
               |              ^^^^^^
               = help: did you mean `disk`? nodes of this file: disk, slow, part, bare

            error: node `part` has no `file`
              --> DIR/graph.toml:8:7
               |
             8 | [node.part]
               |       ^^^^
               = help: add `file = "NODE"`

            error: node `bare` has no `child.file`
               --> DIR/graph.toml:10:7
                |
             10 | [node.bare]
                |       ^^^^
                = help: add `child.file = "NODE"`

            error: drive `vda` refers to node `gone`, which does not exist
               --> DIR/graph.toml:14:8
                |
             14 | root = "gone"
                |        ^^^^^^
                = help: nodes of this file: disk, slow, part, bare

            4 errors in DIR/graph.toml"#]],
    );
}

#[test]
fn a_cycle() {
    check(
        r#"
[node.a]
driver = "pass"
child.file = "b"
[node.b]
driver = "plugin"
plugin = "pass"
child.file = "c"
[node.c]
driver = "raw"
file = "a"
"#,
        &expect![[r#"
            error: nodes are below themselves: a → b → c → a
               --> DIR/graph.toml:4:14
                |
              4 | child.file = "b"
                |              ^^^
               ...
              8 | child.file = "c"
                |              --- `b` → `c`
               ...
             11 | file = "a"
                |        --- `c` → `a`
                = help: point one of these children elsewhere

            1 error in DIR/graph.toml"#]],
    );
}

#[test]
fn two_writers() {
    check(
        r#"
[node.disk]
driver = "file"
path = "full.img"
[node.low]
driver = "raw"
file = "disk"
size = "512KiB"
[node.high]
driver = "raw"
file = "disk"
offset = "512KiB"
[drive.vda]
root = "low"
writable = true
[drive.vdb]
root = "high"
writable = true
"#,
        &expect![[r#"
            error: node `low` (edge `file`) and node `high` (edge `file`) both write node `disk`
               --> DIR/graph.toml:11:8
                |
              7 | file = "disk"
                |        ------ node `low` uses it here
               ...
             11 | file = "disk"
                |        ^^^^^^
                = help: give node `high` a child of its own

            1 error in DIR/graph.toml"#]],
    );
}

#[test]
fn names_used_twice() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[drive.disk]
root = "disk"
[export.a]
type = "nbd"
drive = "disk"
listen = "unix:a.sock"
[export.b]
type = "nbd"
drive = "disk"
name = "a"
listen = "unix:a.sock"
"#,
        &expect![[r#"
            error: `disk` is the name of a node and of a drive
              --> DIR/graph.toml:5:8
               |
             2 | [node.disk]
               |       ---- first used here
              ...
             5 | [drive.disk]
               |        ^^^^
               = help: nodes and drives share one namespace: rename one of the two

            error: exports `a` and `b` are both called `a` on `unix:a.sock`
               --> DIR/graph.toml:14:8
                |
              7 | [export.a]
                |         - first used here
               ...
             14 | name = "a"
                |        ^^^
                = help: give one of them another `name`, or another address to listen on

            2 errors in DIR/graph.toml"#]],
    );
    check(
        "[node.disk]\ndriver = \"memory\"\nsize = 512\n[node.disk]\ndriver = \"null\"\nsize = 512\n",
        &expect![[r#"
            error: the table `disk` is given a second time
              --> DIR/graph.toml:4:7
               |
             1 | [node.disk]
               |       ---- first used here
              ...
             4 | [node.disk]
               |       ^^^^
               = help: every name is used once: rename this one, or remove it

            1 error in DIR/graph.toml"#]],
    );
}

#[test]
fn bitmaps_that_are_not_there() {
    check(
        r#"
[node.disk]
driver = "memory"
size = "1MiB"
[drive.vda]
root = "disk"
[drive.vdb]
[bitmap.daily]
drive = "vda"
[bitmap.other]
drive = "vdb"
[bitmap.fine]
drive = "vda"
granularity = 1000
[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:a.sock"
bitmaps = ["dayly", "other", "daily"]
"#,
        &expect![[r#"
            error: `granularity` of bitmap `fine` must be a power of two, 512 to 2GiB
               --> DIR/graph.toml:14:15
                |
             14 | granularity = 1000
                |               ^^^^

            error: export `vda` refers to bitmap `dayly`, which does not exist
               --> DIR/graph.toml:19:12
                |
             19 | bitmaps = ["dayly", "other", "daily"]
                |            ^^^^^^^
                = help: did you mean `daily`? bitmaps of this file: daily, other, fine

            error: bitmap `other` records drive `vdb`, but export `vda` serves drive `vda`
               --> DIR/graph.toml:19:21
                |
             11 | drive = "vdb"
                |         ----- the bitmap's
               ...
             17 | drive = "vda"
                |         ----- the export's
               ...
             19 | bitmaps = ["dayly", "other", "daily"]
                |                     ^^^^^^^
                = help: export a bitmap of drive `vda`

            3 errors in DIR/graph.toml"#]],
    );
}
