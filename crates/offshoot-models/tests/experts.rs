//! Layers of experts: however a file keeps them they are the same, a row's bits are its own in quantised
//! models too, and whoever reaches into a step reaches into an expert.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use offshoot_kernels::{BlockType, Cpu, Forming, Isa};
use offshoot_models::gguf::{Export, ExportOptions};
use offshoot_models::{
    BaseId, Checkpoint, DenseCache, DenseHooks, DenseModel, Error, Hooks, LinearId, LogitRows,
    NoHooks, PackedExecutor, PackedModel, Recipe, RopeId, Segment, SegmentRows, VariantId, chain,
};
use serde_json::json;
use support::folder::{Folder, Stored};
use support::tiny::{TOKENS, Tiny};
use support::tokenizer_files::{tokenizer_config, tokenizer_json};

fn open(bytes: &[u8]) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The map outlives the file's name.
    Checkpoint::open(&path).unwrap()
}

/// Two segments of `text`, from `cut` on of variant 1, each cut into steps of `chunk` tokens.
fn run(
    model: &PackedModel,
    cpu: &Cpu,
    (text, cut): (&[u32], usize),
    chunk: usize,
    hooks: &mut dyn Hooks,
) -> Vec<u32> {
    let mut executor = PackedExecutor::new(cpu.clone(), model.config());
    let (a, b) = text.split_at(cut);
    let mut caches = [a, b].map(|part| model.new_cache(part.len()));
    let mut rows = [Vec::new(), Vec::new()];
    for start in (0..a.len().max(b.len())).step_by(chunk) {
        let pieces = [a, b].map(|part| &part[start.min(part.len())..part.len().min(start + chunk)]);
        let parents = pieces.map(|piece| chain(piece.len()));
        let count =
            |piece: &[u32]| (start as u32..(start + piece.len()) as u32).collect::<Vec<_>>();
        let positions = pieces.map(count);
        let mut segments = Vec::new();
        for (which, cache) in caches.iter_mut().enumerate() {
            if !pieces[which].is_empty() {
                segments.push(Segment {
                    cache,
                    tokens: pieces[which],
                    parents: &parents[which],
                    positions: &positions[which],
                    rope: RopeId::default(),
                    variant: VariantId(which as u32),
                    logits: LogitRows::All,
                });
            }
        }
        let logits = executor.step(model, &mut segments, hooks).unwrap();
        let (first, second) = logits.split_at(pieces[0].len() * model.config().vocab_size);
        for (rows, logits) in rows.iter_mut().zip([first, second]) {
            rows.extend(logits.iter().map(|x| x.to_bits()));
        }
        for (cache, piece) in caches.iter_mut().zip(pieces) {
            cache.commit_chain(piece.len());
        }
    }
    rows.concat()
}

fn load(checkpoint: Checkpoint, cpu: &Cpu) -> PackedModel {
    PackedModel::load(Arc::new(checkpoint), cpu, None).unwrap()
}

/// A text of the tiny model's tokens.
fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((5 * i + i * i / 3) % TOKENS.len()) as u32).collect()
}

#[test]
fn the_experts_of_a_quantised_model_give_a_row_the_same_bits_in_every_company() {
    let text = text(23);
    for recipe in [None, Some(Recipe::Q4_0)] {
        let checkpoint = || match recipe {
            None => open(&Tiny::qwen3moe().bytes()),
            Some(recipe) => {
                Folder::of(&open(&Tiny::qwen3moe().bytes())).open().unwrap().quantized(recipe)
            }
        };
        let alone = Cpu::new(Isa::PORTABLE, 1);
        let expected = run(&load(checkpoint(), &alone), &alone, (&text, 9), 1, &mut NoHooks);
        for isa in Isa::available() {
            for (threads, chunk) in [(2, 1), (3, 4), (2, 1000)] {
                let cpu = Cpu::new(isa, threads);
                let ours = run(&load(checkpoint(), &cpu), &cpu, (&text, 9), chunk, &mut NoHooks);
                assert!(ours == expected, "{recipe:?} {isa} {threads} {chunk}");
            }
        }
    }
}

