//! What images name: reads the headers of images before anything is opened, and adds the nodes for the backing
//! and data files that they name, each behind the [gate](super::image_gate).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::bitmaps::check_meta;
use super::diagnostic::{Diagnostic, Diagnostics, Problems, Span, Spanned};
use super::image_gate::{Gate, or_here};
use super::image_names::{self, Format, Named};
use super::qcow2_checks::file_of;
use super::qcow2_options::{BackingSpec, DataFileSpec, ImageFacts, ImageSpec, Qcow2Spec};
use super::render::clip;
use super::spec::{ChildSpec, DriverSpec, FileSpec, GraphSpec, MOST_OF_EACH, NodeSpec};
use super::{Surroundings, names, permissions};
use crate::limits::{BACKING_CHAIN_MAX, GRAPH_DEPTH_MAX};

/// Images at either end of a chain that a message names.
const SHOWN_AT_ENDS: usize = 4;

/// Reads the headers of the images of `spec` and adds the nodes that they name, read-only but for the data file
/// of a node of the file that is written. Relative paths are taken from `base_dir`. What is wrong with an image leaves out what
/// it would have added.
pub fn read(spec: &mut GraphSpec, surroundings: &dyn Surroundings, base_dir: &Path) -> Diagnostics {
    let mut found = spec.diagnostics();
    if !spec.is_graph {
        return found;
    }
    let conflicts_before = conflicts(spec);
    for index in 0..spec.nodes.len() {
        let DriverSpec::Qcow2(image) = &spec.nodes[index].driver else { continue };
        if image.image.is_some() {
            continue;
        }
        let gate = Gate::new(surroundings, image, base_dir, &mut found);
        let node = &spec.nodes[index];
        let mut reader = Reader { spec, surroundings, base_dir, node, gate, chain: Vec::new() };
        let (facts, added) = reader.read(image, &mut found);
        let Added { children, nodes } = added;
        if spec.nodes.len() + nodes.len() > MOST_OF_EACH {
            let message = format!(
                "the file and the images that it leads to have more than {MOST_OF_EACH} nodes"
            );
            found.push(Diagnostic::error(spec.nodes[index].name.span, message));
            break;
        }
        let node = &mut spec.nodes[index];
        node.children.extend(children);
        if let DriverSpec::Qcow2(image) = &mut node.driver {
            image.image = facts;
        }
        spec.nodes.extend(nodes);
    }
    spec.edges = permissions::edges(spec);
    let problems = conflicts(spec);
    problems
        .iter()
        .filter(|it| !conflicts_before.contains(it))
        .for_each(|it| found.push(it.clone()));
    check_depth(spec, &mut found);
    check_meta(spec, &mut found);
    found
}

/// Reports the lowest node that has too many below it.
fn check_depth(spec: &GraphSpec, found: &mut Diagnostics) {
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    for node in spec.build_order() {
        let below = node.children.iter().filter_map(|child| depths.get(child.node.value.as_str()));
        let depth = below.max().map_or(1, |below| below + 1);
        if depth > GRAPH_DEPTH_MAX {
            let message = format!(
                "from node `{}` on the graph is deeper than {GRAPH_DEPTH_MAX} nodes",
                node.name
            );
            let help = "have fewer filters above each other, or a shorter chain of images";
            found.push(Diagnostic::error(node.name.span, message).help(help));
            return;
        }
        depths.insert(&node.name.value, depth);
    }
}

pub(super) fn conflicts(spec: &GraphSpec) -> Vec<Diagnostic> {
    let problems = Problems::default();
    permissions::check(spec, &problems);
    problems.into_diagnostics(spec).iter().cloned().collect()
}

/// What an image adds to the graph.
#[derive(Default)]
struct Added {
    /// Children of the image's own node.
    children: Vec<ChildSpec>,
    nodes: Vec<NodeSpec>,
}

/// An image of the chain that is being read.
struct Link {
    /// As messages show it.
    shown: String,
    place: Place,
    /// Directories in which it is, symbolic links resolved.
    own_dirs: Vec<PathBuf>,
}

/// Where a file is.
#[derive(Clone)]
struct Place {
    /// By which it was found: as in QEMU, relative names of files beside it begin in its directory.
    path: PathBuf,
    /// The same with symbolic links resolved: what is opened.
    real: PathBuf,
}

