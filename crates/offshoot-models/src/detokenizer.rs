//! Ids to text while they are being made.

use std::borrow::Borrow;
use std::mem;

use crate::{Controls, Tokenizer};

/// Room for the text of a token; few vocabularies have longer ones.
const TOKEN_BYTES: usize = 256;

/// Turns ids into text one at a time, never splitting a character.
///
/// What all calls return, joined, is [`Tokenizer::decode`] of all ids, of a text from its start. Bytes that may yet become a
/// character wait, three at most; those that no longer can become U+FFFD.
///
/// `T` is a reference to a tokenizer, or a counted one: `&Tokenizer`, `Arc<Tokenizer>`.
#[derive(Debug)]
pub struct Detokenizer<T> {
    tokenizer: T,
    controls: Controls,
    waiting: Vec<u8>,
    /// Whether the text goes on from another, so that it keeps the space it begins with.
    goes_on: bool,
    /// Whether a space that comes now is left out.
    strips: bool,
    /// What the last push gave; kept so that a push allocates nothing.
    certain: String,
}

impl<T: Borrow<Tokenizer>> Detokenizer<T> {
    /// A detokenizer at the start of a text.
    pub fn new(tokenizer: T, controls: Controls) -> Self {
        Self::at(tokenizer, controls, false)
    }

    /// A detokenizer of a text that goes on from another: where the tokenizer puts a space before a
    /// text, this one keeps the space that it begins with.
    pub fn going_on(tokenizer: T, controls: Controls) -> Self {
        Self::at(tokenizer, controls, true)
    }

    fn at(tokenizer: T, controls: Controls, goes_on: bool) -> Self {
        Self {
            strips: !goes_on && tokenizer.borrow().strips_space(),
            goes_on,
            tokenizer,
            controls,
            waiting: Vec::with_capacity(TOKEN_BYTES),
            certain: String::with_capacity(TOKEN_BYTES),
        }
    }

    /// Takes the next id and returns the text that is certain now, often empty.
    pub fn push(&mut self, id: u32) -> &str {
        let bytes = self.tokenizer.borrow().shown_bytes(id, self.controls);
        let stripped = bytes.strip_prefix(b" ").filter(|_| self.strips).unwrap_or(bytes);
        self.strips &= bytes.is_empty();
        self.waiting.extend_from_slice(stripped);
        let text = &mut self.certain;
        text.clear();
        let mut rest = 0;
        for chunk in self.waiting.utf8_chunks() {
            text.push_str(chunk.valid());
            rest += chunk.valid().len();
            if may_complete(chunk.invalid()) && rest + chunk.invalid().len() == self.waiting.len() {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            rest += chunk.invalid().len();
        }
        self.waiting.drain(..rest);
        text
    }

    /// Ends the text: what still waits is no character. The next push starts another text.
    pub fn finish(&mut self) -> String {
        self.strips = !self.goes_on && self.tokenizer.borrow().strips_space();
        String::from_utf8_lossy(&mem::take(&mut self.waiting)).into_owned()
    }
}

/// Whether more bytes can make `bytes` a character: whether they are the start of one.
fn may_complete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
