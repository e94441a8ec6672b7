//! Scenes by chance: several drives on a shared base, with overlays, filters and copiers.

use std::fmt;
use std::sync::Arc;

use super::image::{self, Geometry};
use super::lag::Lag;
use super::oracle::first_word;
use super::overlay::MappedOverlay;
use super::plugins::{self, Asked};
use super::shape::{Link, Shape, View};
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{ErrorKind, Result};
use crate::filter::{CopyOnReadNode, PassNode};
use crate::graph::{
    BitmapDecl, BitmapScope, ChildDecl, DriveDecl, Graph, GraphDecl, NodeDecl, PermissionSet, Role,
};
use crate::io::sim::{Random, SECTOR, Simulation};
use crate::node::{MemoryNode, Node};

/// Sectors of every view.
pub(super) const SECTORS: u64 = 32;
const SIZE: u64 = SECTORS * SECTOR as u64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Memory,
    Overlay(String),
    /// An overlay in files.
    Mapped(String),
    /// A qcow2 image in files.
    Image {
        backing: Option<String>,
        geometry: Geometry,
    },
    Pass(String),
    Lag(String),
    CopyOnRead(String),
    /// May copy what its child shows back into it.
    Acts(String),
    /// Copies from the first to the second: proven for the first, or as a change.
    Copies {
        from: String,
        to: String,
        is_proven: bool,
    },
}

#[derive(Clone, Debug)]
struct Place {
    name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) struct Drive {
    pub(super) id: String,
    root: String,
    pub(super) is_writable: bool,
}

/// A node that acts of its own accord, and on what.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    pub(super) name: String,
    /// Stores: filters come and go.
    pub(super) from: String,
    pub(super) to: String,
    /// What it writes leaves the first as it is.
    pub(super) is_proven: bool,
    /// Number of its edge to the second.
    pub(super) to_edge: usize,
}

/// A graph, before it is built.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    places: Vec<Place>,
    pub(super) drives: Vec<Drive>,
    granularity: u64,
    /// Snapshots add images.
    pub(super) has_images: bool,
    /// Bitmaps are kept in images, if those can.
    pub(super) keeps_bitmaps: bool,
    /// What copies on read is the plugin.
    has_plugins: bool,
    /// How often it was refused because copies could wait for each other in a circle.
    pub(super) circles: u64,
}

/// For who replays a seed: a line a node, then one a drive.
impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Place { name, kind } in &self.places {
            writeln!(f, "node {name}: {kind:?}")?;
        }
        for Drive { id, root, is_writable } in &self.drives {
            let how = if *is_writable { "writes" } else { "shows" };
            writeln!(f, "drive {id} {how} {root}")?;
        }
        if self.has_plugins {
            writeln!(f, "what copies on read is the plugin")?;
        }
        write!(f, "granules of {} sectors", self.granularity)
    }
}

pub(super) fn probe_name(store: &str) -> String {
    format!("probe-{store}")
}

/// No two bitmaps have one name: they may be kept in one image.
pub(super) fn bitmap_name(view: &View) -> String {
    match view {
        View::Drive(id) => format!("of-{id}"),
        View::Node(node) => format!("at-{node}"),
    }
}

pub(super) fn overlay(size_bytes: u64) -> Result<Arc<dyn Node>> {
    Ok(Arc::new(MemoryNode::overlay(size_bytes, SECTOR as u32)?))
}

impl Scene {
    /// Whether a node cannot say whether it was changed while nobody had it open.
    pub(super) fn is_silent(&self, node: &str) -> bool {
        let is_silent =
            |kind: &Kind| matches!(kind, Kind::Memory | Kind::Overlay(_) | Kind::Mapped(_));
        self.places.iter().any(|place| place.name == node && is_silent(&place.kind))
    }

