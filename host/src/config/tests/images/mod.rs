//! Images that name other files, as a made-up world has them.

mod chains;
mod data_files;
mod gate;
mod made;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use expect_test::Expect;
use serde_json::Value;

use super::super::*;
use super::{good, tree};

/// What is at a path.
#[derive(Clone)]
enum Thing {
    Dir,
    /// A file of so many bytes that is no image.
    File(u64),
    Image(ImageFacts),
    /// An image with an error in its header.
    Broken(&'static str),
    Device,
    Pipe,
    /// A symbolic link to a path.
    Link(&'static str),
}

struct Place(BTreeMap<PathBuf, Thing>);

impl Place {
    /// What is at `path`, and its real path; of links, one in a path is followed.
    fn find(&self, path: &Path) -> (PathBuf, Option<&Thing>) {
        let mut real = PathBuf::new();
        for part in path.components() {
            match part {
                std::path::Component::ParentDir => drop(real.pop()),
                part => real.push(part),
            }
            if let Some(Thing::Link(target)) = self.0.get(&real) {
                real = PathBuf::from(target);
            }
        }
        let thing = self.0.get(&real);
        (real, thing)
    }
}

impl Surroundings for Place {
    fn file(&self, path: &Path) -> Result<FileFacts, String> {
        let facts = FileFacts { exists: true, writable: true, ..FileFacts::default() };
        Ok(match self.find(path).1 {
            None | Some(Thing::Link(_)) => FileFacts::default(),
            Some(Thing::Dir) => FileFacts { is_dir: true, ..facts },
            Some(Thing::File(size_bytes)) => FileFacts { size_bytes: *size_bytes, ..facts },
            Some(Thing::Image(_) | Thing::Broken(_)) => FileFacts { size_bytes: 196_608, ..facts },
            Some(Thing::Device) => {
                FileFacts { size_bytes: 1 << 30, is_block_device: true, ..facts }
            }
            Some(Thing::Pipe) => FileFacts { is_special: true, ..facts },
        })
    }

    fn lock_conflict(&self, _: &Path, _: bool) -> Option<String> {
        None
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, String> {
        match self.find(path) {
            (real, Some(_)) => Ok(real),
            (_, None) => Err("no such file or directory".to_owned()),
        }
    }

    fn image(&self, path: &Path) -> Result<Option<ImageFacts>, String> {
        match self.find(path).1 {
            Some(Thing::Image(facts)) => Ok(Some(facts.clone())),
            Some(Thing::Broken(why)) => Err((*why).to_owned()),
            Some(Thing::File(_)) => Ok(None),
            _ => panic!("{} is looked into", path.display()),
        }
    }

    fn listen_in_use(&self, _: &ListenAddr) -> Option<String> {
        None
    }

    fn bundled_plugins(&self) -> Vec<String> {
        Vec::new()
    }

    fn plugin(&self, _: &PluginSource) -> Result<(), String> {
        Ok(())
    }

    fn plugin_exclusive(&self, _: &PluginSource) -> Vec<String> {
        Vec::new()
    }

    fn may_bypass(&self, _: &PluginSource) -> bool {
        true
    }

    fn plugin_config(&self, _: &PluginSource, _: &Value) -> Vec<ConfigError> {
        Vec::new()
    }

    fn plugin_views(&self, _: &PluginSource) -> Vec<String> {
        Vec::new()
    }

    fn filter_config(&self, _: FilterKind, _: &Value) -> Vec<ConfigError> {
        Vec::new()
    }
}

fn image() -> ImageFacts {
    ImageFacts {
        size_bytes: 1 << 30,
        backing: None,
        data_file: DataFileSpec::None,
        data_file_name: None,
        is_dirty: false,
        is_left_open: false,
    }
}

/// An image whose backing is `name`, of `format`.
fn over(name: &str, format: Option<&str>) -> Thing {
    let backing = BackingReference { name: name.to_owned(), format: format.map(str::to_owned) };
    Thing::Image(ImageFacts { backing: Some(backing), ..image() })
}

fn with_data(name: Option<&str>, data_file: DataFileSpec) -> Thing {
    Thing::Image(ImageFacts { data_file, data_file_name: name.map(str::to_owned), ..image() })
}

/// The configuration is in `/vm`.
fn place<'a>(things: impl IntoIterator<Item = (&'a str, Thing)>) -> Place {
    let dirs = ["/vm", "/vm/below", "/store", "/etc"].map(|dir| (dir, Thing::Dir));
    let things = dirs.into_iter().chain(things);
    Place(things.map(|(path, thing)| (PathBuf::from(path), thing)).collect())
}

/// Checks `text` in `place`: what is wrong, else the drawing of what it becomes.
fn check_in(place: &Place, text: &str, expected: &Expect) {
    let mut spec = good(text);
    let found = check_surroundings(&mut spec, place, Path::new("/vm"));
    let drawn = tree(&spec);
    expected.assert_eq(&if found.is_empty() { drawn } else { found.to_string() });
}

/// A node whose image is `/vm/a.qcow2`.
const FIRST: &str =
    "[node.a]\ndriver = \"qcow2\"\nfile = { driver = \"file\", path = \"a.qcow2\" }\n";

/// Checks one `qcow2` node `a` on `a.qcow2`, with `more` keys.
fn check<'a>(things: impl IntoIterator<Item = (&'a str, Thing)>, more: &str, expected: &Expect) {
    let text = format!("{FIRST}{more}\n[drive.vda]\nroot = \"a\"\nwritable = true\n");
    check_in(&place(things), &text, expected);
}
