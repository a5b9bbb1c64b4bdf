//! From a model file's description to tables.

use std::collections::HashMap;

use super::added::Added;
use super::alphabet::Alphabet;
use super::cut::Cutter;
use super::merges::{Merge, Merges};
use super::vocab::{NONE, Vocab};
use super::{Tokenizer, quoted};
use crate::{Error, PreTokenizer, TokenKind, TokenizerSpec};

impl Tokenizer {
    /// Builds the tables of `spec`.
    ///
    /// # Errors
    /// Fails if the vocabulary is empty, a token appears twice, `kinds` has another length, an id
    /// lies outside, or a merge takes or makes what is no ordinary token.
    pub fn new(spec: &TokenizerSpec) -> Result<Self, Error> {
        check(spec)?;
        let alphabet = Alphabet::new();
        let vocab = vocab_of(spec, &alphabet)?;
        let added_ids = added_ids(spec)?;
        let merges = merges_of(spec, &alphabet, &vocab)?;
        let of_kind = |wanted: fn(TokenKind) -> bool| {
            let added = added_ids.iter().map(|(text, id)| (text.as_str(), *id));
            Added::new(added.filter(move |(_, id)| wanted(spec.kinds[*id as usize])))
        };
        Ok(Self {
            merges,
            byte_ids: std::array::from_fn(|byte| vocab.id_of(&[byte as u8]).unwrap_or(NONE)),
            cutter: Cutter::new(spec.pre)?,
            whole_words: spec.pre == PreTokenizer::Llama3,
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
    if count >= NONE as usize || spec.merges.len() >= NONE as usize || bytes >= NONE as usize {
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
/// Ordinary tokens go into the table by the bytes they stand for. A user-defined token does so too
/// unless an ordinary one is there: some models declare a token of their vocabulary so. A control
/// token never does, so no text can become one by merges.
fn vocab_of(spec: &TokenizerSpec, alphabet: &Alphabet) -> Result<Vocab, Error> {
    let mut vocab = Vocab::with_capacity(spec.tokens.len());
    for ((id, text), kind) in (0u32..).zip(&spec.tokens).zip(&spec.kinds) {
        let ordinary = matches!(kind, TokenKind::Normal | TokenKind::Byte);
        let in_alphabet = vocab.push(|bytes| {
            let in_alphabet = ordinary && alphabet.extend(bytes, text);
            if !in_alphabet {
                bytes.extend_from_slice(text.as_bytes());
            }
            in_alphabet
        });
        if in_alphabet && let Err(other) = vocab.enter(id) {
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

/// The merges as ids.
fn merges_of(spec: &TokenizerSpec, alphabet: &Alphabet, vocab: &Vocab) -> Result<Merges, Error> {
    let mut merges = Merges::with_capacity(spec.merges.len());
    let mut bytes = Vec::new();
    for (rank, (left, right)) in (0u32..).zip(&spec.merges) {
        bytes.clear();
        let whole = alphabet.extend(&mut bytes, left).then_some(bytes.len());
        let split = whole.filter(|_| alphabet.extend(&mut bytes, right));
        let ids = split.and_then(|split| {
            let pair = (vocab.id_of(&bytes[..split])?, vocab.id_of(&bytes[split..])?);
            Some((pair, vocab.id_of(&bytes)?))
        });
        let Some((pair, id)) = ids else {
            return Err(Error::Tokenizer(format!(
                "merge {rank} joins {} and {}, which with what they make must be ordinary tokens \
                 of the vocabulary",
                quoted(left),
                quoted(right)
            )));
        };
        merges.insert(pair, Merge { rank, id });
    }
    Ok(merges)
}

/// The error of a text that two ids share.
fn twice(text: &str, first: u32, second: u32) -> Error {
    Error::Tokenizer(format!("tokens {first} and {second} are both {}", quoted(text)))
}