    /// All of it in files.
    pub(super) fn for_crashes(random: &mut Random) -> Self {
        let has_plugins = random.one_in(2);
        let mut scene = Self { granularity: 1, has_plugins, ..Self::default() };
        let base = scene.add("base", Kind::File);
        let root = scene.filters(random, &base);
        if random.one_in(4) {
            scene.drives.push(Drive { id: "d0".to_owned(), root, is_writable: true });
            return scene;
        }
        for at in 0..random.within(1..3) {
            let top = scene.add(format!("top{at}"), Kind::Mapped(root.clone()));
            let child = scene.filters(random, &top);
            let root = match random.one_in(3) {
                true => scene.add(format!("cor{at}"), Kind::CopyOnRead(child)),
                false => scene.add(format!("acts{at}"), Kind::Acts(child)),
            };
            scene.drives.push(Drive { id: format!("d{at}"), root, is_writable: true });
        }
        scene
    }

    /// Everything at once; what copies on read is the plugin.
    pub(super) fn of_plugins(random: &mut Random) -> Self {
        Self { has_plugins: true, ..Self::by_chance(random) }
    }

    /// As [`Self::for_copies`]; what copies on read is the plugin.
    pub(super) fn of_plugins_for_copies(random: &mut Random) -> Self {
        Self { has_plugins: true, ..Self::for_copies(random) }
    }

    /// Everything at once, most of it in images.
    pub(super) fn of_images(random: &mut Random) -> Self {
        Self::by_chance(random).in_images(random)
    }

    /// All of it in files, most of them images.
    pub(super) fn of_images_for_crashes(random: &mut Random) -> Self {
        Self::for_crashes(random).in_images(random)
    }

    /// As [`Self::for_copies`], most of it in images.
    pub(super) fn of_images_for_copies(random: &mut Random) -> Self {
        Self::for_copies(random).in_images(random)
    }

    /// With images in the place of most disks.
    fn in_images(mut self, random: &mut Random) -> Self {
        self.has_images = true;
        self.keeps_bitmaps = random.one_in(2);
        for place in &mut self.places {
            let backing = match &place.kind {
                Kind::File => None,
                Kind::Memory if place.name == "target" => None,
                Kind::Overlay(child) | Kind::Mapped(child) => Some(child.clone()),
                _ => continue,
            };
            if !random.one_in(6) {
                let has_backing = backing.is_some();
                let geometry = Geometry::by_chance(random, has_backing, self.keeps_bitmaps);
                place.kind = Kind::Image { backing, geometry };
            }
        }
        self
    }

    /// One in which nobody changes what anybody sees: there are readers, and copiers of what a view
    /// shows into itself.
    pub(super) fn for_copies(random: &mut Random) -> Self {
        let mut scene = Self::by_chance(random);
        scene.places.retain(|place| !matches!(place.kind, Kind::Copies { .. }));
        scene.drives.iter_mut().for_each(|drive| drive.is_writable = false);
        scene
    }

    /// With its graph, as far as permissions admit it: what stands against it is taken away.
    ///
    /// # Errors
    /// Nothing is left to be taken away.
    pub(super) fn build(mut self, simulation: &Simulation) -> Result<(Self, Graph), String> {
        let scene = &mut self;
        let mut refused = None;
        for _ in 0..20 {
            match scene.graph(simulation) {
                Ok(graph) => return Ok((self, graph)),
                Err(error) => {
                    scene.circles += u64::from(error.kind() == ErrorKind::Invalid);
                    refused = Some(error);
                }
            }
            scene.weaken();
        }
        Err(format!("the weakest scene is refused: {refused:?}: {scene:#?}"))
    }

    fn add(&mut self, name: impl Into<String>, kind: Kind) -> String {
        let name = name.into();
        self.places.push(Place { name: name.clone(), kind });
        name
    }

    fn has(&self, name: &str) -> bool {
        self.places.iter().any(|place| place.name == name)
    }

    pub(super) fn by_chance(random: &mut Random) -> Self {
        Self::with(random, false)
    }

    /// One with a commit from above nodes that copy of their own accord, also where the commit's copies
    /// and those could wait for each other in a circle.
    pub(super) fn with_circles(random: &mut Random) -> Self {
        Self::with(random, true)
    }

