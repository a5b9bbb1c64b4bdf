//! A variant written by itself: PEFT's logits without the adapter, from a file and from a folder, every
//! weight the base's with its difference added, and the logits of tuned scales.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use logits::{max_error, packed, packed_with, reference_at};
use offshoot_kernels::{Cpu, Forming, Isa};
use offshoot_models::gguf::{Export, ExportOptions};
use offshoot_models::huggingface::{FolderExport, FolderOptions};
use offshoot_models::{
    Adapter, Architecture, Checkpoint, Error, Hooks, LinearId, LoraAdapter, LowRank, MatrixFactors,
    PackedScales, Recipe, ScaleFactors, Tensor, VirtualKind, VirtualTokens,
};

/// Adapters that PEFT saved, with the logits that it gives (`scripts/oracles/adapters.py`). Phi-3's
/// are of matrices that its files keep in one.
const ADAPTERS: [&str; 4] = ["llama_factors", "qwen2_untied", "phi3_short", "gemma3_linear"];
/// How far ours may be from PEFT's, over the greatest logit, as where the adapter is applied.
const CLOSE: f32 = 5e-3;

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(file)
}

fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::best(), threads)
}

fn file(base: &Checkpoint, adapter: &Adapter, recipe: Recipe, to: &Path) -> Checkpoint {
    let options = ExportOptions { recipe, requantize: true, name: None };
    let mut export = Export::new(base, &options).unwrap();
    export.merge(adapter).unwrap();
    let mut bytes = Vec::new();
    export.write(&cpu(1), &mut bytes, &mut |_| true).unwrap();
    let mut again = Vec::new();
    export.write(&cpu(3), &mut again, &mut |_| true).unwrap();
    assert!(bytes == again, "the number of threads changes no byte");
    let path = to.join("merged.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn folder(base: &Checkpoint, adapter: &Adapter, floats: Recipe, to: &Path) -> Checkpoint {
    let options = FolderOptions { floats, single_vectors: false, shard_bytes: 5000 };
    let mut export = FolderExport::new(base, &options).unwrap();
    export.merge(adapter).unwrap();
    let mut create = |name: &str| Ok(Box::new(File::create_new(to.join(name))?) as Box<dyn Write>);
    export.write(&cpu(2), &mut create, &mut |_| true).unwrap();
    Checkpoint::open(to).unwrap()
}

/// A difference of every matrix of the blocks: those of experts, and those that are kept in one.
fn everywhere(base: &Checkpoint) -> Adapter {
    let linears = Architecture::new(base.config()).1.linears;
    let mut state = 1u32;
    let mut number = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let blocks = linears.iter().filter(|linear| linear.name.starts_with("model.layers."));
    let matrices: BTreeMap<String, LowRank> = blocks
        .map(|linear| {
            let rank = 3;
            let a = (0..rank * linear.cols).map(|_| number()).collect();
            let b = (0..linear.rows * rank).map(|_| number()).collect();
            (linear.name.clone(), LowRank { rank, scale: 0.25, a, b })
        })
        .collect();
    Adapter::Lora(LoraAdapter { matrices })
}

fn rows(tensor: &Tensor<'_>) -> Vec<Vec<f32>> {
    let mut row = vec![0.0; tensor.cols()];
    let read = |r: usize| {
        tensor.read_row(r, &mut row).unwrap();
        row.clone()
    };
    (0..tensor.row_count()).map(read).collect()
}

/// Fails unless each weight of `merged` is that of `base` with its difference, up to `error` of the
/// greatest of its row.
fn is_sum(base: &Checkpoint, adapter: &Adapter, merged: &Checkpoint, error: f64) {
    let adapter = adapter.lora().unwrap();
    for tensor in base.tensors() {
        let written = rows(&merged.require(tensor.name).unwrap());
        let low = tensor.name.strip_suffix(".weight").and_then(|name| adapter.matrices.get(name));
        for (r, (old, new)) in rows(&tensor).iter().zip(&written).enumerate() {
            let cols = old.len();
            let added = |c: usize| -> f64 {
                let Some(low) = low else { return 0.0 };
                let product =
                    |k: usize| f64::from(low.b[r * low.rank + k]) * f64::from(low.a[k * cols + c]);
                f64::from(low.scale) * (0..low.rank).map(product).sum::<f64>()
            };
            let wanted: Vec<f64> = (0..cols).map(|c| f64::from(old[c]) + added(c)).collect();
            let most = wanted.iter().fold(0f64, |most, x| most.max(x.abs()));
            for (wanted, new) in wanted.iter().zip(new) {
                let off = (wanted - f64::from(*new)).abs();
                assert!(off <= error * most, "{} row {r}: {new} for {wanted}", tensor.name);
            }
        }
    }
}

#[test]
fn a_merged_file_and_folder_give_the_logits_that_peft_gives_with_the_adapter() {
    for name in ADAPTERS {
        let reference = reference_at(&data(&format!("{name}.logits")));
        let greatest = reference.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let base = logits::checkpoint(name);
        let adapter = Adapter::open(&data(name), base.config()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut merged = vec![file(&base, &adapter, Recipe::F32, dir.path())];
        // Its base's rotary frequencies follow no rule that a folder could name.
        if name != "llama_factors" {
            let own = dir.path().join("folder");
            std::fs::create_dir(&own).unwrap();
            merged.push(folder(&base, &adapter, Recipe::F32, &own));
        }
        for merged in merged {
            let ours = packed(merged, cpu(2), &reference.tokens, 24);
            let error = max_error(&ours, &reference.logits);
            assert!(error < CLOSE * greatest, "{name}: {error} of {greatest}");
        }
        let plain = packed(logits::checkpoint(name), cpu(2), &reference.tokens, 24);
        let changed = max_error(&plain, &reference.logits);
        assert!(
            changed > 10.0 * CLOSE * greatest,
            "{name}: the adapter changes nothing to speak of"
        );
    }
}

#[test]
fn every_written_weight_is_the_bases_with_its_difference() {
    for name in ["llama_biases", "phi3_short", "qwen3_moe_mixed", "gemma3_linear"] {
        let base = logits::checkpoint(name);
        let adapter = everywhere(&base);
        // Single precision rounds a few times, half precision once more, Q8_0 to steps of 1/127.
        for (recipe, error) in [(Recipe::F32, 1e-6), (Recipe::F16, 1e-3), (Recipe::Q8_0, 5e-3)] {
            let dir = tempfile::tempdir().unwrap();
            let merged = file(&base, &adapter, recipe, dir.path());
            is_sum(&base, &adapter, &merged, error);
            assert_eq!(merged.stop_tokens(), base.stop_tokens());
            assert_eq!(merged.chat_template(), base.chat_template());
        }
        let dir = tempfile::tempdir().unwrap();
        let merged = folder(&base, &adapter, Recipe::F16, dir.path());
        is_sum(&base, &adapter, &merged, 1e-3);
    }
}

/// Products with the factors, on float activations, as where scales are tuned.
struct Tuned(PackedScales);

impl Hooks for Tuned {
    fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        Some(self.0.forming(linear).unwrap_or_default())
    }
}

/// `base` in the format `recipe`, and factors of the scales of two kinds of its matrices.
fn with_tuned_scales(base: &Checkpoint, recipe: Recipe, to: &Path) -> (PathBuf, ScaleFactors) {
    let options = ExportOptions { recipe, requantize: true, name: None };
    let mut bytes = Vec::new();
    let export = Export::new(base, &options).unwrap();
    export.write(&cpu(1), &mut bytes, &mut |_| true).unwrap();
    let path = to.join("quantised.gguf");
    std::fs::write(&path, bytes).unwrap();
    let linears = Architecture::new(base.config()).1.linears;
    let of = |name: &str| ["q_proj", "down_proj"].iter().any(|end| name.ends_with(end));
    let tuned = linears.into_iter().filter(|linear| of(&linear.name)).map(|linear| {
        let (rows, groups) = (linear.rows, linear.cols / 32);
        let values = (0..rows * groups).map(|i| 1.0 + 0.5 * (i as f32).sin()).collect();
        (linear.name, MatrixFactors { rows, group: 32, values })
    });
    (path, ScaleFactors { matrices: tuned.collect() })
}

#[test]
fn merged_scales_give_the_logits_of_the_running_variant() {
    let name = "qwen2_tied";
    for recipe in [Recipe::Q8_0, Recipe::Q4_1] {
        let dir = tempfile::tempdir().unwrap();
        let (path, factors) = with_tuned_scales(&logits::checkpoint(name), recipe, dir.path());
        let open = || Checkpoint::open(&path).unwrap();
        let tokens = logits::reference(name).tokens;
        let (base, blueprint) = (open(), Architecture::new(open().config()).1);
        let run = |factors: ScaleFactors| {
            let mut hooks = Tuned(PackedScales::new(&blueprint, factors).unwrap());
            packed_with(open(), cpu(2), &tokens, 24, &mut hooks)
        };
        let (wanted, plain) = (run(factors.clone()), run(ScaleFactors::default()));
        let greatest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(max_error(&plain, &wanted) > 0.5 * greatest, "the factors change next to nothing");
        let adapter = Adapter::Scales(factors);
        // Weights in single precision are those that products form.
        let written = file(&base, &adapter, Recipe::F32, dir.path());
        assert!(packed(written, cpu(2), &tokens, 24) == wanted, "{name}");
        let own = dir.path().join("folder");
        std::fs::create_dir(&own).unwrap();
        let written = folder(&base, &adapter, Recipe::F32, &own);
        assert!(packed(written, cpu(2), &tokens, 24) == wanted, "{name}");
        for (recipe, error) in [(Recipe::F16, 1e-2), (Recipe::Q8_0, 0.15)] {
            let written = file(&base, &adapter, recipe, dir.path());
            let off = max_error(&packed(written, cpu(2), &tokens, 24), &wanted);
            assert!(off < error * greatest, "{name} as {recipe}: {off} of {greatest}");
        }
    }
}

#[test]
fn an_adapter_that_a_merged_model_cannot_have_is_refused() {
    let base = logits::checkpoint("qwen2_tied");
    let low = |rows: usize, cols: usize| LowRank {
        rank: 1,
        scale: 1.0,
        a: vec![1.0; cols],
        b: vec![1.0; rows],
    };
    let (vocab, hidden) = (base.config().vocab_size, base.config().hidden_size);
    for (name, low, told) in [
        ("model.embed_tokens", low(vocab, hidden), "the embedding and the output head in one"),
        ("model.layers.0.self_attn.o_proj", low(hidden + 1, hidden), "of another shape"),
        ("model.layers.9.self_attn.o_proj", low(hidden, hidden), "does not have all"),
    ] {
        let matrices = BTreeMap::from([(name.to_owned(), low)]);
        let adapter = Adapter::Lora(LoraAdapter { matrices });
        let options = ExportOptions { recipe: Recipe::F16, requantize: true, name: None };
        let mut export = Export::new(&base, &options).unwrap();
        let error = export.merge(&adapter).unwrap_err();
        support::assert_one_line(&error, "adapter");
        assert!(matches!(error, Error::Adapter(_)) && error.to_string().contains(told), "{error}");
    }
    let config = base.config();
    let prompt =
        VirtualTokens::new(VirtualKind::Prompt, config, vec![0.0; 3 * config.hidden_size]).unwrap();
    let adapter = Adapter::Virtual(prompt);
    let options =
        FolderOptions { floats: Recipe::F16, single_vectors: false, shard_bytes: u64::MAX };
    let error = FolderExport::new(&base, &options).unwrap().merge(&adapter).unwrap_err();
    support::assert_one_line(&error, "adapter");
    assert!(error.to_string().contains("3 positions before every text are no weights"), "{error}");
}
