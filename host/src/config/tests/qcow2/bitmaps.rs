//! Bitmaps that images keep.

use expect_test::expect;

use super::super::check;

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
