//! Frames, and steps as bytes.

use super::Step;
use super::crc32c::crc32c;
use crate::tune::{Hash, Record};

/// Steps of a full block.
pub(super) const BLOCK: usize = 256;
/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 8] = b"offtraj1";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Steps = 1,
    End = 2,
    Part = 3,
}

impl Kind {
    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Steps, Self::End, Self::Part].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The magic and `header`'s text.
pub(super) fn file_head(header: &str) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

/// A frame.
pub(super) fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind as u8];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

pub(super) fn end_frame(weights: &Hash) -> Vec<u8> {
    frame(Kind::End, &weights.0)
}

/// In place of the numbers a step: each step's count follows.
const VARYING: u32 = u32::MAX;
const SKIPPED: u8 = 1;
const RATE: u8 = 2;

/// The block of `steps`, at most [`BLOCK`] and at least one. A step without numbers did nothing and
/// is written as skipped.
pub(super) fn steps_frame(first: u32, steps: &[Step]) -> Vec<u8> {
    let counts: Vec<u32> = steps.iter().map(|step| step.record.numbers.len() as u32).collect();
    let mut told = counts.iter().copied().filter(|&count| count != 0);
    let n = told.next().unwrap_or(0);
    let varies = told.any(|count| count != n);
    let mut payload = first.to_le_bytes().to_vec();
    payload.extend((steps.len() as u16).to_le_bytes());
    payload.extend(if varies { VARYING } else { n }.to_le_bytes());
    if varies {
        counts.iter().for_each(|count| payload.extend(count.to_le_bytes()));
    }
    let (mut events, mut count) = (Vec::new(), 0_u16);
    for (place, step) in steps.iter().enumerate() {
        if step.record.numbers.is_empty() {
            events.extend([place as u8, SKIPPED]);
            count += 1;
        }
        if let Some(rate) = step.rate {
            events.extend([place as u8, RATE]);
            events.extend(rate.to_le_bytes());
            count += 1;
        }
    }
    payload.extend(count.to_le_bytes());
    payload.extend(events);
    for number in steps.iter().flat_map(|step| &step.record.numbers) {
        payload.extend(number.to_le_bytes());
    }
    frame(Kind::Steps, &payload)
}

/// What is left of a payload.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
}

/// Reads a block: its first step's number and its steps. `None` if it is not as [`steps_frame`]
/// would write it. Takes memory in proportion to the payload.
pub(super) fn read_steps(payload: &[u8]) -> Option<(u32, Vec<Step>)> {
    let mut rest = Rest(payload);
    let first = rest.u32()?;
    let count = usize::from(rest.u16()?);
    // A step takes two bytes at the least: nothing is made of what is only claimed.
    if !(1..=BLOCK).contains(&count) || payload.len() < 2 * count {
        return None;
    }
    let n = rest.u32()?;
    let mut counts = vec![n; count];
    if n == VARYING {
        for count in &mut counts {
            *count = rest.u32()?;
        }
    }
    let mut steps = vec![Step::default(); count];
    read_events(&mut rest, &mut steps)?;
    for (step, count) in steps.iter_mut().zip(counts) {
        step.record = read_record(&mut rest, step.record.skipped, count)?;
    }
    let is_canonical = rest.0.is_empty() && steps_payload_is(payload, first, &steps);
    is_canonical.then_some((first, steps))
}

/// Whether `payload` is what `steps` are written as: one content has one form.
fn steps_payload_is(payload: &[u8], first: u32, steps: &[Step]) -> bool {
    let frame = steps_frame(first, steps);
    frame[5..frame.len() - 4] == *payload
}

fn read_events(rest: &mut Rest, steps: &mut [Step]) -> Option<()> {
    for _ in 0..rest.u16()? {
        let [place, what] = rest.take()?;
        let step = steps.get_mut(usize::from(place))?;
        match what {
            SKIPPED => step.record.skipped = true,
            RATE => step.rate = Some(rest.take().map(f64::from_le_bytes)?),
            _ => return None,
        }
        if step.rate.is_some_and(|rate| !rate.is_finite()) {
            return None;
        }
    }
    Some(())
}

fn read_record(rest: &mut Rest, skipped: bool, count: u32) -> Option<Record> {
    let count = if skipped { 0 } else { count as usize };
    let (bytes, after) = rest.0.split_at_checked(count.checked_mul(4)?)?;
    rest.0 = after;
    let number = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
    numbers.iter().all(|number| number.is_finite()).then_some(Record { skipped, numbers })
}
