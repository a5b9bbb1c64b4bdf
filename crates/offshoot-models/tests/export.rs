//! Writing models: the GGUF file of a folder, and the folder of a file or of a folder, are the model
//! that they were made from.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use logits::{MODELS, packed, reference};
use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::gguf::{Export, ExportOptions, parse};
use offshoot_models::huggingface::{FolderExport, FolderOptions};
use offshoot_models::{
    BaseId, Checkpoint, Error, ExportError, Family, ModelConfig, PreTokenizer, Recipe, TemplateId,
    TokenKind, TokenizerId, TokenizerModel, TokenizerSpec,
};
use serde_json::{Value, json};
use support::folder::Folder;
use support::tiny::Tiny;
use support::tokenizer_files::{tokenizer_config, tokenizer_json};

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), 2)
}

/// A tokenizer of as many tokens, which cuts nothing well.
fn spec(tokens: usize) -> TokenizerSpec {
    let mut kinds = vec![TokenKind::Normal; tokens];
    kinds[0] = TokenKind::Control;
    TokenizerSpec {
        tokens: (0..tokens).map(|i| format!("<{i}>")).collect(),
        kinds,
        model: TokenizerModel::ByteLevel { merges: Vec::new(), pre: PreTokenizer::Gpt2 },
        matching: Vec::new(),
        bos: None,
        eos: Some(0),
        pad: None,
        unk: None,
        add_bos: false,
        add_eos: false,
        end_of_turn: Vec::new(),
    }
}

/// The folder of one of the models that transformers computed logits of, with all its files.
fn folder(name: &str) -> Folder {
    let checkpoint = logits::checkpoint(name);
    let mut folder = Folder::of(&checkpoint);
    match name {
        "llama_factors" => folder.set(
            "rope_scaling",
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }),
        ),
        "qwen3_yarn" => folder.set(
            "rope_scaling",
            json!({
                "rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0,
                "original_max_position_embeddings": 64,
            }),
        ),
        _ => {}
    }
    if matches!(checkpoint.config().family, Family::Gemma3 | Family::Qwen3 | Family::Qwen3Moe) {
        // Those with biases are refused.
        folder.set("attention_bias", false);
        folder.tensors.retain(|name, _| !name.ends_with(".bias"));
    }
    let spec = spec(checkpoint.config().vocab_size);
    folder.put("tokenizer.json", &tokenizer_json(&spec));
    folder.put("tokenizer_config.json", &tokenizer_config(&spec));
    folder.put("generation_config.json", &json!({ "temperature": 0.5, "top_k": 7, "min_p": 0.1 }));
    folder.files.insert("chat_template.jinja".into(), b"{{ messages[0].content }}".to_vec());
    folder
}

/// The model's GGUF file, opened.
fn as_file(checkpoint: &Checkpoint, recipe: Recipe, dir: &Path) -> Result<Checkpoint, ExportError> {
    let options = ExportOptions { recipe, requantize: true, name: None };
    let path = dir.join("model.gguf");
    let mut out = File::create(&path).unwrap();
    Export::new(checkpoint, &options)?.write(&cpu(), &mut out, &mut |_| true)?;
    Ok(Checkpoint::open(&path).unwrap())
}

/// The model's folder, opened.
fn as_folder(
    checkpoint: &Checkpoint,
    floats: Recipe,
    shard_bytes: u64,
    dir: &Path,
) -> Result<Checkpoint, ExportError> {
    let export = FolderExport::new(
        checkpoint,
        &FolderOptions { floats, single_vectors: false, shard_bytes },
    )?;
    let mut create = |name: &str| Ok(Box::new(File::create_new(dir.join(name))?) as Box<dyn Write>);
    let (mut last, all) = (0, export.weights());
    let mut progress = |done| {
        last = done;
        true
    };
    export.write(&cpu(), &mut create, &mut progress)?;
    assert_eq!(last, all);
    let read = Checkpoint::open(dir).unwrap();
    let shards = read.files().len() - 1;
    assert_eq!(shards, export.weight_files());
    Ok(read)
}

