//! Finding added tokens in raw text, before it is normalised and cut.

use aho_corasick::{AhoCorasick, MatchKind};

use super::quoted;
use crate::Error;

/// Bytes that the texts of all added tokens may have together; real models have some 100 KB.
const TEXT_LIMIT: usize = 1 << 20;

/// A set of token texts to be found whole: the leftmost first, the longest of those.
pub(super) struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

impl Added {
    /// Prepares to find `tokens`; those without text are left out.
    pub(super) fn new<'t>(tokens: impl Iterator<Item = (&'t str, u32)>) -> Result<Self, Error> {
        let (texts, ids): (Vec<&str>, Vec<u32>) = tokens.filter(|(t, _)| !t.is_empty()).unzip();
        let size: usize = texts.iter().map(|text| text.len()).sum();
        if size > TEXT_LIMIT {
            return Err(Error::Tokenizer(format!(
                "{} control and user-defined tokens have {size} bytes of text, at most \
                 {TEXT_LIMIT} are taken; the first is {}",
                texts.len(),
                quoted(texts[0])
            )));
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&texts)
            .map_err(|e| Error::Tokenizer(format!("control and user-defined tokens: {e}")))?;
        Ok(Self { finder, ids })
    }

    /// The added tokens of `text`, in order: start, end, id.
    pub(super) fn find<'s>(&'s self, text: &'s str) -> impl Iterator<Item = (usize, usize, u32)> {
        let matches = self.finder.find_iter(text);
        matches.map(|found| (found.start(), found.end(), self.ids[found.pattern().as_usize()]))
    }
}
