//! What quantising costs a real model.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "../../offshoot-models/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{Error, LoadOptions, Model, QuantizeOptions, Session, perplexity, quantize};
use offshoot_kernels::{BlockType, Cpu, Isa, available_threads};
use offshoot_models::medusa::HeadsFile;
use offshoot_models::{BaseId, Checkpoint, Recipe, Special, TokenizerId};
use support::folder::Folder;
use support::tiny::Tiny;
use support::tokenizer_files::tokenizer_json;

/// Tokens of the text that are read: a window.
const TOKENS: usize = 512;

fn smollm2() -> PathBuf {
    let store = Store::from_env().unwrap();
    store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path
}

fn options(recipe: Recipe, requantize: bool) -> QuantizeOptions<'static> {
    QuantizeOptions { recipe, requantize, variant: None }
}

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), available_threads())
}

/// Perplexity of the beginning of the text.
fn score(path: &Path, recipe: Option<Recipe>) -> f64 {
    let options = LoadOptions { quantize: recipe, ..LoadOptions::default() };
    let (model, cpu) = Model::load(path, &options).unwrap();
    let mut session = Session::new(&model, cpu, 512).unwrap();
    let text = include_str!("data/text.txt");
    let tokens = model.tokenizer().encode(text, Special::Text).unwrap();
    perplexity(&model, &mut session, &tokens[..TOKENS], |_| {}).unwrap().perplexity()
}

#[test]
fn a_real_model_loses_little_at_8_bits_and_at_4_what_it_had_lost_before() {
    let dir = tempfile::tempdir().unwrap();
    let half = dir.path().join("smollm2-f16.gguf");
    let source = smollm2();
    let done =
        quantize(&cpu(), &source, &half, options(Recipe::F16, true), &mut |_, _| true).unwrap();
    assert!(done.formats.iter().any(|(block, n)| *block == BlockType::F16 && *n > 200));
    let tokenizer = Checkpoint::open(&source).unwrap();
    assert_eq!(done.tokenizer, Some(TokenizerId::of(tokenizer.tokenizer().unwrap())));
    let float = score(&half, None);
    let (eight, four) = (score(&half, Some(Recipe::Q8_0)), score(&half, Some(Recipe::Q4_1)));
    let before = score(&source, None);
    // The inputs of 8-bit weights have two planes of 8 bits, so they cost next to nothing, and the
    // weights a little; with one plane this model loses 0.5 to 0.7 %.
    assert!((eight / float - 1.0).abs() < 0.003, "8 bits: {eight}, floats: {float}");
    // The file's activations have 8 bits, the half-precision model's are floats: that costs 0.6 %.
    assert!((before / float - 1.0).abs() < 0.02, "the file itself: {before}, floats: {float}");
    // The weights come from Q4_1, and the search finds their scales again but for the rounding to
    // half precision between.
    assert!((four / before - 1.0).abs() < 0.02, "4 bits: {four}, the file itself: {before}");
}

#[test]
fn real_weights_lose_no_more_at_4_bits_than_by_llama_cpps_rounding() {
    let heads = include_bytes!("../data/heads/smollm2.safetensors");
    let heads = HeadsFile::parse(heads).unwrap().heads;
    let trained = heads.iter().flat_map(|head| &head.blocks).map(|block| block.weight.values());
    let checkpoint = Checkpoint::open(&smollm2()).unwrap();
    // The matrix of more than 4 bits a weight.
    let embedding = checkpoint.require("model.embed_tokens.weight").unwrap();
    assert_ne!(embedding.block, BlockType::Q4_1);
    let mut rows = vec![0.0; 2000 * embedding.cols()];
    for (at, row) in rows.chunks_exact_mut(embedding.cols()).enumerate() {
        embedding.read_row(at, row).unwrap();
    }
    let all: Vec<Vec<f32>> = trained.chain([rows]).collect();
    assert!(all.len() > 3);
    for weights in all {
        // Their bytes are those of ggml's own, which the tests of the formats show.
        let mut plain = Vec::new();
        BlockType::Q4_1.quantize(&weights, &mut plain).unwrap();
        let mut ours = vec![0; plain.len()];
        BlockType::Q4_1.fit(&weights, &mut ours).unwrap();
        let [ours, theirs] = [ours, plain].map(|bytes| {
            let mut got = vec![0.0; weights.len()];
            BlockType::Q4_1.dequantize(&bytes, &mut got).unwrap();
            let errors = weights.iter().zip(&got);
            errors.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>()
        });
        println!("{} weights: {ours:e} of {theirs:e}", weights.len());
        assert!(ours <= theirs, "{ours} of {theirs}");
    }
}

