//! From TOML values to Rust ones: the types that a key can have.

use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::suggest;
use super::units::{MAX_SIZE_BYTES, parse_duration, parse_size};

/// Why a value is not what it should be; follows the name of the key.
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, help: None }
    }
}

impl Wrong {
    fn kind(expected: &str, found: &DeValue<'_>) -> Self {
        format!("must be {expected}, not {}", type_of(found)).into()
    }
}

/// A type that a key can have.
pub(super) trait FromToml: Sized {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong>;
}

/// The type of a TOML value, with its article.
pub(super) fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The value of an integer of any base, if it fits.
pub(super) fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

impl FromToml for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::kind("true or false", value);
        value.as_bool().ok_or_else(wrong)
    }
}

impl FromToml for String {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::kind("a string", value);
        value.as_str().map(str::to_owned).ok_or_else(wrong)
    }
}

impl FromToml for u64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let DeValue::Integer(number) = value else {
            return Err(Wrong::kind("an integer", value));
        };
        match integer(number).map(u64::try_from) {
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) => Err("must not be negative".to_owned().into()),
            None => Err("does not fit 64 bits".to_owned().into()),
        }
    }
}

/// A number of bytes: an integer, or a string with a unit.
#[derive(Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl FromToml for Size {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::String(text) => Ok(Self(parse_size(text)?)),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix())
            {
                Ok(bytes) if bytes < 0 => Err("must not be negative".to_owned().into()),
                Ok(bytes) if bytes <= i128::from(MAX_SIZE_BYTES) => {
                    Ok(Self(bytes.unsigned_abs() as u64))
                }
                _ => Err("is larger than the largest size, 2^63 - 1 bytes".to_owned().into()),
            },
            _ => Err(Wrong::kind("a size", value)).map_err(|wrong| Wrong {
                help: Some("write bytes or a string such as \"64KiB\" or \"10GiB\"".to_owned()),
                ..wrong
            }),
        }
    }
}

impl FromToml for Duration {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::String(text) => Ok(parse_duration(text)?),
            DeValue::Integer(number) if integer(number) == Some(0) => Ok(Self::ZERO),
            DeValue::Integer(number) => {
                Err(format!("has no unit: write \"{number}ms\" or \"{number}s\"").into())
            }
            _ => Err(Wrong::kind("a time such as \"5ms\"", value)),
        }
    }
}

/// A word out of a fixed set.
pub(super) trait Choice: Copy + 'static {
    /// The words, with what they mean.
    const CHOICES: &'static [(&'static str, Self)];
}

impl<T: Choice> FromToml for T {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let names: Vec<&str> = T::CHOICES.iter().map(|(name, _)| *name).collect();
        let Some(text) = value.as_str() else {
            return Err(Wrong::kind(&format!("one of {}", suggest::list(&names)), value));
        };
        if let Some((_, choice)) = T::CHOICES.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        Err(Wrong {
            message: format!("cannot be `{}`", super::render::clip(text)),
            help: Some(suggest::help(text, "possible values", &names)),
        })
    }
}
