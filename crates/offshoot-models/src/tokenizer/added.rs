//! Finding added tokens in text: in raw text before it is normalised and cut, some behind that.

use aho_corasick::{AhoCorasick, MatchKind};

use super::quoted;
use crate::{Error, Matching};

/// Bytes that the texts of all added tokens may have together; real models have some 100 KB.
const TEXT_LIMIT: usize = 1 << 20;

/// A set of token texts to be found whole: the leftmost first, the longest of those.
pub(super) struct Added {
    finder: AhoCorasick,
    tokens: Vec<(u32, Matching)>,
    /// Whether a space is white space; it is not where it is a sign.
    spaces: bool,
}

impl Added {
    /// Prepares to find `tokens`; those without text are left out. `spaces` is whether a space is
    /// white space.
    pub(super) fn new<T: AsRef<str>>(
        tokens: impl Iterator<Item = (T, u32, Matching)>,
        spaces: bool,
    ) -> Result<Self, Error> {
        let (texts, tokens): (Vec<T>, Vec<(u32, Matching)>) = tokens
            .filter(|(text, ..)| !text.as_ref().is_empty())
            .map(|(text, id, matching)| (text, (id, matching)))
            .unzip();
        let size: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        if size > TEXT_LIMIT {
            return Err(Error::Tokenizer(format!(
                "{} control and user-defined tokens have {size} bytes of text, at most \
                 {TEXT_LIMIT} are taken; the first is {}",
                texts.len(),
                quoted(texts[0].as_ref())
            )));
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts.iter().map(AsRef::as_ref))
            .map_err(|e| Error::Tokenizer(format!("control and user-defined tokens: {e}")))?;
        Ok(Self { finder, tokens, spaces })
    }

    /// Whether there is none to be found.
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The added tokens of `text`, in order: start, end, id. One may take the white space beside it;
    /// what an earlier one has taken is not taken again.
    pub(super) fn find<'s>(&'s self, text: &'s str) -> impl Iterator<Item = (usize, usize, u32)> {
        let mut done = 0;
        let white = |c: char| c.is_whitespace() && (self.spaces || c != ' ');
        self.finder.find_iter(text).map(move |found| {
            let (id, how) = self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if how.lstrip {
                start = text[..start].trim_end_matches(white).len();
            }
            if how.rstrip {
                end = text.len() - text[end..].trim_start_matches(white).len();
            }
            (start, end) = (start.max(done), end.max(done));
            done = end;
            (start, end, id)
        })
    }
}
