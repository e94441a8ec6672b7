//! References and cycles.

use expect_test::expect;

use super::check;

#[test]
fn unknown_references() {
    check(
        r#"
[node.disk]
driver = "memory"
size = 0
[node.part]
driver = "raw"
file = "dsik"
[node.vda]
driver = "pass"
child.file = "drive"
[drive.drive]
root = "disk2"
[bitmap.b]
drive = "disk"
[export.e]
type = "nbd"
node = "drive"
listen = "unix:x"
bitmaps = ["c"]
"#,
        &expect![[r#"
            error: child `file` of node `part` refers to node `dsik`, which does not exist
              --> graph.toml:7:8
               |
             7 | file = "dsik"
               |        ^^^^^^
               = help: did you mean `disk`? nodes of this file: disk, part, vda

            error: child `file` of node `vda` refers to node `drive`, which does not exist
               --> graph.toml:10:14
                |
             10 | child.file = "drive"
                |              ^^^^^^^
             11 | [drive.drive]
                |        ----- this is a drive
                = help: nodes of this file: disk, part, vda

            error: drive `drive` refers to node `disk2`, which does not exist
               --> graph.toml:12:8
                |
             12 | root = "disk2"
                |        ^^^^^^^
                = help: did you mean `disk`? nodes of this file: disk, part, vda

            error: bitmap `b` refers to drive `disk`, which does not exist
               --> graph.toml:14:9
                |
              2 | [node.disk]
                |       ---- this is a node
               ...
             14 | drive = "disk"
                |         ^^^^^^
                = help: drives of this file: drive

            error: export `e` refers to node `drive`, which does not exist
               --> graph.toml:17:8
                |
             11 | [drive.drive]
                |        ----- this is a drive
               ...
             17 | node = "drive"
                |        ^^^^^^^
                = help: nodes of this file: disk, part, vda

            error: export `e` refers to bitmap `c`, which does not exist
               --> graph.toml:19:12
                |
             19 | bitmaps = ["c"]
                |            ^^^
                = help: bitmaps of this file: b

            6 errors in graph.toml"#]],
    );
}

#[test]
fn one_namespace() {
    check(
        "[node.a]\ndriver = \"memory\"\nsize = 0\n[drive.a]\nroot = \"a\"\n",
        &expect![[r#"
        error: `a` is the name of a node and of a drive
          --> graph.toml:4:8
           |
         1 | [node.a]
           |       - first used here
          ...
         4 | [drive.a]
           |        ^
           = help: nodes and drives share one namespace: rename one of the two

        1 error in graph.toml"#]],
    );
}

#[test]
fn cycles() {
    check(
        "[node.a]\ndriver = \"raw\"\nfile = \"a\"\n",
        &expect![[r#"
        error: nodes are below themselves: a → a
          --> graph.toml:3:8
           |
         3 | file = "a"
           |        ^^^
           = help: point one of these children elsewhere

        1 error in graph.toml"#]],
    );
    check(
        r#"
[node.top]
driver = "raw"
file = "b"
[node.a]
driver = "pass"
child.file = { driver = "raw", file = "b" }
[node.b]
driver = "raw"
file = "a"
[node.c]
driver = "raw"
file = "d"
[node.d]
driver = "raw"
file = "c"
[node.below]
driver = "memory"
size = 0
"#,
        &expect![[r#"
            error: nodes are below themselves: a → #a.file → b → a
               --> graph.toml:7:7
                |
              7 | child.file = { driver = "raw", file = "b" }
                |       ^^^^
                |                                       --- `#a.file` → `b`
               ...
             10 | file = "a"
                |        --- `b` → `a`
                = help: point one of these children elsewhere

            error: nodes are below themselves: c → d → c
               --> graph.toml:13:8
                |
             13 | file = "d"
                |        ^^^
               ...
             16 | file = "c"
                |        --- `d` → `c`
                = help: point one of these children elsewhere

            2 errors in graph.toml"#]],
    );
}

#[test]
fn export_names() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[export.a]
type = "nbd"
node = "m"
listen = "unix:x"
[export.b]
type = "nbd"
node = "m"
listen = "unix:x"
name = "a"
[export.c]
type = "nbd"
node = "m"
listen = "unix:X"
name = "a"
"#,
        &expect![[r#"
            error: exports `a` and `b` are both called `a` on `unix:x`
               --> graph.toml:13:8
                |
              5 | [export.a]
                |         - first used here
               ...
             13 | name = "a"
                |        ^^^
                = help: give one of them another `name`, or another address to listen on

            1 error in graph.toml"#]],
    );
}

#[test]
fn bitmaps_of_exports() {
    check(
        r#"
[node.m]
driver = "memory"
size = 0
[node.n]
driver = "pass"
child.file = "m"
[node.o]
driver = "memory"
size = 0
[drive.a]
root = "n"
[drive.b]
root = "o"
[bitmap.of-a]
drive = "a"
[bitmap.of-b]
drive = "b"
[bitmap.of-m]
node = "m"
name = "of-a"
[bitmap.again]
drive = "b"
name = "of-b"
[export.a]
type = "nbd"
drive = "a"
listen = "unix:x"
bitmaps = ["of-a", "of-b", "of-m", "of-c"]
[export.m]
type = "nbd"
node = "m"
listen = "unix:x"
bitmaps = ["of-m", "of-a"]
"#,
        &expect![[r#"
            error: drive `b` has two bitmaps called `of-b`
               --> graph.toml:24:8
                |
             17 | [bitmap.of-b]
                |         ---- first used here
               ...
             24 | name = "of-b"
                |        ^^^^^^
                = help: give one of them another `name`

            error: bitmap `of-b` records drive `b`, but export `a` serves drive `a`
               --> graph.toml:29:20
                |
             18 | drive = "b"
                |         --- the bitmap's
               ...
             27 | drive = "a"
                |         --- the export's
               ...
             29 | bitmaps = ["of-a", "of-b", "of-m", "of-c"]
                |                    ^^^^^^
                = help: export a bitmap of drive `a`

            error: export `a` has two bitmaps that clients see as `of-a`
               --> graph.toml:29:28
                |
             29 | bitmaps = ["of-a", "of-b", "of-m", "of-c"]
                |            ------ first here
                |                            ^^^^^^

            error: export `a` refers to bitmap `of-c`, which does not exist
               --> graph.toml:29:36
                |
             29 | bitmaps = ["of-a", "of-b", "of-m", "of-c"]
                |                                    ^^^^^^
                = help: did you mean `of-a`? bitmaps of this file: of-a, of-b, of-m, again

            error: bitmap `of-a` records drive `a`, but export `m` serves node `m`
               --> graph.toml:34:20
                |
             16 | drive = "a"
                |         --- the bitmap's
               ...
             32 | node = "m"
                |        --- the export's
               ...
             34 | bitmaps = ["of-m", "of-a"]
                |                    ^^^^^^
                = help: export a bitmap of node `m`

            error: export `m` has two bitmaps that clients see as `of-a`
               --> graph.toml:34:20
                |
             34 | bitmaps = ["of-m", "of-a"]
                |            ------ first here
                |                    ^^^^^^

            6 errors in graph.toml"#]],
    );
}

#[test]
fn too_many() {
    let nodes: String =
        (0..1025).map(|n| format!("n{n} = {{ driver = \"memory\", size = 0 }}\n")).collect();
    check(
        &format!("[node]\n{nodes}"),
        &expect![[r#"
        error: the file has 1025 nodes: 1024 at most
             --> graph.toml:1026:1
              |
         1026 | n1024 = { driver = "memory", size = 0 }
              | ^^^^^

        1 error in graph.toml"#]],
    );
}
