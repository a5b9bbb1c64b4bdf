//! A tokenizer as plain data: what a model file says of it, before anything is built from it.

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
    /// GPT-2's pattern (GGUF `gpt-2`, `default`).
    Gpt2,
    /// Digits one by one, then GPT-2's pattern (GGUF `smollm`).
    SmolLm,
    /// Qwen2's pattern, after NFC (GGUF `qwen2`).
    Qwen2,
    /// Llama 3's pattern (GGUF `llama-bpe`, `llama3`, `llama-v3`).
    Llama3,
}

/// A byte-level byte-pair tokenizer as a model file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerSpec {
    /// Text of each token in byte-level alphabet; the index is the id.
    pub tokens: Vec<String>,
    /// Kind of each token, as many as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// Merges in order of rank, as pairs of token texts.
    pub merges: Vec<(String, String)>,
    /// The cutting rule.
    pub pre: PreTokenizer,
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
