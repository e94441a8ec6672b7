//! What an image is opened with, and made with.

use expect_test::expect;

use super::super::check;

#[test]
fn options() {
    check(
        r#"
[node.a]
driver = "qcow2"
[node.b]
driver = "qcow2"
child.file = "a"
[node.c]
driver = "qcow2"
file = { driver = "file", path = "c.qcow2", create = "1GiB" }
backing = true
l2-cache = 512
backing-dirs = ["", "x"]
backing-dir = "x"
[node.d]
driver = "qcow2"
file = { driver = "file", path = "d.qcow2", create = "1GiB" }
backing = 5
read-only = true
create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
[node.e]
driver = "qcow2"
file = { driver = "file", path = "e.qcow2" }
create = { size = 513, cluster-size = "4MiB" }
[node.f]
driver = "qcow2"
file = "e"
backing = "nowhere"
create = true
"#,
        &expect![[r#"
            error: node `a` has no `file`
              --> graph.toml:2:7
               |
             2 | [node.a]
               |       ^
               = help: add `file = { driver = "file", path = "disk.qcow2" }`

            error: `child` of node `b` is not how driver `qcow2` names its children
              --> graph.toml:6:1
               |
             6 | child.file = "a"
               | ^^^^^
               = help: write `file = …`, `backing = …` and `data-file = …`, each a node's name or `{ driver = … }`

            error: `create` would make the file of node `c` with zeros, which are no qcow2 image
              --> graph.toml:9:54
               |
             9 | file = { driver = "file", path = "c.qcow2", create = "1GiB" }
               |                                                      ^^^^^^
               = help: remove it, and add `create = { size = … }` to node `c`

            error: `backing` of node `c` must be the name of a node, a table, or false, not true
               --> graph.toml:10:11
                |
             10 | backing = true
                |           ^^^^
                = help: remove it to have what the image names; `backing = false` is no backing

            error: `l2-cache` of node `c` must be 64KiB to 4GiB
               --> graph.toml:11:12
                |
             11 | l2-cache = 512
                |            ^^^

            error: an item of `backing-dirs` of node `c` is no path: it is empty or has a zero byte
               --> graph.toml:12:17
                |
             12 | backing-dirs = ["", "x"]
                |                 ^^

            error: unknown key `backing-dir` in node `c`
               --> graph.toml:13:1
                |
             13 | backing-dir = "x"
                | ^^^^^^^^^^^
                = help: did you mean `backing-dirs`? keys of driver `qcow2`: file, backing, data-file, create, l2-cache, lazy-refcounts, backing-dirs, read-only, auto-read-only

            error: `create` would make the file of node `d` with zeros, which are no qcow2 image
               --> graph.toml:16:54
                |
             16 | file = { driver = "file", path = "d.qcow2", create = "1GiB" }
                |                                                      ^^^^^^
                = help: remove it: the image makes its file

            error: `backing` of node `d` must be the name of a node, a table, or false, not an integer
               --> graph.toml:17:11
                |
             17 | backing = 5
                |           ^
                = help: remove it to have what the image names; `backing = false` is no backing

            error: node `d` is read-only: no image can be made
               --> graph.toml:18:13
                |
             18 | read-only = true
                |             ^^^^
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                | ------ the image to be made
                = help: remove one of the two

            error: `create` of node `d` has no `size`
               --> graph.toml:19:1
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                | ^^^^^^
                = help: add `size = "10GiB"`

            error: `refcount-bits` of `create` of node `d` must be 1, 2, 4, 8, 16, 32 or 64
               --> graph.toml:19:51
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                |                                                   ^

            error: `compat` of `create` of node `d` cannot be `1.2`
               --> graph.toml:19:63
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                |                                                               ^^^^^
                = help: did you mean `1.1`? possible values: 0.10, 1.1

            error: unknown key `sice` in `create` of node `d`
               --> graph.toml:19:70
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                |                                                                      ^^^^
                = help: did you mean `size`? keys of `create`: size, cluster-size, refcount-bits, compat, extended-l2, lazy-refcounts, compression-type, preallocation, data-file-raw, backing-file, backing-format

            error: `extended-l2` of `create` of node `d` needs clusters of at least 16KiB, not 1KiB
               --> graph.toml:19:94
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                |                           ------ the cluster size
                |                                                                                              ^^^^

            error: `preallocation` of `create` of node `d` cannot be `all`
               --> graph.toml:19:116
                |
             19 | create = { cluster-size = "1KiB", refcount-bits = 3, compat = "1.2", sice = 5, extended-l2 = true, preallocation = "all" }
                |                                                                                                                    ^^^^^
                = help: possible values: off, metadata, falloc, full

            error: `size` of `create` of node `e` must be a multiple of 512
               --> graph.toml:23:19
                |
             23 | create = { size = 513, cluster-size = "4MiB" }
                |                   ^^^

            error: `cluster-size` of `create` of node `e` must be a power of two, 512 to 2MiB
               --> graph.toml:23:39
                |
             23 | create = { size = 513, cluster-size = "4MiB" }
                |                                       ^^^^^^

            error: child `backing` of node `f` refers to node `nowhere`, which does not exist
               --> graph.toml:27:11
                |
             27 | backing = "nowhere"
                |           ^^^^^^^^^
                = help: nodes of this file: a, b, c, d, e, f

            error: `create` of node `f` must be a table, not a boolean
               --> graph.toml:28:10
                |
             28 | create = true
                |          ^^^^

            20 errors in graph.toml"#]],
    );
}

#[test]
fn options_of_new_images() {
    check(
        r#"
[node.base]
driver = "null"
size = "1GiB"
[node.old]
driver = "qcow2"
file = { driver = "file", path = "old.qcow2" }
data-file = { driver = "file", path = "old.raw" }
create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
[node.raw]
driver = "qcow2"
file = { driver = "file", path = "raw.qcow2" }
create = { size = "1GiB", data-file-raw = true, backing-format = "raw", backing-file = "x" }
[node.raw-backed]
driver = "qcow2"
file = { driver = "file", path = "raw-backed.qcow2" }
data-file = { driver = "file", path = "raw-backed.raw" }
backing = "base"
create = { size = "1GiB", data-file-raw = true, preallocation = "full" }
[node.tiny-clusters]
driver = "qcow2"
file = { driver = "file", path = "tiny.qcow2" }
create = { size = "129GiB", cluster-size = 512 }
[node.right]
driver = "qcow2"
file = { driver = "file", path = "right.qcow2" }
backing = "base"
create = { backing-format = "raw", backing-file = "/dev/null" }
"#,
        &expect![[r#"
            error: `data-file` of `create` of node `old` needs `compat = "1.1"`
              --> graph.toml:8:1
               |
             8 | data-file = { driver = "file", path = "old.raw" }
               | ^^^^^^^^^
             9 | create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
               |                                    ------ the older format
               = help: remove one of the two

            error: a `refcount-bits` that is not 16 of `create` of node `old` needs `compat = "1.1"`
              --> graph.toml:9:60
               |
             9 | create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
               |                                    ------ the older format
               |                                                            ^
               = help: remove one of the two

            error: `extended-l2 = true` of `create` of node `old` needs `compat = "1.1"`
              --> graph.toml:9:77
               |
             9 | create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
               |                                    ------ the older format
               |                                                                             ^^^^
               = help: remove one of the two

            error: `lazy-refcounts = true` of `create` of node `old` needs `compat = "1.1"`
              --> graph.toml:9:100
               |
             9 | create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
               |                                    ------ the older format
               |                                                                                                    ^^^^
               = help: remove one of the two

            error: `compression-type = "zstd"` of `create` of node `old` needs `compat = "1.1"`
              --> graph.toml:9:125
               |
             9 | create = { size = "1GiB", compat = "0.10", refcount-bits = 1, extended-l2 = true, lazy-refcounts = true, compression-type = "zstd" }
               |                                    ------ the older format
               |                                                                                                                             ^^^^^^
               = help: remove one of the two

            error: `data-file-raw` of `create` of node `raw` is about no `data-file`
               --> graph.toml:13:43
                |
             13 | create = { size = "1GiB", data-file-raw = true, backing-format = "raw", backing-file = "x" }
                |                                           ^^^^
                = help: add `data-file = { driver = "file", path = "disk.raw" }` to the node

            error: `backing-format` of `create` of node `raw` is about no `backing`
               --> graph.toml:13:66
                |
             13 | create = { size = "1GiB", data-file-raw = true, backing-format = "raw", backing-file = "x" }
                |                                                                  ^^^^^
                = help: add `backing = { driver = …, file = … }` or `backing = "NODE"` to the node

            error: `backing-file` of `create` of node `raw` is about no `backing`
               --> graph.toml:13:88
                |
             13 | create = { size = "1GiB", data-file-raw = true, backing-format = "raw", backing-file = "x" }
                |                                                                                        ^^^
                = help: add `backing = { driver = …, file = … }` or `backing = "NODE"` to the node

            error: `data-file-raw` of `create` of node `raw-backed` cannot be: all bytes of the node would be the data file's, and none its backing's
               --> graph.toml:19:43
                |
             18 | backing = "base"
                |           ------ the backing
             19 | create = { size = "1GiB", data-file-raw = true, preallocation = "full" }
                |                                           ^^^^
                = help: remove one of the two

            error: `preallocation = "full"` of `create` of node `raw-backed` would hide the backing
               --> graph.toml:19:65
                |
             18 | backing = "base"
                |           ------ the backing
             19 | create = { size = "1GiB", data-file-raw = true, preallocation = "full" }
                |                                                                 ^^^^^^
                = help: remove one of the two, or add `extended-l2 = true`

            error: `size` of `create` of node `tiny-clusters` is more than 128GiB, the most with clusters of 512
               --> graph.toml:23:19
                |
             23 | create = { size = "129GiB", cluster-size = 512 }
                |                   ^^^^^^^^
                |                                            --- the cluster size
                = help: make the image smaller, or its clusters larger

            11 errors in graph.toml"#]],
    );
}
