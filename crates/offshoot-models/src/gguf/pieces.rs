//! SentencePiece's pieces in a GGUF file: scores there, merges here, and the way back.
//!
//! A file's score says when a piece is made of two others: the piece of the highest score first. The
//! `tokenizers` library wants a list of merges instead, and transformers makes it from the scores
//! (`generate_merges`, <https://github.com/huggingface/transformers>): all pairs of pieces that make
//! a piece, by descending score. Pairs of one score were in order of the pieces and then of the
//! pairs' ids at first, and are by descending lengths in later versions. Gemma 3's published
//! `tokenizer.json` has the later order, Mistral's the earlier one; texts for which that matters are
//! rare (`tokenizer/pieces.rs`).
//!
//! llama.cpp's converter overwrites two things that the merges of these files come from, and both are
//! restored here: the scores of added tokens, which SentencePiece has at 0, and the sign of spaces in
//! Gemma's runs of them.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::tokenizer::{SENTENCE_PIECE, UNIGRAM};
use super::value::{Array, Value};
use super::{Gguf, malformed};
use crate::{
    Charsmap, Error, ExtraSpaces, Matching, Pieces, SentencePiece, SpacePrefix, TokenKind,
    TokenizerSpec,
};

/// Offshoot's own key: where a space is put before text, where [`ADD_SPACE`] cannot say it.
const SPACE_PREFIX: &str = "offshoot.space_prefix";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
/// Whether extra spaces are left out.
pub(super) const EXTRA_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const SCORES: &str = "tokenizer.ggml.scores";
/// Bytes of the longest piece that is looked at for merges; Gemma 3's longest have 93. Longer ones
/// would take time by the square of their length.
const SPLIT_BYTES_MAX: usize = 256;
/// SentencePiece's sign of a space.
pub(super) const SPACE: &str = "\u{2581}";

/// The order of merges of one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ties {
    ById,
    ByLength,
}

impl Ties {
    fn of(architecture: &str) -> Self {
        match architecture.starts_with("gemma3") {
            true => Ties::ByLength,
            false => Ties::ById,
        }
    }
}

/// Texts and kinds as SentencePiece had them.
pub(super) fn restore(tokens: &mut [String], kinds: &mut [TokenKind]) {
    for (text, kind) in tokens.iter_mut().zip(kinds) {
        match kind {
            TokenKind::UserDefined if !text.is_empty() && text.bytes().all(|b| b == b' ') => {
                *text = SPACE.repeat(text.len());
            }
            // Older converters call it unknown and newer ones a control token.
            TokenKind::Unknown => *kind = TokenKind::Control,
            _ => {}
        }
    }
}

/// The model of a file with these tokens, [`restore`]d.
///
/// # Errors
/// [`Error::Gguf`] if there are not as many scores as tokens, or a score is no number.
pub(super) fn model(
    gguf: &Gguf<'_>,
    scores: Option<&Array<'_>>,
    tokens: &[String],
    kinds: &[TokenKind],
    unigram: bool,
) -> Result<SentencePiece, Error> {
    let wrong = |what: String| malformed(format_args!("key \"{SCORES}\": {what}"));
    let scores = scores.ok_or_else(|| wrong("missing, and SentencePiece has it".to_owned()))?;
    if scores.len() != tokens.len() {
        return Err(wrong(format!("{} entries for {} tokens", scores.len(), tokens.len())));
    }
    let mut numbers = Vec::with_capacity(tokens.len());
    for (id, value) in scores.values().enumerate() {
        match value {
            Value::F32(_) if kinds[id] == TokenKind::UserDefined => numbers.push(0.0),
            // Zero is one number here, whatever its sign.
            Value::F32(score) if !score.is_nan() => numbers.push(score + 0.0),
            _ => return Err(wrong(format!("no number at token {id}"))),
        }
    }
    let charsmap = charsmap(gguf)?;
    let ties = Ties::of(gguf.text("general.architecture")?.unwrap_or_default());
    let told = gguf.text(SPACE_PREFIX)?;
    let removes = gguf.flag(EXTRA_SPACES)?.unwrap_or(false);
    let prefix = match (told, gguf.flag(ADD_SPACE)?.unwrap_or(true)) {
        (Some("start"), _) => SpacePrefix::Start,
        (Some("parts"), _) => SpacePrefix::Parts,
        (Some(_), _) => {
            return Err(malformed(format_args!("key \"{SPACE_PREFIX}\": not start or parts")));
        }
        // One space, be there any before it or not.
        (None, true) if removes => SpacePrefix::Parts,
        (None, true) => SpacePrefix::EveryPart,
        (None, false) => SpacePrefix::Never,
    };
    let pieces = if unigram {
        let of = |(score, kind): (f32, &TokenKind)| match kind {
            TokenKind::Normal => f64::from(score),
            _ => 0.0,
        };
        Pieces::Unigram(numbers.into_iter().zip(kinds).map(of).collect())
    } else {
        Pieces::Bpe(merges(tokens, kinds, &numbers, ties))
    };
    Ok(SentencePiece {
        charsmap,
        extra_spaces: if removes { ExtraSpaces::Remove } else { ExtraSpaces::Keep },
        pieces,
        strip_space: prefix != SpacePrefix::Never,
        prefix,
        cut_at_spaces: false,
        byte_fallback: true,
    })
}

