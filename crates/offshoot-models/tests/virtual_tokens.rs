//! Positions before every text, as PEFT saves them: its logits on both executors, what they are equal to,
//! and what is refused. References by `scripts/oracles/virtual_tokens.py`.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use logits::{adapter_files, bits, dense_on, max_error, packed_on, packed_step, reference_at};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::huggingface::{peft, virtual_files};
use offshoot_models::{
    Adapter, Beginnings, Checkpoint, DenseModel, Error, Hooks, LoraAdapter, NoHooks,
    PackedExecutor, PackedModel, SegmentRows, VariantId, VirtualKind, VirtualTokens,
};
use serde_json::{Value, json};
use support::assert_one_line;

const VARIANTS: [(&str, VirtualKind); 5] = [
    ("prefix_qwen2_untied", VirtualKind::Prefix),
    ("prefix_qwen3_tied", VirtualKind::Prefix),
    ("prefix_mistral_window", VirtualKind::Prefix),
    ("prompt_llama_factors", VirtualKind::Prompt),
    ("prompt_gemma3_linear", VirtualKind::Prompt),
];
/// How far ours may be from transformers', over the greatest logit.
const CLOSE: f32 = 5e-3;

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/virtual_tokens").join(file)
}

fn base(variant: &str) -> Checkpoint {
    logits::checkpoint(variant.split_once('_').unwrap().1)
}

fn read(variant: &str) -> VirtualTokens {
    let adapter = Adapter::open(&data(variant), base(variant).config()).unwrap();
    adapter.virtual_tokens().unwrap().clone()
}

/// Logits of all of `text` behind `tokens`, `step` rows at a time.
fn packed(base: Checkpoint, tokens: &VirtualTokens, text: &[u32], step: usize) -> Vec<f32> {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(base), &cpu, None).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let p = tokens.tokens();
    let rope = model.config().rope_for(p + text.len());
    let all = std::slice::from_ref(tokens);
    let beginnings = Beginnings::new(&mut executor, &model, all, rope, false).unwrap();
    let mut cache = model.new_cache(p + text.len());
    beginnings.begin(0, &mut cache).unwrap();
    assert_eq!((cache.len(), beginnings.positions(0)), (p, p));
    let text = (text, step, VariantId::default());
    packed_on(&mut executor, &model, &mut cache, &mut NoHooks, text)
}

fn dense(base: &Checkpoint, tokens: &VirtualTokens, text: &[u32]) -> Vec<f32> {
    let model = DenseModel::load(base, &Device::Cpu, DType::F32).unwrap();
    let rope = model.config().rope_for(tokens.tokens() + text.len());
    let mut cache = model.beginning(tokens, rope).unwrap();
    dense_on(&model, &mut cache, &mut NoHooks, (text, VariantId::default()))
}

#[test]
fn what_stands_before_a_text_gives_the_logits_of_peft_on_both_executors() {
    for (name, kind) in VARIANTS {
        let reference = reference_at(&data(&format!("{name}.logits")));
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let tokens = read(name);
        assert_eq!((tokens.kind(), tokens.tokens()), (kind, 3));
        let ours = packed(base(name), &tokens, &reference.tokens, 24);
        let tensors = dense(&base(name), &tokens, &reference.tokens);
        for (ours, close) in [(&ours, CLOSE), (&tensors, CLOSE / 100.0)] {
            let error = max_error(ours, &reference.logits);
            assert!(error < close * greatest, "{name}: {error} of {greatest}");
        }
        let pieces = packed(base(name), &tokens, &reference.tokens, 5);
        assert!(bits(&pieces) == bits(&ours), "{name}: in pieces");
    }
}

/// The embeddings of `tokens`, as the first block takes them, and what a model keeps of them.
fn embedded(base: Checkpoint, tokens: &[u32]) -> [VirtualTokens; 2] {
    struct Seen(Vec<f32>);
    impl Hooks for Seen {
        fn embeds(&self, _: VariantId) -> bool {
            true
        }

        fn embedded(&mut self, rows: SegmentRows, x: &mut [f32]) {
            assert_eq!(rows.rows, 3);
            self.0 = x.to_vec();
        }
    }
    let cpu = Cpu::new(Isa::best(), 1);
    let model = PackedModel::load(Arc::new(base), &cpu, None).unwrap();
    let mut cache = model.new_cache(tokens.len());
    let mut seen = Seen(Vec::new());
    let mut executor = PackedExecutor::new(cpu, model.config());
    let text = (tokens, model.config().rope_for(24), VariantId::default());
    packed_step(&mut executor, &model, &mut cache, &mut seen, text);
    cache.commit_chain(tokens.len());
    let mut kept = Vec::new();
    for position in 0..tokens.len() {
        for layer in 0..cache.layers() {
            let heads = (0..cache.kv_heads()).map(|head| cache.read(layer, head, position));
            let (keys, values): (Vec<_>, Vec<_>) = heads.unzip();
            kept.extend(keys.concat());
            kept.extend(values.concat());
        }
    }
    let of = |kind, numbers| VirtualTokens::new(kind, model.config(), numbers).unwrap();
    [of(VirtualKind::Prompt, seen.0), of(VirtualKind::Prefix, kept)]
}

