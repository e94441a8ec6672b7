//! What is owed to a bitmap that a job populates.

use super::plan::{When, lag_or_itself};
use super::targets::junk;
use super::world::{World, of_drive};
use crate::graph::BitmapRef;
use crate::io::sim::{Random, SECTOR};
use crate::job::{PopulateFrom, PopulateSpec};

/// What a job makes dirty in bitmap `b` of a drive, if it ends well.
#[derive(Clone, Debug)]
pub(super) struct Populated {
    /// Number of the drive.
    disk: usize,
    /// The store with which what the drive shows is compared. Nobody alters what that shows.
    other: String,
    /// Where they differ, and nowhere else. What other jobs write below one of them may count, though it shows the same.
    is_exact: bool,
}

impl World {
    pub(super) async fn populate(
        &self,
        random: &mut Random,
        at: usize,
        when: When,
    ) -> Option<(PopulateSpec, Populated)> {
        let disk = &self.disks[at];
        let chain = self.chain(disk);
        let (from, other, is_exact) = match when.is_alone && random.one_in(2) {
            true => {
                let base = random.pick(chain.get(1..)?)?;
                let is_told = chain.get(1) != Some(&base) || random.one_in(2);
                let from = PopulateFrom::Allocation { base: is_told.then(|| base.clone()) };
                (from, base, false)
            }
            false => {
                let shown = self.read(&disk.id).await.ok()?;
                let mut word = |(sector, word)| if random.one_in(3) { junk(sector) } else { word };
                let words: Vec<u64> = (0..).zip(shown).map(&mut word).collect();
                let name = self.past.next_name("ref");
                self.past.add_raw(&name, &words);
                let store = self.add(name, None).await.ok()?;
                let other = lag_or_itself(random, &store);
                (PopulateFrom::Difference { other }, store, when.is_alone)
            }
        };
        let bitmap = BitmapRef::of_drive(&disk.id, "b");
        let spec = PopulateSpec { bitmap, device: disk.id.clone(), from };
        Some((spec, Populated { disk: at, other, is_exact }))
    }

    /// Its job has ended. What was written meanwhile counts with all that was filled around it.
    pub(super) fn note_end(&self, owed: &mut Populated, began: u64) {
        let ledger = self.disks[owed.disk].ledger.borrow();
        owed.is_exact &= ledger.touched_since(began).next().is_none();
    }

    /// Of a job that has ended well.
    ///
    /// # Errors
    /// A sector that differs, and is clean.
    pub(super) async fn check_populated(&self, owed: &Populated) -> Result<(), String> {
        let id = &self.disks[owed.disk].id;
        let shown = self.read(id).await?;
        let other = self.look(std::slice::from_ref(&owed.other)).await?.pop().unwrap_or_default();
        // Past its end it shows nothing.
        let others = other.into_iter().chain(std::iter::repeat(0));
        let differ =
            (0..).zip(shown.iter().zip(others)).filter(|(_, (word, other))| *word != other);
        let differ: Vec<u64> = differ.map(|(sector, _)| sector).collect();
        let known = self.tracked(&of_drive(id), "b", |tracked| {
            match owed.is_exact {
                true => tracked.expect(&differ),
                false => tracked.expect_all(),
            }
            differ.iter().find(|sector| !tracked.bitmap.test(*sector * SECTOR as u64)).copied()
        });
        match known.flatten() {
            Some(sector) => {
                Err(format!("sector {sector} of {id} differs from {}, and is clean", owed.other))
            }
            None => Ok(()),
        }
    }
}
