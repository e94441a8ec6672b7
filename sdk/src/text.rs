//! Strings put together without the formatting machinery, which would be a third of a small plugin.

/// The parts, one after the other.
pub(crate) fn text(parts: &[&str]) -> String {
    let mut text = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| text.push_str(part));
    text
}

/// A number.
pub(crate) fn decimal(mut number: u32) -> String {
    let mut digits = String::new();
    loop {
        digits.insert(0, char::from(b'0' + (number % 10) as u8));
        number /= 10;
        if number == 0 {
            return digits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_the_standard_library_writes_them() {
        for number in [0, 9, 10, 1_000_200, u32::MAX] {
            assert_eq!(decimal(number), number.to_string());
        }
        assert_eq!(text(&["a", "", "bc"]), "abc");
    }
}
