//! Text to ids and back.
//!
//! [`Tokenizer::encode`] finds added tokens in the raw text. What is between them is cut into words
//! by the family's pattern, whose bytes are merged (`byte_level.rs`), or is made of SentencePiece's
//! pieces (`pieces.rs`). Ids are those of Hugging Face's `tokenizers` for the same vocabulary, a
//! contract that the tests check.
//!
//! Departs from that library: the merges and the vocabulary are our own tables, because a program
//! that starts for one answer builds a tokenizer each time. Building the library's model of 152k
//! tokens and 151k merges takes some 160 ms and 42 MB, ours a fraction of both. There is no cache
//! of words either, so a tokenizer's memory does not grow with what it reads.
//!
//! A byte whose token the vocabulary lacks is dropped, as there: SmolLM2 has none for six ASCII
//! control characters (U+0004, U+0006, U+0013, U+0014, U+0016 and U+001D).
//!
//! Bytes that are no text are told from text as [`String::from_utf8_lossy`] does, so that text can be
//! shown while it is being made; that library takes all bytes of a row for unreadable if one is.

mod added;
mod alphabet;
mod build;
mod byte_level;
mod charsmap;
mod cut;
mod merges;
mod pieces;
mod unigram;
mod vocab;

use std::collections::HashMap;
use std::fmt;

use added::Added;
use byte_level::ByteLevel;
pub use charsmap::Charsmap;
pub(crate) use cut::patterns;
use merges::Scratch;
pub(crate) use pieces::byte_of;
use pieces::{Chooser, PieceTable};
use vocab::Vocab;

use crate::{Error, TokenKind};

/// Whether the text of a control token means the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// It does: for text that a chat template has written.
    Parse,
    /// It is plain text: for text of users, who must not be able to forge a turn.
    Text,
}

/// Whether control tokens show in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Controls {
    /// They are left out.
    Skip,
    /// They are printed as their text.
    Keep,
}

/// A tokenizer, ready to encode and decode.
pub struct Tokenizer {
    vocab: Vocab,
    kinds: Vec<TokenKind>,
    segmenter: Segmenter,
    /// Whether decoded text loses the space that it begins with.
    strip_space: bool,
    /// Ids of control and user-defined tokens by their text.
    added_ids: HashMap<String, u32>,
    /// Finds control and user-defined tokens.
    added: Added,
    /// Finds user-defined tokens alone.
    user_defined: Added,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

/// How text without added tokens becomes ids.
enum Segmenter {
    ByteLevel(Box<ByteLevel>),
    Pieces(Box<PieceTable>),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let merges = match &self.segmenter {
            Segmenter::ByteLevel(words) => words.merges.len(),
            Segmenter::Pieces(pieces) => match &pieces.chooser {
                Chooser::Merges(merges) => merges.len(),
                _ => 0,
            },
        };
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab.len())
            .field("merges", &merges)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Ids of `text`. No begin- or end-of-text token is added.
    ///
    /// User-defined tokens are matched wherever they stand, control tokens as `special` says.
    ///
    /// # Errors
    /// Fails on text that has millions of characters of one kind in a row.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, Error> {
        self.encode_part(text, special, true)
    }

    /// As [`Tokenizer::encode`], of a part of a text; `first` is whether the text begins with it.
    /// Some tokenizers put a space before a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_part(
        &self,
        part: &str,
        special: Special,
        first: bool,
    ) -> Result<Vec<u32>, Error> {
        let added = match special {
            Special::Parse => &self.added,
            Special::Text => &self.user_defined,
        };
        let mut scratch = Scratch::default();
        let mut ids = Vec::with_capacity(part.len() / 3);
        let mut done = 0;
        for (start, end, id) in added.find(part) {
            let first = first && done == 0;
            self.encode_plain(&part[done..start], first, &mut scratch, &mut ids)?;
            ids.push(id);
            done = end;
        }
        self.encode_plain(&part[done..], first && done == 0, &mut scratch, &mut ids)?;
        Ok(ids)
    }

    /// Cuts `text` at the control tokens that it spells out: each piece of plain text with the
    /// control token behind it, and last the text behind all of them.
    ///
    /// Pieces encoded by [`Tokenizer::encode_part`] with [`Special::Text`], and the tokens between
    /// them, are what [`Tokenizer::encode`] gives with [`Special::Parse`].
    pub fn cut_at_controls<'t>(&self, text: &'t str) -> Vec<(&'t str, Option<u32>)> {
        let mut pieces = Vec::new();
        let mut done = 0;
        for (start, end, id) in self.added.find(text) {
            if self.is_control(id) {
                pieces.push((&text[done..start], Some(id)));
                done = end;
            }
        }
        pieces.push((&text[done..], None));
        pieces
    }

    /// The texts of all control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        let added = self.added_ids.iter().filter(|(_, id)| self.is_control(**id));
        added.map(|(text, _)| text.as_str()).filter(|text| !text.is_empty())
    }

    /// Appends the ids of text that has no added tokens.
    fn encode_plain(
        &self,
        text: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        match &self.segmenter {
            Segmenter::ByteLevel(words) => words.encode(&self.vocab, text, scratch, ids),
            Segmenter::Pieces(pieces) => {
                pieces.encode(&self.vocab, text, first, scratch, ids);
                Ok(())
            }
        }
    }

    /// Text of `ids`. Bytes that are no UTF-8 become U+FFFD, as in [`String::from_utf8_lossy`];
    /// ids that stand for no text, [`Tokenizer::token_bytes`] says which, are left out. Where the
    /// tokenizer puts a space before a text, the one that a text begins with is left out, too.
    pub fn decode(&self, ids: &[u32], controls: Controls) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            bytes.extend_from_slice(self.shown_bytes(*id, controls));
        }
        if self.strip_space && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into())
    }

    /// What token `id` adds to decoded text.
    pub(crate) fn shown_bytes(&self, id: u32, controls: Controls) -> &[u8] {
        match controls {
            Controls::Skip if self.is_control(id) => &[],
            _ => self.token_bytes(id).unwrap_or(&[]),
        }
    }

    /// Whether decoded text loses the space that it begins with.
    pub(crate) fn strips_space(&self) -> bool {
        self.strip_space
    }

    /// The bytes of token `id`, not always whole characters; of a control token, its text. None if
    /// the vocabulary has no such id or a hole there.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match self.kinds.get(id as usize)? {
            TokenKind::Unused => None,
            _ => self.vocab.get(id),
        }
    }

    /// Whether `id` is a control token, or the unknown token.
    pub fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize).is_some_and(|kind| build::is_control(*kind))
    }

    /// The token whose text is exactly `text`, control and user-defined ones before others.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.added_ids.get(text).copied().or_else(|| self.vocab.id_of(text.as_bytes()))
    }

    /// Number of ids, holes included.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The begin-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token as the model's file names it.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model expects [`Tokenizer::bos`] before a text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether the model expects [`Tokenizer::eos`] behind a text.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }
}

/// A token's text for an error message: quoted, and cut where it is long.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