    fn with(random: &mut Random, allows_circles: bool) -> Self {
        let granularity = 1 << random.below(3);
        let has_plugins = random.one_in(2);
        let mut scene = Self { granularity, has_plugins, ..Self::default() };
        let kind = if random.one_in(3) { Kind::Memory } else { Kind::File };
        let base = scene.add("base", kind);
        let base_top = scene.filters(random, &base);
        let mut below = base_top.clone();
        if random.one_in(3) || allows_circles {
            let middle = scene.add("middle", Kind::Overlay(below));
            below = scene.filters(random, &middle);
            // Copies that copies cause.
            match random.below(3) {
                0 => below = scene.add("cor-middle", Kind::CopyOnRead(below)),
                1 => below = scene.add("acts-middle", Kind::Acts(below)),
                _ => {}
            }
        }
        let mode = if allows_circles { 2 } else { random.below(3) };
        let mut tops = Vec::new();
        for at in 0..random.within(1..4) {
            let child = below.clone();
            let kind = if random.one_in(4) { Kind::Mapped(child) } else { Kind::Overlay(child) };
            let top = scene.add(format!("top{at}"), kind);
            let mut root = scene.filters(random, &top);
            // What is committed through two nodes that may copy on the way holds the lower one's source
            // while it comes to need the upper one's, and a read the other way round.
            let copies_below = scene.has("cor-middle") || scene.has("acts-middle");
            let is_circle = mode == 2 && at == 0 && copies_below && !allows_circles;
            match random.below(3) {
                0 if !is_circle => root = scene.add(format!("cor{at}"), Kind::CopyOnRead(root)),
                1 if !is_circle => root = scene.add(format!("acts{at}"), Kind::Acts(root)),
                _ => {}
            }
            if random.one_in(3) {
                root = scene.add(format!("lag-over{at}"), Kind::Lag(root));
            }
            // Who writes: the tops; the base alone; or one top that is committed into the base.
            let is_writable = match mode {
                0 => true,
                1 => false,
                _ => at == 0,
            };
            scene.drives.push(Drive { id: format!("d{at}"), root: root.clone(), is_writable });
            tops.push(root);
        }
        if mode == 1 || random.one_in(3) {
            let mut root = base_top.clone();
            if random.one_in(2) {
                root = scene.add("acts-base", Kind::Acts(root));
            }
            let id = "db".to_owned();
            scene.drives.push(Drive { id, root, is_writable: mode == 1 });
        }
        if mode == 2 {
            let (from, to) = (tops[0].clone(), base_top);
            scene.add("commit", Kind::Copies { from, to, is_proven: true });
        }
        if random.one_in(3) {
            let from = random.pick(&tops).unwrap_or_default();
            let target = scene.add("target", Kind::Memory);
            let to = scene.add("target-lag", Kind::Lag(target));
            scene.add("backup", Kind::Copies { from, to, is_proven: false });
        }
        scene
    }

    /// Up to two filters on a node.
    fn filters(&mut self, random: &mut Random, node: &str) -> String {
        let mut top = node.to_owned();
        if random.below(3) > 0 {
            top = self.add(format!("{node}-lag"), Kind::Lag(top));
        }
        if random.one_in(3) {
            top = self.add(format!("{node}-pass"), Kind::Pass(top));
        }
        top
    }

    /// Takes something away that permissions may stumble over.
    fn weaken(&mut self) {
        let is_copier = |place: &Place| matches!(place.kind, Kind::Copies { .. });
        if let Some(at) = self.places.iter().position(is_copier) {
            self.places.remove(at);
        } else if let Some(at) = self.drives.iter().rposition(|drive| drive.is_writable) {
            self.drives[at].is_writable = false;
        } else {
            for place in &mut self.places {
                if let Kind::CopyOnRead(child) | Kind::Acts(child) = &place.kind {
                    place.kind = Kind::Pass(child.clone());
                }
            }
        }
    }

