//! GGUF metadata values: how they lie in the file, how they are kept, and typed access to them.
//! Knows no key by name.

use std::collections::HashMap;

use super::FormatError;
use super::cursor::{Cursor, clip};
use super::gguf_writer::{put_len, put_str, put_u32};
use crate::limits::{GGUF_ARRAY_LEN_MAX, GGUF_KEYS_MAX};

/// Ids of value types in the file.
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;
/// Name and size in bytes of each value type, by id; strings and arrays have no fixed size.
const VALUE_TYPES: [(&str, u64); 13] = [
    ("u8", 1),
    ("i8", 1),
    ("u16", 2),
    ("i16", 2),
    ("u32", 4),
    ("i32", 4),
    ("f32", 4),
    ("bool", 1),
    ("string", 0),
    ("array", 0),
    ("u64", 8),
    ("i64", 8),
    ("f64", 8),
];

/// One metadata value that was not read from a GGUF file.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Bool(bool),
    Int(u64),
    Float(f64),
    Str(String),
    StrArray(StrArray),
    I32Array(Vec<i32>),
    F32Array(Vec<f32>),
}

/// An array of strings, kept as one text and the ends of its pieces.
#[derive(Clone, Debug, Default)]
pub struct StrArray {
    text: String,
    ends: Vec<u32>,
}

