//! How images name what jobs have them stand on: so that a folder of them can be moved.

use std::os::unix::fs::symlink;

use super::*;
use crate::host::image_facts::image_facts;

/// How `mid` names `base`, and `top` names `mid`.
type Names<'n> = (&'n str, &'n str);

/// `base` ← `mid` ← `top` in folders of their own, of which `b` is a link into another folder.
const FOLDERS: [(&str, &str); 3] =
    [("base", "deep/c/base"), ("mid", "deep/b/mid"), ("top", "a/top")];
/// The same side by side.
const FLAT: [(&str, &str); 3] = [("base", "base"), ("mid", "mid"), ("top", "top")];

struct Chain {
    directory: TempDir,
    files: [(&'static str, &'static str); 3],
}

impl Chain {
    fn new(files: [(&'static str, &'static str); 3]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for folder in ["a", "deep/b", "deep/c", "elsewhere"] {
            std::fs::create_dir_all(directory.path().join(folder)).expect("a folder");
        }
        symlink("deep/b", directory.path().join("b")).expect("a link");
        Self { directory, files }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(format!("{file}.qcow2"))
    }

    fn node(&self, name: &str, file: &str, more: Value) -> Value {
        let file = json!({ "driver": "file", "filename": self.path(file) });
        let mut node = json!({ "driver": "qcow2", "node-name": name, "file": file });
        let (Value::Object(keys), Value::Object(more)) = (&mut node, more) else {
            panic!("an object")
        };
        keys.extend(more);
        node
    }

    /// A host that has made them, with other names for what they stand on than by their files.
    fn start(&self, (of_mid, of_top): Names<'_>) -> Host {
        let host = host();
        let mut below = Value::Null;
        for (name, file) in self.files {
            let more = json!({ "backing": below, "create": { "size": SIZE } });
            add(&host, self.node(name, file, more));
            below = json!(name);
        }
        let copy = json!({ "backing": null, "create": { "size": SIZE } });
        add(&host, self.node("copy", "copy", copy));
        for (node, name) in [("mid", of_mid), ("top", of_top)] {
            let name = name.replace("DIR", self.directory.path().to_str().expect("a name"));
            let name = Some(BackingName { name, format: Some("qcow2".into()) });
            let to_name = Action::NameBacking { node: node.into(), name };
            block_on(host.transact(Transaction::new().with(to_name))).expect("a name");
        }
        drive(&host, "vda", "top", true);
        host
    }

    /// How `top` names what it stands on.
    fn named(&self) -> Option<String> {
        let facts = image_facts(&self.path(self.files[2].1)).expect("an image");
        let name = facts.expect("a qcow2 image").backing?.name;
        let directory = self.directory.path().canonicalize().expect("a directory");
        Some(name.replace(directory.to_str().expect("a name"), "DIR"))
    }
}

fn stream() -> JobKind {
    JobKind::Stream(StreamSpec { base: Some("base".into()), ..StreamSpec::of("top") })
}

fn commit() -> JobKind {
    JobKind::Commit(CommitSpec { top: Some("mid".into()), ..CommitSpec::of("vda", "base") })
}

fn check(files: [(&'static str, &'static str); 3], names: Names<'_>, job: JobKind, expect: &str) {
    let chain = Chain::new(files);
    let host = chain.start(names);
    let end = ends(&host, job);
    assert!(matches!(end, JobEnd::Completed), "{end:?}");
    host.shutdown().expect("an end in order");
    assert_eq!(chain.named().as_deref(), Some(expect), "{names:?}");
}

#[test]
fn in_one_folder_a_name_stays_as_it_was() {
    for job in [stream, commit] {
        check(FLAT, ("base.qcow2", "mid.qcow2"), job(), "base.qcow2");
        check(FLAT, ("./base.qcow2", "./mid.qcow2"), job(), "./base.qcow2");
    }
}

/// As a path from the image that is written, by whatever links there are.
#[test]
fn from_another_folder_a_name_is_a_relative_path() {
    let other = [("base", "deep/c/base"), ("mid", "deep/b/mid"), ("top", "deep/a")];
    for job in [stream, commit] {
        check(other, ("../c/base.qcow2", "b/mid.qcow2"), job(), "c/base.qcow2");
        let through_link = "../b/../c/base.qcow2";
        check(FOLDERS, ("../c/base.qcow2", "../b/mid.qcow2"), job(), through_link);
    }
}

#[test]
fn other_names_become_absolute() {
    check(FLAT, ("DIR/base.qcow2", "mid.qcow2"), stream(), "DIR/base.qcow2");
    check(FLAT, ("base.qcow2", "DIR/mid.qcow2"), stream(), "DIR/base.qcow2");
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"DIR/base.qcow2"}}"#;
    check(FLAT, (json, "mid.qcow2"), stream(), "DIR/base.qcow2");
    // They lead to something else.
    check(FLAT, ("copy.qcow2", "mid.qcow2"), commit(), "DIR/base.qcow2");
    check(FLAT, ("nothing.qcow2", "mid.qcow2"), commit(), "DIR/base.qcow2");
}

/// What is said of a name is written as it is said.
#[test]
fn a_name_that_is_given_is_taken() {
    let name = BackingName { name: "over/there.qcow2".into(), format: None };
    let stream = StreamSpec { base: Some("base".into()), ..StreamSpec::of("top") };
    let stream = StreamSpec { backing_name: Some(name), ..stream };
    check(FLAT, ("base.qcow2", "mid.qcow2"), JobKind::Stream(stream), "over/there.qcow2");
}

/// What comes from elsewhere is named by its file alone, beside the image; and not if names were absolute.
#[test]
fn a_mirror_is_named_as_what_it_replaces() {
    for (names, expect) in [
        (("base.qcow2", "mid.qcow2"), "copy.qcow2"),
        (("base.qcow2", "DIR/mid.qcow2"), "DIR/copy.qcow2"),
    ] {
        let chain = Chain::new(FLAT);
        let host = chain.start(names);
        let job = JobSpec::new("j", JobKind::Mirror(MirrorSpec::of("mid", "copy")));
        let job = block_on(host.start_job(job)).expect("a job");
        assert_eq!(block_on(job.reaches(JobStatus::Ready)), JobStatus::Ready, "{:?}", job.info());
        job.complete().expect("a job that is ready");
        assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
        host.shutdown().expect("an end in order");
        assert_eq!(chain.named().as_deref(), Some(expect));
    }
}

/// Wherever the folder is, the image is found to stand on what it stood on.
#[test]
fn a_folder_of_images_can_be_moved() {
    for job in [stream, commit] {
        let files = [("base", "deep/c/base"), ("mid", "deep/b/mid"), ("top", "a/top")];
        let chain = Chain::new(files);
        let names = ("../c/base.qcow2", "../deep/b/mid.qcow2");
        let host = chain.start(names);
        write(&host, "vda", 1, 7);
        let end = ends(&host, job());
        assert!(matches!(end, JobEnd::Completed), "{end:?}");
        host.shutdown().expect("an end in order");
        let moved = chain.directory.path().join("elsewhere/all");
        std::fs::create_dir(&moved).expect("a folder");
        for folder in ["a", "deep"] {
            std::fs::rename(chain.directory.path().join(folder), moved.join(folder))
                .expect("moved");
        }
        let host = self::host();
        let others = json!({ "backing-dirs": [moved.join("deep/b"), moved.join("deep/c")] });
        add(&host, chain.node("top", "elsewhere/all/a/top", others));
        drive(&host, "vda", "top", true);
        assert_eq!(read(&host, "vda", 1), 7);
        host.shutdown().expect("an end in order");
    }
}
