//! How images name their backings, and what such a name means.

use std::path::{Component, Path, PathBuf};

/// A backing, as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// The file's name.
    pub name: String,
    /// What it is (`qcow2`, `raw`).
    pub format: Option<String>,
}

/// What stands before the first `:` of a name, if that makes it no path, as in QEMU.
pub(crate) fn protocol(name: &str) -> Option<&str> {
    let (before, _) = name.split_once(':')?;
    (!before.contains('/')).then_some(before)
}

/// The path that a name is; relative: from the directory of the image. `None` for a name of another kind.
pub(crate) fn path_of(name: &str) -> Option<&Path> {
    let path = match protocol(name) {
        None => name,
        Some("file") => name.strip_prefix("file:").filter(|path| path.starts_with('/'))?,
        Some(_) => return None,
    };
    (!path.is_empty() && !path.contains('\0')).then(|| Path::new(path))
}

/// The name of a path that [`path_of`] is to find in it again.
pub(crate) fn name_of(path: &Path) -> Option<String> {
    let name = path.to_str()?;
    let sign = if protocol(name).is_some() { "./" } else { "" };
    Some(format!("{sign}{name}"))
}

/// Where names lead, each of which is that of an image in the file that the one before names: in the shortest way, and
/// in that which goes through all of their directories. `None` if one of them is no path.
pub(crate) fn chained(names: &[String]) -> Option<[PathBuf; 2]> {
    let mut path = PathBuf::new();
    for name in names {
        let directory = path.parent().unwrap_or_else(|| Path::new(""));
        path = directory.strip_prefix(".").unwrap_or(directory).join(path_of(name)?);
    }
    Some([shortened(&path), path])
}

/// Without going down and up again.
fn shortened(path: &Path) -> PathBuf {
    let mut short = PathBuf::new();
    for component in path.components() {
        let is_down = matches!(short.components().next_back(), Some(Component::Normal(_)));
        match component {
            Component::ParentDir if is_down => drop(short.pop()),
            component => short.push(component),
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths() {
        let check = |name: &str, expect: Option<&str>| {
            assert_eq!(path_of(name), expect.map(Path::new), "{name}");
        };
        check("base.qcow2", Some("base.qcow2"));
        check("../b/base:1.qcow2", Some("../b/base:1.qcow2"));
        check("./a:b", Some("./a:b"));
        check("a:b", None);
        check("file:/vm/base", Some("/vm/base"));
        check("file:base", None);
        check("json:{}", None);
        check("", None);
        assert_eq!(name_of(Path::new("a:b")).as_deref(), Some("./a:b"));
        assert_eq!(name_of(Path::new("/a:b")).as_deref(), Some("/a:b"));
    }

    #[test]
    fn names_one_after_the_other() {
        let check = |names: &[&str], expect: Option<[&str; 2]>| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(chained(&names), expect.map(|paths| paths.map(PathBuf::from)), "{names:?}");
        };
        check(&["mid", "base"], Some(["base", "base"]));
        check(&["./mid", "base"], Some(["base", "base"]));
        check(&["../b/mid", "../c/base"], Some(["../c/base", "../b/../c/base"]));
        check(&["b/mid", "c/base"], Some(["b/c/base", "b/c/base"]));
        check(&["../../mid", "../base"], Some(["../../../base", "../../../base"]));
        check(&["mid", "/vm/base"], Some(["/vm/base", "/vm/base"]));
        check(&["/vm/mid", "../base"], Some(["/base", "/vm/../base"]));
        check(&["mid", "json:{}"], None);
    }
}