    pub(super) fn graph(&self, simulation: &Simulation) -> Result<Graph> {
        let mut decl = GraphDecl::default();
        for place in &self.places {
            if let Kind::Image { backing, geometry } = &place.kind {
                let own =
                    || if backing.is_none() && place.name == "base" { own_bytes() } else { vec![] };
                image::add(simulation, &place.name, || {
                    image::fresh(&place.name, geometry, SIZE, backing.as_deref(), &own())
                });
                let backing = backing.as_deref();
                decl.nodes.extend(image::nodes(simulation, &place.name, geometry, backing)?);
                continue;
            }
            let (driver, children) = self.node(place, simulation)?;
            decl.nodes.push(NodeDecl { name: place.name.clone(), driver, children });
        }
        for store in self.stores() {
            let (id, root) = (probe_name(&store), Some(store.clone()));
            decl.drives.push(DriveDecl { id, root, writable: false, only_shows: true });
            decl.bitmaps.push(self.bitmap(BitmapScope::Node(store.into()))?);
        }
        for drive in &self.drives {
            let (id, root, writable) = (&drive.id, Some(drive.root.clone()), drive.is_writable);
            decl.drives.push(DriveDecl { id: id.clone(), root, writable, only_shows: !writable });
            decl.bitmaps.push(self.bitmap(BitmapScope::Drive(id.as_str().into()))?);
        }
        let graph = decl.build()?;
        graph.start_drivers(None)?;
        Ok(graph)
    }

    fn bitmap(&self, scope: BitmapScope) -> Result<BitmapDecl> {
        let granularity = Granularity::from_bytes(self.granularity * SECTOR as u64)?;
        let view = match &scope {
            BitmapScope::Drive(id) => View::Drive(id.to_string()),
            BitmapScope::Node(node) => View::Node(node.to_string()),
        };
        let name = BitmapName::new(&bitmap_name(&view))?;
        Ok(BitmapDecl { scope, name, granularity, enabled: true })
    }

    fn node(
        &self,
        place: &Place,
        simulation: &Simulation,
    ) -> Result<(Arc<dyn Node>, Vec<ChildDecl>)> {
        Ok(match &place.kind {
            Kind::File => {
                simulation.file_or(&place.name, first_bytes);
                (plugins::file(&place.name)?, vec![])
            }
            Kind::Memory => (Arc::new(MemoryNode::new(SIZE, SECTOR as u32)?), vec![]),
            Kind::Overlay(child) => (overlay(SIZE)?, vec![ChildDecl::backing(child)]),
            Kind::Mapped(child) => {
                let overlay = MappedOverlay::open(&place.name, simulation)?;
                (Arc::new(overlay), vec![ChildDecl::backing(child)])
            }
            Kind::Image { .. } => unreachable!("it has several nodes"),
            Kind::Pass(child) => (Arc::new(PassNode), vec![ChildDecl::filtered(child)]),
            Kind::Lag(child) => (Arc::new(Lag), vec![ChildDecl::filtered(child)]),
            Kind::CopyOnRead(child) if self.has_plugins => {
                plugins::copy_on_read(child, Asked::ByRules)?
            }
            Kind::CopyOnRead(child) => {
                (Arc::new(CopyOnReadNode::default()), vec![CopyOnReadNode::child(child)])
            }
            Kind::Acts(child) => (Arc::new(PassNode), vec![CopyOnReadNode::child(child)]),
            Kind::Copies { from, to, is_proven } => {
                let edge = |name: &str, node: &String, role, grants, proven_for| {
                    let (name, node) = (name.into(), node.clone());
                    ChildDecl { name, node, role, grants, proven_for }
                };
                let read = PermissionSet::CONSISTENT_READ;
                let proven_for = is_proven.then(|| "from".into());
                let children = vec![
                    edge("from", from, Role::Source, read, None),
                    edge("to", to, Role::Target, PermissionSet::WRITE, proven_for),
                ];
                (Arc::new(PassNode), children)
            }
        })
    }

