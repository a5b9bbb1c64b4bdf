//! LoRA adapters as PEFT saves them: its logits on both executors and from every form of the base, and
//! what is refused. References by `scripts/oracles/adapters.py`.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use logits::{adapter_files, bits, dense_on, max_error, packed_on, reference_at};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::huggingface::peft;
use offshoot_models::{
    Checkpoint, DenseAdapters, DenseCache, DenseModel, Error, LogitRows, LoraAdapter, NoHooks,
    PackedAdapters, PackedExecutor, PackedModel, Segment, VariantId, chain,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::assert_one_line;
use support::folder::Folder;

const ADAPTERS: [&str; 8] = [
    "llama_factors",
    "qwen2_untied",
    "phi3_short",
    "gemma3_linear",
    "llama_linear",
    "mistral_window",
    "qwen3_yarn",
    "qwen3_moe",
];
/// How far ours may be from transformers', over the greatest logit.
const CLOSE: f32 = 5e-3;
const ADAPTED: VariantId = VariantId(1);

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(file)
}

fn adapter(name: &str, base: &Checkpoint) -> LoraAdapter {
    LoraAdapter::open(&data(name), base.config()).unwrap()
}

/// Logits of all of `tokens`, `step` at a time, as `variant`.
fn packed(
    base: Checkpoint,
    adapter: &LoraAdapter,
    tokens: &[u32],
    step: usize,
    variant: VariantId,
) -> Vec<f32> {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(base), &cpu, None).unwrap();
    let adapters = std::slice::from_ref(adapter);
    let mut hooks = PackedAdapters::new(&cpu, model.blueprint(), adapters).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut cache = model.new_cache(tokens.len());
    packed_on(&mut executor, &model, &mut cache, &mut hooks, (tokens, step, variant))
}

fn dense(base: &Checkpoint, adapter: &LoraAdapter, tokens: &[u32]) -> Vec<f32> {
    let model = DenseModel::load(base, &Device::Cpu, DType::F32).unwrap();
    let mut hooks = DenseAdapters::new(&model, std::slice::from_ref(adapter)).unwrap();
    let mut cache = DenseCache::new(model.config());
    dense_on(&model, &mut cache, &mut hooks, (tokens, ADAPTED))
}

/// The same base as a folder.
fn as_folder(name: &str) -> Checkpoint {
    let mut folder = Folder::of(&logits::checkpoint(name));
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
    folder.open().unwrap()
}

#[test]
fn an_adapter_gives_the_logits_of_peft_on_a_file_and_on_a_folder_on_both_executors() {
    for name in ADAPTERS {
        let reference = reference_at(&data(&format!("{name}.logits")));
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let file = logits::checkpoint(name);
        let adapter = adapter(name, &file);
        assert_eq!(LoraAdapter::open(&data(name), as_folder(name).config()).unwrap(), adapter);
        let from_file = packed(file, &adapter, &reference.tokens, 24, ADAPTED);
        let from_folder = packed(as_folder(name), &adapter, &reference.tokens, 24, ADAPTED);
        let tensors = dense(&logits::checkpoint(name), &adapter, &reference.tokens);
        // The packed executor keeps keys and values in half precision.
        for (ours, close) in [(&from_file, CLOSE), (&from_folder, CLOSE), (&tensors, CLOSE / 100.0)]
        {
            let error = max_error(ours, &reference.logits);
            assert!(error < close * greatest, "{name}: {error} of {greatest}");
        }
        if name == "llama_factors" {
            // The file's factors are no rounded powers, but quotients of rounded frequencies.
            let error = max_error(&from_file, &from_folder);
            assert!(error < 1e-3 * greatest, "{name}: {error} of {greatest}");
        } else {
            assert!(bits(&from_file) == bits(&from_folder), "{name}");
        }
    }
}

