//! Words in bytes, merged.

use super::cut::Cutter;
use super::merges::{Merges, Scratch};
use super::vocab::{NONE, Vocab};
use crate::Error;

/// Byte-pair merges of the words that a rule cuts.
pub(super) struct ByteLevel {
    pub(super) merges: Merges,
    /// Id of each byte's token, or [`NONE`].
    pub(super) byte_ids: [u32; 256],
    pub(super) cutter: Cutter,
    /// Whether a word that is a token is taken whole, without merges.
    pub(super) whole_words: bool,
}

impl ByteLevel {
    /// Appends the ids of text that has no added tokens.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        self.cutter.words(text, |word| {
            if self.whole_words
                && let Some(id) = vocab.id_of(word.as_bytes())
            {
                ids.push(id);
                return;
            }
            let bytes = word.bytes().map(|byte| self.byte_ids[byte as usize]);
            scratch.merge(&self.merges, bytes.filter(|id| *id != NONE), ids);
        })
    }
}
