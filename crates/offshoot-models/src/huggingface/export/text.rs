//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` of a model that came without
//! them.
//!
//! The pipeline is that of the published files with the same rule of cutting. All tokens that are
//! found whole are in the vocabulary too, since the tokenizers library takes their ids from there.
//! Entries that a GGUF file has only to fill up the embedding are left out, as in published files.

use serde_json::{Map, Value, json};

use super::super::{TOKENIZER, TOKENIZER_CONFIG, generation_config as file};
use super::json as text;
use crate::tokenizer::pattern;
use crate::{Checkpoint, PreTokenizer, TokenKind, TokenizerSpec};

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
    let file = (TOKENIZER.to_owned(), file.to_string().into_bytes());
    [file, (TOKENIZER_CONFIG.to_owned(), text(&config))]
}

fn tokenizer_json(spec: &TokenizerSpec) -> Value {
    let entries = || spec.tokens.iter().zip(&spec.kinds).enumerate();
    let there = entries().filter(|(_, (_, kind))| **kind != TokenKind::Unused);
    let vocab: Map<String, Value> =
        there.map(|(id, (text, _))| (text.clone(), id.into())).collect();
    let added: Vec<Value> = entries()
        .filter(|(_, (_, kind))| matches!(kind, TokenKind::Control | TokenKind::UserDefined))
        .map(|(id, (text, kind))| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == TokenKind::Control,
            })
        })
        .collect();
    let merges: Vec<Value> = spec.merges.iter().map(|(a, b)| json!([a, b])).collect();
    let nfc = spec.pre == PreTokenizer::Qwen2;
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(spec.pre),
        "post_processor": post_processor(spec),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": spec.pre == PreTokenizer::Llama3,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// The byte-level alphabet, with or without GPT-2's pattern.
fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(pre: PreTokenizer) -> Value {
    let sequence = |first: Value, regex| json!({ "type": "Sequence", "pretokenizers": [first, byte_level(regex)] });
    match pre {
        PreTokenizer::Gpt2 => byte_level(true),
        PreTokenizer::SmolLm => {
            sequence(json!({ "type": "Digits", "individual_digits": true }), true)
        }
        PreTokenizer::Qwen2 | PreTokenizer::Llama3 => {
            let split = json!({
                "type": "Split", "pattern": { "Regex": pattern(pre) }, "behavior": "Isolated",
                "invert": false,
            });
            sequence(split, false)
        }
    }
}

/// Puts the tokens of both ends of a text.
fn post_processor(spec: &TokenizerSpec) -> Value {
    let bytes = byte_level(false);
    let [first, last] = [(spec.add_bos, spec.bos), (spec.add_eos, spec.eos)]
        .map(|(added, id)| id.filter(|_| added).map(|id| (id, &spec.tokens[id as usize])));
    if first.is_none() && last.is_none() {
        return bytes;
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
    json!({ "type": "Sequence", "processors": [bytes, template] })
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
