//! Sizes and durations as the host's TOML writes them.

const SIZES: [(&str, u64); 6] =
    [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const TIMES: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

pub(super) fn integer(text: &str) -> Option<u64> {
    scaled(text, &[("", 1)])
}

/// Bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    scaled(text, &SIZES)
}

/// Nanoseconds.
pub(super) fn nanos(text: &str) -> Option<u64> {
    scaled(text, &TIMES)
}

/// A decimal number from 0 to 1, in parts of 10^9.
pub(super) fn billionths(text: &str) -> Option<u64> {
    const DIGITS: usize = 9;
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let used = part.get(..part.len().min(DIGITS))?;
    let is_number = !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    let mut billionths = integer(used)?;
    for _ in used.len()..DIGITS {
        billionths *= 10;
    }
    match integer(whole)? {
        0 if is_number => Some(billionths),
        1 if is_number && part.bytes().all(|digit| digit == b'0') => Some(1_000_000_000),
        _ => None,
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.as_bytes().split_at_checked(digits)?;
    let (_, factor) = units.iter().find(|(name, _)| name.as_bytes() == unit.trim_ascii_start())?;
    let number = number.iter().try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })?;
    number.checked_mul(*factor).filter(|_| digits > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expect) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64KiB", Some(64 << 10)),
            ("64 KiB", Some(64 << 10)),
            ("16777215TiB", Some(16_777_215 << 40)),
            ("16777216TiB", None),
            ("", None),
            ("KiB", None),
            ("+1", None),
            ("1.5KiB", None),
            ("1KB", None),
            ("1KiBs", None),
        ] {
            assert_eq!(size(text), expect, "{text}");
        }
    }

    #[test]
    fn fractions() {
        for (text, expect) in [
            ("0", Some(0)),
            ("1", Some(1_000_000_000)),
            ("1.0", Some(1_000_000_000)),
            ("0.25", Some(250_000_000)),
            ("0.0000000019", Some(1)),
            ("1.1", None),
            ("2", None),
            ("-0.5", None),
            ("0.", None),
            ("0.5.5", None),
            ("5e-1", None),
        ] {
            assert_eq!(billionths(text), expect, "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(nanos("250ms"), Some(250_000_000));
        assert_eq!(nanos("2min"), Some(120_000_000_000));
        assert_eq!(nanos("7"), None);
        assert_eq!(nanos("1m"), None);
    }
}