/// Reads the chain of one node of the file.
struct Reader<'a> {
    spec: &'a GraphSpec,
    surroundings: &'a dyn Surroundings,
    base_dir: &'a Path,
    node: &'a NodeSpec,
    gate: Gate,
    /// From the node's own image downwards.
    chain: Vec<Link>,
}

impl Reader<'_> {
    /// What is known of the node's image, and what it adds.
    fn read(&mut self, image: &Qcow2Spec, found: &mut Diagnostics) -> (Option<ImageSpec>, Added) {
        let none = Added::default();
        let Some(file) = file_of(self.spec, self.node, "file") else {
            found_in_no_file(self.spec, self.node, image).into_iter().for_each(|it| found.push(it));
            return (None, none);
        };
        let facts = match self.top(image, file) {
            Ok(Some(ImageSpec::There(facts))) => facts,
            Ok(other) => return (other, none),
            Err(problem) => {
                found.push(*problem);
                return (None, none);
            }
        };
        contradictions(self.node, image, &facts).into_iter().for_each(|it| found.push(it));
        let below = Below { file, image, span: self.span() };
        match self.follow(&facts, &below) {
            Ok(added) => (Some(ImageSpec::There(facts)), added),
            Err(problem) => {
                found.push(*problem);
                (None, none)
            }
        }
    }

    /// The key `file` of the node, where messages of what its image says are shown.
    fn span(&self) -> Span {
        let file = self.node.children.iter().find(|child| child.name.value == "file");
        file.map_or(self.node.name.span, |file| file.name.span)
    }

    /// Looks into the node's own image. `None`: its file is wrong in a way that is reported with the files.
    fn top(
        &mut self,
        image: &Qcow2Spec,
        file: &FileSpec,
    ) -> Result<Option<ImageSpec>, Box<Diagnostic>> {
        let path = file.path_in(self.base_dir);
        let shown = clip(&file.path.value);
        let Ok(there) = self.surroundings.file(&path) else { return Ok(None) };
        if file.path.value.is_empty() || there.is_dir {
            return Ok(None);
        }
        let is_empty = !there.exists || there.size_bytes == 0 && !there.is_special;
        if is_empty && image.create.is_some() {
            let of = self.node.children.iter().find(|child| child.name.value == "file");
            let live = of.filter(|child| self.spec.is_live_node(&child.node.value));
            if let Some(child) = live {
                let message =
                    format!("node `{}` is open already: no image can be made in it", child.node);
                let help =
                    "describe the file in the node itself: `file = { driver = \"file\", … }`";
                return Err(Box::new(Diagnostic::error(child.node.span, message).help(help)));
            }
            return Ok(Some(ImageSpec::New));
        }
        if !there.exists {
            return Ok(None);
        }
        let at = |message: String| Box::new(Diagnostic::error(file.path.span, message));
        if is_empty {
            let message = format!("file `{shown}` is empty: there is no image in it");
            let name = &self.node.name;
            let help =
                format!("to have one made, add `create = {{ size = \"10GiB\" }}` to node `{name}`");
            return Err(Box::new(at(message).help(help)));
        }
        let facts = match self.surroundings.image(&path) {
            Ok(Some(facts)) => facts,
            Ok(None) => {
                let message = format!("`{shown}` is no qcow2 image");
                return Err(Box::new(at(message).help("for a raw image write `driver = \"raw\"`")));
            }
            Err(why) => return Err(at(format!("image `{shown}` cannot be used: {why}"))),
        };
        let real = self.surroundings.real_path(&path);
        let real = real.map_err(|why| at(format!("image `{shown}` cannot be used: {why}")))?;
        let named_in = self.surroundings.real_path(or_here(parent(&path))).ok();
        let own_dirs = [Some(parent(&real).to_owned()), named_in];
        let own_dirs = own_dirs.into_iter().flatten().collect();
        self.chain.push(Link { shown, place: Place { path, real }, own_dirs });
        Ok(Some(ImageSpec::There(facts)))
    }

    /// What the images of the chain name, from the node's own image downwards: all, as a chain that is cut short
    /// would show zeroes in place of bytes.
    fn follow(&mut self, top: &ImageFacts, below: &Below<'_>) -> Result<Added, Box<Diagnostic>> {
        let mut added = Added::default();
        let has = |name: &str| self.node.children.iter().any(|child| child.name.value == name);
        let name = self.node.name.value.as_str();
        if !has("data-file") {
            let is_unnamed = self.node.is_unnamed;
            let unnamed = names::unnamed(name, is_unnamed, "data-file");
            let data = self.data_file(top, unnamed, self.is_written(), below)?;
            added.children.extend(data.as_ref().map(|node| below.child("data-file", &node.name)));
            added.nodes.extend(data);
        }
        if below.image.backing.value != BackingSpec::AsImage {
            return Ok(added);
        }
        let mut unnamed = names::unnamed(name, self.node.is_unnamed, "backing");
        let mut reference = top.backing.clone();
        let mut nodes: Vec<NodeSpec> = Vec::new();
        while let Some(named) = reference {
            let named = self.understand("backing", &named.name, named.format.as_deref())?;
            let place = self.admit("backing", &named)?;
            let facts = self.look(&place, named.format)?;
            let Some(facts) = facts else {
                nodes.push(below.file(unnamed, &place.real));
                break;
            };
            let file = below.file(names::unnamed(&unnamed, true, "file"), &place.real);
            let data_name = names::unnamed(&unnamed, true, "data-file");
            let data = self.data_file(&facts, data_name, false, below)?;
            reference = facts.backing.clone().filter(|_| !named.has_no_backing);
            let next = names::unnamed(&unnamed, true, "backing");
            let mut children = vec![below.child("file", &file.name)];
            children
                .extend(reference.is_some().then(|| below.child("backing", &below.named(&next))));
            children.extend(data.as_ref().map(|data| below.child("data-file", &data.name)));
            nodes.push(below.image(unnamed, facts, children));
            nodes.push(file);
            nodes.extend(data);
            unnamed = next;
        }
        let first = nodes.first().map(|node| below.child("backing", &node.name));
        added.children.extend(first);
        added.nodes.extend(nodes);
        Ok(added)
    }

    /// The node of the data file that the last image of the chain names.
    fn data_file(
        &self,
        facts: &ImageFacts,
        unnamed: String,
        is_written: bool,
        below: &Below<'_>,
    ) -> Result<Option<NodeSpec>, Box<Diagnostic>> {
        if facts.data_file == DataFileSpec::None {
            return Ok(None);
        }
        let Some(name) = &facts.data_file_name else {
            let message = format!("{} keeps its bytes in a data file and names none", self.image());
            let help = "write `data-file = { driver = \"file\", path = … }`";
            return Err(self.problem(message, help.to_owned()));
        };
        let named = self.understand("data", name, Some("raw"))?;
        let place = self.admit("data", &named)?;
        if is_written && !self.gate.lets_write(&place.real) {
            let message = format!(
                "{} names `{}` as its data file, which would be written: what is written is not for an image \
                 to choose",
                self.image(),
                clip(&named.path)
            );
            let help = format!(
                "write `data-file = {{ driver = \"file\", path = … }}`, or add `backing-dirs = [\"{}\"]` to \
                 node `{}`",
                parent(&place.real).display(),
                self.node.name
            );
            return Err(self.problem(message, help));
        }
        let mut node = below.file(unnamed, &place.real);
        node.read_only.value = !is_written;
        Ok(Some(node))
    }

    /// Whether the graph has somebody who changes the node.
    fn is_written(&self) -> bool {
        self.spec.is_written(self.node)
    }

    fn understand(
        &self,
        what: &str,
        name: &str,
        format: Option<&str>,
    ) -> Result<Named, Box<Diagnostic>> {
        image_names::parse(name, format).map_err(|why| {
            let message =
                format!("{} names `{}` as its {what} file, which {why}", self.image(), clip(name));
            self.problem(message, self.spell_out(what))
        })
    }

    /// Where what the last image of the chain names is, if the gate lets it through.
    fn admit(&self, what: &str, named: &Named) -> Result<Place, Box<Diagnostic>> {
        let Some(link) = self.chain.last() else {
            return Err(self.problem(self.image(), String::new()));
        };
        let path = parent(&link.place.path).join(&named.path);
        let shown = clip(&named.path);
        let names =
            |rest: String| format!("{} names `{shown}` as its {what} file, {rest}", self.image());
        let fail = |rest: String| self.problem(names(rest), self.spell_out(what));
        let facts = self.surroundings.file(&path);
        let facts = facts.map_err(|why| fail(format!("which cannot be looked at: {why}")))?;
        if !facts.exists {
            return Err(fail(format!("and there is no `{}`", path.display())));
        }
        let real = self.surroundings.real_path(&path);
        let real = real.map_err(|why| fail(format!("which cannot be looked at: {why}")))?;
        if !self.gate.lets_through(&real, &link.own_dirs) {
            let dir = parent(&real).display();
            let message = names(format!("which is in `{dir}`, where an image may not lead to"));
            let help = format!(
                "if it may, add `backing-dirs = [\"{dir}\"]` to node `{}`; or {}",
                self.node.name,
                self.spell_out(what)
            );
            return Err(self.problem(message, help));
        }
        let kind = match facts {
            _ if facts.is_dir => "a directory",
            _ if facts.is_block_device => "a block device",
            _ if facts.is_special => "no file",
            _ if real.to_str().is_none() => "not a name in UTF-8",
            _ => return Ok(Place { path, real }),
        };
        Err(fail(format!("which is {kind}")))
    }

    /// Looks into the next image of the chain; `None` if it is a raw one, which ends the chain.
    fn look(
        &mut self,
        place: &Place,
        format: Format,
    ) -> Result<Option<ImageFacts>, Box<Diagnostic>> {
        if format == Format::Raw {
            return Ok(None);
        }
        let shown = clip(&place.real.to_string_lossy());
        let why = match self.surroundings.image(&place.real) {
            Ok(Some(facts)) => {
                self.enter(place, shown)?;
                return Ok(Some(facts));
            }
            Err(why) => why,
            Ok(None) if format == Format::Qcow2 => "it is no qcow2 image".to_owned(),
            Ok(None) => {
                let image = self.image();
                // A guest that writes a header into a raw image would choose what the host opens.
                let message =
                    format!("{image} does not say which format its backing file `{shown}` has");
                let help = format!(
                    "if it is raw, write `backing = {{ driver = \"file\", path = … }}`, or have the image say \
                     so: `qemu-img rebase -u -F raw -b {shown} {}`",
                    self.chain.last().map_or("IMAGE", |link| link.shown.as_str())
                );
                return Err(self.problem(message, help));
            }
        };
        let message =
            format!("{} has a backing file `{shown}` that cannot be used: {why}", self.image());
        Err(self.problem(message, self.spell_out("backing")))
    }

    /// Adds an image to the chain.
    fn enter(&mut self, place: &Place, shown: String) -> Result<(), Box<Diagnostic>> {
        let is_loop = self.chain.iter().any(|link| link.place.real == place.real);
        // Not that of a symbolic link: who made it is not who made the image.
        let own_dirs = vec![parent(&place.real).to_owned()];
        self.chain.push(Link { shown, place: place.clone(), own_dirs });
        let wrong = match self.chain.len() {
            _ if is_loop => "are below themselves".to_owned(),
            length if length > BACKING_CHAIN_MAX + 1 => {
                format!("have a chain of more than {BACKING_CHAIN_MAX} backing files")
            }
            _ => return Ok(()),
        };
        let message =
            format!("the images of node `{}` {wrong}: {}", self.node.name, self.shown_chain());
        let help = match is_loop {
            true => "give one of them another backing file: `qemu-img rebase -u -b BACKING IMAGE`",
            false => "make the chain shorter: `qemu-img commit`, or `qemu-img rebase`",
        };
        Err(self.problem(message, help.to_owned()))
    }

    fn shown_chain(&self) -> String {
        let mut shown: Vec<&str> = self.chain.iter().map(|link| link.shown.as_str()).collect();
        if shown.len() > 2 * SHOWN_AT_ENDS + 1 {
            shown.splice(SHOWN_AT_ENDS..shown.len() - SHOWN_AT_ENDS, ["…"]);
        }
        shown.join(" → ")
    }

    /// The last image of the chain, for messages.
    fn image(&self) -> String {
        let name = &self.node.name;
        match self.chain.last() {
            Some(link) if self.chain.len() > 1 => {
                format!("image `{}` in the chain of node `{name}`", link.shown)
            }
            Some(link) => format!("image `{}` of node `{name}`", link.shown),
            None => format!("the image of node `{name}`"),
        }
    }

    /// How to do without the name that the last image of the chain has for a file.
    fn spell_out(&self, what: &str) -> String {
        match (self.chain.len() > 1, what) {
            (false, "data") => "write `data-file = { driver = \"file\", path = … }`".to_owned(),
            (false, _) => {
                "write `backing = \"NODE\"` or `backing = { driver = …, file = … }`".to_owned()
            }
            (true, _) => {
                let name = &self.node.name;
                format!(
                    "spell the chain out: `backing = {{ driver = \"qcow2\", … }}` in node `{name}`"
                )
            }
        }
    }

    fn problem(&self, message: String, help: String) -> Box<Diagnostic> {
        Box::new(Diagnostic::error(self.span(), message).help(help))
    }
}

