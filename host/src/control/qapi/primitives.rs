//! Numbers, words, lists, and what may be absent.

use serde_json::Value;

use super::{Place, QapiType, Schema};
use crate::control::error::{QmpError, QmpResult};

impl QapiType for String {
    fn schema(schema: &mut Schema) -> String {
        schema.builtin("str", "string")
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(at.expected("string")),
        }
    }

    fn emit(self) -> Option<Value> {
        Some(Value::String(self))
    }

    fn is_kind(value: &Value) -> bool {
        value.is_string()
    }
}

impl QapiType for bool {
    fn schema(schema: &mut Schema) -> String {
        schema.builtin("bool", "boolean")
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        value.as_bool().ok_or_else(|| at.expected("boolean"))
    }

    fn emit(self) -> Option<Value> {
        Some(Value::Bool(self))
    }

    fn is_kind(value: &Value) -> bool {
        value.is_boolean()
    }
}

/// Any JSON.
impl QapiType for Value {
    fn schema(schema: &mut Schema) -> String {
        schema.builtin("any", "value")
    }

    fn parse(value: Value, _: &Place<'_>) -> QmpResult<Self> {
        Ok(value)
    }

    fn emit(self) -> Option<Value> {
        Some(self)
    }

    fn is_kind(_: &Value) -> bool {
        true
    }
}

/// Integers have one name in the schema, whatever their range, and say it when they are out of it.
macro_rules! integers {
    ($($type:ty: $range:literal),*) => {$(
        impl QapiType for $type {
            fn schema(schema: &mut Schema) -> String {
                schema.builtin("int", "int")
            }

            fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
                let signed = value.as_i64().map(|it| <$type>::try_from(it).ok());
                let number = signed.or_else(|| value.as_u64().map(|it| <$type>::try_from(it).ok()));
                let number = number.ok_or_else(|| at.expected("integer"))?;
                let out = || QmpError::generic(format!("Parameter '{at}' expects {}", $range));
                number.ok_or_else(out)
            }

            fn emit(self) -> Option<Value> {
                Some(Value::from(self))
            }

            fn is_kind(value: &Value) -> bool {
                value.is_i64() || value.is_u64()
            }
        }
    )*};
}

integers! { i64: "int64_t", u64: "uint64_t", u32: "uint32_t", u16: "uint16_t" }

impl QapiType for f64 {
    fn schema(schema: &mut Schema) -> String {
        schema.builtin("number", "number")
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        value.as_f64().ok_or_else(|| at.expected("number"))
    }

    fn emit(self) -> Option<Value> {
        serde_json::Number::from_f64(self).map(Value::Number)
    }

    fn is_kind(value: &Value) -> bool {
        value.is_number()
    }
}

/// The value `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Null;

impl QapiType for Null {
    fn schema(schema: &mut Schema) -> String {
        schema.builtin("null", "null")
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        if value.is_null() { Ok(Self) } else { Err(at.expected("null")) }
    }

    fn emit(self) -> Option<Value> {
        Some(Value::Null)
    }

    fn is_kind(value: &Value) -> bool {
        value.is_null()
    }
}

impl<T: QapiType> QapiType for Vec<T> {
    fn schema(schema: &mut Schema) -> String {
        let element = T::schema(schema);
        schema.array(&element)
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        let Value::Array(elements) = value else { return Err(at.expected("array")) };
        let elements = elements.into_iter().enumerate();
        elements.map(|(index, element)| T::parse(element, &at.element(index))).collect()
    }

    fn emit(self) -> Option<Value> {
        Some(Value::Array(self.into_iter().filter_map(T::emit).collect()))
    }

    fn is_kind(value: &Value) -> bool {
        value.is_array()
    }
}

impl<T: QapiType> QapiType for Option<T> {
    fn schema(schema: &mut Schema) -> String {
        T::schema(schema)
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        T::parse(value, at).map(Some)
    }

    fn emit(self) -> Option<Value> {
        self.and_then(T::emit)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn is_kind(value: &Value) -> bool {
        T::is_kind(value)
    }
}

/// A type that holds itself.
impl<T: QapiType> QapiType for Box<T> {
    fn schema(schema: &mut Schema) -> String {
        T::schema(schema)
    }

    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self> {
        T::parse(value, at).map(Self::new)
    }

    fn emit(self) -> Option<Value> {
        (*self).emit()
    }

    fn is_kind(value: &Value) -> bool {
        T::is_kind(value)
    }
}