#[test]
fn the_embeddings_of_tokens_are_those_tokens_and_so_is_what_a_model_keeps_of_them() {
    for (name, _) in VARIANTS {
        let text = reference_at(&data(&format!("{name}.logits"))).tokens;
        let (first, rest) = text.split_at(3);
        let nothing = reference_at(&data(&format!("{name}.logits"))).logits;
        let vocab = nothing.len() / text.len();
        let [prompt, prefix] = embedded(base(name), first);
        let behind_prompt = packed(base(name), &prompt, rest, 24);
        assert!(bits(&packed(base(name), &prefix, rest, 24)) == bits(&behind_prompt), "{name}");
        // The whole text, whose first token is a prompt of one.
        let one = VirtualTokens::new(
            VirtualKind::Prompt,
            base(name).config(),
            prompt.numbers()[..prompt.numbers().len() / 3].to_vec(),
        );
        let whole = packed(base(name), &one.unwrap(), &text[1..], 24);
        assert!(bits(&whole[2 * vocab..]) == bits(&behind_prompt), "{name}");
    }
}

fn parse(name: &str, config: &Value, weights: &[u8]) -> Result<Adapter, Error> {
    peft::parse(config.to_string().as_bytes(), weights, base(name).config())
}

#[test]
fn what_is_written_is_read_again_and_has_the_fields_of_peft() {
    for (name, _) in VARIANTS {
        let (tokens, model) = (read(name), base(name));
        let written = virtual_files(&tokens, model.config(), Some("base"));
        let of = |file: &str| &written.iter().find(|(name, _)| name == file).unwrap().1;
        let config: Value = serde_json::from_slice(of("adapter_config.json")).unwrap();
        let again = parse(name, &config, of("adapter_model.safetensors")).unwrap();
        assert_eq!(again, Adapter::Virtual(tokens), "{name}");
        let (theirs, _) = adapter_files(&data(name));
        for (field, value) in config.as_object().unwrap() {
            if !["base_model_name_or_path", "prompt_tuning_init"].contains(&field.as_str()) {
                assert_eq!(&theirs[field], value, "{name}: {field}");
            }
        }
    }
}

#[test]
fn what_is_of_another_model_or_would_be_applied_in_part_is_refused() {
    let name = "prefix_qwen2_untied";
    let (config, weights) = adapter_files(&data(name));
    let refused = |field: &str, value: Value, says: &str| {
        let mut config = config.clone();
        config[field] = value;
        let told = parse(name, &config, &weights).unwrap_err();
        assert_one_line(&told, field);
        assert!(told.to_string().contains(says), "{told}");
    };
    refused("num_virtual_tokens", json!(4), "expected [4, ");
    refused("num_virtual_tokens", Value::Null, "num_virtual_tokens: missing");
    refused("num_transformer_submodules", json!(2), "expected 1");
    refused("modules_to_save", json!(["lm_head"]), "changes the model");
    refused("peft_type", json!("PROMPT_TUNING"), "prompt_embeddings: shape");
    refused("peft_type", json!("P_TUNING"), "expected LORA, PREFIX_TUNING or PROMPT_TUNING");
    let other = LoraAdapter::open(&data(name), base(name).config()).unwrap_err();
    assert!(other.to_string().contains("peft_type"), "{other}");
    for end in [0, 7, 40, weights.len() - 4] {
        assert_one_line(&parse(name, &config, &weights[..end]).unwrap_err(), "cut short");
    }
    let mut infinite = weights.clone();
    let last = infinite.len() - 4;
    infinite[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let told = parse(name, &config, &infinite).unwrap_err().to_string();
    assert!(told.contains("not all finite"), "{told}");
    let wrong = |n| VirtualTokens::new(VirtualKind::Prompt, base(name).config(), vec![0.0; n]);
    assert!(wrong(0).is_err() && wrong(5).is_err());
}
