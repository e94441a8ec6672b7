//! Driver `qcow2`: its options, its children, and bitmaps that images keep.

use expect_test::expect;

use super::super::{BackingSpec, DriverSpec, Qcow2Spec};
use super::{check, good, tree};

/// A base, an overlay that is made, and one whose bytes are in another file.
pub(super) const CHAIN: &str = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
backing = false
read-only = true

[node.overlay]
driver = "qcow2"
file = { driver = "file", path = "overlay.qcow2" }
backing = "base"
create = { size = "10GiB", cluster-size = "64KiB", extended-l2 = true, preallocation = "metadata" }
l2-cache = "1MiB"
lazy-refcounts = false
backing-dirs = ["images", "/srv/images"]

[node.meta]
driver = "qcow2"
file = { driver = "file", path = "meta.qcow2" }
data-file = "overlay"
[node.meta.create]
size = "10GiB"
data-file-raw = true
lazy-refcounts = true
refcount-bits = 64
compat = "1.1"
compression-type = "zstd"

[drive.vda]
root = "meta"

[bitmap.daily]
drive = "vda"
persist = "meta"
[bitmap.weekly]
drive = "vda"
persist = "root"
[bitmap.below]
node = "overlay"
persist = { node = "overlay" }

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:a"
writable = true
bitmaps = ["daily", "below", "of-the-image"]
"#;

fn image<'a>(spec: &'a super::super::GraphSpec, node: &str) -> &'a Qcow2Spec {
    match &spec.node(node).expect("the node").driver {
        DriverSpec::Qcow2(image) => image,
        other => panic!("{other:?}"),
    }
}

