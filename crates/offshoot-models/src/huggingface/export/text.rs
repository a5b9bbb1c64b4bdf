//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` of a model that came without
//! them.
//!
//! The pipeline is that of the published files with the same rule of cutting. All tokens that are
//! found whole are in the vocabulary too, since the tokenizers library takes their ids from there.
//! Entries that a GGUF file has only to fill up the embedding are left out, as in published files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::super::{TOKENIZER, TOKENIZER_CONFIG, generation_config as file};
use super::json as text;
use crate::tokenizer::patterns;
use crate::{
    Checkpoint, ExtraSpaces, Pieces, PreTokenizer, SentencePiece, SpacePrefix, TokenKind,
    TokenizerModel, TokenizerSpec,
};

/// `generation_config.json`: ends of answers and settings of sampling.
pub(super) fn generation_config(checkpoint: &Checkpoint) -> (String, Vec<u8>) {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            map.insert(name.to_owned(), value);
        }
    };
    let number = |x: Option<f32>| json!(x.and_then(|x| x.to_string().parse::<f64>().ok()));
    if let Ok(spec) = checkpoint.tokenizer() {
        put("bos_token_id", json!(spec.bos));
        put("pad_token_id", json!(spec.pad));
    }
    put(
        "eos_token_id",
        match checkpoint.stop_tokens() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        },
    );
    let told = checkpoint.generation();
    let greedy = told.temperature == Some(0.0);
    // transformers samples only where it is told to.
    let some = [told.temperature, told.top_p, told.min_p].iter().any(Option::is_some);
    if greedy || some || told.top_k.is_some() {
        put("do_sample", json!(!greedy));
    }
    put("temperature", number(told.temperature.filter(|_| !greedy)));
    put("top_k", json!(told.top_k));
    put("top_p", number(told.top_p));
    put("min_p", number(told.min_p));
    put("repetition_penalty", number(told.repetition_penalty));
    put("max_new_tokens", json!(told.max_new_tokens));
    (file::NAME.to_owned(), text(&map.into()))
}

/// The two files of a tokenizer, with the chat template in the second.
pub(super) fn tokenizer(spec: &TokenizerSpec, template: Option<&str>) -> [(String, Vec<u8>); 2] {
    let file = tokenizer_json(spec);
    let config = tokenizer_config(spec, template);
    // The larger one on one line: people do not read it.
    let file = (TOKENIZER.to_owned(), serde_json::to_vec(&file).unwrap_or_default());
    [file, (TOKENIZER_CONFIG.to_owned(), text(&config))]
}

/// A tokenizer's file. Its tables go into it entry by entry: as values they would take ten times the
/// bytes that they are.
struct File<'s> {
    spec: &'s TokenizerSpec,
    added: Vec<Value>,
    stages: [(&'static str, Value); 5],
}

/// The last stage: what is small of it, and the tables.
struct Model<'s>(&'s TokenizerSpec, &'s Value);

/// Entries that are made as they are written.
struct Entries<F>(F);

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = serializer.serialize_map(None)?;
        file.serialize_entry("version", "1.0")?;
        file.serialize_entry("truncation", &Value::Null)?;
        file.serialize_entry("padding", &Value::Null)?;
        file.serialize_entry("added_tokens", &self.added)?;
        for (name, stage) in &self.stages {
            match *name {
                "model" => file.serialize_entry(name, &Model(self.spec, stage))?,
                name => file.serialize_entry(name, stage)?,
            }
        }
        file.end()
    }
}

impl Serialize for Model<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(spec, fields) = self;
        let mut model = serializer.serialize_map(None)?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            model.serialize_entry(name, value)?;
        }
        let text = |id: u32| &spec.tokens[id as usize];
        match &spec.model {
            TokenizerModel::ByteLevel { merges, .. } => {
                model.serialize_entry("vocab", &Vocabulary(spec))?;
                model.serialize_entry("merges", merges)?;
            }
            TokenizerModel::SentencePiece(SentencePiece {
                pieces: Pieces::Bpe(merges), ..
            }) => {
                model.serialize_entry("vocab", &Vocabulary(spec))?;
                let merges = || merges.iter().map(|(a, b)| (text(*a), text(*b)));
                model.serialize_entry("merges", &Entries(merges))?;
            }
            TokenizerModel::SentencePiece(SentencePiece { pieces, .. }) => {
                let Pieces::Unigram(scores) = pieces else { return model.end() };
                let scored = || spec.tokens.iter().zip(scores);
                model.serialize_entry("vocab", &Entries(scored))?;
            }
        }
        model.end()
    }
}

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Entries<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// The ids of tokens by their texts.
struct Vocabulary<'s>(&'s TokenizerSpec);

impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.0.tokens.iter().zip(&self.0.kinds).enumerate();
        let there = entries.filter(|(_, (_, kind))| **kind != TokenKind::Unused);
        serializer.collect_map(there.map(|(id, (text, _))| (text, id)))
    }
}

fn tokenizer_json(spec: &TokenizerSpec) -> File<'_> {
    let entries = || spec.tokens.iter().zip(&spec.kinds).enumerate();
    let matching = |id: usize| {
        let at = spec.matching.binary_search_by_key(&id, |(id, _)| *id as usize);
        at.map_or_else(|_| Default::default(), |at| spec.matching[at].1)
    };
    let found_whole = |kind: &TokenKind| {
        matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
    };
    let added: Vec<Value> = entries()
        .filter(|(_, (_, kind))| found_whole(kind))
        .map(|(id, (text, kind))| {
            let how = matching(id);
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": how.lstrip,
                "rstrip": how.rstrip, "normalized": how.normalized,
                "special": *kind != TokenKind::UserDefined,
            })
        })
        .collect();
    let stages = match &spec.model {
        TokenizerModel::ByteLevel { pre, .. } => of_bytes(spec, *pre),
        TokenizerModel::SentencePiece(pieces) => of_pieces(spec, pieces),
    };
    File { spec, added, stages }
}