impl StrArray {
    /// Adds a string. Text past 4 GiB is not kept apart; no file's limits allow that much.
    pub(super) fn push(&mut self, pieces: &[&str]) {
        for piece in pieces {
            self.text.push_str(piece);
        }
        self.ends
            .push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One string; `None` past the end.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = to_usize(*self.ends.get(index)?);
        let begin = match index.checked_sub(1) {
            None => 0,
            Some(before) => to_usize(*self.ends.get(before)?),
        };
        self.text.get(begin..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// One metadata value.
#[derive(Clone, Debug)]
enum Value {
    /// Any integer, with its type id. All types of the format fit an i128.
    Int(u32, i128),
    /// f32 or f64, with its type id.
    Float(u32, f64),
    Bool(bool),
    Str(String),
    StrArray(StrArray),
    /// Numbers or bools as they lie in the file, with the type id of one.
    RawArray(u32, Vec<u8>),
}

impl Value {
    fn type_name(&self) -> String {
        match self {
            Self::Int(id, _) | Self::Float(id, _) => type_name(*id).to_owned(),
            Self::Bool(_) => "bool".to_owned(),
            Self::Str(_) => "string".to_owned(),
            Self::StrArray(_) => "array of string".to_owned(),
            Self::RawArray(id, _) => format!("array of {}", type_name(*id)),
        }
    }
}

/// All metadata of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    values: HashMap<String, Value>,
    keys: Vec<String>,
}

impl Metadata {
    /// Reads `count` pairs of key and value.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Self, FormatError> {
        if count > GGUF_KEYS_MAX {
            return Err(FormatError::OverLimit {
                field: "metadata key count".to_owned(),
                value: count,
                limit: GGUF_KEYS_MAX,
            });
        }
        let mut all = Self::default();
        for index in 0..count {
            let key = cursor.string(&|| format!("metadata key {index}"))?;
            let field = || format!("metadata {:?}", clip(&key));
            if key.is_empty() {
                return Err(FormatError::Invalid {
                    field: format!("metadata key {index}"),
                    value: "empty".to_owned(),
                    allowed: "a key has at least one character",
                });
            }
            if all.values.contains_key(&key) {
                return Err(FormatError::Duplicate {
                    what: "metadata key",
                    name: clip(&key),
                });
            }
            let value = read_value(cursor, &field)?;
            all.keys.push(key.clone());
            all.values.insert(key, value);
        }
        Ok(all)
    }

    /// Metadata of a model whose files are not GGUF.
    pub(super) fn from_entries(entries: Vec<(String, Entry)>) -> Result<Self, FormatError> {
        let mut all = Self::default();
        for (key, entry) in entries {
            let value = match entry {
                Entry::Bool(value) => Value::Bool(value),
                Entry::Int(value) => Value::Int(10, i128::from(value)),
                Entry::Float(value) => Value::Float(12, value),
                Entry::Str(value) => Value::Str(value),
                Entry::StrArray(array) => Value::StrArray(array),
                Entry::I32Array(all) => {
                    Value::RawArray(5, all.into_iter().flat_map(i32::to_le_bytes).collect())
                }
                Entry::F32Array(all) => {
                    Value::RawArray(6, all.into_iter().flat_map(f32::to_le_bytes).collect())
                }
            };
            if all.values.insert(key.clone(), value).is_some() {
                return Err(FormatError::Duplicate {
                    what: "metadata key",
                    name: clip(&key),
                });
            }
            all.keys.push(key);
        }
        Ok(all)
    }

    /// Writes a value as a GGUF file has it, its type first; nothing for a key that is not there.
    pub(super) fn put(&self, key: &str, out: &mut Vec<u8>) {
        let Some(value) = self.values.get(key) else {
            return;
        };
        match value {
            Value::Int(id, value) => {
                put_u32(out, *id);
                let bytes = value_bytes(*id).unwrap_or(8);
                out.extend_from_slice(&value.to_le_bytes()[..to_usize(bytes)]);
            }
            Value::Float(id @ 6, value) => {
                put_u32(out, *id);
                #[expect(clippy::cast_possible_truncation, reason = "it was an f32 in the file")]
                out.extend_from_slice(&(*value as f32).to_le_bytes());
            }
            Value::Float(id, value) => {
                put_u32(out, *id);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Bool(value) => {
                put_u32(out, TYPE_BOOL);
                out.push(u8::from(*value));
            }
            Value::Str(text) => {
                put_u32(out, TYPE_STRING);
                put_str(out, text);
            }
            Value::StrArray(array) => {
                put_u32(out, TYPE_ARRAY);
                put_u32(out, TYPE_STRING);
                put_len(out, array.len());
                for text in array.iter() {
                    put_str(out, text);
                }
            }
            Value::RawArray(id, bytes) => {
                put_u32(out, TYPE_ARRAY);
                put_u32(out, *id);
                put_len(out, bytes.len() / to_usize(value_bytes(*id).unwrap_or(1)));
                out.extend_from_slice(bytes);
            }
        }
    }

    /// All keys in the file's order.
    pub(super) fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Number of elements of an array; `None` if there is no such key or it is no array.
    pub(super) fn array_len(&self, key: &str) -> Option<usize> {
        match self.values.get(key)? {
            Value::StrArray(array) => Some(array.len()),
            Value::RawArray(id, bytes) => Some(bytes.len() / to_usize(value_bytes(*id)?)),
            _ => None,
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(key, other, "string")),
        }
    }

    pub(super) fn int<T: TryFrom<i128>>(
        &self,
        key: &str,
        wanted: &'static str,
    ) -> Result<Option<T>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Int(_, value)) => match T::try_from(*value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(FormatError::Invalid {
                    field: format!("metadata {:?}", clip(key)),
                    value: value.to_string(),
                    allowed: "the value must fit an unsigned number of its size",
                }),
            },
            Some(other) => Err(wrong_type(key, other, wanted)),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(_, value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, other, "f32")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, other, "bool")),
        }
    }

    pub(super) fn str_array(&self, key: &str) -> Result<Option<&StrArray>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::StrArray(array)) => Ok(Some(array)),
            Some(other) => Err(wrong_type(key, other, "array of string")),
        }
    }

    pub(super) fn i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, FormatError> {
        self.raw_array(key, &[5], "array of i32", i32::from_le_bytes)
    }

    pub(super) fn f32_array(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        self.raw_array(key, &[6], "array of f32", f32::from_le_bytes)
    }

    fn raw_array<T>(
        &self,
        key: &str,
        ids: &[u32],
        wanted: &'static str,
        convert: fn([u8; 4]) -> T,
    ) -> Result<Option<Vec<T>>, FormatError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::RawArray(id, bytes)) if ids.contains(id) => Ok(Some(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|chunk| convert(*chunk))
                    .collect(),
            )),
            Some(other) => Err(wrong_type(key, other, wanted)),
        }
    }
}