/// The table by which characters are rewritten, if the file has one.
fn charsmap(gguf: &Gguf<'_>) -> Result<Option<Charsmap>, Error> {
    let Some(value) = gguf.get(CHARSMAP) else { return Ok(None) };
    let wrong = |what: &str| malformed(format_args!("key \"{CHARSMAP}\": {what}"));
    let array = match value {
        Value::Array(array) if array.len() <= Charsmap::BYTES_MAX => array,
        _ => return Err(wrong("expected an array of some hundred thousand bytes")),
    };
    // Older files have them as signed numbers.
    let byte = |n: i128| u8::try_from(n).or_else(|_| i8::try_from(n).map(|n| n as u8));
    let bytes = array.integers().and_then(|all| all.map(byte).collect::<Result<Vec<u8>, _>>().ok());
    let bytes = bytes.ok_or_else(|| wrong("expected an array of bytes"))?;
    Charsmap::new(&bytes).map(Some).map_err(|what| wrong(&what))
}

/// What a file asks for that offshoot does not do to text: where extra spaces are left out and none is
/// put before text, SentencePiece leaves out all at its start, transformers all but one, and llama.cpp
/// puts one there.
///
/// # Errors
/// [`Error::Gguf`] if a key is of another kind than expected.
pub(super) fn unsupported(gguf: &Gguf<'_>) -> Result<Option<String>, Error> {
    let removes = gguf.flag(EXTRA_SPACES)?.unwrap_or(false);
    let none = gguf.flag(ADD_SPACE)? == Some(false);
    Ok((removes && none).then(|| {
        format!("key \"{EXTRA_SPACES}\": true is not supported where \"{ADD_SPACE}\" is false")
    }))
}

/// Whether a token can be made by merges.
fn mergeable(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::UserDefined)
}

/// All pairs of tokens that make a token, in the order of the made ones' scores.
fn merges(tokens: &[String], kinds: &[TokenKind], scores: &[f32], ties: Ties) -> Vec<(u32, u32)> {
    let all = || (0u32..).zip(tokens).filter(|(id, _)| mergeable(kinds[*id as usize]));
    let ids: HashMap<&str, u32> = all().map(|(id, text)| (text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, text) in all().filter(|(_, text)| text.len() <= SPLIT_BYTES_MAX) {
        let splits = text
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&text[..at])?, *ids.get(&text[at..])?)));
        let start = merges.len();
        merges.extend(splits.map(|pair| (pair, id)));
        merges[start..].sort_unstable();
    }
    let length = |id: u32| tokens[id as usize].chars().count();
    // Both sorts are stable: equals stay in the order that they were found in.
    if ties == Ties::ByLength {
        merges.sort_by_cached_key(|((left, right), _)| Reverse((length(*left), length(*right))));
    }
    let score = |id: u32| scores[id as usize];
    merges.sort_by(|(_, a), (_, b)| score(*b).total_cmp(&score(*a)));
    merges.into_iter().map(|(pair, _)| pair).collect()
}

/// How added tokens of an architecture are found. A GGUF file does not say it; Phi-3's
/// `tokenizer.json` does, and llama.cpp knows it by the model's name.
pub(super) fn matching(
    architecture: &str,
    tokens: &[String],
    kinds: &[TokenKind],
) -> Vec<(u32, Matching)> {
    if architecture != "phi3" {
        return Vec::new();
    }
    let strips = |text: &str, kind| match text {
        "</s>" => true,
        "<unk>" | "<s>" | "<|endoftext|>" => false,
        _ => kind == TokenKind::Control,
    };
    let rstrip = Matching { rstrip: true, ..Matching::default() };
    let all = (0u32..).zip(tokens.iter().zip(kinds));
    all.filter(|(_, (text, kind))| strips(text, **kind)).map(|(id, _)| (id, rstrip)).collect()
}