/// The stages of byte-pair merges of words.
fn of_bytes(spec: &TokenizerSpec, pre: PreTokenizer) -> [(&'static str, Value); 5] {
    let nfc = pre.is_nfc();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": pre.takes_whole_words(),
    });
    [
        ("normalizer", if nfc { json!({ "type": "NFC" }) } else { Value::Null }),
        ("pre_tokenizer", pre_tokenizer(pre)),
        ("post_processor", post_processor(spec, Some(byte_level(false)))),
        ("decoder", byte_level(true)),
        ("model", model),
    ]
}

/// The stages of SentencePiece's pieces, in the form of the files that have the same prefix.
fn of_pieces(spec: &TokenizerSpec, pieces: &SentencePiece) -> [(&'static str, Value); 5] {
    const SPACE: &str = "\u{2581}";
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let sequence = |kind: &str, steps: Vec<Value>| json!({ "type": "Sequence", kind: steps });
    let metaspace = |scheme: &str| {
        json!({
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme,
            "split": pieces.cut_at_spaces,
        })
    };
    let (normalizer, pre_tokenizer) = match (pieces.prefix, pieces.cut_at_spaces) {
        (SpacePrefix::Never, false) => (replace(" ", SPACE), Value::Null),
        (SpacePrefix::Never, true) => (Value::Null, metaspace("never")),
        (SpacePrefix::Start, _) => (Value::Null, metaspace("first")),
        (SpacePrefix::Parts, _) | (SpacePrefix::EveryPart, true) => {
            (Value::Null, metaspace("always"))
        }
        (SpacePrefix::EveryPart, false) => {
            let prepend = json!({ "type": "Prepend", "prepend": SPACE });
            (sequence("normalizers", vec![prepend, replace(" ", SPACE)]), Value::Null)
        }
    };
    let mut first = Vec::new();
    if let Some(charsmap) = &pieces.charsmap {
        let table = STANDARD.encode(charsmap.to_bytes());
        first.push(json!({ "type": "Precompiled", "precompiled_charsmap": table }));
    }
    if pieces.extra_spaces == ExtraSpaces::Remove {
        first.push(json!({ "type": "Strip", "strip_left": false, "strip_right": true }));
    }
    if pieces.extra_spaces != ExtraSpaces::Keep {
        let runs = json!({ "Regex": " {2,}" });
        first.push(json!({ "type": "Replace", "pattern": runs, "content": SPACE }));
    }
    let normalizer = match first.is_empty() {
        true => normalizer,
        false => {
            let others = match &normalizer {
                Value::Null => Vec::new(),
                other => other["normalizers"].as_array().cloned().unwrap_or(vec![other.clone()]),
            };
            sequence("normalizers", [first, others].concat())
        }
    };
    let mut decoders =
        vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if pieces.strip_space {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let text = |id: u32| &spec.tokens[id as usize];
    let model = match &pieces.pieces {
        Pieces::Bpe(_) => json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": spec.unk.map(text),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": pieces.byte_fallback,
            "ignore_merges": false,
        }),
        Pieces::Unigram(_) => json!({
            "type": "Unigram",
            "unk_id": spec.unk,
            "byte_fallback": pieces.byte_fallback,
        }),
    };
    [
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", post_processor(spec, None)),
        ("decoder", sequence("decoders", decoders)),
        ("model", model),
    ]
}

/// The byte-level alphabet, with or without GPT-2's pattern.
fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(pre: PreTokenizer) -> Value {
    let split = |pattern: &&str| {
        json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false,
        })
    };
    let stages = match pre {
        PreTokenizer::Gpt2 => return byte_level(true),
        PreTokenizer::SmolLm | PreTokenizer::CommandR => {
            vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)]
        }
        other => patterns(other).iter().map(split).chain([byte_level(false)]).collect(),
    };
    json!({ "type": "Sequence", "pretokenizers": stages })
}

/// Puts the tokens of both ends of a text, behind another stage if there is one.
fn post_processor(spec: &TokenizerSpec, before: Option<Value>) -> Value {
    let [first, last] = [(spec.add_bos, spec.bos), (spec.add_eos, spec.eos)]
        .map(|(added, id)| id.filter(|_| added).map(|id| (id, &spec.tokens[id as usize])));
    if first.is_none() && last.is_none() {
        return before.unwrap_or(Value::Null);
    }
    let piece =
        |(_, text): &(u32, &String)| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let around = |sequence: &str| -> Vec<Value> {
        let text = json!({ "Sequence": { "id": sequence, "type_id": 0 } });
        first.iter().map(piece).chain([text]).chain(last.iter().map(piece)).collect()
    };
    let tokens: Map<String, Value> = first
        .iter()
        .chain(&last)
        .map(|(id, text)| ((*text).clone(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    let pair = [around("A"), around("B")].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": pair,
        "special_tokens": tokens,
    });
    match before {
        None => template,
        Some(before) => json!({ "type": "Sequence", "processors": [before, template] }),
    }
}

fn tokenizer_config(spec: &TokenizerSpec, template: Option<&str>) -> Value {
    let token = |id: Option<u32>| id.and_then(|id| spec.tokens.get(id as usize));
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(spec.bos),
        "eos_token": token(spec.eos),
        "pad_token": token(spec.pad),
        "unk_token": token(spec.unk),
        "add_bos_token": spec.add_bos,
        "add_eos_token": spec.add_eos,
        "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    config
}