fn wrong_type(key: &str, found: &Value, wanted: &'static str) -> FormatError {
    FormatError::WrongType {
        key: clip(key),
        found: found.type_name(),
        wanted,
    }
}

fn type_name(id: u32) -> &'static str {
    VALUE_TYPES.get(to_usize(id)).map_or("unknown", |row| row.0)
}

/// Size of one value of a type; `None` for unknown types, strings and arrays.
fn value_bytes(id: u32) -> Option<u32> {
    match VALUE_TYPES.get(to_usize(id)) {
        Some(&(_, bytes)) if bytes > 0 => u32::try_from(bytes).ok(),
        _ => None,
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn unknown_type(id: u32, field: &dyn Fn() -> String) -> FormatError {
    FormatError::Invalid {
        field: format!("value type of {}", field()),
        value: id.to_string(),
        allowed: "types 0 to 12 are known",
    }
}

fn read_value(cursor: &mut Cursor<'_>, field: &dyn Fn() -> String) -> Result<Value, FormatError> {
    let id = cursor.u32(&|| format!("value type of {}", field()))?;
    match id {
        TYPE_STRING => cursor.string(field).map(Value::Str),
        TYPE_ARRAY => read_array(cursor, field),
        _ => {
            let length = value_bytes(id).ok_or_else(|| unknown_type(id, field))?;
            let mut bytes = Vec::with_capacity(8);
            cursor.bytes(u64::from(length), &mut bytes, field)?;
            scalar(id, &bytes, field)
        }
    }
}

/// A number or bool from its bytes, which have the size of its type.
fn scalar(id: u32, bytes: &[u8], field: &dyn Fn() -> String) -> Result<Value, FormatError> {
    let mut wide = [0_u8; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    let [b0, b1, b2, b3, ..] = wide;
    let four = [b0, b1, b2, b3];
    Ok(match id {
        0 | 2 | 4 | 10 => Value::Int(id, i128::from(u64::from_le_bytes(wide))),
        1 => Value::Int(id, i128::from(i8::from_le_bytes([b0]))),
        3 => Value::Int(id, i128::from(i16::from_le_bytes([b0, b1]))),
        5 => Value::Int(id, i128::from(i32::from_le_bytes(four))),
        11 => Value::Int(id, i128::from(i64::from_le_bytes(wide))),
        6 => Value::Float(id, f64::from(f32::from_le_bytes(four))),
        12 => Value::Float(id, f64::from_le_bytes(wide)),
        TYPE_BOOL if b0 <= 1 => Value::Bool(b0 == 1),
        TYPE_BOOL => {
            return Err(FormatError::Invalid {
                field: field(),
                value: b0.to_string(),
                allowed: "a bool is 0 or 1",
            });
        }
        _ => return Err(unknown_type(id, field)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, field: &dyn Fn() -> String) -> Result<Value, FormatError> {
    let id = cursor.u32(&|| format!("element type of {}", field()))?;
    let length_field = || format!("array length of {}", field());
    let length = cursor.u64(&length_field)?;
    if length > GGUF_ARRAY_LEN_MAX {
        return Err(FormatError::OverLimit {
            field: length_field(),
            value: length,
            limit: GGUF_ARRAY_LEN_MAX,
        });
    }
    match id {
        TYPE_STRING => {
            // Each string takes at least its eight bytes of length.
            cursor.check_left(length * 8, field)?;
            let mut array = StrArray::default();
            for index in 0..length {
                let element = || format!("element {index} of {}", field());
                cursor.string_into(&mut array.text, &element)?;
                // The header budget keeps the text well under 4 GiB.
                array
                    .ends
                    .push(u32::try_from(array.text.len()).unwrap_or(u32::MAX));
            }
            Ok(Value::StrArray(array))
        }
        TYPE_ARRAY => Err(FormatError::Invalid {
            field: format!("element type of {}", field()),
            value: "array".to_owned(),
            allowed: "arrays of arrays are not read",
        }),
        _ => {
            let each = value_bytes(id).ok_or_else(|| unknown_type(id, field))?;
            let mut bytes = Vec::new();
            cursor.bytes(length * u64::from(each), &mut bytes, field)?;
            Ok(Value::RawArray(id, bytes))
        }
    }
}
