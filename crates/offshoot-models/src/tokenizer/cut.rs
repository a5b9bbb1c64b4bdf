//! Cutting text into words before merges.
//!
//! Each rule is the published pattern of its family's `tokenizer.json`, run by the same regular
//! expression engine as there (Oniguruma), so that classes, case folding and look-ahead agree on
//! every character. Qwen2's and Llama 3's texts are as in the models' own files; GPT-2's is in
//! <https://github.com/openai/gpt-2/blob/master/src/encoder.py>, Qwen3.5's in transformers, and those of
//! DeepSeek are as <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp> has them.

use std::borrow::Cow;

use onig::{MatchParam, Regex, Region, SearchOptions};
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::{Error, PreTokenizer};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_LLM: &[&str] = &[
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    SPACE_AT_END,
    "[一-龥ࠀ-一가-퟿]+",
    "\\p{N}+",
];
const DEEPSEEK_CODER: &[&str] =
    &["[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"];
const DEEPSEEK_V3: &[&str] = &[
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];
/// White space at the end of a piece, as it is published. At a long run of it somewhere else this is
/// tried from each of its characters to its end, so what is run looks at where runs begin alone, which
/// is where the first match is.
const SPACE_AT_END: &str = r"\s+$";
const RUN_AT_END: &str = r"(?<!\s)\s++$";

/// Characters of one kind in a row that a pattern may step over: beyond, the engine's stack would
/// take hundreds of megabytes.
const RUN_LIMIT: u32 = 4 << 20;

/// The published patterns of `pre`: each cuts what the one before it left, and its matches and what
/// lies between them are words. Before SmolLM's each digit is a word of its own.
pub(crate) fn patterns(pre: PreTokenizer) -> &'static [&'static str] {
    match pre {
        PreTokenizer::Gpt2 | PreTokenizer::SmolLm | PreTokenizer::CommandR => &[GPT2],
        PreTokenizer::Qwen2 => &[QWEN2],
        PreTokenizer::Qwen35 => &[QWEN35],
        PreTokenizer::Llama3 => &[LLAMA3],
        PreTokenizer::Tekken => &[TEKKEN],
        PreTokenizer::Gpt4o => &[GPT4O],
        PreTokenizer::DeepSeekLlm => DEEPSEEK_LLM,
        PreTokenizer::DeepSeekCoder => DEEPSEEK_CODER,
        PreTokenizer::DeepSeekV3 => DEEPSEEK_V3,
    }
}

/// A family's rule, ready to run.
pub(super) struct Cutter {
    stages: Vec<Regex>,
    digits_alone: bool,
    nfc: bool,
}

impl Cutter {
    /// Compiles the rule of `pre`.
    pub(super) fn new(pre: PreTokenizer) -> Result<Self, Error> {
        let compile = |published: &&'static str| {
            let run = if *published == SPACE_AT_END { RUN_AT_END } else { published };
            Regex::new(run)
                .map_err(|e| Error::Tokenizer(format!("pattern of {pre:?}: {}", e.description())))
        };
        Ok(Self {
            stages: patterns(pre).iter().map(compile).collect::<Result<_, _>>()?,
            digits_alone: pre.cuts_digits(),
            nfc: pre.is_nfc(),
        })
    }

    /// Calls `word` with each word of `text`, in order.
    pub(super) fn words(&self, text: &str, mut word: impl FnMut(&str)) -> Result<(), Error> {
        let text = self.normalize(text);
        let region = &mut Region::new();
        if !self.digits_alone {
            return cut(&self.stages, &text, region, &mut word);
        }
        let mut start = 0;
        for (at, digit) in text.match_indices(char::is_numeric) {
            cut(&self.stages, &text[start..at], region, &mut word)?;
            word(digit);
            start = at + digit.len();
        }
        cut(&self.stages, &text[start..], region, &mut word)
    }

    /// NFC where the family asks for it; text that is in it already is not copied.
    fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let plain = !self.nfc || is_nfc_quick(text.chars()) == IsNormalized::Yes;
        if plain { text.into() } else { text.nfc().map(|(c, _)| c).collect::<String>().into() }
    }
}

/// Calls `word` with what the patterns of `stages` make of `text`; `region` is room for a match.
fn cut(
    stages: &[Regex],
    text: &str,
    region: &mut Region,
    word: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let Some((regex, later)) = stages.split_first() else {
        word(text);
        return Ok(());
    };
    let mut done = 0;
    while done < text.len() {
        let (start, end) = next_match(regex, text, done, region)?;
        if start > done {
            cut(later, &text[done..start], region, word)?;
        }
        if end > start {
            cut(later, &text[start..end], region, word)?;
        }
        done = end;
    }
    Ok(())
}

/// The first match at or after byte `from`, or the empty one at the end. No pattern here matches the
/// empty text, so every match goes forward.
fn next_match(
    regex: &Regex,
    text: &str,
    from: usize,
    region: &mut Region,
) -> Result<(usize, usize), Error> {
    let mut limits = MatchParam::default();
    limits.set_match_stack_limit(RUN_LIMIT);
    limits.set_retry_limit_in_match(0); // The patterns are linear: only the stack can grow.
    let options = SearchOptions::SEARCH_OPTION_NONE;
    region.clear();
    let found = regex
        .search_with_param(text, from, text.len(), options, Some(region), limits)
        .map_err(|e| {
            Error::Tokenizer(format!(
                "the word at byte {from} cannot be cut ({}): break up runs of more than a million \
                 like characters",
                e.description()
            ))
        })?;
    Ok(found.and_then(|_| region.pos(0)).unwrap_or((text.len(), text.len())))
}
