//! A tokenizer as plain data: what a model file says of it, before anything is built from it.

use crate::Charsmap;

/// What a vocabulary entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// The unknown token.
    Unknown,
    /// A control token: matched in templates' text, never in a user's, and not printed.
    Control,
    /// Added text, matched whole and printed.
    UserDefined,
    /// A hole in the vocabulary.
    Unused,
    /// A single byte.
    Byte,
}

/// The rule that cuts text into words before byte-pair merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PreTokenizer {
    /// GPT-2's pattern (GGUF `gpt-2`, `phi-2`, `default`, and others that llama.cpp cuts alike).
    Gpt2,
    /// Digits one by one, then GPT-2's pattern (GGUF `smollm`, `starcoder`, `refact` and others).
    SmolLm,
    /// The same after NFC, as transformers has it (GGUF `command-r`).
    CommandR,
    /// Qwen2's pattern, after NFC (GGUF `qwen2`, `deepseek-r1-qwen` and others).
    Qwen2,
    /// Qwen3.5's, which keeps marks with their letters, after NFC (GGUF `qwen35`).
    Qwen35,
    /// Llama 3's pattern (GGUF `llama-bpe`, `llama3`, `llama-v3`, `falcon3`, `pixtral`, `lfm2` and
    /// others).
    Llama3,
    /// Mistral's of the byte-level tokenizers, which they call Tekken (GGUF `tekken`).
    Tekken,
    /// GPT-4o's pattern, Phi-4's too (GGUF `gpt-4o`, `llama4`, `kanana2`).
    Gpt4o,
    /// The patterns of DeepSeek's first language models, one after another (GGUF `deepseek-llm`).
    DeepSeekLlm,
    /// Those of DeepSeek-Coder (GGUF `deepseek-coder`).
    DeepSeekCoder,
    /// Those of DeepSeek-V3 and its successors (GGUF `deepseek-v3`, `hunyuan-dense`).
    DeepSeekV3,
}

impl PreTokenizer {
    /// GGUF's name of it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::CommandR => "command-r",
            Self::Qwen2 => "qwen2",
            Self::Qwen35 => "qwen35",
            Self::Llama3 => "llama-bpe",
            Self::Tekken => "tekken",
            Self::Gpt4o => "gpt-4o",
            Self::DeepSeekLlm => "deepseek-llm",
            Self::DeepSeekCoder => "deepseek-coder",
            Self::DeepSeekV3 => "deepseek-v3",
        }
    }

    /// Whether text is brought into NFC first.
    pub(crate) const fn is_nfc(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen35 | Self::CommandR)
    }

    /// Whether each digit is a word of its own.
    pub(crate) const fn cuts_digits(self) -> bool {
        matches!(self, Self::SmolLm | Self::CommandR)
    }

    /// Whether a word that is a token is taken whole, without merges.
    pub(crate) const fn takes_whole_words(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TokenizerModel {
    /// Byte-pair merges of words, written in GPT-2's alphabet of bytes (GGUF `gpt2`).
    ByteLevel {
        /// Merges in order of rank, as pairs of token texts.
        merges: Vec<(String, String)>,
        /// The cutting rule.
        pre: PreTokenizer,
    },
    /// Pieces in the manner of SentencePiece (GGUF `llama`, `t5`).
    SentencePiece(SentencePiece),
}

/// Pieces of text whose spaces are written as U+2581; what no piece spells is written in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePiece {
    /// What characters are written as before anything else (GGUF `precompiled_charsmap`).
    pub charsmap: Option<Charsmap>,
    /// What becomes of spaces beside spaces then (GGUF `remove_extra_whitespaces`).
    pub extra_spaces: ExtraSpaces,
    /// Which pieces a text is made of.
    pub pieces: Pieces,
    /// Where a space is put before text.
    pub prefix: SpacePrefix,
    /// Whether decoded text loses the space that it begins with.
    pub strip_space: bool,
    /// Whether text is cut before each space first.
    pub cut_at_spaces: bool,
    /// Whether a character without a piece is written in bytes, where all of them have tokens.
    pub byte_fallback: bool,
}

/// How pieces are chosen.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Pieces {
    /// By merges of characters in order of rank, as pairs of ids.
    Bpe(Vec<(u32, u32)>),
    /// By the greatest sum of scores, the logarithms of probabilities, one a token (GGUF `t5`); those
    /// of tokens that are no ordinary ones are 0.
    Unigram(Vec<f64>),
}

/// What becomes of spaces beside spaces, in each part of a text that lies between added tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtraSpaces {
    /// They are text.
    Keep,
    /// A run of spaces is one space.
    Merge,
    /// A run of spaces is one space, and the white space at the end of a part is left out. With a
    /// [`SpacePrefix`] a part so begins with one space and ends with none, as SentencePiece has it.
    /// SentencePiece leaves out spaces alone at the end and transformers all white space, but behind the
    /// tables of characters that models with this setting have, there is no other white space.
    Remove,
}

/// Where SentencePiece's dummy space is put. What lies between added tokens is a part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpacePrefix {
    /// Nowhere.
    Never,
    /// Before the text, unless it begins with a space or an added token.
    Start,
    /// Before each part that does not begin with a space.
    Parts,
    /// Before each part, with or without a space.
    EveryPart,
}

/// How an added token is found, where that is not simply by its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Matching {
    /// With the white space before it.
    pub lstrip: bool,
    /// With the white space behind it.
    pub rstrip: bool,
    /// In the text that the pieces are made of, instead of in the raw text.
    pub normalized: bool,
}

/// A tokenizer as a model file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerSpec {
    /// Text of each token, in the byte-level alphabet or with U+2581 for spaces; the index is the id.
    pub tokens: Vec<String>,
    /// Kind of each token, as many as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// How text becomes tokens.
    pub model: TokenizerModel,
    /// Added tokens that are found otherwise than by their text alone, by ascending ids.
    pub matching: Vec<(u32, Matching)>,
    /// Begin-of-text id.
    pub bos: Option<u32>,
    /// End-of-text id as the file names it.
    pub eos: Option<u32>,
    /// Padding id.
    pub pad: Option<u32>,
    /// Unknown id.
    pub unk: Option<u32>,
    /// Whether a begin-of-text token is put before a text.
    pub add_bos: bool,
    /// Whether an end-of-text token is put after a text.
    pub add_eos: bool,
    /// Further ids at which an answer ends (end of turn, end of message), as the file names them.
    pub end_of_turn: Vec<u32>,
}
