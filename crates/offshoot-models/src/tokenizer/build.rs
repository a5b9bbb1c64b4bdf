//! From a model file's description to tables.

use std::collections::HashMap;

use super::added::Added;
use super::alphabet::Alphabet;
use super::byte_level::ByteLevel;
use super::cut::Cutter;
use super::merges::{Merge, Merges};
use super::pieces::{Chooser, PieceTable, SPACE, all_bytes, byte_of, normalize, rewritten};
use super::unigram::Unigram;
use super::vocab::{NONE, Vocab};
use super::{Segmenter, Tokenizer, quoted};
use crate::{
    Error, Matching, Pieces, PreTokenizer, SentencePiece, SpacePrefix, TokenKind, TokenizerModel,
    TokenizerSpec,
};

impl Tokenizer {
    /// Builds the tables of `spec`.
    ///
    /// # Errors
    /// Fails if the vocabulary is empty, a token appears twice, `kinds` has another length, an id
    /// lies outside, or a merge takes or makes what is no ordinary token.
    pub fn new(spec: &TokenizerSpec) -> Result<Self, Error> {
        check(spec)?;
        let added_ids = added_ids(spec)?;
        let normalized = |id: u32| matching(spec, id).normalized && !is_control(kind(spec, id));
        let (vocab, segmenter) = match &spec.model {
            TokenizerModel::ByteLevel { merges, pre } => {
                let (vocab, words) = byte_level(spec, merges, *pre)?;
                (vocab, Segmenter::ByteLevel(Box::new(words)))
            }
            TokenizerModel::SentencePiece(model) => {
                let added = added_ids.iter().filter(|(_, id)| normalized(**id));
                let added = added.map(|(text, id)| {
                    let text = rewritten(text, model.charsmap.as_ref(), model.extra_spaces);
                    let text = normalize(&text, model.prefix).into_owned();
                    (text, *id, matching(spec, *id))
                });
                // In these two cases spaces are signs by then.
                let signs = matches!(model.prefix, SpacePrefix::Never | SpacePrefix::EveryPart);
                let added = Added::new(added, !signs)?;
                let (vocab, pieces) = sentence_piece(spec, model, added)?;
                (vocab, Segmenter::Pieces(Box::new(pieces)))
            }
        };
        let of_kind = |wanted: fn(TokenKind) -> bool| {
            let added =
                added_ids.iter().map(|(text, id)| (text.as_str(), *id, matching(spec, *id)));
            let wanted = added.filter(|(_, id, _)| wanted(kind(spec, *id)) && !normalized(*id));
            Added::new(wanted, true)
        };
        Ok(Self {
            segmenter,
            strip_space: match &spec.model {
                TokenizerModel::ByteLevel { .. } => false,
                TokenizerModel::SentencePiece(model) => model.strip_space,
            },
            added: of_kind(|_| true)?,
            user_defined: of_kind(|kind| kind == TokenKind::UserDefined)?,
            added_ids,
            vocab,
            kinds: spec.kinds.clone(),
            bos: spec.bos,
            eos: spec.eos,
            add_bos: spec.add_bos,
            add_eos: spec.add_eos,
        })
    }
}

fn kind(spec: &TokenizerSpec, id: u32) -> TokenKind {
    spec.kinds[id as usize]
}

/// How an added token is found.
fn matching(spec: &TokenizerSpec, id: u32) -> Matching {
    let at = spec.matching.binary_search_by_key(&id, |(id, _)| *id);
    at.map_or_else(|_| Matching::default(), |at| spec.matching[at].1)
}

fn byte_level(
    spec: &TokenizerSpec,
    merges: &[(String, String)],
    pre: PreTokenizer,
) -> Result<(Vocab, ByteLevel), Error> {
    let alphabet = Alphabet::new();
    let vocab = vocab_of(spec, |bytes, text, _| alphabet.extend(bytes, text))?;
    let words = ByteLevel {
        merges: merges_of(merges, &alphabet, &vocab)?,
        byte_ids: std::array::from_fn(|byte| vocab.id_of(&[byte as u8]).unwrap_or(NONE)),
        cutter: Cutter::new(pre)?,
        whole_words: pre.takes_whole_words(),
    };
    Ok((vocab, words))
}

