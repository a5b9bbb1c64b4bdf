//! A tokenizer as the files that Hugging Face folders have of it.

use offshoot_models::{PreTokenizer, TokenKind, TokenizerModel, TokenizerSpec};
use serde_json::{Map, Value, json};

/// `tokenizer.json` of `spec`, with the pipeline that models of its rule have.
pub(crate) fn tokenizer_json(spec: &TokenizerSpec) -> Value {
    let entries = || spec.tokens.iter().zip(&spec.kinds).enumerate();
    let normal = entries().filter(|(_, (_, kind))| **kind == TokenKind::Normal);
    let vocab: Map<String, Value> =
        normal.map(|(id, (text, _))| (text.clone(), id.into())).collect();
    let added: Vec<Value> = entries()
        .filter(|(_, (_, kind))| matches!(kind, TokenKind::Control | TokenKind::UserDefined))
        .map(|(id, (text, kind))| {
            json!({
                "id": id, "content": text, "special": *kind == TokenKind::Control,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let TokenizerModel::ByteLevel { merges, pre } = &spec.model else {
        panic!("only byte-level files are made here")
    };
    let pre = *pre;
    let merges: Vec<String> =
        merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let nfc = pre == PreTokenizer::Qwen2;
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(pre),
        "post_processor": byte_level(false),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": matches!(pre, PreTokenizer::Llama3 | PreTokenizer::Tekken),
            "vocab": vocab,
            "merges": merges,
        },
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// The stages that the published files of each rule's models have.
fn pre_tokenizer(pre: PreTokenizer) -> Value {
    let sequence = |first: Value, regex| json!({ "type": "Sequence", "pretokenizers": [first, byte_level(regex)] });
    let split = |pattern: String| {
        json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false,
        })
    };
    match pre {
        PreTokenizer::SmolLm => {
            sequence(json!({ "type": "Digits", "individual_digits": true }), true)
        }
        PreTokenizer::Gpt2 => byte_level(true),
        other => sequence(split(pattern(other)), false),
    }
}

/// The pattern of a rule whose words are its matches, as the published files have it.
pub(crate) fn pattern(pre: PreTokenizer) -> String {
    let by_case = |endings: &str, digits: &str| {
        let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
        let first = r"[^\r\n\p{L}\p{N}]?";
        format!(
            r"{first}{upper}*{lower}+{endings}|{first}{upper}+{lower}*{endings}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let digits = match pre {
        PreTokenizer::Tekken => return by_case("", r"\p{N}"),
        PreTokenizer::Gpt4o => return by_case(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"),
        PreTokenizer::Qwen2 => r"\p{N}",
        _ => r"\p{N}{1,3}",
    };
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// `tokenizer_config.json` of `spec`: its special tokens by their texts.
pub(crate) fn tokenizer_config(spec: &TokenizerSpec) -> Value {
    let text = |id: Option<u32>| id.map(|id| spec.tokens[id as usize].clone());
    json!({
        "bos_token": text(spec.bos),
        "eos_token": text(spec.eos).map(|content| json!({
            "__type": "AddedToken", "content": content, "lstrip": false,
        })),
        "pad_token": text(spec.pad),
        "unk_token": text(spec.unk),
        "model_max_length": 1e30,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": { "0": { "content": "<|pad|>" } },
    })
}
