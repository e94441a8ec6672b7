//! Damage at random.

use crate::testing::Random;

/// Changes a few words of an input: most of them to what could be a place, a flag or a large number; or cuts it.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.len() < 8 {
        return;
    }
    if random.one_in(16) {
        bytes.truncate(8 + random.below(bytes.len() as u64 - 7) as usize);
    }
    for _ in 0..1 + random.below(4) {
        let len = bytes.len() as u64;
        let end = if random.one_in(2) { len.min(128) } else { len };
        let at = (random.below(end) as usize & !3).min(bytes.len() - 8);
        match random.below(6) {
            0 => bytes[at] = random.number() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at..at + 4].copy_from_slice(&(random.number() as u32).to_be_bytes()),
            3 => bytes[at..at + 8].copy_from_slice(&(random.below(300) << 9).to_be_bytes()),
            4 => {
                let word = 1 << 63 | random.below(300) << 9;
                bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
            _ => bytes[at..at + 8].copy_from_slice(&[u8::MAX; 8]),
        }
    }
}
