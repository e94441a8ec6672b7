//! What outlives a host: files, what is known of them, and what is counted.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use blockloom_qcow2::Image;
use blockloom_qcow2::image::OpenOptions;
use blockloom_qcow2::testing::{MemoryStorage, block_on};

use super::super::image::{self, Geometry, file_name};
use super::super::oracle::{WriteId, first_word};
use super::super::world::fill;
use super::super::{judge, plugins};
use super::Counts;
use crate::bitmap::Uuid;
use crate::error::Result as HostResult;
use crate::graph::NodeDecl;
use crate::io::sim::{Random, SECTOR, Simulation};

/// Writes of guests have numbers from here on.
const FIRST_WRITE: u64 = 100;
/// Complete backups that are looked at again.
const BACKUPS_MAX: usize = 3;

/// See the module. A store is a node that keeps bytes: a raw file or an image, in file `NAME.img`.
pub(super) struct Past {
    pub(super) simulation: Simulation,
    pub(super) sectors: u64,
    /// Of the raw file on which drives stand at first: it may end before they do.
    base_sectors: u64,
    /// A drive's bitmap is kept in its images.
    pub(super) keeps: bool,
    /// Of images; the other stores are raw files.
    geometries: RefCell<BTreeMap<String, Geometry>>,
    /// Backups that are complete, and what they hold.
    backups: RefCell<Vec<(String, Vec<u64>)>>,
    /// Images that may name another backing than they stand on, for the moment.
    unsure: RefCell<BTreeSet<String>>,
    /// On what those stand that did so when power was lost.
    known: RefCell<BTreeMap<String, String>>,
    /// The bitmaps that are kept, by what they are of.
    pub(super) kept: RefCell<BTreeMap<String, Kept>>,
    now: Cell<u64>,
    writes: Cell<u64>,
    names: Cell<u64>,
    pub(super) counts: RefCell<Counts>,
    /// What has happened, in words.
    story: RefCell<Vec<String>>,
}

/// A bitmap that images keep.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) uuid: Uuid,
    /// Words that clean sectors may show, any of these.
    pub(super) references: Vec<Vec<u64>>,
    /// What it held when everything closed.
    pub(super) closed: Option<Vec<u64>>,
}

impl Past {
    /// A raw file `base`.
    pub(super) fn new(
        simulation: &Simulation,
        (sectors, base_sectors): (u64, u64),
        keeps: bool,
    ) -> Self {
        let past = Self {
            simulation: simulation.clone(),
            sectors,
            base_sectors,
            keeps,
            geometries: RefCell::default(),
            backups: RefCell::default(),
            unsure: RefCell::default(),
            known: RefCell::default(),
            kept: RefCell::default(),
            now: Cell::new(0),
            writes: Cell::new(FIRST_WRITE),
            names: Cell::new(0),
            counts: RefCell::default(),
            story: RefCell::default(),
        };
        past.add_raw("base", &past.first_words()[..base_sectors as usize]);
        past
    }

    /// What drives show at first.
    pub(super) fn first_words(&self) -> Vec<u64> {
        let word = |sector| if sector < self.base_sectors { first_word(0, sector) } else { 0 };
        (0..self.sectors).map(word).collect()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.sectors * SECTOR as u64
    }

    pub(super) fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    pub(super) fn next_write(&self) -> WriteId {
        self.writes.set(self.writes.get() + 1);
        WriteId(self.writes.get())
    }

    pub(super) fn next_name(&self, what: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{what}{}", self.names.get())
    }

