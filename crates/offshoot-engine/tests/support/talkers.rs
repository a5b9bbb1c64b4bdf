//! A model of a few kilobytes that reads any text, byte by byte, and has the control tokens of every
//! well-known chat template.

use std::collections::BTreeMap;
use std::path::Path;

use offshoot_kernels::BlockType;
use offshoot_models::gguf::{Array, Value};
use serde::Deserialize;

use crate::tiny::{HIDDEN, Tiny};

/// The control tokens of all templates.
const CONTROLS: [&str; 22] = [
    "<unk>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
];

/// A template as the reference file has it.
#[derive(Deserialize)]
pub(crate) struct Template {
    pub(crate) source: String,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
}

/// The templates that are held against transformers' own, by name.
pub(crate) fn templates() -> BTreeMap<String, Template> {
    #[derive(Deserialize)]
    struct Reference {
        templates: BTreeMap<String, Template>,
    }
    let json = include_str!("../../../offshoot-models/tests/data/templates.json");
    serde_json::from_str::<Reference>(json).unwrap().templates
}

/// The character that GPT-2's alphabet writes a byte as.
fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match plain(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&b| !plain(b)).count() as u32;
            char::from_u32(256 + before).unwrap()
        }
    }
}

/// The model; two line feeds in a row are one token, as in most vocabularies.
pub(crate) fn talker(template: Option<&Template>) -> Tiny {
    let mut tiny = Tiny::smallest("llama");
    let mut tokens: Vec<String> = CONTROLS.iter().map(|&text| text.to_owned()).collect();
    tokens.extend((0..=255u8).map(|byte| letter(byte).to_string()));
    let feed = letter(b'\n');
    tokens.push(format!("{feed}{feed}"));
    let id = |text: &str| tokens.iter().position(|token| token == text).unwrap() as u32;
    // Without a template, ChatML would be assumed if its marks were control tokens.
    let is_control = |i: usize| {
        CONTROLS.get(i).is_some_and(|text| template.is_some() || *text != "<|im_start|>")
    };
    let kinds = (0..tokens.len()).map(|i| if is_control(i) { 3i32 } else { 1 });
    tiny.set("tokenizer.ggml.token_type", kinds.collect::<Array<'_>>());
    let bos = template.and_then(|t| t.bos.clone());
    tiny.set("tokenizer.ggml.bos_token_id", id(bos.as_deref().unwrap_or("<s>")));
    tiny.set("tokenizer.ggml.add_bos_token", Value::Bool(bos.is_some_and(|b| b != "<|im_start|>")));
    let eos = template.and_then(|t| t.eos.clone());
    tiny.set("tokenizer.ggml.eos_token_id", id(eos.as_deref().unwrap_or("<|endoftext|>")));
    tiny.set("tokenizer.ggml.merges", ["\u{10a} \u{10a}"].into_iter().collect::<Array<'_>>());
    match template {
        Some(template) => {
            let source = Value::String(template.source.clone().into());
            tiny.set("tokenizer.chat_template", source);
        }
        None => assert!(tiny.keys.remove("tokenizer.chat_template").is_some()),
    }
    tiny.matrix("token_embd.weight", tokens.len(), HIDDEN, BlockType::Q8_0);
    let texts: Vec<&'static str> =
        tokens.into_iter().map(|token| &*Box::leak(token.into_boxed_str())).collect();
    tiny.set("tokenizer.ggml.tokens", texts.into_iter().collect::<Array<'_>>());
    tiny.set("llama.context_length", 2048u32);
    tiny
}

/// Writes the model into `folder`; gives its path.
pub(crate) fn write(folder: &Path, template: Option<&Template>) -> std::path::PathBuf {
    let path = folder.join("talker.gguf");
    std::fs::write(&path, talker(template).bytes()).unwrap();
    path
}
