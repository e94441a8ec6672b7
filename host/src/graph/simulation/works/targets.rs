//! What jobs copy to: stores that hold what the mode of a job expects them to hold.

use super::super::oracle::{WriteId, word};
use super::world::{Disk, World, lag_name};
use crate::error::Result as HostResult;
use crate::io::sim::Random;

/// Words of nobody, which a copy of everything has to hide.
pub(super) fn junk(sector: u64) -> u64 {
    word(WriteId(50), sector)
}

impl World {
    /// A store of which nothing is expected.
    pub(super) async fn fresh(&self, random: &mut Random) -> HostResult<String> {
        // Who copies to it makes it as long as what is copied.
        let all = self.past.sectors;
        let sectors = if random.one_in(3) { random.within(1..all) } else { all };
        match random.below(4) {
            0 => {
                let name = self.past.next_name("ref");
                let words: Vec<u64> = (0..sectors).map(junk).collect();
                self.past.add_raw(&name, &words);
                self.add(name, None).await
            }
            1 => {
                let words: Vec<u64> = (0..all).map(junk).collect();
                self.over_of(random, sectors, &words).await
            }
            _ => {
                let name = self.past.add_image_of(random, sectors, None);
                self.add(name, None).await
            }
        }
    }

    /// An empty image over one that holds these words.
    pub(super) async fn over(&self, random: &mut Random, words: &[u64]) -> HostResult<String> {
        self.over_of(random, self.past.sectors, words).await
    }

    /// The same, of so many sectors.
    async fn over_of(
        &self,
        random: &mut Random,
        sectors: u64,
        words: &[u64],
    ) -> HostResult<String> {
        let name = self.past.next_name("ref");
        self.past.add_raw(&name, words);
        let below = self.add(name, None).await?;
        let name = self.past.add_image_of(random, sectors, Some(&below));
        self.add(name, Some(&lag_name(&below))).await
    }

    /// One over what is below the topmost overlay of a drive.
    pub(super) async fn over_below(&self, random: &mut Random, disk: &Disk) -> Option<String> {
        let chain = self.chain(disk);
        let words = match chain.get(1) {
            Some(below) => self.look(std::slice::from_ref(below)).await.ok()?.pop()?,
            None => (0..self.past.sectors).map(junk).collect(),
        };
        self.over(random, &words).await.ok()
    }

    /// One over what the drive showed where its bitmap `j` is clean.
    pub(super) async fn over_last(&self, random: &mut Random, disk: &Disk) -> Option<String> {
        let words = match &self.references(&disk.id, "j")[..] {
            [words] => words.clone(),
            _ => return None,
        };
        self.over(random, &words).await.ok()
    }
}
