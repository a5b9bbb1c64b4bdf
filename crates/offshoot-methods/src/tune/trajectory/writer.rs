//! A trajectory that grows with its run.

use super::blocks::{BLOCK, end_frame, file_head, steps_frame};
use super::reader::read_head;
use super::{Header, Step, Trajectory, TrajectoryError};
use crate::tune::Hash;

/// Bytes and where they belong: what the file has from there on is replaced by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where they begin in the file.
    pub offset: u64,
    /// The bytes, with which the file ends.
    pub bytes: Vec<u8>,
}

/// Makes a trajectory's bytes step by step. Full blocks are written once; the steps of the last,
/// shorter block are written as often as they are asked for, over one another. So the bytes of a
/// run do not depend on how often it was interrupted.
#[derive(Debug, Clone)]
pub struct TrajectoryWriter {
    offset: u64,
    first: u32,
    pending: Vec<Step>,
}

impl TrajectoryWriter {
    /// Begins a trajectory; returns the file's first bytes.
    ///
    /// # Errors
    /// [`TrajectoryError::Header`] if the header cannot be written.
    pub fn start(header: &Header) -> Result<(Self, Chunk), TrajectoryError> {
        let bytes = file_head(&header.text()?);
        let offset = bytes.len() as u64;
        let writer = Self { offset, first: header.first_step, pending: Vec::new() };
        Ok((writer, Chunk { offset: 0, bytes }))
    }

    /// Goes on with the first `steps` steps of a file's `bytes`; the next chunk replaces what the
    /// file has behind them. An end is taken away. Damage behind these steps does not matter.
    ///
    /// # Errors
    /// [`TrajectoryError::Merged`], or [`TrajectoryError::Range`] if the steps are not there.
    pub fn resume(bytes: &[u8], steps: u32) -> Result<(Self, Chunk), TrajectoryError> {
        let trajectory = Trajectory::read(bytes)?.trajectory;
        let [part] = &trajectory.parts[..] else {
            return Err(TrajectoryError::Merged(trajectory.parts.len()));
        };
        let first = part.header.first_step;
        let kept = part.steps.get(..steps as usize).ok_or(TrajectoryError::Range {
            from: first,
            to: first.saturating_add(steps),
            first,
            end: part.next_step(),
        })?;
        let (_, offset) = read_head(bytes)?;
        let (offset, mut bytes) = (offset as u64, Vec::new());
        let mut writer = Self { offset, first, pending: Vec::new() };
        for step in kept {
            bytes.extend(writer.push(step.clone()).into_iter().flat_map(|chunk| chunk.bytes));
        }
        bytes.extend(writer.tail().bytes);
        Ok((writer, Chunk { offset, bytes }))
    }

    /// Takes in the next step. Returns a block to be written once it is full.
    pub fn push(&mut self, step: Step) -> Option<Chunk> {
        self.pending.push(step);
        if self.pending.len() < BLOCK {
            return None;
        }
        let chunk = self.tail();
        self.offset += chunk.bytes.len() as u64;
        self.first += BLOCK as u32;
        self.pending.clear();
        Some(chunk)
    }

    /// The number of the step that comes next.
    pub fn next_step(&self) -> u32 {
        self.first + self.pending.len() as u32
    }

    /// The steps since the last full block, to be written now lest they be lost.
    pub fn tail(&self) -> Chunk {
        let bytes = match &self.pending[..] {
            [] => Vec::new(),
            pending => steps_frame(self.first, pending),
        };
        Chunk { offset: self.offset, bytes }
    }

    /// The last bytes: the steps since the last full block, and the SHA-256 of the weights after
    /// them.
    pub fn finish(&self, weights: &Hash) -> Chunk {
        let Chunk { offset, mut bytes } = self.tail();
        bytes.extend(end_frame(weights));
        Chunk { offset, bytes }
    }
}