    /// Nodes with bytes of their own.
    pub(super) fn stores(&self) -> Vec<String> {
        let is_store = |place: &&Place| {
            use Kind::{File, Image, Mapped, Memory, Overlay};
            matches!(place.kind, File | Memory | Overlay(_) | Mapped(_) | Image { .. })
        };
        self.places.iter().filter(is_store).map(|place| place.name.clone()).collect()
    }

    /// The images, with their kinds.
    pub(super) fn images(&self) -> impl Iterator<Item = (&str, &Geometry)> {
        self.places.iter().filter_map(|place| match &place.kind {
            Kind::Image { geometry, .. } => Some((place.name.as_str(), geometry)),
            _ => None,
        })
    }

    /// With an image that a snapshot has put on what a drive shows.
    pub(super) fn with_snapshot(
        &mut self,
        drive: &str,
        name: &str,
        child: &str,
        geometry: Geometry,
    ) {
        let backing = Some(child.to_owned());
        self.add(name, Kind::Image { backing, geometry });
        for it in self.drives.iter_mut().filter(|it| it.id == drive) {
            name.clone_into(&mut it.root);
        }
    }

    pub(super) fn actors(&self) -> Vec<Actor> {
        let shape = self.shape();
        let actor = |place: &Place| {
            let name = place.name.clone();
            Some(match &place.kind {
                Kind::Acts(child) => {
                    let (from, to) = (shape.store(child), shape.store(child));
                    Actor { name, from, to, is_proven: true, to_edge: 0 }
                }
                Kind::Copies { from, to, is_proven } => {
                    let (from, to) = (shape.store(from), shape.store(to));
                    Actor { name, from, to, is_proven: *is_proven, to_edge: 1 }
                }
                _ => return None,
            })
        };
        self.places.iter().filter_map(actor).collect()
    }

    /// Filters that may be taken out.
    pub(super) fn filters_to_remove(&self) -> Vec<String> {
        let is_plain = |place: &&Place| matches!(place.kind, Kind::Pass(_) | Kind::Lag(_));
        self.places.iter().filter(is_plain).map(|place| place.name.clone()).collect()
    }

    pub(super) fn shape(&self) -> Shape {
        let mut shape = Shape::default();
        for place in &self.places {
            match &place.kind {
                Kind::Overlay(child) | Kind::Mapped(child) => {
                    shape.stand(&place.name, child, Link::Backing);
                }
                Kind::Pass(child)
                | Kind::Lag(child)
                | Kind::CopyOnRead(child)
                | Kind::Acts(child) => shape.stand(&place.name, child, Link::Filtered),
                Kind::Image { backing: Some(child), .. } => {
                    shape.stand(&place.name, child, Link::Backing);
                }
                Kind::Image { backing: None, .. } => {}
                Kind::File | Kind::Memory | Kind::Copies { .. } => {}
            }
        }
        for drive in &self.drives {
            shape.set_root(&drive.id, &drive.root);
        }
        for store in self.stores() {
            shape.set_root(&probe_name(&store), &store);
        }
        shape
    }

    /// What a view shows at first.
    pub(super) fn first_words(&self, shape: &Shape, view: &View) -> Vec<u64> {
        let has_bytes = |place: &Place| match place.kind {
            Kind::File => true,
            Kind::Image { .. } => place.name == "base",
            _ => false,
        };
        let is_file = self.places.iter().any(has_bytes);
        let stands_on_base = shape.stands_on(shape.node_of(view), "base");
        let word = |sector| if is_file && stands_on_base { first(sector) } else { 0 };
        (0..SECTORS).map(word).collect()
    }
}

/// The bytes of a base that are not zeros.
fn own_bytes() -> Vec<(u64, Vec<u8>)> {
    let sector = |at: u64| (at * SECTOR as u64, super::world::fill(first(at)).collect());
    (0..SECTORS).filter(|at| first(*at) != 0).map(sector).collect()
}

/// A third of the base is zeros.
fn first(sector: u64) -> u64 {
    if sector / 4 % 3 == 1 { 0 } else { first_word(1, sector) }
}

fn first_bytes() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| super::world::fill(first(sector))).collect()
}
