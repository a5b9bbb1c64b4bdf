//! Cutting text into words before merges.
//!
//! Each rule is the published pattern of its family's `tokenizer.json`, run by the same regular
//! expression engine as there (Oniguruma), so that classes, case folding and look-ahead agree on
//! every character. Qwen2's and Llama 3's texts are as in the models' own files; GPT-2's is in
//! <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.

use std::borrow::Cow;

use onig::{MatchParam, Regex, Region, SearchOptions};
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::{Error, PreTokenizer};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Characters of one kind in a row that a pattern may step over: beyond, the engine's stack would
/// take hundreds of megabytes.
const RUN_LIMIT: u32 = 4 << 20;

/// The published pattern of `pre`.
pub(crate) fn pattern(pre: PreTokenizer) -> &'static str {
    match pre {
        PreTokenizer::Gpt2 | PreTokenizer::SmolLm => GPT2,
        PreTokenizer::Qwen2 => QWEN2,
        PreTokenizer::Llama3 => LLAMA3,
        PreTokenizer::Tekken => TEKKEN,
        PreTokenizer::Gpt4o => GPT4O,
    }
}

/// A family's rule, ready to run.
pub(super) struct Cutter {
    regex: Regex,
    digits_alone: bool,
    nfc: bool,
}

impl Cutter {
    /// Compiles the rule of `pre`.
    pub(super) fn new(pre: PreTokenizer) -> Result<Self, Error> {
        let regex = Regex::new(pattern(pre))
            .map_err(|e| Error::Tokenizer(format!("pattern of {pre:?}: {}", e.description())))?;
        Ok(Self {
            regex,
            digits_alone: pre == PreTokenizer::SmolLm,
            nfc: pre == PreTokenizer::Qwen2,
        })
    }

    /// Calls `word` with each word of `text`, in order.
    pub(super) fn words(&self, text: &str, mut word: impl FnMut(&str)) -> Result<(), Error> {
        let text = self.normalize(text);
        if !self.digits_alone {
            return self.matches(&text, &mut word);
        }
        let mut start = 0;
        for (at, digit) in text.match_indices(char::is_numeric) {
            self.matches(&text[start..at], &mut word)?;
            word(digit);
            start = at + digit.len();
        }
        self.matches(&text[start..], &mut word)
    }

    /// NFC where the family asks for it; text that is in it already is not copied.
    fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let plain = !self.nfc || is_nfc_quick(text.chars()) == IsNormalized::Yes;
        if plain { text.into() } else { text.nfc().map(|(c, _)| c).collect::<String>().into() }
    }

    /// Calls `word` with each match of the pattern and with what lies between matches.
    fn matches(&self, text: &str, word: &mut impl FnMut(&str)) -> Result<(), Error> {
        let mut region = Region::new();
        let mut done = 0;
        while done < text.len() {
            let (start, end) = self.next_match(text, done, &mut region)?;
            if start > done {
                word(&text[done..start]);
            }
            if end > start {
                word(&text[start..end]);
            }
            done = end;
        }
        Ok(())
    }

    /// The first match at or after byte `from`, or the empty one at the end. No pattern here
    /// matches the empty text, so every match goes forward.
    fn next_match(
        &self,
        text: &str,
        from: usize,
        region: &mut Region,
    ) -> Result<(usize, usize), Error> {
        let mut limits = MatchParam::default();
        limits.set_match_stack_limit(RUN_LIMIT);
        limits.set_retry_limit_in_match(0); // The patterns are linear: only the stack can grow.
        let options = SearchOptions::SEARCH_OPTION_NONE;
        region.clear();
        let found = self
            .regex
            .search_with_param(text, from, text.len(), options, Some(region), limits)
            .map_err(|e| {
                Error::Tokenizer(format!(
                    "the word at byte {from} cannot be cut ({}): break up runs of more than a \
                     million like characters",
                    e.description()
                ))
            })?;
        Ok(found.and_then(|_| region.pos(0)).unwrap_or((text.len(), text.len())))
    }
}
