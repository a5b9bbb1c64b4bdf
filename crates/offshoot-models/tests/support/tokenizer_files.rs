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
    let nfc = matches!(pre, PreTokenizer::Qwen2 | PreTokenizer::Qwen35 | PreTokenizer::CommandR);
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
    let split = |pattern: String| {
        json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false,
        })
    };
    let digits = |each: bool| json!({ "type": "Digits", "individual_digits": each });
    let mut stages: Vec<Value> = patterns(pre).into_iter().map(split).collect();
    match pre {
        PreTokenizer::Gpt2 => return byte_level(true),
        PreTokenizer::SmolLm | PreTokenizer::CommandR => stages = vec![digits(true)],
        PreTokenizer::DeepSeekLlm => stages.extend([digits(false)]),
        PreTokenizer::DeepSeekCoder => stages.extend([digits(true)]),
        _ => {}
    }
    stages.push(byte_level(matches!(pre, PreTokenizer::SmolLm | PreTokenizer::CommandR)));
    json!({ "type": "Sequence", "pretokenizers": stages })
}

/// The patterns of a rule whose words are their matches and what is between them, as the published
/// files have them; DeepSeek's first two rules cut digits behind them.
pub(crate) fn patterns(pre: PreTokenizer) -> Vec<String> {
    let by_case = |endings: &str, digits: &str| {
        let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
        let first = r"[^\r\n\p{L}\p{N}]?";
        vec![format!(
            r"{first}{upper}*{lower}+{endings}|{first}{upper}+{lower}*{endings}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )]
    };
    let usual = |marks: &str, digits: &str| {
        let letters =
            if marks.is_empty() { r"\p{L}".to_owned() } else { format!(r"[\p{{L}}{marks}]") };
        vec![format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )]
    };
    let owned = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    let east = "[一-龥\u{800}-一가-\u{d7ff}]+";
    match pre {
        PreTokenizer::Gpt2 | PreTokenizer::SmolLm | PreTokenizer::CommandR => Vec::new(),
        PreTokenizer::Tekken => by_case("", r"\p{N}"),
        PreTokenizer::Gpt4o => by_case(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"),
        PreTokenizer::Qwen2 => usual("", r"\p{N}"),
        PreTokenizer::Qwen35 => usual(r"\p{M}", r"\p{N}"),
        PreTokenizer::Llama3 => usual("", r"\p{N}{1,3}"),
        PreTokenizer::DeepSeekLlm => owned(&[
            "[\r\n]",
            "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            "\\s+$",
            east,
        ]),
        PreTokenizer::DeepSeekCoder => owned(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", east]),
        PreTokenizer::DeepSeekV3 => owned(&[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ]),
        other => panic!("no published patterns of {other:?} here"),
    }
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
