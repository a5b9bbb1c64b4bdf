//! A position in a file's bytes that refuses to move past their end.

use std::borrow::Cow;
use std::fmt::Arguments;

use super::value::{Array, Value, ValueKind};
use super::{MAX_ARRAY_DEPTH, malformed};
use crate::Error;

/// Reads little-endian fields from the front of what remains. Each read is told which `field` it
/// reads, for the error alone.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, field: Arguments<'_>) -> Result<&'a [u8], Error> {
        let remaining = self.remaining();
        match usize::try_from(len) {
            Ok(len) if len <= remaining => {
                let taken = &self.bytes[self.at..self.at + len];
                self.at += len;
                Ok(taken)
            }
            _ => Err(malformed(format_args!(
                "{field}: {len} bytes needed at byte {}, but the file ends after {remaining}",
                self.at
            ))),
        }
    }

    fn array<const N: usize>(&mut self, field: Arguments<'_>) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, field: Arguments<'_>) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: Arguments<'_>) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A length-prefixed string.
    pub(super) fn string(&mut self, field: Arguments<'_>) -> Result<&'a str, Error> {
        let len = self.u64(field)?;
        let bytes = self.take(len, field)?;
        std::str::from_utf8(bytes).map_err(|e| {
            malformed(format_args!("{field}: not UTF-8 from byte {} on", e.valid_up_to()))
        })
    }

    /// The number of a value's kind.
    pub(super) fn kind(&mut self, field: Arguments<'_>) -> Result<ValueKind, Error> {
        let id = self.u32(field)?;
        ValueKind::from_id(id).ok_or_else(|| {
            malformed(format_args!("{field}: value type {id}, expected 0 (u8) to 12 (f64)"))
        })
    }

    /// A value of `kind`. Arrays are walked through, so that later readers meet no surprise.
    pub(super) fn value(
        &mut self,
        kind: ValueKind,
        depth: usize,
        field: Arguments<'_>,
    ) -> Result<Value<'a>, Error> {
        Ok(match kind {
            ValueKind::U8 => Value::U8(u8::from_le_bytes(self.array(field)?)),
            ValueKind::I8 => Value::I8(i8::from_le_bytes(self.array(field)?)),
            ValueKind::U16 => Value::U16(u16::from_le_bytes(self.array(field)?)),
            ValueKind::I16 => Value::I16(i16::from_le_bytes(self.array(field)?)),
            ValueKind::U32 => Value::U32(u32::from_le_bytes(self.array(field)?)),
            ValueKind::I32 => Value::I32(i32::from_le_bytes(self.array(field)?)),
            ValueKind::U64 => Value::U64(u64::from_le_bytes(self.array(field)?)),
            ValueKind::I64 => Value::I64(i64::from_le_bytes(self.array(field)?)),
            ValueKind::F32 => Value::F32(f32::from_le_bytes(self.array(field)?)),
            ValueKind::F64 => Value::F64(f64::from_le_bytes(self.array(field)?)),
            ValueKind::Bool => match self.array(field)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(malformed(format_args!("{field}: bool {other}, expected 0 or 1")));
                }
            },
            ValueKind::String => Value::String(Cow::Borrowed(self.string(field)?)),
            ValueKind::Array => Value::Array(self.checked_array(depth + 1, field)?),
        })
    }

    fn checked_array(&mut self, depth: usize, field: Arguments<'_>) -> Result<Array<'a>, Error> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(malformed(format_args!(
                "{field}: arrays nested more than {MAX_ARRAY_DEPTH} deep"
            )));
        }
        let kind = self.kind(field)?;
        let len = self.u64(field)?;
        let most = (self.remaining() / kind.min_bytes()) as u64;
        if len > most {
            return Err(malformed(format_args!(
                "{field}: an array of {len} {}, but the bytes that remain hold at most {most}",
                kind.name()
            )));
        }
        let start = self.at;
        if matches!(kind, ValueKind::Bool | ValueKind::String | ValueKind::Array) {
            for _ in 0..len {
                self.value(kind, depth, field)?;
            }
        } else {
            // `len` elements fit in what remains, so this neither overflows nor fails.
            self.take(len * kind.min_bytes() as u64, field)?;
        }
        Ok(Array::checked(kind, len as usize, Cow::Borrowed(&self.bytes[start..self.at])))
    }
}