    /// Tells who replays a seed.
    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let line = format!("{:>4} {}", self.now.get(), what());
        self.story.borrow_mut().push(line);
    }

    pub(super) fn story(&self) -> String {
        self.story.borrow().join("\n")
    }

    pub(super) fn count(&self, f: impl FnOnce(&mut Counts)) {
        f(&mut self.counts.borrow_mut());
    }

    pub(super) fn add_raw(&self, name: &str, words: &[u64]) {
        let bytes = words.iter().flat_map(|word| fill(*word)).collect();
        self.simulation.add_file(&file_name(name), bytes);
    }

    /// The name of a new image that says that it stands on `backing`.
    pub(super) fn add_image(&self, random: &mut Random, backing: Option<&str>) -> String {
        self.add_image_of(random, self.sectors, backing)
    }

    /// The same, of so many sectors.
    pub(super) fn add_image_of(
        &self,
        random: &mut Random,
        sectors: u64,
        backing: Option<&str>,
    ) -> String {
        let name = self.next_name("image");
        let geometry = Geometry::by_chance(random, backing.is_some(), self.keeps);
        self.geometries.borrow_mut().insert(name.clone(), geometry);
        let size_bytes = sectors * SECTOR as u64;
        let make = || image::fresh(&name, &geometry, size_bytes, backing, &[]);
        image::add(&self.simulation, &name, make);
        name
    }

    pub(super) fn is_unsure_of(&self, image: &str) {
        self.unsure.borrow_mut().insert(image.to_owned());
    }

    pub(super) fn is_sure_of(&self, image: &str) {
        self.unsure.borrow_mut().remove(image);
    }

    /// A host has ended in which a drive showed these stores: whoever opens them knows of those about which the
    /// images are not to be asked.
    pub(super) fn remember(&self, chain: &[String]) {
        for (above, below) in chain.iter().zip(chain.iter().skip(1)) {
            if self.unsure.borrow_mut().remove(above) {
                self.known.borrow_mut().insert(above.clone(), below.clone());
            }
        }
    }

    /// The files that images are to name as their backings, by image: what was known of those is forgotten.
    pub(super) fn take_known(&self) -> Vec<(String, String)> {
        let known = self.known.take().into_iter();
        known.map(|(image, below)| (image, file_name(&below))).collect()
    }

    /// A backup is complete, and holds this. Of some of them that is checked after each end of a host.
    pub(super) fn keep_backup(&self, store: &str, words: &[u64]) {
        let mut backups = self.backups.borrow_mut();
        if backups.len() >= BACKUPS_MAX {
            backups.remove(0);
        }
        backups.push((store.to_owned(), words.to_vec()));
        self.count(|counts| counts.backups += 1);
    }

    pub(super) fn backups(&self) -> Vec<(String, Vec<u64>)> {
        self.backups.borrow().clone()
    }

    /// The image of a drive's chain that keeps a bitmap of its own node: the lowest one.
    pub(super) fn keeping(&self, chain: &[String]) -> Option<String> {
        let images = chain.iter().rev().find(|store| self.is_image(store));
        images.filter(|_| self.keeps).cloned()
    }

    pub(super) fn is_image(&self, store: &str) -> bool {
        self.geometries.borrow().contains_key(store)
    }

    /// The nodes of a store whose files are there, itself last, over a node.
    pub(super) fn nodes(&self, store: &str, backing: Option<&str>) -> HostResult<Vec<NodeDecl>> {
        let geometry = self.geometries.borrow().get(store).copied();
        match geometry {
            Some(geometry) => image::nodes(&self.simulation, store, &geometry, backing),
            None => {
                let driver = plugins::file(&file_name(store))?;
                Ok(vec![NodeDecl { name: store.to_owned(), driver, children: vec![] }])
            }
        }
    }

    pub(super) fn storage(&self, store: &str) -> MemoryStorage {
        MemoryStorage::new(self.simulation.bytes(&file_name(store)))
    }

    /// The stores on which one stands, itself first, by what the images say.
    ///
    /// # Errors
    /// An image that cannot be opened, or names something as what it is not.
    pub(super) fn chain(&self, store: &str) -> Result<Vec<String>, String> {
        let mut chain = vec![store.to_owned()];
        while let Some(last) = chain.last().filter(|last| self.is_image(last)) {
            if let Some(below) = self.known.borrow().get(last).cloned() {
                chain.push(below);
                continue;
            }
            let storage = self.storage(last);
            let image = block_on(Image::open(&storage, &OpenOptions::default()));
            let info = image.map_err(|error| format!("image {last}: {error}"))?.info();
            let Some(named) = info.backing_name else { break };
            let named = String::from_utf8(named).map_err(|error| error.to_string())?;
            let below = named.trim_end_matches(".img").to_owned();
            let format = info.backing_format.and_then(|format| String::from_utf8(format).ok());
            let expected = if self.is_image(&below) { "qcow2" } else { "raw" };
            if format.as_ref().is_some_and(|format| format != expected) {
                return Err(format!("image {last} names `{named}`, of format {format:?}"));
            }
            chain.push(below);
        }
        Ok(chain)
    }

    /// Checks what is left of images, and repairs leaks. Where all has `closed` there is nothing to repair.
    ///
    /// # Errors
    /// What is worse than a leak.
    pub(super) fn repair(&self, stores: &[String], has_closed: bool) -> Result<(), String> {
        for store in stores.iter().filter(|store| self.is_image(store)) {
            let (storage, told) = (self.storage(store), |it| format!("image {store}: {it}"));
            if has_closed {
                judge::is_clean(&storage).map_err(told)?;
                continue;
            }
            judge::repair(&storage).map_err(told)?;
            self.simulation.add_file(&file_name(store), storage.content());
        }
        Ok(())
    }
}