/// Puts the experts of each layer into one tensor for gates and ups and one for downs, as transformers
/// 5 may.
fn fused(folder: &Folder) -> Folder {
    let mut folder = folder.clone();
    let experts = folder.config["num_experts"].as_u64().unwrap();
    for layer in 0..folder.config["num_hidden_layers"].as_u64().unwrap() {
        let name = |rest: &str| format!("model.layers.{layer}.mlp.experts.{rest}");
        if !folder.tensors.contains_key(&name("0.gate_proj.weight")) {
            continue;
        }
        for (whole, parts) in
            [("gate_up_proj", &["gate_proj", "up_proj"][..]), ("down_proj", &["down_proj"])]
        {
            let mut all: Option<Stored> = None;
            for expert in 0..experts {
                for part in parts {
                    let part = name(&format!("{expert}.{part}.weight"));
                    let part = folder.tensors.remove(&part).unwrap();
                    match &mut all {
                        Some(all) => all.bytes.extend(part.bytes),
                        None => {
                            let [rows, cols] = part.shape[..] else { panic!("a matrix") };
                            let shape = vec![experts as usize, parts.len() * rows, cols];
                            all = Some(Stored { shape, ..part });
                        }
                    }
                }
            }
            folder.tensors.insert(name(whole), all.unwrap());
        }
    }
    folder
}

#[test]
fn experts_in_one_tensor_are_the_experts_in_many() {
    for name in ["qwen3_moe", "qwen3_moe_mixed"] {
        let expected = logits::checkpoint(name);
        let folder = Folder::of(&expected);
        let whole = fused(&folder);
        assert!(whole.tensors.len() < folder.tensors.len());
        for folder in [&folder, &whole] {
            let opened = folder.open().unwrap();
            assert_eq!(BaseId::of(&opened).unwrap(), BaseId::of(&expected).unwrap(), "{name}");
            assert_eq!(opened.config(), expected.config());
            assert!(opened.unused().is_empty());
        }
        // What stands there twice is no model.
        let mut both = whole.clone();
        let is_extra = |name: &&String| name.ends_with("experts.0.down_proj.weight");
        let extra = folder.tensors.keys().find(is_extra).unwrap();
        both.tensors.insert(extra.clone(), folder.tensors[extra].clone());
        let error = both.open().unwrap_err().to_string();
        assert!(error.contains("missing, expected shape"), "{error}");
    }
}

#[test]
fn the_layers_with_experts_are_those_of_transformers() {
    let layers = |step: u64, only: &[u64]| {
        let mut folder = Folder::of(&logits::checkpoint("qwen3_moe_mixed"));
        folder.set("decoder_sparse_step", step);
        folder.set("mlp_only_layers", json!(only));
        folder.open().map(|model| model.config().experts.clone().unwrap().layers)
    };
    // That of the script of the reference logits.
    assert_eq!(layers(2, &[1]).unwrap(), [false, false, false, true, false]);
    assert_eq!(layers(4, &[]).unwrap(), [false, false, false, true, false]);
    for (step, only) in [(1, &[][..]), (2, &[]), (3, &[1])] {
        let error = layers(step, only).unwrap_err().to_string();
        assert!(error.contains("mlp.gate.weight\": missing, expected shape [5, 32]"), "{error}");
    }
}

#[test]
fn a_window_that_only_a_folder_tells_of_gives_the_logits_of_transformers() {
    let reference = logits::reference("qwen3_moe_window");
    let mut folder = Folder::of(&logits::checkpoint("qwen3_moe"));
    folder.set("use_sliding_window", true);
    folder.set("sliding_window", 4);
    let cpu = Cpu::new(Isa::best(), 2);
    let model = load(folder.open().unwrap(), &cpu);
    let n = reference.tokens.len();
    let ours = run(&model, &cpu, (&reference.tokens, n), n, &mut NoHooks);
    let ours: Vec<f32> = ours.into_iter().map(f32::from_bits).collect();
    let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = logits::max_error(&ours, &reference.logits);
    // As in the test of the packed executor.
    assert!(error < 2.5e-3 * greatest, "{error} of {greatest}");
}

