//! The checks that run after each step.

use super::bitmap::{Bitmap, GranuleSet, Part};
use super::ids::{BitmapId, Span, View};
use super::violation::Violation;
use super::world::World;

impl World {
    /// Soundness and exact precision of every bitmap, given the granules that the host has dirty.
    ///
    /// Exact means: all that an unexempted change touched, and nothing else. The exceptions, where
    /// the host may choose, are the granules
    /// - of clusters that a write must fill, outside what it writes;
    /// - of a change that was admitted but never issued; of a proven write that was withdrawn, those
    ///   it exempted;
    /// - in which a view ends after it has shrunk;
    /// - that a disabled bitmap, or the frozen set of one, gains when the view grows;
    /// - of a graph change without evidence that moved edges within a class only.
    ///
    /// Granules past the view's end don't count, so an ejected drive's bitmap is not compared.
    ///
    /// # Errors
    /// The first violation.
    pub fn check(&self, dirty: impl Fn(BitmapId, Part) -> GranuleSet) -> Result<(), Violation> {
        self.check_sound(&dirty)?;
        self.check_exact(&dirty)
    }

    /// Soundness, by bytes alone: clean granules show what they showed when they were last clean, and
    /// no write changed a view for which it was taken as proven.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_sound(
        &self,
        dirty: impl Fn(BitmapId, Part) -> GranuleSet,
    ) -> Result<(), Violation> {
        if let Some(harm) = &self.harm {
            return Err(harm.clone());
        }
        for (id, bitmap) in self.bitmaps.iter().filter(|(_, bitmap)| bitmap.enabled) {
            check_baseline(
                *id,
                bitmap,
                &self.graph.bytes(bitmap.scope),
                &dirty(*id, Part::Recording),
            )?;
        }
        Ok(())
    }

    /// Precision, by what changes touched; exact but for the exceptions of [`check`](Self::check).
    ///
    /// # Errors
    /// The first violation.
    pub fn check_exact(
        &self,
        dirty: impl Fn(BitmapId, Part) -> GranuleSet,
    ) -> Result<(), Violation> {
        for (id, bitmap) in &self.bitmaps {
            for part in [Part::Recording, Part::Frozen] {
                let Some(record) = bitmap.part(part) else { continue };
                let dirty = dirty(*id, part);
                let (bitmap_id, scope) = (*id, bitmap.scope);
                if let Some(granule) = record.required.difference(&dirty).next() {
                    let granule = *granule;
                    return Err(Violation::Missed { bitmap: bitmap_id, part, scope, granule });
                }
                let needless = dirty.difference(&record.allowed);
                if let Some(granule) =
                    needless.copied().find(|granule| *granule < bitmap.granules())
                {
                    return Err(Violation::Needless { bitmap: bitmap_id, part, scope, granule });
                }
            }
        }
        Ok(())
    }

    /// Whether what the host read is right: each byte is the view's, or that of a change in flight
    /// that reaches it.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn check_read(&self, view: View, span: Span, got: &[u8]) -> Result<(), Violation> {
        let bytes = self.graph.bytes(view);
        for (at, offset) in span.offsets().enumerate() {
            let expect = bytes.get(offset).copied().unwrap_or(0);
            let got = got.get(at).copied();
            if got != Some(expect) && !self.is_in_flight(view, offset) {
                return Err(Violation::WrongBytes { view, span, offset, expect, got });
            }
        }
        Ok(())
    }

    fn is_in_flight(&self, view: View, offset: usize) -> bool {
        let Some(top) = self.graph.top(view) else { return false };
        self.flights.values().any(|flight| {
            self.graph.reach(top, &flight.legs, flight.exempt).meets(Span::at(offset, 1))
        })
    }
}

fn check_baseline(
    id: BitmapId,
    bitmap: &Bitmap,
    shows: &[u8],
    dirty: &GranuleSet,
) -> Result<(), Violation> {
    for granule in (0..bitmap.granules()).filter(|granule| !dirty.contains(granule)) {
        let span = Span::at(granule * bitmap.granularity, bitmap.granularity).clipped(shows.len());
        let was = &bitmap.record.baseline[span.offsets()];
        let shows = &shows[span.offsets()];
        if was.iter().zip(shows).any(|(was, shows)| *was != Some(*shows)) {
            let (was, shows, scope) = (was.to_vec(), shows.to_vec(), bitmap.scope);
            return Err(Violation::FalseClean { bitmap: id, scope, granule, was, shows });
        }
    }
    Ok(())
}
