//! Wrong input: what the user is told, where it stands, and what would be right.
//!
//! Each test gives a real graph file, in a directory with real files, to `check` and to `start`: both must say
//! the same. `DIR` stands for that directory.

mod graph;
mod machine;
mod program;
mod text;

use blockloom::host::{Overrides, StartError, start};
use blockloom_tests::Scratch;
use expect_test::Expect;

use crate::scratch;

/// A directory with `full.img` of 1 MiB in it, and the graph file with this text.
struct Place(Scratch);

impl Place {
    fn new() -> Self {
        let scratch = scratch();
        std::fs::write(scratch.path("full.img"), vec![7; 1 << 20]).expect("an image");
        Self(scratch)
    }

    fn dir(&self) -> String {
        let path = self.0.path("x");
        path.parent().expect("a directory").display().to_string()
    }

    /// A text without what changes from run to run.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.dir(), "DIR")
    }

    fn start_error(&self, text: &str) -> String {
        let graph = self.0.graph("graph.toml", text);
        match start(&graph, Overrides::default()) {
            Ok(_) => panic!("it started"),
            Err(StartError::Config(found)) => self.plain(&found.to_string()),
            Err(error) => panic!("no diagnostic: {error}"),
        }
    }

    fn check_error(&self, text: &str) -> String {
        let graph = self.0.graph("graph.toml", text);
        match blockloom::host::check(&graph) {
            Ok(_) => panic!("nothing was wrong"),
            Err(StartError::Config(found)) => self.plain(&found.to_string()),
            Err(error) => panic!("no diagnostic: {error}"),
        }
    }

    /// `check` and `start` say this.
    fn check(&self, text: &str, expect: &Expect) {
        let found = self.check_error(text);
        assert_eq!(found, self.start_error(text), "`start` says something else");
        expect.assert_eq(&found);
    }
}

fn check(text: &str, expect: &Expect) {
    Place::new().check(text, expect);
}