/// Doubles the products of some matrices for one variant, or for all.
struct Double {
    linears: Vec<LinearId>,
    variant: Option<u32>,
    rows: usize,
}

impl Double {
    fn is_meant(&self, linear: LinearId, variant: VariantId) -> bool {
        self.linears.contains(&linear) && self.variant.is_none_or(|only| only == variant.0)
    }
}

impl Hooks for Double {
    fn adds(&self, linear: LinearId, variant: VariantId) -> bool {
        self.is_meant(linear, variant)
    }

    fn addend(&mut self, _: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        assert!(rows.rows > 0 && y.len().is_multiple_of(rows.rows));
        assert!(x.len().is_multiple_of(rows.rows));
        self.rows += rows.rows;
        y.iter_mut().for_each(|y| *y *= 2.0);
    }
}

impl DenseHooks for Double {
    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        assert_eq!(x.dim(0)?, rows.rows);
        if !self.is_meant(linear, rows.variant) {
            return Ok(None);
        }
        self.rows += rows.rows;
        Ok(Some(Tensor::full(0.25f32, (rows.rows, 40), x.device())?))
    }
}

/// A matrix of each kind that an expert has, of different experts and layers.
const DOUBLED: [&str; 3] = [
    "model.layers.0.mlp.experts.2.gate_proj",
    "model.layers.0.mlp.experts.4.up_proj",
    "model.layers.1.mlp.experts.0.down_proj",
];

#[test]
fn an_addend_to_an_expert_is_a_change_of_its_weights_for_its_segments() {
    let cpu = Cpu::new(Isa::best(), 2);
    let text = logits::reference("qwen3_moe").tokens;
    let model = load(logits::checkpoint("qwen3_moe"), &cpu);
    let linears = DOUBLED.map(|name| model.blueprint().linear_id(name).unwrap()).to_vec();
    // Twice a half-precision weight is one, and a product of it is twice the product.
    let mut folder = Folder::of(&logits::checkpoint("qwen3_moe"));
    for name in DOUBLED {
        let tensor = folder.tensors.get_mut(&format!("{name}.weight")).unwrap();
        let mut weights = vec![0.0; tensor.shape.iter().product()];
        BlockType::F16.dequantize(&tensor.bytes, &mut weights).unwrap();
        weights.iter_mut().for_each(|w| *w *= 2.0);
        tensor.bytes.clear();
        BlockType::F16.quantize(&weights, &mut tensor.bytes).unwrap();
    }
    let changed = load(folder.open().unwrap(), &cpu);
    let vocab = model.config().vocab_size;
    let plain = run(&model, &cpu, (&text, 10), 7, &mut NoHooks);
    let doubled = run(&changed, &cpu, (&text, 10), 7, &mut NoHooks);
    assert!(plain != doubled, "the change is felt");
    for chunk in [1, 7, 100] {
        let mut all = Double { linears: linears.clone(), variant: None, rows: 0 };
        assert!(run(&model, &cpu, (&text, 10), chunk, &mut all) == doubled, "{chunk}");
        assert!(all.rows > 0);
        let mut second = Double { linears: linears.clone(), variant: Some(1), rows: 0 };
        let ours = run(&model, &cpu, (&text, 10), chunk, &mut second);
        assert!(ours[..10 * vocab] == plain[..10 * vocab], "{chunk}");
        assert!(ours[10 * vocab..] == doubled[10 * vocab..], "{chunk}");
        assert!(second.rows > 0 && second.rows < all.rows);
    }
}

/// Adds nothing to the weights of experts, inside the products.
struct Nothing;

impl Hooks for Nothing {
    fn forming(&self, _: LinearId) -> Option<Forming<'_>> {
        Some(Forming::default())
    }
}

#[test]
fn experts_that_are_perturbed_by_nothing_are_the_experts() {
    let cpu = Cpu::new(Isa::best(), 2);
    let text = logits::reference("qwen3_moe").tokens;
    let model = load(logits::checkpoint("qwen3_moe"), &cpu);
    let plain = run(&model, &cpu, (&text, 10), 7, &mut NoHooks);
    assert!(run(&model, &cpu, (&text, 10), 7, &mut Nothing) == plain);
}