#[test]
fn how_a_text_is_cut_into_steps_changes_no_bit_and_the_base_is_untouched() {
    for name in ADAPTERS {
        let tokens = reference_at(&data(&format!("{name}.logits"))).tokens;
        let adapter = adapter(name, &logits::checkpoint(name));
        let run =
            |step, variant| packed(logits::checkpoint(name), &adapter, &tokens, step, variant);
        let whole = bits(&run(24, ADAPTED));
        for step in [1, 5] {
            assert!(bits(&run(step, ADAPTED)) == whole, "{name}, {step} at a time");
        }
        let base = run(24, VariantId::default());
        let reference = logits::reference(name);
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(max_error(&base, &reference.logits) < CLOSE * greatest, "{name}: the base");
    }
}

#[test]
fn variants_and_the_base_run_beside_each_other_in_one_step() {
    let name = "qwen2_untied";
    let tokens = reference_at(&data(&format!("{name}.logits"))).tokens;
    let adapter = adapter(name, &logits::checkpoint(name));
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(logits::checkpoint(name)), &cpu, None).unwrap();
    let mut twice = adapter.clone();
    twice.matrices.values_mut().for_each(|low| low.scale *= 2.0);
    let all = [adapter.clone(), twice.clone()];
    let mut hooks = PackedAdapters::new(&cpu, model.blueprint(), &all).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut caches: Vec<_> = (0..3).map(|_| model.new_cache(24)).collect();
    let (parents, positions) = (chain(24), (0..24).collect::<Vec<_>>());
    let mut segments: Vec<_> = caches
        .iter_mut()
        .zip(0..)
        .map(|(cache, variant)| Segment {
            cache,
            tokens: &tokens,
            parents: &parents,
            positions: &positions,
            rope: model.config().rope_for(24),
            variant: VariantId(variant),
            logits: LogitRows::All,
        })
        .collect();
    let together = executor.step(&model, &mut segments, &mut hooks).unwrap();
    let alone = |adapter: &LoraAdapter, variant| {
        packed(logits::checkpoint(name), adapter, &tokens, 24, VariantId(variant))
    };
    let expected = [alone(&adapter, 0), alone(&adapter, 1), alone(&twice, 1)].concat();
    assert!(bits(together) == bits(&expected));
    let mut cache = model.new_cache(24);
    let base = Segment {
        cache: &mut cache,
        tokens: &tokens,
        parents: &parents,
        positions: &positions,
        rope: model.config().rope_for(24),
        variant: VariantId::default(),
        logits: LogitRows::All,
    };
    let plain = executor.step(&model, &mut [base], &mut NoHooks).unwrap();
    assert!(bits(plain) == bits(&expected[..plain.len()]));
}

fn parse(name: &str, config: &Value, weights: &[u8]) -> Result<LoraAdapter, Error> {
    let base = logits::checkpoint(name);
    let parsed = peft::parse(config.to_string().as_bytes(), weights, base.config());
    parsed.map(|adapter| adapter.lora().unwrap().clone())
}

#[test]
fn what_would_be_applied_in_part_is_refused_by_its_name() {
    let name = "llama_factors";
    let (config, weights) = adapter_files(&data(name));
    let refused = |field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        let told = parse(name, &config, &weights).unwrap_err().to_string();
        assert!(told.contains("adapter_config.json") && told.contains(field), "{told}");
        assert!(!told.contains('\n'), "{told}");
    };
    refused("peft_type", json!("IA3"));
    refused("peft_type", Value::Null);
    refused("bias", json!("all"));
    refused("use_dora", json!(true));
    refused("fan_in_fan_out", json!(true));
    refused("modules_to_save", json!(["lm_head"]));
    refused("layer_replication", json!([[0, 2]]));
    refused("trainable_token_indices", json!([1, 2]));
    refused("target_parameters", json!(["mlp.experts"]));
    refused("init_lora_weights", json!("pissa_niter_16"));
    refused("lora_alpha", json!("much"));
    refused("lora_alpha", json!(1e9));
    refused("r", json!(-4));
    refused("rank_pattern", json!({"q_proj": "many"}));
    refused("rank_pattern", json!({"(": 4}));
    refused("rank_pattern", json!({"(a*)*b".repeat(200): 4}));
    refused("alpha_pattern", json!({"q_proj": 4, ".*proj": 5}));
    refused("rank_pattern", json!(["q_proj"]));
    let mut config = config;
    config["infe\u{1b}rence\nmode"] = json!(true);
    let told = parse(name, &config, &weights).unwrap_err().to_string();
    assert!(told.contains(r"infe\u{1b}rence\nmode") && !told.contains('\n'), "{told}");
}

