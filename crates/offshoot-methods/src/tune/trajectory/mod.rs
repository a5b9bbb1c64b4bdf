//! A fine-tune as its seed and the numbers of its steps.
//!
//! A trajectory says which base it starts from, how steps are made, and what each step measured.
//! From these and the base the tuned weights follow to the bit, without data and without a forward
//! pass, at about four bytes a step whatever the model's size.
//!
//! Layout of the bytes, all numbers with the lowest byte first:
//! ```text
//! file     "offtraj1"  u32 length  header  u32 crc                    crc of all bytes before it
//!          frame*
//! frame    u8 kind  u32 length  payload  u32 crc                      crc of the frame before it
//! kind 1   steps:  u32 first  u16 count  u32 n  [count x u32]  u16 events  event*  number*
//! kind 2   end:    the SHA-256 of the weights after the last step
//! kind 3   part:   header of a further trajectory, whose frames follow
//! event    u8 place  u8 what  [f64]
//! number   f32
//! ```
//! header: JSON with sorted keys. count: 1 to 256 steps, contiguous from `first`. n: numbers a
//! step, or 0xffffffff if they differ and each step's count follows; steps that were skipped have
//! none and are left out of the rule. Events stand in ascending order of their place in the block:
//! 1 = skipped, a loss was not finite; 2 = from this step on the schedule's base rate is the number
//! that follows. crc: CRC-32C (Castagnoli). An end ends its part: only a part may follow.
//!
//! What is cut or damaged loses the frame that it stands in and those behind it, no more. A
//! trajectory holds no text of the data, but its numbers follow from it: that is no promise of
//! privacy.

mod blocks;
mod crc32c;
mod error;
mod header;
mod operations;
mod reader;
mod replay;
mod writer;

pub use error::TrajectoryError;
pub use header::{Header, MethodChoice, Parent, SpaceChoice};
pub use operations::{
    Difference, Divergence, Info, Mismatch, cat, diff, differences, merge, slice,
};
pub use reader::{Damage, Reading};
pub use replay::{Replay, Replayed, Verification, verify};
pub use writer::{Chunk, TrajectoryWriter};

use super::{Hash, Record};

/// A step as it is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// What was measured.
    pub record: Record,
    /// The schedule's base rate from this step on, if it changes here.
    pub rate: Option<f64>,
}

/// One run's steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What the run was.
    pub header: Header,
    /// Its steps, from the header's first on.
    pub steps: Vec<Step>,
    /// The SHA-256 of the weights after the last step, if the run came to its end.
    pub end: Option<Hash>,
}

/// One run, or several whose changes are added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    /// The runs, at least one.
    pub parts: Vec<Part>,
}

impl Part {
    /// The number of the step behind the last.
    pub fn next_step(&self) -> u32 {
        self.header.first_step.saturating_add(self.steps.len() as u32)
    }

    /// The schedule's base rate in force at step `step`, after changes in that step.
    pub fn base_rate(&self, step: u32) -> f64 {
        let count = step.saturating_sub(self.header.first_step) as usize + 1;
        let mut changes = self.steps.iter().take(count).filter_map(|step| step.rate);
        changes.next_back().unwrap_or(self.header.rate)
    }
}

#[cfg(test)]
mod tests;
