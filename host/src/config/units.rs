//! Sizes, rates and durations: what users write, and how messages show them.

use std::time::Duration;

/// The largest size there is: the largest `off_t`.
pub(super) const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

const UNITS: [(&str, u32); 5] = [("", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Reads `512`, `64KiB`, `10GiB` or, as qemu-img does, `64K`, `10G`: binary units up to tebibytes.
///
/// # Errors
///
/// What is wrong and what would be right, without naming the key.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_unit(text);
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong_unit(digits, unit)),
    };
    let number = whole_number(digits)?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes <= MAX_SIZE_BYTES => Ok(bytes),
        _ => Err(TOO_LARGE.to_owned()),
    }
}

const TOO_LARGE: &str = "is larger than the largest size, 2^63 - 1 bytes";

fn wrong_unit(digits: &str, unit: &str) -> String {
    let simple = unit.to_ascii_lowercase();
    let meant = match simple.as_bytes() {
        [letter @ (b'k' | b'm' | b'g' | b't')]
        | [letter @ (b'k' | b'm' | b'g' | b't'), b'b']
        | [letter @ (b'k' | b'm' | b'g' | b't'), b'i', b'b'] => {
            format!("{}iB", char::from(letter.to_ascii_uppercase()))
        }
        b"b" | b"bytes" => return format!("has the unit `{unit}`: write bytes without a unit"),
        _ if digits.is_empty() => return NOT_A_SIZE.to_owned(),
        _ => {
            return format!("has the unknown unit `{}`: units are KiB, MiB, GiB, TiB", clip(unit));
        }
    };
    format!("has the unit `{unit}`: units are binary, write `{digits}{meant}`")
}

const NOT_A_SIZE: &str = "is not a size: write bytes or a string such as \"64KiB\" or \"10GiB\"";

fn whole_number(digits: &str) -> Result<u64, String> {
    if digits.is_empty() {
        return Err(NOT_A_SIZE.to_owned());
    }
    digits.parse().map_err(|_| TOO_LARGE.to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start_matches(' '))
}

fn clip(text: &str) -> String {
    super::render::clip(text)
}

/// Reads `50us`, `5ms`, `1s`, `2m`, `1h` or `0`.
///
/// # Errors
///
/// What is wrong and what would be right, without naming the key.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const NOT_A_TIME: &str = "is not a time: write a string such as \"50us\", \"5ms\" or \"1s\"";
    let (digits, unit) = split_unit(text);
    if digits.is_empty() {
        return Err(NOT_A_TIME.to_owned());
    }
    let number: u64 = digits.parse().map_err(|_| "is too long a time".to_owned())?;
    let nanos_per_unit: u64 = match unit {
        "" if number == 0 => 0,
        "" => {
            return Err(format!("has no unit: write \"{number}ms\" or \"{number}s\""));
        }
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => {
            return Err(format!(
                "has the unknown unit `{}`: units are ns, us, ms, s, m, h",
                clip(unit)
            ));
        }
    };
    let nanos = number.checked_mul(nanos_per_unit);
    nanos.map(Duration::from_nanos).ok_or_else(|| "is too long a time".to_owned())
}

/// `bytes` in the largest unit that shows it exactly.
pub fn format_size(bytes: u64) -> String {
    let fits = |shift: &u32| bytes != 0 && bytes.trailing_zeros() >= *shift;
    let (unit, shift) = UNITS.iter().rfind(|(_, shift)| fits(shift)).unwrap_or(&UNITS[0]);
    format!("{}{unit}", bytes >> shift)
}

/// `duration` in the largest unit that shows it exactly, to the nanosecond.
pub fn format_duration(duration: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0".to_owned();
    }
    let exact = UNITS.iter().find(|(size, _)| nanos.is_multiple_of(*size));
    exact.map_or_else(String::new, |(size, unit)| format!("{}{unit}", nanos / size))
}