fn sentence_piece(
    spec: &TokenizerSpec,
    model: &SentencePiece,
    normalized: Added,
) -> Result<(Vocab, PieceTable), Error> {
    let mut bytes = Vec::new();
    for ((id, text), kind) in (0u32..).zip(&spec.tokens).zip(&spec.kinds) {
        if *kind == TokenKind::Byte {
            let byte = byte_of(text).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "token {id} is {}, expected the byte that it is said to be, as <0x0A>",
                    quoted(text)
                ))
            })?;
            bytes.push((byte, id));
        }
    }
    let vocab = vocab_of(spec, |out, text, kind| {
        if kind == TokenKind::Byte {
            out.extend(byte_of(text));
            return false;
        }
        let spaced = text.replace(SPACE, " ");
        out.extend_from_slice(spaced.as_bytes());
        true
    })?;
    let chooser = match &model.pieces {
        Pieces::Bpe(merges) => Chooser::Merges(piece_merges(spec, merges, &vocab)?),
        Pieces::Unigram(scores) => {
            let ordinary =
                (0u32..).zip(&spec.kinds).filter(|(_, kind)| **kind == TokenKind::Normal);
            let pieces = ordinary.map(|(id, _)| (vocab.get(id).unwrap_or(&[]), id));
            Chooser::Likeliest(Unigram::new(pieces.filter(|(text, _)| !text.is_empty()), scores)?)
        }
    };
    let pieces = PieceTable {
        chooser,
        byte_ids: model.byte_fallback.then(|| all_bytes(bytes.into_iter())).flatten(),
        unk: spec.unk,
        prefix: model.prefix,
        cut_at_spaces: model.cut_at_spaces,
        charsmap: model.charsmap.clone(),
        extra_spaces: model.extra_spaces,
        normalized,
    };
    Ok((vocab, pieces))
}

/// Whether a token of this kind is matched in templates alone and not printed.
pub(super) fn is_control(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Control | TokenKind::Unknown)
}

/// Checks lengths and ids, so that later code may index freely.
fn check(spec: &TokenizerSpec) -> Result<(), Error> {
    let count = spec.tokens.len();
    if count == 0 {
        return Err(Error::Tokenizer("the vocabulary is empty".into()));
    }
    if spec.kinds.len() != count {
        return Err(Error::Tokenizer(format!(
            "{} token kinds for {count} tokens, expected as many",
            spec.kinds.len()
        )));
    }
    let bytes: usize = spec.tokens.iter().map(String::len).sum();
    let merges = match &spec.model {
        TokenizerModel::ByteLevel { merges, .. } => merges.len(),
        TokenizerModel::SentencePiece(SentencePiece { pieces: Pieces::Bpe(merges), .. }) => {
            let outside = |id: &u32| *id as usize >= count;
            if let Some((left, right)) = merges.iter().find(|(l, r)| outside(l) || outside(r)) {
                return Err(Error::Tokenizer(format!(
                    "a merge joins the ids {left} and {right}, of {count} tokens"
                )));
            }
            merges.len()
        }
        TokenizerModel::SentencePiece(SentencePiece {
            pieces: Pieces::Unigram(scores), ..
        }) => {
            if scores.len() != count || scores.iter().any(|score| score.is_nan()) {
                return Err(Error::Tokenizer(format!(
                    "{} scores for {count} tokens, expected as many numbers",
                    scores.len()
                )));
            }
            0
        }
    };
    if count >= NONE as usize || merges >= NONE as usize || bytes >= NONE as usize {
        return Err(Error::Tokenizer(format!("{count} tokens of {bytes} bytes are too many")));
    }
    let named = [("bos", spec.bos), ("eos", spec.eos), ("pad", spec.pad), ("unk", spec.unk)];
    let turns = spec.end_of_turn.iter().map(|id| ("end of turn", Some(*id)));
    for (name, id) in named.into_iter().chain(turns) {
        if let Some(id) = id.filter(|id| *id as usize >= count) {
            return Err(Error::Tokenizer(format!("{name} id is {id}, of {count} tokens")));
        }
    }
    Ok(())
}

