//! Pieces in the manner of SentencePiece.
//!
//! Kudo and Richardson 2018, <https://arxiv.org/abs/1808.06226>: a space is a character like any
//! other, written as U+2581, and text is not cut into words before it is made of pieces. In the
//! tables here that character *is* a space, so text needs no rewriting but the reverse: a U+2581 that
//! somebody writes means a space to such a model, too.
//!
//! Merges go by rank, as in the `tokenizers` library, while SentencePiece goes by the score of the
//! piece that is made, the leftmost of equals first. The two differ where one piece can be made of
//! three neighbours in two ways (`a`, `aa`, `a` with pieces up to `aaa`).

use std::borrow::Cow;

use super::added::Added;
use super::charsmap::Charsmap;
use super::merges::{Merges, Scratch};
use super::unigram::Unigram;
use super::vocab::{NONE, Vocab};
use crate::{ExtraSpaces, SpacePrefix};

/// SentencePiece's sign of a space.
pub(super) const SPACE: char = '\u{2581}';

/// How pieces are chosen.
pub(super) enum Chooser {
    Merges(Merges),
    Likeliest(Unigram),
}

/// How text becomes pieces.
pub(super) struct PieceTable {
    pub(super) chooser: Chooser,
    /// Id of each byte's token; `None` if one is missing or none is to be used.
    pub(super) byte_ids: Option<Box<[u32; 256]>>,
    /// What stands for characters that have neither piece nor bytes.
    pub(super) unk: Option<u32>,
    pub(super) prefix: SpacePrefix,
    pub(super) cut_at_spaces: bool,
    /// What characters are written as first.
    pub(super) charsmap: Option<Charsmap>,
    /// What becomes of spaces beside spaces then.
    pub(super) extra_spaces: ExtraSpaces,
    /// The user-defined tokens that are found in normalised text.
    pub(super) normalized: Added,
}

impl PieceTable {
    /// Appends the ids of a part of a text; `first` is whether the text begins with it.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        part: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let part = rewritten(part, self.charsmap.as_ref(), self.extra_spaces);
        if part.is_empty() {
            return;
        }
        let text = normalize(&part, self.prefix);
        let mut done = 0;
        if !self.normalized.is_empty() {
            for (start, end, id) in self.normalized.find(&text) {
                self.segment(vocab, &text[done..start], first && done == 0, scratch, ids);
                ids.push(id);
                done = end;
            }
        }
        self.segment(vocab, &text[done..], first && done == 0, scratch, ids);
    }

    /// Appends the ids of normalised text without added tokens.
    fn segment(
        &self,
        vocab: &Vocab,
        text: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let wanted = match self.prefix {
            SpacePrefix::Never | SpacePrefix::EveryPart => false,
            SpacePrefix::Start => first,
            SpacePrefix::Parts => true,
        };
        let text: Cow<'_, str> = match wanted && !text.is_empty() && !text.starts_with(' ') {
            true => format!(" {text}").into(),
            false => text.into(),
        };
        if !self.cut_at_spaces {
            return self.word(vocab, &text, scratch, ids);
        }
        let mut start = 0;
        for (at, _) in text.match_indices(' ').filter(|(at, _)| *at > 0) {
            self.word(vocab, &text[start..at], scratch, ids);
            start = at;
        }
        self.word(vocab, &text[start..], scratch, ids);
    }

    /// Appends the ids of a word.
    fn word(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.chooser {
            Chooser::Merges(merges) => self.merged(merges, vocab, word, scratch, ids),
            Chooser::Likeliest(unigram) => self.likeliest(unigram, word, ids),
        }
    }

    /// Appends the likeliest pieces of a word, and bytes or the unknown token between them.
    fn likeliest(&self, unigram: &Unigram, word: &str, ids: &mut Vec<u32>) {
        let mut unknown = false;
        for (start, end, id) in unigram.cut(word) {
            match (id, &self.byte_ids, self.unk) {
                (NONE, Some(byte_ids), _) => {
                    ids.extend(word[start..end].bytes().map(|byte| byte_ids[byte as usize]));
                }
                (NONE, None, Some(unk)) if !unknown => ids.push(unk),
                (NONE, ..) => {}
                (id, ..) => ids.push(id),
            }
            unknown = id == NONE;
        }
    }

    /// Appends a word's characters, or their bytes, merged.
    fn merged(
        &self,
        merges: &Merges,
        vocab: &Vocab,
        word: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut symbols = Vec::with_capacity(word.len());
        let mut unknown = false;
        for c in word.chars() {
            let mut utf8 = [0; 4];
            let bytes = c.encode_utf8(&mut utf8).as_bytes();
            let known = vocab.id_of(bytes);
            match (known, &self.byte_ids, self.unk) {
                (Some(id), ..) => symbols.push(id),
                (None, Some(byte_ids), _) => {
                    symbols.extend(bytes.iter().map(|byte| byte_ids[*byte as usize]));
                }
                // Unknown characters in a row are one token.
                (None, None, Some(unk)) if !unknown => symbols.push(unk),
                (None, None, _) => {}
            }
            unknown = known.is_none();
        }
        scratch.merge(merges, symbols.into_iter(), ids);
    }
}

/// Text as a table of characters has it, if there is one, and then without extra spaces.
pub(super) fn rewritten<'t>(
    text: &'t str,
    charsmap: Option<&Charsmap>,
    extra_spaces: ExtraSpaces,
) -> Cow<'t, str> {
    let text = charsmap.map_or(Cow::Borrowed(text), |charsmap| charsmap.rewrite(text));
    let text = match extra_spaces {
        ExtraSpaces::Keep => return text,
        ExtraSpaces::Merge => text,
        ExtraSpaces::Remove => text.trim_end().to_owned().into(),
    };
    let mut kept = String::with_capacity(text.len());
    for c in text.chars() {
        if c != ' ' || !kept.ends_with(' ') {
            kept.push(c);
        }
    }
    kept.into()
}

/// Text with spaces for its signs of spaces, one more before it where every part has that.
pub(super) fn normalize(text: &str, prefix: SpacePrefix) -> Cow<'_, str> {
    let signs = text.contains(SPACE);
    match prefix == SpacePrefix::EveryPart {
        false if !signs => text.into(),
        false => text.replace(SPACE, " ").into(),
        true if !signs => format!(" {text}").into(),
        true => format!(" {text}").replace(SPACE, " ").into(),
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(crate) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |c: char| c.is_ascii_digit() || ('A'..='F').contains(&c);
    (digits.len() == 2 && digits.chars().all(upper))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The table of the bytes' tokens; `None` if one is missing.
pub(super) fn all_bytes(ids: impl Iterator<Item = (u8, u32)>) -> Option<Box<[u32; 256]>> {
    let mut table = Box::new([NONE; 256]);
    ids.for_each(|(byte, id)| table[byte as usize] = id);
    table.iter().all(|id| *id != NONE).then_some(table)
}
