//! The `general.sampling.*` keys, which say how a model's makers would have answers made.
//!
//! Those of mirostat and XTC and the order of samplers are passed over: they are advice, and offshoot
//! has one order.

use super::{Gguf, Writer, malformed};
use crate::generation_defaults::{Bounds, PENALTY, SHARE, TEMPERATURE};
use crate::{Error, GenerationDefaults};

const TEMP: &str = "general.sampling.temp";
const TOP_K: &str = "general.sampling.top_k";
const TOP_P: &str = "general.sampling.top_p";
const MIN_P: &str = "general.sampling.min_p";
const REPEAT: &str = "general.sampling.penalty_repeat";
const LAST_N: &str = "general.sampling.penalty_last_n";

/// Reads the keys.
///
/// # Errors
/// [`Error::Gguf`] with the key, if its value is of another kind or out of bounds.
pub(super) fn read(gguf: &Gguf<'_>) -> Result<GenerationDefaults, Error> {
    // Advice makes no file unreadable for being a whole number, or below the least one that means
    // something.
    let advice = |key: &str| match gguf.get(key).and_then(|value| value.as_integer()) {
        Some(whole) => Ok(Some(whole as f64)),
        None => gguf.float(key),
    };
    let number = |key: &str, bounds: &Bounds| {
        let Some(number) = advice(key)? else { return Ok(None) };
        let number = if key == TEMP { number.max(0.0) } else { number };
        let bound = || malformed(format_args!("key \"{key}\": {number}, expected {}", bounds.2));
        bounds.hold(number).map(Some).ok_or_else(bound)
    };
    // Signed in files; llama.cpp takes all tokens for -1.
    let count = |key: &str, all: Option<u32>| {
        let Some(value) = gguf.get(key) else { return Ok(None) };
        match value.as_integer() {
            Some(..=-1) => Ok(all),
            number => number
                .and_then(|n| u32::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| malformed(format_args!("key \"{key}\": expected a whole number"))),
        }
    };
    Ok(GenerationDefaults {
        temperature: number(TEMP, &TEMPERATURE)?,
        top_k: count(TOP_K, Some(0))?,
        top_p: number(TOP_P, &SHARE)?,
        min_p: number(MIN_P, &SHARE)?,
        repetition_penalty: number(REPEAT, &PENALTY)?,
        penalty_window: count(LAST_N, Some(u32::MAX))?,
        max_new_tokens: None,
    })
}

/// Writes the keys of what is given, which is all but the length of an answer.
pub(super) fn write(defaults: &GenerationDefaults, writer: &mut Writer) -> Result<(), Error> {
    let numbers = [
        (TEMP, defaults.temperature),
        (TOP_P, defaults.top_p),
        (MIN_P, defaults.min_p),
        (REPEAT, defaults.repetition_penalty),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            writer.key(key, number)?;
        }
    }
    for (key, count) in [(TOP_K, defaults.top_k), (LAST_N, defaults.penalty_window)] {
        if let Some(count) = count {
            writer.key(key, i32::try_from(count).unwrap_or(-1))?;
        }
    }
    Ok(())
}
