//! Adapters that we write: they read back as they were, and give the same logits in PEFT (the other half
//! of that proof is `scripts/oracles/written_adapters.py`).
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use logits::{
    MODELS, checkpoint, dense_on, max_error, numbers, packed_on, reference, reference_at,
};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::huggingface::{PeftOptions, adapter_files, peft};
use offshoot_models::{
    Checkpoint, DenseAdapters, DenseCache, DenseModel, LoraAdapter, LowRank, PackedAdapters,
    PackedExecutor, PackedModel, VariantId,
};

/// Differences of the matrices whose names end so, of several ranks and scales.
fn adapter(base: &Checkpoint, ends: &[&str], rslora: bool) -> LoraAdapter {
    let model = DenseModel::load(base, &Device::Cpu, DType::F32).unwrap();
    let mut adapter = LoraAdapter::default();
    let linears = model.blueprint().linears.iter().zip(1..);
    for (linear, seed) in linears.filter(|(l, _)| ends.iter().any(|end| l.name.ends_with(end))) {
        let rank = 2 + seed as usize % 2;
        let alpha = if seed % 5 == 0 { 3.5 } else { 6.0 };
        let root = if rslora { (rank as f64).sqrt() } else { rank as f64 };
        let low = LowRank {
            rank,
            scale: (alpha / root) as f32,
            a: numbers(rank * linear.cols, 2 * seed, 0.3),
            b: numbers(linear.rows * rank, 2 * seed + 1, 0.3),
        };
        adapter.matrices.insert(linear.name.clone(), low);
    }
    adapter
}

/// What the two files of `adapter` are read as.
fn read_back(base: &Checkpoint, adapter: &LoraAdapter, options: &PeftOptions) -> LoraAdapter {
    let files = adapter_files(adapter, base.config(), options).unwrap();
    let file = |name: &str| &files.iter().find(|(own, _)| own == name).unwrap().1;
    let (config, weights) = (file("adapter_config.json"), file("adapter_model.safetensors"));
    peft::parse(config, weights, base.config()).unwrap().lora().unwrap().clone()
}

const LAYER: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

#[test]
fn what_is_written_reads_back_as_it_was() {
    for name in MODELS.into_iter().filter(|name| !name.starts_with("phi3")) {
        let base = checkpoint(name);
        for rslora in [false, true] {
            let options = PeftOptions { rslora, ..PeftOptions::default() };
            // Some of a kind alone, the head, and all.
            for ends in [&LAYER[..], &["layers.0.self_attn.v_proj", "down_proj"], &["lm_head"]] {
                let adapter = adapter(&base, ends, rslora);
                if !adapter.matrices.is_empty() {
                    assert_eq!(read_back(&base, &adapter, &options), adapter, "{name}: {ends:?}");
                }
            }
        }
    }
}

#[test]
fn a_base_is_named_and_nothing_is_written_that_does_not_fit() {
    let base = checkpoint("llama_linear");
    let adapter = adapter(&base, &["q_proj"], false);
    let base_model = Some("some/base".to_owned());
    let options = PeftOptions { base_model, dropout: 0.1, rslora: false };
    let files = adapter_files(&adapter, base.config(), &options).unwrap();
    let text = |at: usize| String::from_utf8(files[at].1.clone()).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text(0)).unwrap();
    assert_eq!(config["base_model_name_or_path"], "some/base");
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj"]));
    assert_eq!(config["lora_dropout"], 0.1);
    assert!(text(2).starts_with("---\nlibrary_name: peft\nbase_model: \"some/base\"\n"));
    let other = checkpoint("qwen2_tied");
    assert!(adapter_files(&adapter, other.config(), &options).is_err());
    assert!(adapter_files(&LoraAdapter::default(), base.config(), &options).is_err());
}

fn dense(base: &Checkpoint, adapter: &LoraAdapter, tokens: &[u32]) -> Vec<f32> {
    let model = DenseModel::load(base, &Device::Cpu, DType::F32).unwrap();
    let mut hooks = DenseAdapters::new(&model, std::slice::from_ref(adapter)).unwrap();
    let mut cache = DenseCache::new(model.config());
    dense_on(&model, &mut cache, &mut hooks, (tokens, VariantId(1)))
}

#[test]
fn phi3s_parts_are_one_matrix_in_the_folder_and_change_the_same_logits() {
    let (base, tokens) = (checkpoint("phi3_short"), reference("phi3_short").tokens);
    for ends in [&LAYER[..], &["v_proj", "up_proj"]] {
        let adapter = adapter(&base, ends, false);
        let again = read_back(&base, &adapter, &PeftOptions::default());
        // Of a part whose difference is none there are zeros now.
        assert!(again.matrices.len() >= adapter.matrices.len());
        let (expected, found) = (dense(&base, &adapter, &tokens), dense(&base, &again, &tokens));
        let greatest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(max_error(&found, &expected) < 1e-5 * greatest);
        let untouched = dense(&base, &self::adapter(&base, &["o_proj"], false), &tokens);
        assert!(max_error(&found, &untouched) > 1e-2 * greatest);
    }
}

/// The folders that `scripts/oracles/written_adapters.py` read.
fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/written_adapters").join(file)
}

/// Models, matrices and rule of the adapters there.
const WRITTEN: [(&str, &[&str], bool); 4] = [
    ("llama_factors", &LAYER, false),
    ("qwen2_untied", &["q_proj", "layers.1.mlp.down_proj", "lm_head"], true),
    ("phi3_short", &["q_proj", "v_proj", "up_proj", "down_proj"], false),
    ("gemma3_linear", &LAYER, false),
];

/// With `OFFSHOOT_WRITE_ADAPTERS` the folders are written anew.
#[test]
fn peft_loads_what_we_write_and_gives_our_logits_on_both_executors() {
    for (name, ends, rslora) in WRITTEN {
        let base = checkpoint(name);
        let adapter = adapter(&base, ends, rslora);
        let options = PeftOptions { rslora, ..PeftOptions::default() };
        let files = adapter_files(&adapter, base.config(), &options).unwrap();
        let anew = std::env::var_os("OFFSHOOT_WRITE_ADAPTERS").is_some();
        for (file, bytes) in files.iter().filter(|(file, _)| file != "README.md") {
            let place = data(name).join(file);
            if anew {
                std::fs::create_dir_all(data(name)).unwrap();
                std::fs::write(&place, bytes).unwrap();
            }
            assert!(std::fs::read(&place).unwrap() == *bytes, "{name}: {file} is another now");
        }
        if anew {
            continue;
        }
        let reference = reference_at(&data(&format!("{name}.logits")));
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let tensors = dense(&base, &adapter, &reference.tokens);
        assert!(max_error(&tensors, &reference.logits) < 5e-5 * greatest, "{name}");
        let packed = packed(base, &adapter, &reference.tokens);
        assert!(max_error(&packed, &reference.logits) < 5e-3 * greatest, "{name}");
    }
}

fn packed(base: Checkpoint, adapter: &LoraAdapter, tokens: &[u32]) -> Vec<f32> {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(base), &cpu, None).unwrap();
    let adapters = std::slice::from_ref(adapter);
    let mut hooks = PackedAdapters::new(&cpu, model.blueprint(), adapters).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut cache = model.new_cache(tokens.len());
    packed_on(&mut executor, &model, &mut cache, &mut hooks, (tokens, tokens.len(), VariantId(1)))
}
