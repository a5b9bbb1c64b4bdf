//! Trajectories from bytes: the longest prefix that is whole.

use serde::Serialize;

use super::blocks::{Kind, MAGIC, end_frame, file_head, frame, read_steps, steps_frame};
use super::crc32c::crc32c;
use super::{Header, Part, Trajectory, TrajectoryError};
use crate::tune::Hash;

/// The first thing that is wrong with a trajectory's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Where the first bad frame begins: the length of what is whole.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What is whole.
    pub trajectory: Trajectory,
    /// What is not.
    pub damage: Option<Damage>,
}

impl Trajectory {
    /// Reads the longest prefix of `bytes` that is whole. Takes memory in proportion to `bytes`,
    /// whatever they claim.
    ///
    /// # Errors
    /// If the header is not whole, or of another version.
    pub fn read(bytes: &[u8]) -> Result<Reading, TrajectoryError> {
        let (header, mut offset) = read_head(bytes)?;
        let mut parts = vec![Part { header, steps: Vec::new(), end: None }];
        let mut damage = None;
        while offset < bytes.len() {
            match read_frame(&bytes[offset..], &mut parts) {
                Ok(length) => offset += length,
                Err(reason) => {
                    damage = Some(Damage { offset, reason });
                    break;
                }
            }
        }
        Ok(Reading { trajectory: Self { parts }, damage })
    }

    /// Reads `bytes`, all of which must be whole.
    ///
    /// # Errors
    /// As [`Self::read`], and [`TrajectoryError::Damaged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TrajectoryError> {
        let Reading { trajectory, damage } = Self::read(bytes)?;
        match damage {
            None => Ok(trajectory),
            Some(Damage { offset, reason }) => {
                let steps = trajectory.parts.iter().map(|part| part.steps.len()).sum();
                Err(TrajectoryError::Damaged { offset, reason, steps })
            }
        }
    }

    /// The bytes: full blocks, a shorter one at each part's end.
    ///
    /// # Errors
    /// [`TrajectoryError::Header`] if a header cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TrajectoryError> {
        let mut bytes = Vec::new();
        for (place, part) in self.parts.iter().enumerate() {
            let header = part.header.text()?;
            match place {
                0 => bytes.extend(file_head(&header)),
                _ => bytes.extend(frame(Kind::Part, header.as_bytes())),
            }
            let mut first = part.header.first_step;
            for steps in part.steps.chunks(super::blocks::BLOCK) {
                bytes.extend(steps_frame(first, steps));
                first += steps.len() as u32;
            }
            bytes.extend(part.end.iter().flat_map(end_frame));
        }
        Ok(bytes)
    }
}

/// Reads the header; returns it and the length of what was read.
pub(super) fn read_head(bytes: &[u8]) -> Result<(Header, usize), TrajectoryError> {
    let cut = || TrajectoryError::Header("it is cut off".to_owned());
    let rest = bytes.strip_prefix(MAGIC).ok_or(TrajectoryError::Magic)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    let text = rest.get(..length).ok_or_else(cut)?;
    let crc = rest[length..].first_chunk().ok_or_else(cut)?;
    let end = MAGIC.len() + 4 + length;
    if !is_sum_of(*crc, &bytes[..end]) {
        return Err(TrajectoryError::Header("its checksum is another".to_owned()));
    }
    Ok((Header::parse(text)?, end + 4))
}

/// Whether `crc` is the checksum of `bytes`.
fn is_sum_of(crc: [u8; 4], bytes: &[u8]) -> bool {
    u32::from_le_bytes(crc) == crc32c(bytes)
}

/// Reads the frame at the beginning of `bytes` into the last part, or a new one; returns its
/// length.
fn read_frame(bytes: &[u8], parts: &mut Vec<Part>) -> Result<usize, &'static str> {
    let cut = "it is cut off";
    let (&kind, rest) = bytes.split_first().ok_or(cut)?;
    let (length, rest) = rest.split_first_chunk().ok_or(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    let payload = rest.get(..length).ok_or(cut)?;
    let crc = rest[length..].first_chunk().ok_or(cut)?;
    if !is_sum_of(*crc, &bytes[..5 + length]) {
        return Err("its checksum is another");
    }
    let kind = Kind::of(kind).ok_or("it is of an unknown kind")?;
    read_payload(kind, payload, parts)?;
    Ok(5 + length + 4)
}

fn read_payload(kind: Kind, payload: &[u8], parts: &mut Vec<Part>) -> Result<(), &'static str> {
    let part = parts.last_mut().ok_or("there is no run before it")?;
    if part.end.is_some() && kind != Kind::Part {
        return Err("it follows the run's end");
    }
    match kind {
        Kind::Steps => {
            let (first, mut steps) = read_steps(payload).ok_or("its steps cannot be read")?;
            let next = u64::from(part.header.first_step) + part.steps.len() as u64;
            let end = u64::from(first) + steps.len() as u64;
            if u64::from(first) != next || end > u64::from(u32::MAX) {
                return Err("its steps do not follow those before it");
            }
            part.steps.append(&mut steps);
        }
        Kind::End => {
            let end = payload.try_into().map_err(|_| "its end is no SHA-256")?;
            part.end = Some(Hash(end));
        }
        Kind::Part => {
            let header = Header::parse(payload).map_err(|_| "its header cannot be read")?;
            parts.push(Part { header, steps: Vec::new(), end: None });
        }
    }
    Ok(())
}