#[test]
fn chain() {
    let spec = good(CHAIN);
    expect![[r#"
        drive vda
        ├── export vda: nbd on unix:a, writable, bitmaps daily, below, of-the-image
        ├── bitmap daily: granularity 64KiB, kept in the metadata image
        ├── bitmap weekly: granularity 64KiB, kept at the root
        └── root: meta (qcow2, backing as its image says) [root, uses cr+w, shares cr+wu]
            ├── file: #meta.file (file meta.qcow2) [storage, uses cr+w, shares cr+wu]
            └── data-file: overlay (qcow2) [data, uses cr+w, shares cr+wu]
                ├── bitmap below: granularity 64KiB, kept in overlay
                ├── file: #overlay.file (file overlay.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: base (qcow2, read-only) [backing, uses cr, shares cr+wu]
                    └── file: #base.file (file base.qcow2) [storage, uses cr, shares cr+wu]
    "#]]
    .assert_eq(&tree(&spec));
    assert_eq!(image(&spec, "base").backing.value, BackingSpec::None);
    assert_eq!(image(&spec, "overlay").backing.value, BackingSpec::Node);
    assert_eq!(image(&spec, "overlay").l2_cache_bytes.value, 1 << 20);
    assert_eq!(image(&spec, "base").l2_cache_bytes.value, 32 << 20);
    let lazy = |node: &str| image(&spec, node).lazy_refcounts.map(|it| it.value);
    assert_eq!((lazy("overlay"), lazy("base")), (Some(false), None));
    assert_eq!(image(&spec, "meta").backing.value, BackingSpec::AsImage);
    // The file of an image that is to be made is made empty.
    let made = |node: &str| match &spec.node(node).expect("the file").driver {
        DriverSpec::File(file) => file.create_bytes.as_ref().map(|it| it.value),
        other => panic!("{other:?}"),
    };
    assert_eq!(made("#overlay.file"), Some(0));
    assert_eq!(made("#base.file"), None);
}

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

#[test]
fn persistence() {
    check(
        r#"
[node.m]
driver = "memory"
size = "1MiB"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
read-only = true
[node.other]
driver = "qcow2"
file = { driver = "file", path = "other.qcow2" }
[node.overlay]
driver = "qcow2"
file = { driver = "file", path = "overlay.qcow2" }
backing = "base"
[node.filter]
driver = "pass"
child.file = "overlay"
[drive.a]
root = "filter"
[drive.b]
root = "m"
[drive.c]
root = "base"
[drive.empty]
[bitmap.unknown]
drive = "a"
persist = { node = "overly" }
[bitmap.no-image]
drive = "a"
persist = { node = "filter" }
[bitmap.read-only]
drive = "a"
persist = { node = "base" }
[bitmap.elsewhere]
drive = "a"
persist = { node = "other" }
[bitmap.of-node]
node = "overlay"
persist = "root"
[bitmap.no-image-at-all]
drive = "b"
persist = "root"
[bitmap.no-image-either]
drive = "b"
persist = { node = "m" }
[bitmap.no-data-file]
drive = "a"
persist = "meta"
[bitmap.root-read-only]
drive = "c"
persist = "root"
[bitmap.waits]
drive = "empty"
persist = "root"
[bitmap.right]
drive = "a"
persist = "root"
[bitmap.twice]
node = "overlay"
name = "right"
persist = { node = "overlay" }
[bitmap.keyless]
drive = "a"
persist = { nodes = "overlay" }
"#,
        &expect![[r#"
            error: bitmap `unknown` refers to node `overly`, which does not exist
               --> graph.toml:28:20
                |
             28 | persist = { node = "overly" }
                |                    ^^^^^^^^
                = help: did you mean `overlay`? nodes of this file: m, base, other, overlay, filter

            error: node `filter` cannot keep bitmap `no-image`: its driver is `pass`, and only `qcow2` keeps bitmaps
               --> graph.toml:31:20
                |
             31 | persist = { node = "filter" }
                |                    ^^^^^^^^
                = help: images that could: `overlay`, `base`

            error: node `base` cannot keep bitmap `read-only`: it is read-only
               --> graph.toml:34:20
                |
              8 | read-only = true
                |             ---- read-only here
               ...
             34 | persist = { node = "base" }
                |                    ^^^^^^
                = help: remove `read-only = true` from node `base`

            error: node `other` cannot keep bitmap `elsewhere`: it is not below drive `a`, whose changes the bitmap records
               --> graph.toml:37:20
                |
             36 | drive = "a"
                |         --- drive `a` begins at `filter`
             37 | persist = { node = "other" }
                |                    ^^^^^^^
                = help: name an image below drive `a`

            error: `persist = "root"` of bitmap `of-node` needs a drive, and it has a node
               --> graph.toml:40:11
                |
             39 | node = "overlay"
                |        --------- the node
             40 | persist = "root"
                |           ^^^^^^
                = help: write `persist = { node = "NODE" }`, or give the bitmap a drive

            error: `persist = "root"` of bitmap `no-image-at-all`: no `qcow2` node shows what drive `b` shows
               --> graph.toml:43:11
                |
             42 | drive = "b"
                |         --- its root is node `m`
             43 | persist = "root"
                |           ^^^^^^
                = help: put a `qcow2` node at the root (with `data-file` and `create.data-file-raw` it shows another node's bytes), or write `persist = "none"`

            error: node `m` cannot keep bitmap `no-image-either`: its driver is `memory`, and only `qcow2` keeps bitmaps
               --> graph.toml:46:20
                |
             46 | persist = { node = "m" }
                |                    ^^^
                = help: write `persist = "none"`

            error: `persist = "meta"` of bitmap `no-data-file`: node `overlay`, the first image of drive `a`, has no `data-file`
               --> graph.toml:49:11
                |
             12 | [node.overlay]
                |       ------- the image
               ...
             49 | persist = "meta"
                |           ^^^^^^
                = help: put a `qcow2` node at the root whose `data-file` is the rest of the graph, made with `create.data-file-raw`, or write `persist = "root"`

            error: node `base` cannot keep bitmap `root-read-only`: it is read-only
               --> graph.toml:52:11
                |
              8 | read-only = true
                |             ---- read-only here
               ...
             52 | persist = "root"
                |           ^^^^^^
                = help: remove `read-only = true` from node `base`

            error: node `overlay` is to keep two bitmaps called `right`
               --> graph.toml:62:11
                |
             58 | persist = "root"
                |           ------ bitmap `right`
               ...
             62 | persist = { node = "overlay" }
                |           ^^^^^^^^^^^^^^^^^^^^
                = help: give one of them another `name`, or another image

            error: `persist` of bitmap `keyless` has no `node`
               --> graph.toml:65:1
                |
             65 | persist = { nodes = "overlay" }
                | ^^^^^^^
                = help: add `node = "NODE"`

            error: unknown key `nodes` in `persist` of bitmap `keyless`
               --> graph.toml:65:13
                |
             65 | persist = { nodes = "overlay" }
                |             ^^^^^
                = help: did you mean `node`? keys of `persist`: node

            12 errors in graph.toml"#]],
    );
}

#[test]
fn bitmaps_of_images_in_exports() {
    check(
        r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
[node.overlay]
driver = "memory"
size = "1MiB"
child.backing = { driver = "pass", child.file = "base" }
[node.container]
driver = "raw"
file = "base"
size = 512
[export.below]
type = "nbd"
node = "overlay"
listen = "unix:a"
bitmaps = ["held"]
[export.not-shown]
type = "nbd"
node = "container"
listen = "unix:a"
bitmaps = ["held"]
"#,
        &expect![[r#"
            error: export `not-shown` refers to bitmap `held`, which does not exist
               --> graph.toml:22:12
                |
             22 | bitmaps = ["held"]
                |            ^^^^^^
                = help: bitmaps of this file: (none)

            1 error in graph.toml"#]],
    );
}

#[test]
fn sharing() {
    check(
        r#"
[node.file]
driver = "file"
path = "a.qcow2"
[node.a]
driver = "qcow2"
file = "file"
backing = "base"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
[export.a]
type = "nbd"
node = "a"
listen = "unix:a"
writable = true
[export.base]
type = "nbd"
node = "base"
listen = "unix:b"
writable = true
[export.container]
type = "nbd"
node = "file"
listen = "unix:c"
writable = true
"#,
        &expect![[r#"
            error: node `a` (edge `backing`) cannot share node `base` with export `base` (edge `node`), which writes it
               --> graph.toml:19:8
                |
              8 | backing = "base"
                |           ------ node `a` uses it here
               ...
             19 | node = "base"
                |        ^^^^^^
               ...
             21 | writable = true
                |            ---- export `base` is writable
                = help: give export `base` a node of its own, or make export `base` `writable = false`

            error: export `container` (edge `node`) and node `a` (edge `file`) both write node `file`
               --> graph.toml:24:8
                |
              7 | file = "file"
                |        ------ node `a` uses it here
               ...
             16 | writable = true
                |            ---- export `a` is writable
               ...
             24 | node = "file"
                |        ^^^^^^
               ...
             26 | writable = true
                |            ---- export `container` is writable
                = help: give export `container` a node of its own, or make export `container` `writable = false`

            2 errors in graph.toml"#]],
    );
    check(
        r#"
[node.a]
driver = "qcow2"
file = { driver = "file", path = "a.qcow2", read-only = true }
[export.a]
type = "nbd"
node = "a"
listen = "unix:a"
writable = true
"#,
        &expect![[r#"
            error: export `a` is writable, but node `#a.file` is read-only
              --> graph.toml:9:12
               |
             4 | file = { driver = "file", path = "a.qcow2", read-only = true }
               |                                                         ---- read-only here
              ...
             9 | writable = true
               |            ^^^^
               = help: remove `read-only = true` from node `#a.file`, or make export `a` `writable = false`

            1 error in graph.toml"#]],
    );
}
