//! Small json files as objects: bounded, without a name given twice, with typed access that names
//! the file's key. Knows no key.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use crate::format::FormatError;
use crate::format::cursor::clip;

/// A parsed file whose top is an object. `null` counts as absent.
pub(super) struct Object {
    fields: Map<String, Value>,
    /// Before each key in messages: `rope_scaling.`, say.
    prefix: &'static str,
}

impl Object {
    /// Parses a file of at most `limit` bytes. Nesting is bounded by the parser.
    pub(super) fn parse(bytes: &[u8], limit: u64) -> Result<Self, FormatError> {
        check_size(bytes, limit)?;
        let Unique(value) = serde_json::from_slice(bytes).map_err(unsound)?;
        match value {
            Value::Object(fields) => Ok(Self { fields, prefix: "" }),
            _ => Err(FormatError::Unsound {
                problem: "the file is not an object".to_owned(),
            }),
        }
    }

    /// The key as messages name it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{}", self.prefix, clip(key))
    }

    /// The names of the fields.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// A field's value.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Takes a field's value out.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    /// Takes out a field that is an object; its keys are named after `prefix`.
    pub(super) fn take_object(
        &mut self,
        key: &str,
        prefix: &'static str,
    ) -> Result<Option<Self>, FormatError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self { fields, prefix })),
            Some(other) => Err(self.bad(key, &other, "an object is needed")),
        }
    }

    /// An error about a field.
    pub(super) fn bad(&self, key: &str, value: &Value, allowed: &'static str) -> FormatError {
        FormatError::Invalid {
            field: self.name(key),
            value: clip(&value.to_string()),
            allowed,
        }
    }

    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().map(u32::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(self.bad(key, value, "a whole number of 32 bits is needed")),
        }
    }

    /// As [`Object::u32`], of a field that must be there.
    pub(super) fn required_u32(&self, key: &str) -> Result<u32, FormatError> {
        self.u32(key)?.ok_or_else(|| FormatError::MissingField {
            field: self.name(key),
        })
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.bad(key, value, "a number is needed")),
        }
    }

    /// As [`Object::f64`], of a field that must be there.
    pub(super) fn required_f64(&self, key: &str) -> Result<f64, FormatError> {
        self.f64(key)?.ok_or_else(|| FormatError::MissingField {
            field: self.name(key),
        })
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.bad(key, other, "true or false is needed")),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(self.bad(key, other, "a string is needed")),
        }
    }

    /// Token ids: one number or a list of them; empty without the field.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, FormatError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        match value {
            Value::Array(all) => all.iter().map(id).collect::<Option<Vec<_>>>(),
            one => id(one).map(|id| vec![id]),
        }
        .ok_or_else(|| self.bad(key, value, "a token id or a list of them is needed"))
    }
}

/// Refuses a file over its limit before anything is made of it.
pub(super) fn check_size(bytes: &[u8], limit: u64) -> Result<(), FormatError> {
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > limit {
        return Err(FormatError::OverLimit {
            field: "size in bytes".to_owned(),
            value: size,
            limit,
        });
    }
    Ok(())
}

/// What the parser says, kept short: it repeats strings of the file.
#[expect(
    clippy::needless_pass_by_value,
    reason = "taken as the parser gives it, in map_err"
)]
pub(super) fn unsound(error: serde_json::Error) -> FormatError {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let problem = text.strip_suffix(&place).unwrap_or(&text);
    FormatError::Unsound {
        problem: format!("{}{place}", clip(problem)),
    }
}

/// A value of bounded size; `null` without the field.
pub(super) fn small(
    raw: Option<&RawValue>,
    field: &'static str,
    limit: u64,
) -> Result<Value, FormatError> {
    let Some(raw) = raw else {
        return Ok(Value::Null);
    };
    let size = u64::try_from(raw.get().len()).unwrap_or(u64::MAX);
    if size > limit {
        return Err(FormatError::OverLimit {
            field: format!("size of {field} in bytes"),
            value: size,
            limit,
        });
    }
    serde_json::from_str::<Unique>(raw.get())
        .map(|unique| unique.0)
        .map_err(unsound)
}

/// Any json value in which no object has a name twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a json value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Unique(value)) = from.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let Unique(value) = from.next_value()?;
            if fields.contains_key(&key) {
                let problem = format!("the name {:?} appears twice", clip(&key));
                return Err(A::Error::custom(problem));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}