/// All texts, and the table of the tokens that merges may make.
///
/// `write` appends the bytes that an ordinary token stands for, and says whether text can become it.
/// Such a token goes into the table by these bytes. A user-defined token does so too
/// unless an ordinary one is there: some models declare a token of their vocabulary so. A control
/// token never does, so no text can become one by merges.
fn vocab_of(
    spec: &TokenizerSpec,
    write: impl Fn(&mut Vec<u8>, &str, TokenKind) -> bool,
) -> Result<Vocab, Error> {
    let mut vocab = Vocab::with_capacity(spec.tokens.len());
    let plain = matches!(spec.model, TokenizerModel::SentencePiece(_));
    for ((id, text), kind) in (0u32..).zip(&spec.tokens).zip(&spec.kinds) {
        let ordinary = matches!(kind, TokenKind::Normal | TokenKind::Byte);
        let enters = vocab.push(|bytes| {
            let start = bytes.len();
            // The texts of added tokens are written in SentencePiece's way, but not in bytes.
            let enters = (ordinary || plain) && write(bytes, text, *kind);
            if bytes.len() == start {
                bytes.extend_from_slice(text.as_bytes());
            }
            enters && ordinary
        });
        if enters && let Err(other) = vocab.enter(id) {
            return Err(twice(text, other, id));
        }
    }
    for (id, kind) in (0u32..).zip(&spec.kinds) {
        if *kind == TokenKind::UserDefined {
            let _there_already = vocab.enter(id);
        }
    }
    Ok(vocab)
}

/// Control and user-defined tokens by their text.
fn added_ids(spec: &TokenizerSpec) -> Result<HashMap<String, u32>, Error> {
    let mut ids = HashMap::new();
    for ((id, text), kind) in (0u32..).zip(&spec.tokens).zip(&spec.kinds) {
        let added = is_control(*kind) || *kind == TokenKind::UserDefined;
        if added && let Some(other) = ids.insert(text.clone(), id) {
            return Err(twice(text, other, id));
        }
    }
    Ok(ids)
}

/// The merges of byte-level tokens as ids.
fn merges_of(
    pairs: &[(String, String)],
    alphabet: &Alphabet,
    vocab: &Vocab,
) -> Result<Merges, Error> {
    let mut merges = Merges::with_capacity(pairs.len());
    let mut bytes = Vec::new();
    for (rank, (left, right)) in (0u32..).zip(pairs) {
        bytes.clear();
        let whole = alphabet.extend(&mut bytes, left).then_some(bytes.len());
        let split = whole.filter(|_| alphabet.extend(&mut bytes, right));
        let ids = split.and_then(|split| {
            let pair = (vocab.id_of(&bytes[..split])?, vocab.id_of(&bytes[split..])?);
            Some((pair, vocab.id_of(&bytes)?))
        });
        let (pair, id) = ids.ok_or_else(|| no_merge(rank, left, right))?;
        merges.insert(pair, Merge { rank, id });
    }
    Ok(merges)
}

/// The merges of pieces with what they make. Ids are known to be tokens.
fn piece_merges(
    spec: &TokenizerSpec,
    pairs: &[(u32, u32)],
    vocab: &Vocab,
) -> Result<Merges, Error> {
    let mut merges = Merges::with_capacity(pairs.len());
    let mut bytes = Vec::new();
    for (rank, &(left, right)) in (0u32..).zip(pairs) {
        bytes.clear();
        [left, right].iter().for_each(|id| bytes.extend(vocab.get(*id).unwrap_or(&[])));
        let ordinary =
            |id: u32| matches!(kind(spec, id), TokenKind::Normal | TokenKind::UserDefined);
        let made = vocab.id_of(&bytes).filter(|_| ordinary(left) && ordinary(right));
        let id = made.ok_or_else(|| {
            no_merge(rank, &spec.tokens[left as usize], &spec.tokens[right as usize])
        })?;
        merges.insert((left, right), Merge { rank, id });
    }
    Ok(merges)
}

fn no_merge(rank: u32, left: &str, right: &str) -> Error {
    Error::Tokenizer(format!(
        "merge {rank} joins {} and {}, which with what they make must be ordinary tokens \
         of the vocabulary",
        quoted(left),
        quoted(right)
    ))
}

/// The error of a text that two ids share.
fn twice(text: &str, first: u32, second: u32) -> Error {
    Error::Tokenizer(format!("tokens {first} and {second} are both {}", quoted(text)))
}
