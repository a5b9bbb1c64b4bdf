//! Small vocabularies of SentencePiece as `scripts/oracles/pieces.py` made them, in tiny models.

use offshoot_kernels::BlockType;
use offshoot_models::Checkpoint;
use offshoot_models::gguf::Array;
use serde_json::{Value, json};

use super::folder::Folder;
use super::tiny::{HIDDEN, Tiny};

/// A family's vocabulary in both forms, and the ids of the texts.
#[derive(Clone)]
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) scores: Vec<f32>,
    pub(crate) kinds: Vec<i32>,
    pub(crate) bos: u32,
    pub(crate) eos: u32,
    pub(crate) unk: u32,
    pub(crate) tokenizer_json: Value,
    /// Ids by the `tokenizers` library.
    pub(crate) library: Vec<Vec<u32>>,
    /// Ids by SentencePiece, of the texts without added tokens.
    pub(crate) sentencepiece: Vec<Vec<u32>>,
}

/// What the script wrote.
fn reference() -> Value {
    serde_json::from_str(include_str!("../data/pieces.json")).unwrap()
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(item).collect()
}

/// The texts that ids are given of.
pub(crate) fn texts() -> Vec<String> {
    list(&reference()["texts"], |text| text.as_str().unwrap().to_owned())
}

/// The vocabulary of a family.
pub(crate) fn vocabulary(family: &str) -> Vocabulary {
    let value = &reference()[family];
    let number = |value: &Value| value.as_u64().unwrap() as u32;
    let ids = |name: &str| list(&value[name], |ids| list(ids, number));
    Vocabulary {
        tokens: list(&value["tokens"], |text| text.as_str().unwrap().to_owned()),
        scores: list(&value["scores"], |score| score.as_f64().unwrap() as f32),
        kinds: list(&value["kinds"], |kind| number(kind) as i32),
        bos: number(&value["bos"]),
        eos: number(&value["eos"]),
        unk: number(&value["unk"]),
        tokenizer_json: value["tokenizer_json"].clone(),
        library: ids("library"),
        sentencepiece: ids("sentencepiece"),
    }
}

/// A vocabulary of twelve tokens, for a corpus where bytes count.
pub(crate) fn smallest() -> Tiny {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x0A>",
        "\u{2581}",
        "a",
        "b",
        "\u{2581}a",
        "ab",
        "\u{2581}ab",
        "  ",
        "<x>",
    ];
    Vocabulary {
        tokens: tokens.map(str::to_owned).to_vec(),
        scores: vec![0.0, 0.0, 0.0, 0.0, -7.0, -8.0, -9.0, 0.0, -1.0, -2.0, -1000.0, -1000.0],
        kinds: vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 4, 4],
        bos: 1,
        eos: 2,
        unk: 0,
        tokenizer_json: Value::Null,
        library: Vec::new(),
        sentencepiece: Vec::new(),
    }
    .tiny("llama")
}

impl Vocabulary {
    /// A GGUF file with this tokenizer, of the family called `name`.
    pub(crate) fn tiny(&self, name: &str) -> Tiny {
        let mut tiny = match name {
            "gemma3" => Tiny::gemma3(),
            "phi3" => Tiny::phi3(),
            _ => Tiny::smallest("llama"),
        };
        for key in ["pre", "merges", "padding_token_id"] {
            tiny.keys.remove(&format!("tokenizer.ggml.{key}"));
        }
        tiny.matrix("token_embd.weight", self.tokens.len(), HIDDEN, BlockType::Q8_0);
        tiny.set("tokenizer.ggml.model", if name == "unigram" { "t5" } else { "llama" });
        if name == "unigram" {
            tiny.set("tokenizer.ggml.add_bos_token", true);
            tiny.set("tokenizer.ggml.add_eos_token", false);
        }
        let tokens: Array<'_> = self.tokens.iter().map(String::as_str).collect();
        tiny.set("tokenizer.ggml.tokens", tokens);
        tiny.set("tokenizer.ggml.scores", self.scores.iter().copied().collect::<Array<'_>>());
        tiny.set("tokenizer.ggml.token_type", self.kinds.iter().copied().collect::<Array<'_>>());
        tiny.set("tokenizer.ggml.bos_token_id", self.bos);
        tiny.set("tokenizer.ggml.eos_token_id", self.eos);
        tiny.set("tokenizer.ggml.unknown_token_id", self.unk);
        if name == "gemma3" {
            tiny.set("tokenizer.ggml.add_space_prefix", false);
        }
        tiny
    }

    /// A folder of the model of `checkpoint` with this tokenizer as `json` has it.
    pub(crate) fn folder(&self, checkpoint: &Checkpoint, json: &Value) -> Folder {
        let mut folder = Folder::of(checkpoint);
        folder.put("tokenizer.json", json);
        let text = |id: u32| self.tokens[id as usize].clone();
        let names = json!({
            "bos_token": text(self.bos), "eos_token": text(self.eos), "unk_token": text(self.unk),
        });
        folder.put("tokenizer_config.json", &names);
        folder
    }
}