/// What the nodes that images name get from the node whose image leads to them.
struct Below<'a> {
    file: &'a FileSpec,
    image: &'a Qcow2Spec,
    span: Span,
}

impl Below<'_> {
    fn named(&self, name: &str) -> Spanned<String> {
        Spanned::new(name.to_owned(), self.span)
    }

    fn child(&self, name: &str, node: &Spanned<String>) -> ChildSpec {
        ChildSpec { name: self.named(name), node: Spanned::new(node.value.clone(), self.span) }
    }

    fn node(&self, name: String, driver: DriverSpec, children: Vec<ChildSpec>) -> NodeSpec {
        NodeSpec {
            name: Spanned::new(name, self.span),
            is_unnamed: true,
            is_implicit: true,
            is_within: false,
            read_only: Spanned::new(true, self.span),
            is_said_writable: false,
            auto_read_only: Spanned::new(false, self.span),
            driver,
            children,
        }
    }

    fn file(&self, name: String, path: &Path) -> NodeSpec {
        let file = FileSpec {
            path: Spanned::new(path.to_string_lossy().into_owned(), self.span),
            create_bytes: None,
            ..self.file.clone()
        };
        self.node(name, DriverSpec::File(file), Vec::new())
    }

    fn image(&self, name: String, facts: ImageFacts, children: Vec<ChildSpec>) -> NodeSpec {
        let image = Qcow2Spec {
            backing: Spanned::new(BackingSpec::AsImage, self.span),
            create: None,
            l2_cache_bytes: self.image.l2_cache_bytes,
            lazy_refcounts: None,
            backing_dirs: Vec::new(),
            image: Some(ImageSpec::There(facts)),
        };
        self.node(name, DriverSpec::Qcow2(image), children)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

/// The error of an image that would have to be looked into, and is in no plain file.
fn found_in_no_file(spec: &GraphSpec, node: &NodeSpec, image: &Qcow2Spec) -> Option<Diagnostic> {
    // Without the child, its name or what it is was wrong.
    let child = node.children.iter().find(|child| child.name.value == "file")?;
    let below = spec.node(&child.node.value)?;
    if image.backing.value != BackingSpec::AsImage {
        return None;
    }
    let message = format!(
        "node `{}` has no `backing`, and its image cannot be looked into: its file is node `{}`, whose driver \
         is `{}`",
        node.name,
        below.name,
        below.driver.name()
    );
    let help = "write `backing = \"NODE\"`, or `backing = false` if there is none";
    Some(Diagnostic::error(child.name.span, message).help(help))
}

/// Reports what the file says of an image that says otherwise.
fn contradictions(node: &NodeSpec, image: &Qcow2Spec, facts: &ImageFacts) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let child = |name: &str| node.children.iter().find(|child| child.name.value == name);
    let file = child("file").map(|child| child.name.span).unwrap_or_default();
    if let Some(data) = child("data-file")
        && facts.data_file == DataFileSpec::None
    {
        let message =
            format!("node `{}` has a `data-file`, but its image keeps its bytes itself", node.name);
        let problem = Diagnostic::error(data.name.span, message).note(file, "the image");
        found.push(problem.help("remove `data-file`, or use another image"));
    }
    let has_backing = match image.backing.value {
        BackingSpec::Node => true,
        BackingSpec::AsImage => facts.backing.is_some(),
        BackingSpec::None => false,
    };
    if has_backing && facts.data_file == DataFileSpec::Raw {
        let span = child("backing").map_or(file, |backing| backing.name.span);
        let message = format!(
            "all bytes of node `{}` are those of its raw data file: it can have no backing",
            node.name
        );
        found.push(Diagnostic::error(span, message).help("write `backing = false`"));
    }
    found
}
