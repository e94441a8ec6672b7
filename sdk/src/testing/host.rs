//! What stands behind the functions of the host outside the data plane, one for each thread.

use std::cell::RefCell;
use std::collections::BTreeMap;

use blockloom_abi::{BitmapIndex, Errno, NodeIndex};

use crate::bytes::Holder;
use crate::{Bitmap, ByteAccess, Level, Rule};

#[derive(Default)]
pub(super) struct Host {
    pub(super) logged: Vec<(Level, String)>,
    rules: BTreeMap<u16, (Vec<Rule>, u32)>,
    /// Changes with each set of rules.
    pub(super) rules_generation: u64,
    bitmaps: BTreeMap<u32, Bits>,
    /// Of a node's own.
    own_bitmaps: BTreeMap<(u16, String), u32>,
    lent_bitmaps: BTreeMap<(u16, String), u32>,
    sizes: BTreeMap<u16, u64>,
    held: BTreeMap<Holder, Held>,
}

/// The data of a request or buffer, as the filter may see it.
pub(super) struct Held {
    pub(super) access: ByteAccess,
    pub(super) len: u64,
    /// None of a read that the child has not done.
    pub(super) bytes: Option<Vec<u8>>,
    /// The filter has put some of them.
    pub(super) is_put: bool,
}

/// A bitmap: runs of set bytes that do not touch, where each starts and where it ends.
struct Bits {
    granularity: u64,
    size: u64,
    runs: BTreeMap<u64, u64>,
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::default();
}

pub(super) fn with<R>(act: impl FnOnce(&mut Host) -> R) -> R {
    HOST.with_borrow_mut(act)
}

impl Host {
    pub(super) fn rules(&self, node: NodeIndex) -> Option<&(Vec<Rule>, u32)> {
        self.rules.get(&node.0)
    }

    /// A new instance begins without rules.
    pub(super) fn reset_rules(&mut self) {
        self.rules.clear();
    }

    pub(super) fn add_node(&mut self, node: NodeIndex, size_bytes: u64) {
        self.sizes.insert(node.0, size_bytes);
    }

    /// The filter may name these bytes from now on.
    pub(super) fn hold(&mut self, holder: Holder, held: Held) {
        self.held.insert(holder, held);
    }

    pub(super) fn held(&mut self, holder: Holder) -> Option<&mut Held> {
        self.held.get_mut(&holder)
    }

    /// It may name them no more.
    pub(super) fn take_held(&mut self, holder: Holder) -> Option<Held> {
        self.held.remove(&holder)
    }

    pub(super) fn add_bitmap(&mut self, bitmap: BitmapIndex) {
        let bits = Bits { granularity: 1, size: u64::MAX, runs: BTreeMap::new() };
        self.bitmaps.insert(bitmap.0, bits);
    }

    /// A bitmap that a node reads.
    pub(super) fn lend(
        &mut self,
        node: NodeIndex,
        name: &str,
        granularity: u64,
    ) -> Result<BitmapIndex, String> {
        check_granularity(granularity)?;
        let index = self.free_index()?;
        self.bitmaps.insert(index, Bits { granularity, size: u64::MAX, runs: BTreeMap::new() });
        self.lent_bitmaps.insert((node.0, name.to_owned()), index);
        Ok(BitmapIndex(index))
    }

    fn free_index(&self) -> Result<u32, String> {
        let free = (0..).find(|index| !self.bitmaps.contains_key(index));
        free.ok_or_else(|| "too many bitmaps".to_owned())
    }

    /// The bitmaps that are lent to a node, and its own, as a later instance finds them.
    pub(super) fn bitmaps_of(&self, node: NodeIndex) -> Vec<Bitmap> {
        let lent = self.lent_bitmaps.iter().map(|it| (it, false));
        let all = lent.chain(self.own_bitmaps.iter().map(|it| (it, true)));
        let of_node = all.filter(|(((of, _), _), _)| *of == node.0);
        of_node
            .map(|(((_, name), index), owned)| Bitmap {
                name: name.clone(),
                index: BitmapIndex(*index),
                granularity_bytes: self.bitmaps[index].granularity,
                owned,
            })
            .collect()
    }
}

pub(crate) fn bytes_get(holder: Holder, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    with(|host| {
        let held = host.held(holder).ok_or(Errno::EINVAL)?;
        let end = offset.checked_add(len).filter(|end| *end <= held.len).ok_or(Errno::EINVAL)?;
        let bytes = held.bytes.as_ref().ok_or(Errno::EBUSY)?;
        Ok(bytes[offset as usize..end as usize].to_vec())
    })
}

