//! Characters that are written otherwise before text becomes pieces, as SentencePiece's NFKC has
//! it.
//!
//! A model has its rules as one table (`precompiled_charsmap`, base64 in `tokenizer.json`):
//! ```text
//! 0      4    bytes of the trie
//! 4      n    the trie, a double array of units of four bytes, little-endian
//! 4 + n       what is written instead, UTF-8, each text with a zero behind it
//! ```
//! A unit is that of darts-clone (<https://github.com/s-yata/darts-clone>):
//! ```text
//! bits 0-7 and 31   the byte that leads to it; 31 is set of values alone, which no byte leads to
//! bit 8             whether a text ends here: its value, a place in the texts, is at byte 0
//! bits 9, 10-30     where the next units are: bits 10-30, times 256 if bit 9 is set
//! ```
//! Rules are used as the `tokenizers` library does
//! (<https://github.com/huggingface/spm_precompiled>): a grapheme of fewer than six bytes that
//! begins with the text of a rule is written as that rule has it, by the shortest of them, and of
//! others each character is. SentencePiece looks for the longest text of a rule at each place,
//! without graphemes; the two differ at few texts, such as ligatures with marks.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation;

/// Bytes of a grapheme from which on it is looked at character by character.
const GRAPHEME_BYTES: usize = 6;
/// Bytes that no text which is written instead reaches; the longest of NFKC has some thirty.
const TEXT_BYTES: usize = 256;
/// The mark of values.
const VALUE: u32 = 1 << 31;

/// A table of characters that are written otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Charsmap {
    /// Not empty.
    trie: Vec<u32>,
    texts: String,
}

impl Charsmap {
    /// Most bytes of a table; that of NFKC has some 300 thousand.
    pub(crate) const BYTES_MAX: usize = 8 << 20;

    /// The table of these bytes, as the module says they are.
    ///
    /// # Errors
    /// In words, if they are no such table, or a value of it is no place in its texts.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        let most = Self::BYTES_MAX;
        if bytes.len() > most {
            return Err(format!("its table of characters has more than {most} bytes"));
        }
        let wrong = |what: &str| Err(format!("its table of characters {what}"));
        let Some((head, rest)) = bytes.split_first_chunk() else { return wrong("has no size") };
        let size = u32::from_le_bytes(*head) as usize;
        if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
            return wrong(&format!("says that its trie has {size} of its {} bytes", bytes.len()));
        }
        let (trie, texts) = rest.split_at(size);
        let trie: Vec<u32> =
            trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let Ok(texts) = std::str::from_utf8(texts) else { return wrong("has texts not in UTF-8") };
        let place = |unit: &u32| {
            let at = (unit & !VALUE) as usize;
            // A long one, written for each of many characters, would fill memory.
            let ends = |text: &[u8]| text.len() < TEXT_BYTES || text[..TEXT_BYTES].contains(&0);
            texts.is_char_boundary(at) && texts.as_bytes().get(at..).is_some_and(ends)
        };
        match trie.iter().filter(|unit| *unit & VALUE != 0).all(place) {
            true => Ok(Self { trie, texts: texts.to_owned() }),
            false => wrong("has a value that is no place in its texts, or of one that is too long"),
        }
    }

    /// The bytes that it is made of.
    pub fn to_bytes(&self) -> Vec<u8> {
        // It was made of no more bytes than fit.
        let size = u32::try_from(4 * self.trie.len()).unwrap_or(u32::MAX);
        let units = [size].into_iter().chain(self.trie.iter().copied());
        units.flat_map(u32::to_le_bytes).chain(self.texts.bytes()).collect()
    }

    /// `text` as it is written by the table.
    pub(super) fn rewrite<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut written = String::with_capacity(text.len());
        for grapheme in text.graphemes(true) {
            let whole = (grapheme.len() < GRAPHEME_BYTES).then(|| self.instead(grapheme)).flatten();
            if let Some(instead) = whole {
                written.push_str(instead);
                continue;
            }
            for (at, c) in grapheme.char_indices() {
                let own = &grapheme[at..at + c.len_utf8()];
                written.push_str(self.instead(own).unwrap_or(own));
            }
        }
        if written == text { text.into() } else { written.into() }
    }

    /// What the shortest rule that `text` begins with has instead.
    fn instead(&self, text: &str) -> Option<&str> {
        let mut unit = *self.trie.first()?;
        let mut at = offset(unit);
        for byte in text.bytes().take_while(|byte| *byte != 0) {
            at ^= usize::from(byte);
            unit = *self.trie.get(at)?;
            if unit & (VALUE | 0xff) != u32::from(byte) {
                return None;
            }
            at ^= offset(unit);
            if (unit >> 8) & 1 == 1 {
                let value = *self.trie.get(at)? & !VALUE;
                let text = self.texts.get(value as usize..)?;
                return text.split('\0').next();
            }
        }
        None
    }
}

/// What a unit's place and those of the next ones differ by.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}