/// What a file says of `spec`'s pieces: a score for each token, and the place of the space.
pub(super) struct Written {
    /// `tokenizer.ggml.model`.
    pub(super) model: &'static str,
    pub(super) scores: Vec<f32>,
    pub(super) add_space_prefix: bool,
    pub(super) charsmap: Option<Vec<u8>>,
    pub(super) space_prefix: Option<(&'static str, &'static str)>,
    pub(super) remove_extra_spaces: bool,
}

/// The way back: what a file must say so that reading it gives `spec`.
///
/// # Errors
/// [`Error::Tokenizer`] if there is no such file.
pub(super) fn written(
    spec: &TokenizerSpec,
    model: &SentencePiece,
    architecture: &str,
) -> Result<Written, Error> {
    let no_place = |what: &str| {
        Err(Error::Tokenizer(format!("a GGUF file has no place for {what}; keep the folder")))
    };
    if model.cut_at_spaces || !model.byte_fallback {
        return no_place("pieces of words or without bytes");
    }
    if model.strip_space != (model.prefix != SpacePrefix::Never) {
        return no_place("a space that is put before text and not taken off it");
    }
    if spec.matching != matching(architecture, &spec.tokens, &spec.kinds) {
        return no_place("added tokens that take white space or are found in normalised text");
    }
    let remove_extra_spaces = match (model.extra_spaces, model.prefix) {
        (ExtraSpaces::Keep, _) => false,
        (ExtraSpaces::Remove, SpacePrefix::Start | SpacePrefix::Parts) => true,
        (ExtraSpaces::Merge | ExtraSpaces::Remove, _) => {
            return no_place("runs of spaces that are one in this way");
        }
    };
    let (name, scores) = match &model.pieces {
        Pieces::Bpe(_) if model.charsmap.is_some() => {
            return no_place("characters that are rewritten before merges, as llama.cpp reads it");
        }
        Pieces::Bpe(_) if remove_extra_spaces => {
            return no_place("spaces that are left out before merges, as llama.cpp reads it");
        }
        Pieces::Bpe(pairs) => {
            let scores = scores(spec, pairs);
            if merges(&spec.tokens, &spec.kinds, &scores, Ties::of(architecture)) != *pairs {
                return no_place("merges that are not all those of its pieces in order");
            }
            (SENTENCE_PIECE, scores)
        }
        Pieces::Unigram(wide) => {
            let scores: Vec<f32> = wide.iter().map(|score| *score as f32).collect();
            if scores.iter().zip(wide).any(|(score, wide)| f64::from(*score) != *wide) {
                return no_place("scores of more digits than single precision has");
            }
            (UNIGRAM, scores)
        }
    };
    let told = match model.prefix {
        SpacePrefix::Start => Some((SPACE_PREFIX, "start")),
        SpacePrefix::Parts => Some((SPACE_PREFIX, "parts")),
        SpacePrefix::Never | SpacePrefix::EveryPart => None,
    };
    Ok(Written {
        model: name,
        scores,
        add_space_prefix: model.prefix != SpacePrefix::Never,
        charsmap: model.charsmap.as_ref().map(Charsmap::to_bytes),
        space_prefix: told,
        remove_extra_spaces,
    })
}

/// A score for each token, by the place of the first merge that makes it.
fn scores(spec: &TokenizerSpec, pairs: &[(u32, u32)]) -> Vec<f32> {
    let mut scores = vec![0.0; spec.tokens.len()];
    let all = (0u32..).zip(&spec.tokens).filter(|(id, _)| mergeable(spec.kinds[*id as usize]));
    let ids: HashMap<&str, u32> = all.map(|(id, text)| (text.as_str(), id)).collect();
    let mut text = String::new();
    let (mut made, mut next) = (vec![false; spec.tokens.len()], 0.0f32);
    for (left, right) in pairs {
        text.clear();
        [left, right].iter().for_each(|id| text.push_str(&spec.tokens[**id as usize]));
        let Some(id) = ids.get(text.as_str()).map(|id| *id as usize) else { continue };
        let ordinary = spec.kinds[id] == TokenKind::Normal;
        if ordinary && !std::mem::replace(&mut made[id], true) {
            scores[id] = 0.0 - next;
            next += 1.0;
        }
    }
    // Pieces that nothing makes come last, as SentencePiece's single characters do.
    for (id, score) in scores.iter_mut().enumerate() {
        if spec.kinds[id] == TokenKind::Normal && !made[id] {
            *score = 0.0 - next;
            next += 1.0;
        }
    }
    scores
}
