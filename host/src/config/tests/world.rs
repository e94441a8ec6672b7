//! Files, sockets and plugins, as a made-up world has them.

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use serde_json::Value;

use super::super::*;
use super::{EXAMPLE, good};

pub(super) struct World;

impl Surroundings for World {
    fn file(&self, path: &Path) -> Result<FileFacts, String> {
        let facts = FileFacts { exists: true, writable: true, ..FileFacts::default() };
        let path: PathBuf = path.components().collect();
        Ok(match path.to_str().unwrap_or("") {
            "/base" | "/run/blockloom" => FileFacts { is_dir: true, ..facts },
            "/base/full.img" => FileFacts { size_bytes: 1 << 20, ..facts },
            "/base/empty.img" => facts,
            "/base/locked.img" => FileFacts { size_bytes: 1 << 20, ..facts },
            "/base/overlay.qcow2" | "/base/meta.qcow2" => {
                FileFacts { size_bytes: 196_608, ..facts }
            }
            "/base/fixed.img" => FileFacts { writable: false, size_bytes: 512, ..facts },
            "/dev/sda" => FileFacts { writable: false, is_block_device: true, ..facts },
            "/secret/x" => return Err("permission denied".to_owned()),
            _ => FileFacts::default(),
        })
    }

    fn lock_conflict(&self, path: &Path, is_written: bool) -> Option<String> {
        let is_held = is_written && path.ends_with("locked.img");
        is_held.then(|| "another process has it".to_owned())
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, String> {
        Ok(path.components().collect())
    }

    fn image(&self, path: &Path) -> Result<Option<ImageFacts>, String> {
        let backing = BackingReference { name: "full.img".to_owned(), format: Some("raw".into()) };
        let image = ImageFacts {
            size_bytes: 1 << 20,
            backing: Some(backing),
            data_file: DataFileSpec::None,
            data_file_name: None,
            is_dirty: false,
            is_left_open: false,
        };
        let raw = ImageFacts { backing: None, data_file: DataFileSpec::Raw, ..image.clone() };
        Ok(match path.to_str().unwrap_or("") {
            "/base/overlay.qcow2" => Some(image),
            "/base/meta.qcow2" => Some(raw),
            _ => None,
        })
    }

    fn listen_in_use(&self, addr: &ListenAddr) -> Option<String> {
        let text = addr.to_string();
        text.ends_with("busy").then(|| format!("another server listens on {text}"))
    }

    fn bundled_plugins(&self) -> Vec<String> {
        vec!["pass".to_owned(), "throttle".to_owned()]
    }

    fn plugin(&self, plugin: &PluginSource) -> Result<(), String> {
        match plugin {
            PluginSource::File(path) if path == "/base/good.wasm" => Ok(()),
            _ => Err("no such file".to_owned()),
        }
    }

    fn plugin_exclusive(&self, _: &PluginSource) -> Vec<String> {
        Vec::new()
    }

    fn may_bypass(&self, plugin: &PluginSource) -> bool {
        matches!(plugin, PluginSource::Bundled(_))
    }

    fn plugin_config(&self, _: &PluginSource, config: &Value) -> Vec<ConfigError> {
        let wrong = |path: &str, message: &str| ConfigError {
            path: path.to_owned(),
            message: message.to_owned(),
        };
        match config.get("iops").and_then(Value::as_i64) {
            Some(0) => vec![wrong("/iops", "must not be zero"), wrong("bps", "is missing")],
            _ => Vec::new(),
        }
    }

    fn plugin_views(&self, plugin: &PluginSource) -> Vec<String> {
        match plugin {
            PluginSource::Bundled(_) => Vec::new(),
            PluginSource::File(_) => vec!["snapshot".to_owned()],
        }
    }

    fn filter_config(&self, filter: FilterKind, config: &Value) -> Vec<ConfigError> {
        match filter {
            FilterKind::Pass | FilterKind::CopyOnRead | FilterKind::Backup => Vec::new(),
            FilterKind::Throttle => {
                self.plugin_config(&PluginSource::Bundled(String::new()), config)
            }
        }
    }
}

fn check(text: &str, expected: &Expect) {
    let found = check_surroundings(&mut good(text), &World, Path::new("/base"));
    expected.assert_eq(&found.to_string());
}

#[test]
fn nothing_wrong() {
    check(EXAMPLE, &expect![["no errors in graph.toml"]]);
}

#[test]
fn files_that_somebody_has() {
    check(
        r#"
[node.read]
driver = "file"
path = "locked.img"
read-only = true
"#,
        &expect![["no errors in graph.toml"]],
    );
    check(
        r#"
[node.written]
driver = "file"
path = "locked.img"
[drive.d]
root = "written"
writable = true
[node.unlocked]
driver = "file"
path = "locked.img"
locking = "off"
[drive.e]
root = "unlocked"
writable = true
"#,
        &expect![[r#"
            error: file `locked.img`: another process has it
              --> graph.toml:4:8
               |
             4 | path = "locked.img"
               |        ^^^^^^^^^^^^

            1 error in graph.toml"#]],
    );
}

#[test]
fn files() {
    check(
        r#"
[node.missing]
driver = "file"
path = "missing.img"
[node.directory]
driver = "file"
path = "/base"
[node.secret]
driver = "file"
path = "/secret/x"
[node.nowhere]
driver = "file"
path = "nowhere/x.img"
create = "1GiB"
[node.fixed]
driver = "file"
path = "fixed.img"
[node.filter]
driver = "pass"
child.file = "fixed"
[node.device]
driver = "file"
path = "/dev/sda"
[node.only-read]
driver = "file"
path = "fixed.img"
read-only = true
[node.empty]
driver = "file"
path = "empty.img"
[node.beyond]
driver = "raw"
file = { driver = "file", path = "full.img" }
offset = "1MiB"
size = 512
[node.new]
driver = "raw"
file = { driver = "file", path = "new.img", create = "1MiB" }
offset = "2MiB"
[export.fixed]
type = "nbd"
node = "filter"
listen = "unix:x"
writable = true
[export.device]
type = "nbd"
node = "device"
listen = "unix:x"
writable = true
"#,
        &expect![[r#"
            error: file `missing.img` does not exist
              --> graph.toml:4:8
               |
             4 | path = "missing.img"
               |        ^^^^^^^^^^^^^
               = help: to have it made, sparse, add its size: `create = "10GiB"`

            error: `/base` is a directory, not a file
              --> graph.toml:7:8
               |
             7 | path = "/base"
               |        ^^^^^^^

            error: cannot look at file `/secret/x`: permission denied
               --> graph.toml:10:8
                |
             10 | path = "/secret/x"
                |        ^^^^^^^^^^^

            error: file `nowhere/x.img` cannot be made: directory `/base/nowhere` does not exist
               --> graph.toml:13:8
                |
             13 | path = "nowhere/x.img"
                |        ^^^^^^^^^^^^^^^
                = help: make the directory first, or correct the path

            error: file `fixed.img` cannot be written by this process
               --> graph.toml:17:8
                |
             17 | path = "fixed.img"
                |        ^^^^^^^^^^^
               ...
             44 | writable = true
                |            ---- export `fixed` is writable
                = help: change its owner or mode, or make export `fixed` `writable = false`

            error: block device `/dev/sda` cannot be written by this process
               --> graph.toml:23:8
                |
             23 | path = "/dev/sda"
                |        ^^^^^^^^^^
               ...
             49 | writable = true
                |            ---- export `device` is writable
                = help: change its owner or mode, or make export `device` `writable = false`

            error: nodes `fixed` and `only-read` are the same file, and `fixed` writes it
               --> graph.toml:26:8
                |
             17 | path = "fixed.img"
                |        ----------- the same file
               ...
             26 | path = "fixed.img"
                |        ^^^^^^^^^^^
               ...
             44 | writable = true
                |            ---- export `fixed` is writable
                = help: use one node for both

            error: the section of node `beyond` ends at 1049088 of node `#beyond.file`, which has 1MiB
               --> graph.toml:35:8
                |
             33 | file = { driver = "file", path = "full.img" }
                | ---- the child
               ...
             35 | size = 512
                |        ^^^
                = help: make the section smaller, or the child larger

            error: the section of node `new` begins at 2MiB of node `#new.file`, which has 1MiB
               --> graph.toml:39:10
                |
             38 | file = { driver = "file", path = "new.img", create = "1MiB" }
                | ---- the child
             39 | offset = "2MiB"
                |          ^^^^^^
                = help: make the section smaller, or the child larger

            9 errors in graph.toml"#]],
    );
}

#[test]
fn one_file_twice() {
    check(
        r#"
[node.a]
driver = "file"
path = "full.img"
[node.b]
driver = "file"
path = "./full.img"
[export.a]
type = "nbd"
node = "a"
listen = "unix:x"
writable = true
"#,
        &expect![[r#"
            error: nodes `a` and `b` are the same file, and `a` writes it
               --> graph.toml:7:8
                |
              4 | path = "full.img"
                |        ---------- the same file
               ...
              7 | path = "./full.img"
                |        ^^^^^^^^^^^^
               ...
             12 | writable = true
                |            ---- export `a` is writable
                = help: use one node for both

            1 error in graph.toml"#]],
    );
}

#[test]
fn listeners() {
    let long = "x".repeat(104);
    check(
        &format!(
            r#"
[drive.d]
[export.a]
type = "nbd"
drive = "d"
listen = "unix:busy"
[export.b]
type = "nbd"
drive = "d"
listen = "unix:busy"
[export.c]
type = "nbd"
drive = "d"
listen = "unix:no/where"
[export.d]
type = "nbd"
drive = "d"
listen = "unix:{long}"
"#
        ),
        &expect![[r#"
            error: export `a` cannot listen on `unix:busy`: another server listens on unix:/base/busy
              --> graph.toml:6:10
               |
             6 | listen = "unix:busy"
               |          ^^^^^^^^^^^

            error: export `c` cannot listen on `unix:no/where`: directory `/base/no` does not exist
               --> graph.toml:14:10
                |
             14 | listen = "unix:no/where"
                |          ^^^^^^^^^^^^^^^

            error: `listen` of export `d` is too long: the path of a Unix socket has at most 107 bytes
               --> graph.toml:18:10
                |
             18 | listen = "unix:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

            3 errors in graph.toml"#]],
    );
}

#[test]
fn plugins() {
    check(
        r#"
[node.m]
driver = "memory"
size = 512
[node.a]
driver = "plugin"
plugin = "throtle"
child.file = "m"
[node.b]
driver = "plugin"
plugin = "bad.wasm"
child.file = "m"
[node.c]
driver = "plugin"
plugin = "good.wasm"
child.file = "m"
config = { iops = 0 }
[node.d]
driver = "throttle"
child.file = "m"
[node.d.config]
iops = 0
"#,
        &expect![[r#"
            error: no bundled plugin is called `throtle`
              --> graph.toml:7:10
               |
             7 | plugin = "throtle"
               |          ^^^^^^^^^
               = help: did you mean `throttle`? bundled plugins: pass, throttle; a file's name ends in `.wasm`

            error: plugin `bad.wasm` cannot be loaded: no such file
               --> graph.toml:11:10
                |
             11 | plugin = "bad.wasm"
                |          ^^^^^^^^^^

            error: `bps` in `config` of node `c`: is missing
               --> graph.toml:17:1
                |
             17 | config = { iops = 0 }
                | ^^^^^^

            error: `iops` in `config` of node `c`: must not be zero
               --> graph.toml:17:12
                |
             17 | config = { iops = 0 }
                |            ^^^^

            error: `bps` in `config` of node `d`: is missing
               --> graph.toml:21:9
                |
             21 | [node.d.config]
                |         ^^^^^^

            error: `iops` in `config` of node `d`: must not be zero
               --> graph.toml:22:1
                |
             22 | iops = 0
                | ^^^^

            6 errors in graph.toml"#]],
    );
}