#[test]
fn ranks_that_disagree_with_the_configuration_are_told() {
    let name = "qwen2_untied";
    let (mut config, weights) = adapter_files(&data(name));
    config["rank_pattern"] = json!({"k_proj": 4});
    let told = parse(name, &config, &weights).unwrap_err().to_string();
    assert!(told.contains("rank 5, expected 4"), "{told}");
}

/// `weights` with another name in its header of the same length.
fn renamed(weights: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = weights.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    let mut weights = weights.to_vec();
    weights[at..at + to.len()].copy_from_slice(to.as_bytes());
    weights
}

#[test]
fn what_does_not_fit_the_base_is_told_with_its_matrix() {
    let name = "llama_factors";
    let (config, weights) = adapter_files(&data(name));
    let told = |weights: &[u8]| parse(name, &config, weights).unwrap_err().to_string();
    let other = renamed(&weights, "layers.0.mlp.down_proj", "layers.9.mlp.down_proj");
    assert!(told(&other).contains("lora_A and lora_B is missing"), "{}", told(&other));
    let odd = renamed(&weights, "down_proj.lora_A", "down_proj.lora_C");
    assert!(told(&odd).contains("not one of a LoRA adapter's matrices"), "{}", told(&odd));
    let mut nan = weights.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(told(&nan).contains("not all finite"), "{}", told(&nan));
    // Another base of the same family.
    let base = logits::checkpoint("llama_linear");
    let told = peft::parse(config.to_string().as_bytes(), &weights, base.config()).unwrap_err();
    assert!(told.to_string().contains("expected [r, "), "{told}");
    let base = logits::checkpoint("phi3_short");
    assert!(peft::parse(config.to_string().as_bytes(), &weights, base.config()).is_err());
}

#[test]
fn a_folder_without_what_is_needed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let base = logits::checkpoint("llama_factors");
    let open = || LoraAdapter::open(dir.path(), base.config()).unwrap_err().to_string();
    assert!(open().contains("adapter_config.json"), "{}", open());
    std::fs::copy(
        data("llama_factors").join("adapter_config.json"),
        dir.path().join("adapter_config.json"),
    )
    .unwrap();
    assert!(open().contains("adapter_model.safetensors"), "{}", open());
    std::fs::write(dir.path().join("adapter_model.bin"), b"").unwrap();
    assert!(open().contains("pickled weights are not read"), "{}", open());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever bytes change, there is an adapter of sound shapes or an error on one line.
    #[test]
    fn damaged_files_are_errors(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        of_config in any::<bool>(),
        end in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = "qwen2_untied";
        let (config, mut weights) = adapter_files(&data(name));
        let mut config = config.to_string().into_bytes();
        let changed = if of_config { &mut config } else { &mut weights };
        for (at, byte) in changes {
            let at = at.index(changed.len().min(2500));
            changed[at] = byte;
        }
        if let Some(end) = end {
            changed.truncate(end.index(changed.len()));
        }
        let base = logits::checkpoint(name);
        match peft::parse(&config, &weights, base.config()) {
            Ok(adapter) => prop_assert!(adapter.lora().is_some_and(|a| !a.matrices.is_empty())),
            Err(error) => assert_one_line(&error, "an adapter"),
        }
    }
}
