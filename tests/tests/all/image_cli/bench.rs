//! Images, and both programs that work on them.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use blockloom_tests::Scratch;
use blockloom_tests::tools::{run, succeed};
use serde_json::Value;

use crate::{program, scratch};

/// Images and their tools in one place.
pub(super) struct Bench(pub(super) Scratch);

impl Bench {
    pub(super) fn new() -> Self {
        Self(scratch())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.image(name)
    }

    /// Arguments of which those that begin with `@` are names of images.
    pub(super) fn arguments(&self, line: &str) -> Vec<String> {
        let place = self.path("");
        let place = place.to_str().expect("UTF-8");
        line.split_whitespace().map(|word| word.replace('@', place)).collect()
    }

    pub(super) fn qemu_img(&self, line: &str) -> String {
        succeed("qemu-img", self.arguments(line))
    }

    /// Commands for the disk that `image` shows.
    pub(super) fn qemu_io(&self, image: &str, commands: &[&str]) {
        let image = self.path(image);
        let image = image.to_str().expect("UTF-8");
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let output = succeed("qemu-io", commands.chain([image]));
        assert!(!output.contains("failed"), "{output}");
    }

    pub(super) fn run(&self, line: &str) -> Output {
        let program = program().to_str().expect("UTF-8");
        run(program, ["image".to_owned()].into_iter().chain(self.arguments(line)))
    }

    pub(super) fn succeed(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "image {line}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Fails with this exit code and says all of `words`.
    pub(super) fn fail(&self, line: &str, code: i32, words: &[&str]) {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "image {line}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "image {line}: no `{word}` in: {stderr}");
        }
    }

    /// The JSON of both programs, and their exit codes, are equal.
    pub(super) fn same(&self, line: &str) {
        let line = format!("{line} --output=json");
        let theirs = run("qemu-img", self.arguments(&line));
        let ours = self.run(&line);
        let parse = |output: &Output| -> Value {
            let text = String::from_utf8_lossy(&output.stdout);
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}\n{text}"))
        };
        assert_eq!(parse(&ours), parse(&theirs), "{line}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{line}");
    }

    pub(super) fn same_in_all(&self, image: &str) {
        for command in ["info", "info --backing-chain", "map", "check"] {
            if command != "check" || !image.ends_with(".img") {
                self.same(&format!("{command} @{image}"));
            }
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let place = fs::read_dir(self.path("")).expect("list");
        place.map(|it| it.expect("entry").file_name().into_string().expect("UTF-8")).collect()
    }
}