#[test]
fn a_file_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    std::fs::write(&output, "somebody's").unwrap();
    let mut calls = 0;
    let mut stop = |_, _| {
        calls += 1;
        calls < 3
    };
    let stopped = quantize(&cpu(), &smollm2(), &output, options(Recipe::Q8_0, true), &mut stop);
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!(std::fs::read(&output).unwrap(), b"somebody's");
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 1, "nothing else is left behind");
    let folder =
        quantize(&cpu(), &smollm2(), dir.path(), options(Recipe::F16, true), &mut |_, _| {
            panic!("nothing is begun that cannot end")
        });
    assert!(matches!(folder, Err(Error::Output { .. })), "{folder:?}");
}

#[test]
fn what_lies_beside_the_output_has_no_say() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("tiny.gguf"), dir.path().join("out"));
    std::fs::write(&source, Tiny::llama().bytes()).unwrap();
    std::fs::create_dir(&out).unwrap();
    for bad in ["{ not JSON", r#"{ "eos_token_id": [0, 1, 2, 3] }"#] {
        std::fs::write(out.join("generation_config.json"), bad).unwrap();
        let output = out.join("out.gguf");
        let options = options(Recipe::F16, true);
        quantize(&cpu(), &source, &output, options, &mut |_, _| true).unwrap();
        assert!(output.is_file(), "{bad}");
    }
}

#[test]
fn packed_weights_and_the_base_id_are_kept_for_each_recipe() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gguf = dir.path().join("tiny.gguf");
    std::fs::write(&gguf, Tiny::llama().bytes()).unwrap();
    let source = Checkpoint::open(&gguf).unwrap();
    let mut folder = Folder::of(&source);
    folder.put("tokenizer.json", &tokenizer_json(source.tokenizer().unwrap()));
    let mine = dir.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    folder.save_shards(&mine, 2);
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    for entry in std::fs::read_dir(&mine).unwrap() {
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(then).unwrap();
    }
    let load = |recipe| {
        let cache = Some(cache.path().to_owned());
        let options = LoadOptions { threads: 1, cache, quantize: recipe, ..LoadOptions::default() };
        Model::load(&mine, &options).unwrap().0
    };
    let mut ids = Vec::new();
    for recipe in [None, Some(Recipe::Q8_0), Some(Recipe::Q4_1), Some(Recipe::Q4_0)] {
        for again in [false, true] {
            let model = load(recipe);
            assert_eq!(model.packed().unwrap().from_cache(), again, "{recipe:?}");
            assert_eq!(model.digest(), load(None).digest(), "the digest is that of the files");
            let checkpoint = Checkpoint::open(&mine).unwrap();
            let checkpoint = match recipe {
                Some(recipe) => checkpoint.quantized(recipe),
                None => checkpoint,
            };
            assert_eq!(model.base_id().unwrap(), BaseId::of(&checkpoint).unwrap());
            ids.push(model.base_id().unwrap());
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 4);
    // What is quantised already is the same weights, whatever is asked for.
    let options = |quantize| LoadOptions {
        threads: 1,
        cache: Some(cache.path().to_owned()),
        quantize,
        ..LoadOptions::default()
    };
    let mut all = Tiny::llama();
    for name in ["attn_q", "attn_k"] {
        for layer in 0..2 {
            let name = format!("blk.{layer}.{name}.weight");
            let rows = all.tensors[&name].shape[0];
            all.matrix(&name, rows, 32, BlockType::Q8_0);
        }
    }
    std::fs::write(&gguf, all.bytes()).unwrap();
    assert!(!Model::load(&gguf, &options(None)).unwrap().0.packed().unwrap().from_cache());
    let (kept, _) = Model::load(&gguf, &options(Some(Recipe::Q4_0))).unwrap();
    assert!(kept.packed().unwrap().from_cache() && kept.checkpoint().kept_quantised() > 10);
}
