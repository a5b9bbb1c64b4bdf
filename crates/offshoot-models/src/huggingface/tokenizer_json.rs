//! The fields of `tokenizer.json` that matter, read so that no list in it costs much more memory than
//! its own bytes.
//!
//! The format is that of the `tokenizers` library, <https://github.com/huggingface/tokenizers>.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::shown::Shown;

/// Most tokens and most merges that are read; published vocabularies have up to 260 thousand.
const TOKENS_MAX: usize = 1 << 20;

/// The whole file. Truncation and padding are settings of training.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    pub(super) added_tokens: List<AddedToken, { 1 << 16 }>,
    pub(super) normalizer: Option<Step>,
    pub(super) pre_tokenizer: Option<Step>,
    pub(super) post_processor: Option<Step>,
    pub(super) decoder: Option<Step>,
    pub(super) model: Model,
}

/// A token that is found in text before anything else is.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
}

/// A stage of the pipeline, or a sequence of them.
pub(super) type Step = Stage<List<Stage<IgnoredAny>, 16>>;

/// One type stands for all: each has the settings of its kind.
#[derive(Deserialize)]
pub(super) struct Stage<S> {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(
        alias = "normalizers",
        alias = "pretokenizers",
        alias = "processors",
        alias = "decoders"
    )]
    pub(super) steps: Option<S>,
    pub(super) pattern: Option<Pattern>,
    pub(super) behavior: Option<String>,
    pub(super) invert: Option<bool>,
    pub(super) individual_digits: Option<bool>,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) use_regex: Option<bool>,
    pub(super) single: Option<List<Piece, 16>>,
    pub(super) prepend: Option<String>,
    pub(super) content: Option<String>,
    pub(super) replacement: Option<String>,
    pub(super) prepend_scheme: Option<String>,
    pub(super) split: Option<bool>,
    pub(super) start: Option<usize>,
    pub(super) stop: Option<usize>,
    pub(super) strip_left: Option<bool>,
    pub(super) strip_right: Option<bool>,
    /// In base64.
    pub(super) precompiled_charsmap: Option<String>,
}

/// What a text is split at.
#[derive(Deserialize)]
pub(super) struct Pattern {
    #[serde(rename = "Regex")]
    pub(super) regex: Option<String>,
    #[serde(rename = "String")]
    pub(super) string: Option<String>,
}

/// A part of a template: a token of its own or the text.
#[derive(Deserialize)]
pub(super) struct Piece {
    #[serde(rename = "SpecialToken")]
    pub(super) token: Option<Named>,
}

/// A token by its text, which the format calls an id.
#[derive(Deserialize)]
pub(super) struct Named {
    pub(super) id: String,
}

/// The vocabulary and what is made of it.
#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) dropout: Option<f64>,
    pub(super) unk_token: Option<String>,
    pub(super) unk_id: Option<u32>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocab,
    #[serde(default)]
    pub(super) merges: List<Merge, TOKENS_MAX>,
}

/// Texts and ids as they come, or texts and scores whose ids are their places.
pub(super) enum Vocab {
    Ids(Vec<(String, u32)>),
    Scores(Vec<(String, f64)>),
}

impl Vocab {
    /// Texts and ids.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, u32)> {
        let (ids, scores) = match self {
            Vocab::Ids(ids) => (&ids[..], &[][..]),
            Vocab::Scores(scores) => (&[][..], &scores[..]),
        };
        let ids = ids.iter().map(|(text, id)| (text.as_str(), *id));
        ids.chain(scores.iter().map(|(text, _)| text.as_str()).zip(0u32..))
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of ids or a list of texts with scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if vocab.len() == TOKENS_MAX {
                        return Err(too_many(TOKENS_MAX));
                    }
                    vocab.push(entry);
                }
                Ok(Vocab::Ids(vocab))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    if vocab.len() == TOKENS_MAX {
                        return Err(too_many(TOKENS_MAX));
                    }
                    vocab.push(entry);
                }
                Ok(Vocab::Scores(vocab))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// Two tokens that become one.
pub(super) struct Merge(pub(super) String, pub(super) String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right))
                        if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
                    {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::custom(format_args!(
                        "merge {}: expected two tokens with a space between",
                        Shown(text)
                    ))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let wrong = || de::Error::custom("a merge of other than two tokens");
                let left = seq.next_element()?.ok_or_else(wrong)?;
                let right = seq.next_element()?.ok_or_else(wrong)?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// A list of at most `MOST`, which may be null.
pub(super) struct List<T, const MOST: usize>(pub(super) Vec<T>);

impl<T, const MOST: usize> Default for List<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
            type Value = List<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(List::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MOST {
                        return Err(too_many(MOST));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_any(Items(PhantomData))
    }
}

fn too_many<E: de::Error>(most: usize) -> E {
    E::custom(format_args!("more than {most} entries"))
}