fn refusal<T>(result: Result<T, ExportError>) -> String {
    match result {
        Err(ExportError::Model(error @ Error::Export(_))) => {
            support::assert_one_line(&error, "export");
            error.to_string()
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("written"),
    }
}

/// The bits of the logits of a text.
fn bits(checkpoint: Checkpoint, tokens: &[u32]) -> Vec<u32> {
    packed(checkpoint, cpu(), tokens, tokens.len()).iter().map(|x| x.to_bits()).collect()
}

/// Fails unless both are the same model, tokenizer and all.
#[track_caller]
fn assert_same(name: &str, one: Checkpoint, other: Checkpoint, tokens: &[u32]) {
    // A Mistral without a window is a Llama in GGUF files.
    let config = |checkpoint: &Checkpoint| match checkpoint.config() {
        c if c.sliding_window.is_none() && c.family == Family::Mistral => {
            ModelConfig { family: Family::Llama, ..c.clone() }
        }
        c => c.clone(),
    };
    assert_eq!(config(&one), config(&other), "{name}");
    assert_eq!(BaseId::of(&one).unwrap(), BaseId::of(&other).unwrap(), "{name}");
    let template = |c: &Checkpoint| c.chat_template().map(TemplateId::of);
    assert_eq!(template(&one), template(&other), "{name}");
    assert_eq!(one.stop_tokens(), other.stop_tokens(), "{name}");
    assert_eq!(one.generation(), other.generation(), "{name}");
    let tokenizer = |c: &Checkpoint| c.tokenizer().ok().map(TokenizerId::of);
    assert_eq!(tokenizer(&one), tokenizer(&other), "{name}");
    assert!(bits(one, tokens) == bits(other, tokens), "{name}: other logits");
}

/// What only folders say of models that a file can say too: their changes of `config.json`.
fn further() -> Vec<(&'static str, Folder)> {
    let like = |name: &str, fields: &[(&str, Value)]| {
        let mut folder = folder(name);
        fields.iter().for_each(|(field, value)| folder.set(field, value.clone()));
        folder
    };
    let mut long = folder("phi3_short").config["rope_scaling"].clone();
    long["original_max_position_embeddings"] = 16.into();
    let mut yarn = folder("qwen3_yarn").config["rope_scaling"].clone();
    yarn["attention_factor"] = 1.25.into();
    let mut own_factor = long.clone();
    own_factor["attention_factor"] = 1.5.into();
    let layers = folder("gemma3_linear").config["num_hidden_layers"].as_u64().unwrap();
    let local: Vec<_> = (0..layers).map(|_| "sliding_attention").collect();
    vec![
        ("mistral_window", like("mistral_window", &[("sliding_window", Value::Null)])),
        ("mistral_window", like("mistral_window", &[("rope_scaling", yarn.clone())])),
        ("phi3_short", like("phi3_short", &[("rope_scaling", long)])),
        ("phi3_short", like("phi3_short", &[("rope_scaling", own_factor)])),
        ("phi3_short", like("phi3_short", &[("sliding_window", Value::Null)])),
        ("phi3_short", like("phi3_short", &[("rope_scaling", yarn.clone())])),
        ("phi3_plain", like("phi3_plain", &[("partial_rotary_factor", 0.5.into())])),
        ("qwen2_tied", like("qwen2_tied", &[("rope_scaling", yarn.clone())])),
        ("qwen3_yarn", like("qwen3_yarn", &[("rope_scaling", yarn)])),
        ("gemma3_linear", like("gemma3_linear", &[("layer_types", json!(local))])),
        ("gemma3_linear", like("gemma3_linear", &[("final_logit_softcapping", Value::Null)])),
        ("gemma3_linear", folder("gemma3_linear").beside_vision("language_model.model.", "")),
    ]
}

#[test]
fn the_file_of_a_folder_is_the_same_model() {
    let named = MODELS.into_iter().map(|name| (name, folder(name)));
    for (name, folder) in named.chain(further()) {
        let tokens = reference(name).tokens;
        for (recipe, folder) in
            [(Recipe::F32, folder.clone()), (Recipe::F16, folder.rounded(BlockType::F16))]
        {
            let dir = tempfile::tempdir().unwrap();
            let plain = folder.open().unwrap();
            let file = as_file(&plain, recipe, dir.path());
            if name == "qwen3_moe_mixed" {
                let refused = refusal(file);
                assert!(refused.contains("with experts in some layers"), "{refused}");
                continue;
            }
            assert_same(name, plain, file.unwrap(), &tokens);
        }
    }
}

#[test]
fn a_folder_quantised_while_loading_is_its_file_where_matrices_are_fused() {
    let tokens = reference("phi3_short").tokens;
    for recipe in Recipe::ALL {
        let dir = tempfile::tempdir().unwrap();
        let plain = folder("phi3_short").open().unwrap();
        let file = as_file(&plain, recipe, dir.path()).unwrap();
        let fused = ["blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"];
        let bytes = std::fs::read(dir.path().join("model.gguf")).unwrap();
        let read = parse(&bytes).unwrap();
        assert!(fused.iter().all(|name| read.tensor(name).is_some()));
        assert!(read.tensor("blk.0.attn_q.weight").is_none());
        // A file's vectors are in single precision; their numbers are the same.
        assert_same(recipe.name(), plain.quantized(recipe), file, &tokens);
    }
}

#[test]
fn what_a_file_has_no_place_for_is_refused() {
    let like = |name: &str, field: &str, value: Value| {
        let mut folder = folder(name);
        folder.set(field, value);
        folder
    };
    let named = MODELS.into_iter().find(|name| {
        let checkpoint = logits::checkpoint(name);
        checkpoint.config().family == Family::Qwen3 && checkpoint.config().attention_bias
    });
    let mut biases = Folder::of(&logits::checkpoint(named.unwrap()));
    biases.files = folder("qwen3_tied").files;
    let yarn = folder("qwen3_yarn").config["rope_scaling"].clone();
    let llama3 = folder("llama_factors").config["rope_scaling"].clone();
    let mut window = like("qwen3_tied", "sliding_window", 4.into());
    window.set("use_sliding_window", true);
    window.set("max_window_layers", 1);
    let layers = folder("gemma3_linear").config["num_hidden_layers"].as_u64().unwrap();
    let odd: Vec<_> = (0..layers)
        .map(|i| if i == 1 || i == 2 { "full_attention" } else { "sliding_attention" })
        .collect();
    for (folder, part) in [
        (window, "a window of attention"),
        (biases, "biases of attention"),
        (like("gemma3_linear", "query_pre_attn_scalar", 40.into()), "query_pre_attn_scalar 40"),
        (like("gemma3_linear", "layer_types", json!(odd)), "no regular pattern"),
        (like("gemma3_linear", "rope_scaling", yarn), "stretched"),
        (like("qwen2_tied", "rope_scaling", llama3), "stretched"),
    ] {
        let plain = folder.open().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let refused = refusal(as_file(&plain, Recipe::F16, dir.path()));
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

#[test]
fn the_folder_of_a_file_is_the_same_model() {
    for name in MODELS {
        let tokens = reference(name).tokens;
        for most in [u64::MAX, 20_000, 1] {
            let dir = tempfile::tempdir().unwrap();
            let written = as_folder(&logits::checkpoint(name), Recipe::F32, most, dir.path());
            if name == "llama_factors" {
                let refused = refusal(written);
                assert!(refused.contains("by no published rule"), "{refused}");
                continue;
            }
            let written = written.unwrap();
            let config = std::fs::read(dir.path().join("config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            let scalar = config.get("query_pre_attn_scalar");
            assert!(
                scalar.is_none_or(Value::is_u64),
                "transformers takes whole numbers: {scalar:?}"
            );
            assert!(most > 1 || written.files().len() > 10, "one tensor a file");
            assert_same(name, logits::checkpoint(name), written, &tokens);
        }
    }
}

#[test]
fn the_folder_of_a_folder_is_the_same_model_with_the_same_files() {
    let named = MODELS.into_iter().map(|name| (name, folder(name)));
    for (name, folder) in named.chain(further()) {
        let tokens = reference(name).tokens;
        for (floats, block) in [(Recipe::F32, BlockType::F32), (Recipe::F16, BlockType::F16)] {
            let folder = folder.rounded(block);
            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            folder.save_shards(from.path(), 2);
            let plain = Checkpoint::open(from.path()).unwrap();
            let written = as_folder(&plain, floats, 1 << 30, to.path()).unwrap();
            assert_same(name, plain, written, &tokens);
            for file in folder.files.keys() {
                let [old, new] =
                    [&from, &to].map(|dir| std::fs::read(dir.path().join(file)).unwrap());
                assert_eq!(old, new, "{file}");
            }
            let config = std::fs::read(to.path().join("config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            let expected = if block == BlockType::F16 { "float16" } else { "float32" };
            assert_eq!(config["torch_dtype"], expected);
            assert_eq!(config["transformers_version"], folder.config["transformers_version"]);
            // Half the bytes of one file where every number is a half.
            let bytes = |dir: &Path| {
                let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
                let weights =
                    files.filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"));
                weights.map(|e| e.metadata().unwrap().len()).sum::<u64>()
            };
            let (old, new) = (bytes(from.path()), bytes(to.path()));
            assert!(new.abs_diff(old) < 2000, "{old} {new}");
        }
    }
}

#[test]
fn the_folder_of_a_quantised_file_holds_what_its_blocks_stand_for() {
    for tiny in Tiny::families() {
        let mut tiny = tiny.clone();
        tiny.set("general.sampling.temp", 0.25f32);
        tiny.set("general.sampling.top_k", 9i32);
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = dir.path().join("tiny.gguf");
        std::fs::write(&path, tiny.bytes()).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        let written = as_folder(&file, Recipe::F32, 1 << 30, to.path()).unwrap();
        let name = file.config().family.name();
        assert_eq!(written.config(), file.config());
        assert_eq!(BaseId::of(&written).unwrap(), BaseId::of(&file).unwrap(), "{name}");
        let tokenizer = |c: &Checkpoint| TokenizerId::of(c.tokenizer().unwrap());
        assert_eq!(tokenizer(&written), tokenizer(&file), "{name}");
        assert_eq!(written.chat_template(), file.chat_template(), "{name}");
        assert_eq!(written.stop_tokens(), file.stop_tokens(), "{name}");
        assert_eq!(written.generation(), file.generation(), "{name}");
        let half = tempfile::tempdir().unwrap();
        let half = as_folder(&file, Recipe::Bf16, 1 << 30, half.path()).unwrap();
        let blocks = half.tensors().map(|t| t.info.block);
        assert!(blocks.into_iter().all(|block| block == BlockType::Bf16), "the vectors are short");
        let refused = refusal(as_folder(&file, Recipe::Q8_0, 1 << 30, to.path()));
        assert!(refused.contains("q8_0 in a folder"), "{refused}");
    }
}

#[test]
fn tokenizers_that_put_tokens_around_a_text_are_written_so() {
    let mut tiny = Tiny::llama();
    tiny.set("tokenizer.ggml.add_bos_token", true);
    tiny.set("tokenizer.ggml.add_eos_token", true);
    for pre in ["smollm", "gpt-2", "llama-bpe"] {
        tiny.set("tokenizer.ggml.pre", pre);
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = dir.path().join("tiny.gguf");
        std::fs::write(&path, tiny.bytes()).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        let written = as_folder(&file, Recipe::F16, 1 << 30, to.path()).unwrap();
        let tokenizer = |c: &Checkpoint| TokenizerId::of(c.tokenizer().unwrap());
        assert_eq!(tokenizer(&written), tokenizer(&file), "{pre}");
        // The library makes the same of a text.
        let library = tokenizers::Tokenizer::from_file(to.path().join("tokenizer.json")).unwrap();
        let ids = library.encode("abcd<|im_end|>é", true).unwrap().get_ids().to_vec();
        let ours = offshoot_models::Tokenizer::new(file.tokenizer().unwrap()).unwrap();
        let mut expected = vec![1];
        expected.extend(ours.encode("abcd<|im_end|>é", offshoot_models::Special::Parse).unwrap());
        expected.push(2);
        assert_eq!(ids, expected, "{pre}");
    }
}
