//! The values of a file's keys.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::malformed;
use crate::Error;

/// The type of a value, in the order of the format's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueKind {
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// IEEE single precision.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with its length before it.
    String,
    /// Values of one kind.
    Array,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE double precision.
    F64,
}

impl ValueKind {
    /// Every kind, in the order of the format's numbers, 0 to 12.
    pub const ALL: [ValueKind; 13] = [
        ValueKind::U8,
        ValueKind::I8,
        ValueKind::U16,
        ValueKind::I16,
        ValueKind::U32,
        ValueKind::I32,
        ValueKind::F32,
        ValueKind::Bool,
        ValueKind::String,
        ValueKind::Array,
        ValueKind::U64,
        ValueKind::I64,
        ValueKind::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    pub(super) const fn id(self) -> u32 {
        self as u32
    }

    /// The fewest bytes that a value of this kind takes; for numbers, exactly what it takes.
    pub(super) const fn min_bytes(self) -> usize {
        match self {
            ValueKind::U8 | ValueKind::I8 | ValueKind::Bool => 1,
            ValueKind::U16 | ValueKind::I16 => 2,
            ValueKind::U32 | ValueKind::I32 | ValueKind::F32 => 4,
            ValueKind::U64 | ValueKind::I64 | ValueKind::F64 | ValueKind::String => 8,
            ValueKind::Array => 12,
        }
    }

    /// The kind's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            ValueKind::U8 => "u8",
            ValueKind::I8 => "i8",
            ValueKind::U16 => "u16",
            ValueKind::I16 => "i16",
            ValueKind::U32 => "u32",
            ValueKind::I32 => "i32",
            ValueKind::F32 => "f32",
            ValueKind::Bool => "bool",
            ValueKind::String => "string",
            ValueKind::Array => "array",
            ValueKind::U64 => "u64",
            ValueKind::I64 => "i64",
            ValueKind::F64 => "f64",
        }
    }
}

/// A value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// IEEE single precision.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// Text.
    String(Cow<'a, str>),
    /// Values of one kind.
    Array(Array<'a>),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// IEEE double precision.
    F64(f64),
}

impl Value<'_> {
    /// The value's type.
    pub fn kind(&self) -> ValueKind {
        match self {
            Value::U8(_) => ValueKind::U8,
            Value::I8(_) => ValueKind::I8,
            Value::U16(_) => ValueKind::U16,
            Value::I16(_) => ValueKind::I16,
            Value::U32(_) => ValueKind::U32,
            Value::I32(_) => ValueKind::I32,
            Value::F32(_) => ValueKind::F32,
            Value::Bool(_) => ValueKind::Bool,
            Value::String(_) => ValueKind::String,
            Value::Array(_) => ValueKind::Array,
            Value::U64(_) => ValueKind::U64,
            Value::I64(_) => ValueKind::I64,
            Value::F64(_) => ValueKind::F64,
        }
    }

    /// The number, if this is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// Appends the value, without its kind, as a file holds it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => encode_string(v, out),
            Value::Array(v) => {
                out.extend(v.kind.id().to_le_bytes());
                out.extend((v.len as u64).to_le_bytes());
                out.extend_from_slice(&v.bytes);
            }
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

/// Appends `text` with its length before it.
pub(super) fn encode_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Values of one kind, kept as the file holds them: checked once, decoded when walked.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    kind: ValueKind,
    len: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// `bytes` must have been walked as `len` values of `kind`.
    pub(super) fn checked(kind: ValueKind, len: usize, bytes: Cow<'a, [u8]>) -> Self {
        Self { kind, len, bytes }
    }

    /// Collects values into an array; all must be of `kind`.
    pub fn of<'v>(
        kind: ValueKind,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> Result<Array<'static>, Error> {
        let (mut len, mut bytes) = (0, Vec::new());
        for value in values {
            if value.kind() != kind {
                return Err(malformed(format_args!(
                    "an array of {} cannot hold a value of type {}",
                    kind.name(),
                    value.kind().name()
                )));
            }
            value.encode(&mut bytes);
            len += 1;
        }
        Ok(Array { kind, len, bytes: Cow::Owned(bytes) })
    }

    /// The kind of every element.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        let mut cursor = Cursor::new(&self.bytes);
        // The bytes were checked when the array was made, so no element fails to decode.
        (0..self.len).map_while(move |_| cursor.value(self.kind, 0, format_args!("")).ok())
    }

    /// The elements as text, if they are strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = &str>> {
        let mut cursor = Cursor::new(&self.bytes);
        (self.kind == ValueKind::String)
            .then(|| (0..self.len).map_while(move |_| cursor.string(format_args!("")).ok()))
    }

    /// The elements as numbers, if they are integers of any width.
    pub fn integers(&self) -> Option<impl Iterator<Item = i128>> {
        let number = !matches!(
            self.kind,
            ValueKind::F32
                | ValueKind::F64
                | ValueKind::Bool
                | ValueKind::String
                | ValueKind::Array
        );
        number.then(|| self.values().filter_map(|value| value.as_integer()))
    }
}

macro_rules! from_native {
    ($($native:ty => $variant:ident),*) => {$(
        impl From<$native> for Value<'_> {
            fn from(value: $native) -> Self {
                Value::$variant(value)
            }
        }

        impl FromIterator<$native> for Array<'static> {
            fn from_iter<I: IntoIterator<Item = $native>>(values: I) -> Self {
                let (mut len, mut bytes) = (0, Vec::new());
                for value in values {
                    Value::from(value).encode(&mut bytes);
                    len += 1;
                }
                Array { kind: ValueKind::$variant, len, bytes: Cow::Owned(bytes) }
            }
        }
    )*};
}
from_native!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64,
    i64 => I64, f32 => F32, f64 => F64, bool => Bool);

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::String(Cow::Borrowed(value))
    }
}

impl<'a> From<Array<'a>> for Value<'a> {
    fn from(value: Array<'a>) -> Self {
        Value::Array(value)
    }
}

impl<'s> FromIterator<&'s str> for Array<'static> {
    fn from_iter<I: IntoIterator<Item = &'s str>>(values: I) -> Self {
        let (mut len, mut bytes) = (0, Vec::new());
        for value in values {
            encode_string(value, &mut bytes);
            len += 1;
        }
        Array { kind: ValueKind::String, len, bytes: Cow::Owned(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_numbers_of_the_format() {
        for (id, kind) in (0u32..).zip(ValueKind::ALL) {
            assert_eq!((kind.id(), ValueKind::from_id(id)), (id, Some(kind)));
        }
        assert_eq!(ValueKind::from_id(13), None);
        assert_eq!(ValueKind::String.id(), 8);
        assert_eq!(ValueKind::F64.id(), 12);
    }

    #[test]
    fn arrays_give_back_what_they_were_made_of() {
        let strings: Array<'_> = ["a", "", "é"].into_iter().collect();
        assert_eq!(strings.strings().unwrap().collect::<Vec<_>>(), ["a", "", "é"]);
        assert!(strings.integers().is_none());
        let numbers: Array<'_> = [-1i16, 7].into_iter().collect();
        assert_eq!(numbers.integers().unwrap().collect::<Vec<_>>(), [-1, 7]);
        let nested =
            Array::of(ValueKind::Array, [Value::Array(strings), Value::Array(numbers)]).unwrap();
        assert_eq!(nested.values().count(), 2);
    }

    #[test]
    fn an_array_of_mixed_kinds_is_refused() {
        let error = Array::of(ValueKind::U8, [Value::U8(1), Value::from("x")]).unwrap_err();
        assert!(error.to_string().contains("array of u8"), "{error}");
    }
}
