//! Which bitmap one is, wherever it is stored and whatever its name.

use std::fmt;
use std::str::FromStr;

use crate::io::random_bytes;

/// A UUID (RFC 9562): the same for a bitmap's whole life, in whichever image it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// One by chance (version 4).
    pub fn random() -> Self {
        let mut bytes = random_bytes();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// Of these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// Text that is no UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a UUID is needed, such as `123e4567-e89b-42d3-a456-426614174000`")]
pub struct NoUuid;

impl FromStr for Uuid {
    type Err = NoUuid;

    fn from_str(text: &str) -> Result<Self, NoUuid> {
        let has_form = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !has_form {
            return Err(NoUuid);
        }
        let number = u128::from_str_radix(&text.replace('-', ""), 16).map_err(|_| NoUuid)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        f.write_str(&parts.join("-"))
    }
}

/// What tells the stored forms of bitmaps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapIdentity {
    /// Of the bitmap.
    pub uuid: Uuid,
    /// Of its stored form: it grows with every image that the bitmap goes to, and the highest counts.
    pub generation: u64,
}

impl BitmapIdentity {
    /// That of a new bitmap, which is stored nowhere.
    pub(crate) fn new() -> Self {
        Self { uuid: Uuid::random(), generation: 0 }
    }

    /// That of its form in the next image.
    pub(crate) fn next(self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_they_are_written() {
        let text = "00fe4567-e89b-42d3-a456-426614174000";
        let uuid: Uuid = text.parse().expect("a UUID");
        assert_eq!(uuid.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(uuid));
        for bad in ["", "00fe4567e89b42d3a456426614174000", &text[1..], &format!("{text}0"), "+"] {
            assert_eq!(bad.parse::<Uuid>(), Err(NoUuid), "{bad}");
        }
        assert_eq!(text.replace('f', "g").parse::<Uuid>(), Err(NoUuid));
        assert_eq!("é0fe4567-e89b-42d3-a456-42661417400".parse::<Uuid>(), Err(NoUuid));
    }

    #[test]
    fn each_is_another() {
        let uuids = [Uuid::random(), Uuid::random()].map(|uuid| uuid.to_string());
        assert_ne!(uuids[0], uuids[1]);
        assert!(uuids.iter().all(|uuid| &uuid[14..15] == "4" && "89ab".contains(&uuid[19..20])));
    }
}