pub(crate) fn bytes_put(holder: Holder, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    with(|host| {
        let held = host.held(holder).ok_or(Errno::EINVAL)?;
        if held.access != ByteAccess::Transform {
            return Err(Errno::EPERM);
        }
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= held.len);
        let end = end.ok_or(Errno::EINVAL)?;
        held.is_put = true;
        let all = held.bytes.get_or_insert_with(|| vec![0; held.len as usize]);
        all[offset as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    })
}

pub(crate) fn log(level: Level, message: &str) {
    with(|host| host.logged.push((level, message.to_owned())));
}

pub(crate) fn set_rules(node: NodeIndex, rules: &[Rule], epoch: u32) -> Result<(), String> {
    with(|host| {
        host.rules.insert(node.0, (rules.to_vec(), epoch));
        host.rules_generation += 1;
    });
    Ok(())
}

fn check_granularity(bytes: u64) -> Result<(), String> {
    match bytes.is_power_of_two() && (512..=1 << 31).contains(&bytes) {
        true => Ok(()),
        false => Err(format!("{bytes} is no granularity")),
    }
}

pub(crate) fn bitmap_own(
    node: NodeIndex,
    name: &str,
    granularity_bytes: u64,
) -> Result<BitmapIndex, String> {
    check_granularity(granularity_bytes)?;
    with(|host| {
        let key = (node.0, name.to_owned());
        let known = host.own_bitmaps.get(&key).copied();
        let index = known.map_or_else(|| host.free_index(), Ok)?;
        let size = host.sizes.get(&node.0).copied().unwrap_or(u64::MAX);
        let bits = host.bitmaps.entry(index);
        let runs = BTreeMap::new();
        let bits = bits.or_insert(Bits { granularity: granularity_bytes, size, runs });
        if bits.granularity != granularity_bytes {
            return Err(format!("bitmap `{name}` has granules of {} bytes", bits.granularity));
        }
        host.own_bitmaps.insert(key, index);
        Ok(BitmapIndex(index))
    })
}

pub(crate) fn bitmap_count(bitmap: BitmapIndex) -> u64 {
    with(|host| {
        let bits = host.bitmaps.get(&bitmap.0);
        bits.map_or(0, |bits| bits.runs.iter().map(|(start, end)| end - start).sum())
    })
}

pub(crate) fn bitmap_merge(into: BitmapIndex, from: BitmapIndex) -> Result<(), String> {
    let runs = with(|host| host.bitmaps.get(&from.0).map(|bits| bits.runs.clone()));
    for (start, end) in runs.ok_or("no such bitmap")? {
        bitmap_set(into, start, end - start, true)?;
    }
    Ok(())
}

pub(crate) fn bitmap_next(bitmap: BitmapIndex, from: u64) -> Option<(u64, u64)> {
    with(|host| {
        let runs = &host.bitmaps.get(&bitmap.0)?.runs;
        let run = runs.iter().find(|(_, end)| **end > from)?;
        let start = from.max(*run.0);
        Some((start, run.1 - start))
    })
}

pub(crate) fn bitmap_set(
    bitmap: BitmapIndex,
    offset: u64,
    len: u64,
    value: bool,
) -> Result<(), String> {
    let end = offset.checked_add(len).ok_or("past the end")?;
    with(|host| {
        let bits = host.bitmaps.get_mut(&bitmap.0).ok_or("no such bitmap")?;
        let mask = bits.granularity - 1;
        let up = |offset: u64| {
            let up = offset.checked_add(mask).map_or(u64::MAX, |up| up & !mask);
            up.min(bits.size)
        };
        // The last granule may be a part of one.
        let down = |offset: u64| if offset >= bits.size { bits.size } else { offset & !mask };
        let (offset, end) = match value {
            _ if len == 0 => return Ok(()),
            true => (down(offset), up(end)),
            false => (up(offset), down(end)),
        };
        if offset < end {
            set_run(&mut bits.runs, offset, end, value);
        }
        Ok(())
    })
}

fn set_run(runs: &mut BTreeMap<u64, u64>, offset: u64, end: u64, value: bool) {
    let mut kept = BTreeMap::new();
    let (mut first, mut last) = (offset, end);
    for (&start, &stop) in &*runs {
        if stop < offset || start > end {
            kept.insert(start, stop);
        } else if value {
            (first, last) = (first.min(start), last.max(stop));
        } else {
            kept.extend((start < offset).then_some((start, offset)));
            kept.extend((stop > end).then_some((end, stop)));
        }
    }
    kept.extend(value.then_some((first, last)));
    *runs = kept;
}
