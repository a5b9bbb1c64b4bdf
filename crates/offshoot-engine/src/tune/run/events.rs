//! Event files as TensorBoard reads them, made from the lines of a log.
//!
//! A file is a row of records (tensorflow/core/lib/io/record_writer.h), each
//! ```text
//! u64 length | u32 mask(crc32c(length)) | bytes | u32 mask(crc32c(bytes))      little-endian
//! mask(c) = ((c >> 15) | (c << 17)) + 0xa282ead8
//! ```
//! whose bytes are a message `Event` (tensorflow/core/util/event.proto) in protocol buffers' wire
//! format; of it we write
//! ```text
//! 1 wall_time: double   2 step: int64   3 file_version: string, in the first record
//! "brain.Event:2"
//! 5 summary: { 1 value, repeated: { 1 tag: string   2 simple_value: float } }
//! ```
//! CRC-32C is Castagnoli's, reflected, polynomial 0x82f63b78 (RFC 3720, B.4).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::LogLine;
use super::files::output;
use crate::Error;
use crate::beside::write_whole;

/// An event file that grows.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Writes the events of `lines` to a file in `folder`, instead of one that is there, and opens
    /// it for more. `started_s` is when the run began, since 1970.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn create(folder: &Path, started_s: f64, lines: &[LogLine]) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(output(folder))?;
        // The ten digits are where TensorBoard has the time; one run has one file.
        let path = folder.join("events.out.tfevents.0000000000.offshoot");
        write_whole(&path, &records(started_s, lines))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(output(&path))?;
        Ok(Self { path, file })
    }

    /// Adds the event of a line, if it is one. `started_s` is when the run began, since 1970.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn add(&mut self, started_s: f64, line: &LogLine) -> Result<(), Error> {
        let Some(event) = event(started_s, line) else { return Ok(()) };
        self.file.write_all(&record(&event)).map_err(output(&self.path))
    }
}

/// The whole event file of a log.
pub fn event_file(lines: &[LogLine]) -> Vec<u8> {
    records(lines.iter().find_map(LogLine::start).map_or(0.0, |start| start.unix_s), lines)
}

/// The record of the version, and those of `lines`.
fn records(started_s: f64, lines: &[LogLine]) -> Vec<u8> {
    let mut version = Vec::new();
    double(&mut version, 1, started_s);
    bytes(&mut version, 3, b"brain.Event:2");
    let events = lines.iter().filter_map(|line| event(started_s, line));
    std::iter::once(version).chain(events).flat_map(|event| record(&event)).collect()
}

/// The message of a line that has numbers. Times are those of training, as if it had never paused.
fn event(started_s: f64, line: &LogLine) -> Option<Vec<u8>> {
    let (step, elapsed_s, values) = match line {
        LogLine::Step(line) => {
            let mut values = vec![
                ("train/loss".to_owned(), line.loss),
                ("train/learning_rate".to_owned(), Some(line.rate)),
                ("train/epoch".to_owned(), Some(line.epoch)),
                ("train/tokens_per_s".to_owned(), line.tokens_per_s),
                ("train/peak_rss_bytes".to_owned(), line.peak_rss_bytes.map(|n| n as f64)),
            ];
            let more = line.numbers.iter().map(|(name, &x)| (format!("train/{name}"), x));
            values.extend(more);
            (line.step, line.elapsed_s, values)
        }
        LogLine::Eval(line) => {
            let values = line.metrics.iter().map(|(name, &x)| (format!("eval/{name}"), x));
            (line.step, line.elapsed_s, values.collect())
        }
        _ => return None,
    };
    let mut summary = Vec::new();
    for (tag, value) in values.iter().filter_map(|(tag, x)| Some((tag, (*x)?))) {
        let mut message = Vec::new();
        bytes(&mut message, 1, tag.as_bytes());
        message.push(2 << 3 | FIXED_32);
        message.extend((value as f32).to_le_bytes());
        bytes(&mut summary, 1, &message);
    }
    let mut event = Vec::new();
    double(&mut event, 1, started_s + elapsed_s);
    event.push(2 << 3 | VARINT);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    Some(event)
}

/// Kinds of fields, in the low three bits of their keys.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED_32: u8 = 5;

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | LENGTH);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn double(out: &mut Vec<u8>, field: u8, number: f64) {
    out.push(field << 3 | FIXED_64);
    out.extend(number.to_le_bytes());
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(event);
    out.extend(masked(crc32c(event)).to_le_bytes());
    out
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// What eight bits do to the remainder.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests;
