//! The texts of all tokens in one allocation, and the table from bytes to ids.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Marks an empty slot and an absent id.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes of every token, and a hash table of the ids of those that byte-pair merges may make.
///
/// The table holds ids alone and compares through the texts, so 152k tokens cost some 3 MB.
/// Hashes are keyed at random: a crafted vocabulary cannot make them collide.
pub(super) struct Vocab {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Vocab {
    /// An empty vocabulary with room for `tokens` tokens.
    pub(super) fn with_capacity(tokens: usize) -> Self {
        let slots = (tokens * 3 / 2).next_power_of_two().max(8);
        Self {
            bytes: Vec::with_capacity(tokens * 8),
            ends: Vec::with_capacity(tokens),
            slots: vec![NONE; slots],
            hasher: RandomState::new(),
        }
    }

    /// Appends a token whose bytes `write` appends; its id is the number of tokens before it.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let written = write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
        written
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of token `id`.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// Enters token `id` into the table; the id of an equal token, if one is there.
    pub(super) fn enter(&mut self, id: u32) -> Result<(), u32> {
        let Some(bytes) = self.get(id) else { return Ok(()) };
        let slot = self.slot(bytes);
        match self.slots[slot] {
            NONE => {
                self.slots[slot] = id;
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The entered token of these bytes.
    pub(super) fn id_of(&self, bytes: &[u8]) -> Option<u32> {
        let id = self.slots[self.slot(bytes)];
        (id != NONE).then_some(id)
    }

    /// The slot that holds `bytes`, or the empty one where they belong. There always is one: the
    /// table has half again as many slots as tokens.
    fn slot(&self, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(bytes) as usize & mask;
        loop {
            match self.slots[slot] {
                NONE => return slot,
                id if self.get(id) == Some(bytes) => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}
