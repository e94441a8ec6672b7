//! The combinations of engine, storage and filter that a behaviour must be the same on.

use std::fmt;

use blockloom_tests::{Daemon, Scratch};

use crate::serve;

/// What holds the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Buffered,
    Direct,
    Memory,
}

/// What requests pass on their way; nothing in it slows them down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    None,
    PassPlugin,
    PassNative,
    ThrottlePlugin,
    ThrottleNative,
}

/// One combination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) engine: &'static str,
    pub(crate) storage: Storage,
    pub(crate) filter: Filter,
}

/// Every engine with every storage, every storage with a plugin and without, every filter.
pub(crate) const STACKS: [Stack; 8] = [
    Stack::of("io-uring", Storage::Buffered, Filter::None),
    Stack::of("io-uring", Storage::Direct, Filter::ThrottlePlugin),
    Stack::of("io-uring", Storage::Memory, Filter::PassPlugin),
    Stack::of("io-uring", Storage::Direct, Filter::PassNative),
    Stack::of("threads", Storage::Buffered, Filter::ThrottlePlugin),
    Stack::of("threads", Storage::Direct, Filter::None),
    Stack::of("threads", Storage::Memory, Filter::ThrottleNative),
    Stack::of("threads", Storage::Buffered, Filter::PassPlugin),
];

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.engine, self.storage, self.filter)
    }
}

impl Stack {
    const fn of(engine: &'static str, storage: Storage, filter: Filter) -> Self {
        Self { engine, storage, filter }
    }

    /// The graph: node `disk` (a file called `disk.img` unless it is memory), the filter on it, and the
    /// drive `vda` with the bitmaps `drive` (64 KiB) and `node` (4 KiB, of `disk`), all of it exported.
    pub(crate) fn graph(&self, scratch: &Scratch, size_bytes: u64) -> String {
        let disk = match self.storage {
            Storage::Memory => format!("driver = \"memory\"\nsize = {size_bytes}"),
            _ => format!(
                "driver = \"file\"\npath = \"{}\"\ncreate = {size_bytes}\ndirect = {}",
                scratch.image("disk.img").display(),
                self.storage == Storage::Direct
            ),
        };
        let (root, filter) = match self.filter {
            Filter::None => ("disk", ""),
            Filter::PassPlugin => ("top", "driver = \"plugin\"\nplugin = \"pass\""),
            Filter::PassNative => ("top", "driver = \"pass\""),
            Filter::ThrottlePlugin => ("top", "driver = \"plugin\"\nplugin = \"throttle\""),
            Filter::ThrottleNative => ("top", "driver = \"throttle\""),
        };
        let filter = match filter {
            "" => String::new(),
            filter => format!("[node.top]\n{filter}\nchild.file = \"disk\"\n"),
        };
        format!(
            "[node.disk]\n{disk}\n{filter}\
             [drive.vda]\nroot = \"{root}\"\n\
             [bitmap.drive]\ndrive = \"vda\"\ngranularity = \"64KiB\"\n\
             [bitmap.node]\nnode = \"disk\"\ngranularity = \"4KiB\"\n\
             [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
             writable = true\nbitmaps = [\"drive\", \"node\"]\n"
        )
    }

    /// Serves the graph.
    pub(crate) fn serve(&self, scratch: &Scratch, size_bytes: u64) -> Daemon {
        serve(scratch, &self.graph(scratch, size_bytes), &["--engine", self.engine])
    }
}