#[test]
fn an_addend_on_the_dense_executor_reaches_the_rows_of_an_expert_alone() {
    let checkpoint = logits::checkpoint("qwen3_moe");
    let text = logits::reference("qwen3_moe").tokens;
    let model = DenseModel::load(&checkpoint, &Device::Cpu, DType::F32).unwrap();
    let id = |name| model.blueprint().linear_id(name).unwrap();
    let step = |hooks: &mut dyn DenseHooks| {
        let mut cache = DenseCache::new(model.config());
        let segment = Segment {
            cache: &mut cache,
            tokens: &text,
            parents: &chain(text.len()),
            positions: &(0..text.len() as u32).collect::<Vec<_>>(),
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits: LogitRows::All,
        };
        model.step(&mut [segment], hooks).unwrap().to_vec2::<f32>().unwrap()
    };
    let plain = step(&mut NoHooks);
    // Of the last layer, so that no row sees the change of another.
    let linear = id("model.layers.1.mlp.experts.0.down_proj");
    let mut hooks = Double { linears: vec![linear], variant: None, rows: 0 };
    let changed = step(&mut hooks);
    let differ = plain.iter().zip(&changed).filter(|(a, b)| a != b).count();
    assert!(differ == hooks.rows && differ > 0 && differ < text.len(), "{differ} {}", hooks.rows);
}

#[test]
fn experts_are_quantised_while_loading_as_they_are_in_a_file_and_routers_are_not() {
    let tiny = open(&Tiny::qwen3moe().bytes());
    let mut folder = Folder::of(&tiny);
    let spec = tiny.tokenizer().unwrap();
    folder.put("tokenizer.json", &tokenizer_json(spec));
    folder.put("tokenizer_config.json", &tokenizer_config(spec));
    // The file says nothing of layers without experts, so both have them.
    folder.set("mlp_only_layers", json!([]));
    let of_second: Vec<(String, Stored)> = folder
        .tensors
        .iter()
        .filter(|(name, _)| name.starts_with("model.layers.1.mlp."))
        .map(|(name, stored)| (name.replace("layers.1", "layers.0"), stored.clone()))
        .collect();
    folder.tensors.retain(|name, _| !name.starts_with("model.layers.0.mlp."));
    folder.tensors.extend(of_second);
    let cpu = Cpu::new(Isa::best(), 2);
    let (text, router) = (text(12), "model.layers.1.mlp.gate.weight");
    for recipe in [Recipe::F16, Recipe::Q8_0, Recipe::Q4KM] {
        let folder = folder.open().unwrap();
        let options = ExportOptions { recipe, requantize: false, name: Some("Tiny") };
        let mut bytes = Vec::new();
        let export = Export::new(&folder, &options).unwrap();
        export.write(&cpu, &mut bytes, &mut |_| true).unwrap();
        let (file, loaded) = (open(&bytes), folder.quantized(recipe));
        assert_eq!(file.config(), loaded.config());
        assert_eq!(BaseId::of(&file).unwrap(), BaseId::of(&loaded).unwrap(), "{recipe}");
        assert_eq!(loaded.require(router).unwrap().block, BlockType::F32);
        let expert = loaded.require("model.layers.1.mlp.experts.3.up_proj.weight").unwrap();
        assert_eq!(expert.block.is_float(), !recipe.is_quantised());
        let models = [load(file, &cpu), load(loaded, &cpu)];
        let [a, b] = models.map(|model| run(&model, &cpu, (&text, 5), 4, &mut NoHooks));
        assert!(a == b, "{recipe}");
    }
}

#[test]
fn what_a_row_reads_is_a_part_of_the_experts() {
    let cpu = Cpu::new(Isa::best(), 1);
    let model = load(logits::checkpoint("qwen3_moe"), &cpu);
    let specs = &model.blueprint().linears;
    let sum = |routed| -> usize {
        specs.iter().filter(|s| s.routed == routed).map(|s| s.rows * s.cols).sum()
    };
    assert_eq!(model.weights(), sum(false) + sum(true) / 7 * 3);
    assert!(model.step_bytes() > 2 * model.weights() && model.step_bytes() < 3 * model.weights());
}
