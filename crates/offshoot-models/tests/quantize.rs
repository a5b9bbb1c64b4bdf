//! Quantising: a model quantised while it loads is the model of the file that `Export` writes.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::gguf::{Export, ExportOptions, parse};
use offshoot_models::{
    BaseId, Checkpoint, Error, ExportError, LogitRows, NoHooks, PackedExecutor, PackedModel,
    Recipe, RopeId, Segment, TemplateId, TokenizerId, VariantId, chain,
};
use proptest::prelude::*;
use serde_json::json;
use support::folder::{Folder, Stored};
use support::tiny::{TOKENS, Tiny};
use support::tokenizer_files::{tokenizer_config, tokenizer_json};

fn cpu(threads: usize) -> Cpu {
    Cpu::new(Isa::best(), threads)
}

/// The file of a recipe.
fn file(checkpoint: &Checkpoint, recipe: Recipe, requantize: bool) -> Result<Vec<u8>, ExportError> {
    let options = ExportOptions { recipe, requantize, name: Some("Tiny") };
    let mut out = Vec::new();
    Export::new(checkpoint, &options)?.write(&cpu(2), &mut out, &mut |_| true)?;
    Ok(out)
}

/// The folder of a model of two layers, `width` wide, of Llama's form or, if its head is its own,
/// Qwen2's: weights mostly small and a few far out, in single and in half precision by turns.
fn folder(width: usize, tied: bool) -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let tiny = if tied { Tiny::llama() } else { Tiny::qwen2() };
    let tiny = open(&tiny.bytes(), dir.path());
    let spec = tiny.tokenizer().unwrap();
    let mut folder = Folder::of(&tiny);
    folder.set("hidden_size", width);
    folder.set("head_dim", width / 4);
    folder.set("intermediate_size", width);
    folder.put("tokenizer.json", &tokenizer_json(spec));
    folder.put("tokenizer_config.json", &tokenizer_config(spec));
    folder.put("generation_config.json", &json!({ "eos_token_id": 2 }));
    folder.files.insert("chat_template.jinja".into(), b"{{ messages[0].content }}".to_vec());
    let mut state = 1u32;
    for (i, (name, tensor)) in folder.tensors.iter_mut().enumerate() {
        let part = name.split('.').rev().nth(1).unwrap();
        let rows = match part {
            "embed_tokens" | "lm_head" => TOKENS.len(),
            "k_proj" | "v_proj" => width / 2,
            _ => width,
        };
        let shape = if tensor.shape.len() == 1 { vec![rows] } else { vec![rows, width] };
        let weights: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                x * x * x / (width as f32).sqrt()
            })
            .collect();
        let (dtype, block) = match i % 3 {
            0 => ("F32", BlockType::F32),
            1 => ("BF16", BlockType::Bf16),
            _ => ("F16", BlockType::F16),
        };
        let mut bytes = Vec::new();
        block.quantize(&weights, &mut bytes).unwrap();
        *tensor = Stored { dtype, shape, bytes };
    }
    folder
}

fn open(bytes: &[u8], dir: &Path) -> Checkpoint {
    let path = dir.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// All tensors in single precision.
fn single(mut folder: Folder) -> Folder {
    for tensor in folder.tensors.values_mut() {
        let stored = match tensor.dtype {
            "F16" => BlockType::F16,
            "BF16" => BlockType::Bf16,
            _ => BlockType::F32,
        };
        let mut weights = vec![0.0; tensor.shape.iter().product()];
        stored.dequantize(&tensor.bytes, &mut weights).unwrap();
        let bytes = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        *tensor = Stored { dtype: "F32", shape: tensor.shape.clone(), bytes };
    }
    folder
}

fn saved(folder: &Folder, dir: &Path) -> PathBuf {
    let path = dir.join("folder");
    std::fs::create_dir(&path).unwrap();
    folder.save(&path);
    path
}

/// The bits of the logits of a few tokens.
fn logits(checkpoint: Checkpoint) -> Vec<u32> {
    let config = checkpoint.config().clone();
    let model = PackedModel::load(Arc::new(checkpoint), &cpu(2), None).unwrap();
    let mut executor = PackedExecutor::new(cpu(2), &config);
    let mut cache = model.new_cache(16);
    let tokens = [3u32, 1, 4, 1, 5, 9, 2, 6];
    let segment = Segment {
        cache: &mut cache,
        tokens: &tokens,
        parents: &chain(tokens.len()),
        positions: &(0..tokens.len() as u32).collect::<Vec<_>>(),
        rope: RopeId::default(),
        variant: VariantId::default(),
        logits: LogitRows::All,
    };
    let logits = executor.step(&model, &mut [segment], &mut NoHooks).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != logits[0]));
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_folder_quantised_while_loading_is_its_file_to_the_bit() {
    for (width, tied) in [(256, true), (256, false), (96, true), (96, false), (40, true)] {
        for recipe in Recipe::ALL {
            let dir = tempfile::tempdir().unwrap();
            let folder = saved(&folder(width, tied), dir.path());
            let plain = Checkpoint::open(&folder).unwrap();
            let tokenizer = TokenizerId::of(plain.tokenizer().unwrap());
            let template = plain.chat_template().map(TemplateId::of);
            let stops = plain.stop_tokens().to_vec();
            let written = open(&file(&plain, recipe, false).unwrap(), dir.path());
            assert_eq!(written.config(), plain.config(), "{recipe}");
            assert_eq!(TokenizerId::of(written.tokenizer().unwrap()), tokenizer);
            assert_eq!(written.chat_template().map(TemplateId::of), template);
            assert_eq!(written.stop_tokens(), stops);
            let loaded = plain.quantized(recipe);
            assert_eq!(BaseId::of(&loaded).unwrap(), BaseId::of(&written).unwrap(), "{recipe}");
            for (one, other) in loaded.tensors().zip(written.tensors()) {
                let vector = one.info.shape.len() == 1;
                assert!(vector || one.block == other.block, "{recipe}: {}", one.name);
            }
            assert_eq!(logits(loaded), logits(written), "{recipe}, {width}, tied: {tied}");
        }
    }
}

#[test]
fn quantising_changes_what_it_says_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let folder = saved(&folder(64, true), dir.path());
    let open = || Checkpoint::open(&folder).unwrap();
    let eight = open().quantized(Recipe::Q8_0);
    assert_eq!((eight.recipe(), eight.kept_quantised()), (Some(Recipe::Q8_0), 0));
    assert_ne!(BaseId::of(&eight).unwrap(), BaseId::of(&open()).unwrap());
    assert_ne!(logits(open().quantized(Recipe::Q4_1)), logits(open()));
    for tensor in eight.tensors() {
        let expected =
            if tensor.info.shape.len() == 1 { tensor.info.block } else { BlockType::Q8_0 };
        assert_eq!(tensor.block, expected, "{}", tensor.name);
    }
}

#[test]
fn what_is_quantised_stays_on_load_and_is_refused_for_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = open(&Tiny::llama().bytes(), dir.path());
    let error = match file(&tiny, Recipe::Q8_0, false).unwrap_err() {
        ExportError::Model(error @ Error::Recipe(_)) => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(error.contains("--requantize") && error.contains("model.layers.0"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let float = open(&file(&tiny, Recipe::F16, true).unwrap(), other.path());
    assert!(float.tensors().all(|t| t.info.block.is_float()));
    let blocks: Vec<BlockType> = tiny.tensors().map(|t| t.block).collect();
    let kept = tiny.quantized(Recipe::Q8_0);
    assert!(kept.kept_quantised() > 5, "{}", kept.kept_quantised());
    for (tensor, before) in kept.tensors().zip(blocks) {
        let matrix = tensor.info.shape.len() > 1;
        let expected = if before.is_float() && matrix { BlockType::Q8_0 } else { before };
        assert_eq!(tensor.block, expected, "{}", tensor.name);
    }
}

#[test]
fn the_keys_of_a_file_are_kept_but_those_of_its_tensors() {
    for mut tiny in [Tiny::llama(), Tiny::qwen2()] {
        tiny.set("general.file_type", 99u32);
        tiny.set("somebody.else", "kept");
        let dir = tempfile::tempdir().unwrap();
        let source = tiny.bytes();
        let checkpoint = open(&source, dir.path());
        let written = file(&checkpoint, Recipe::Q4_0, true).unwrap();
        let (before, after) = (parse(&source).unwrap(), parse(&written).unwrap());
        assert_eq!(after.unsigned("general.file_type").unwrap(), Some(2));
        assert_eq!(after.unsigned("general.quantization_version").unwrap(), Some(2));
        let kept = before
            .metadata()
            .filter(|(key, _)| !["general.file_type", "general.alignment"].contains(key));
        for (key, value) in kept {
            assert_eq!(after.get(key), Some(value), "{key}");
        }
        let names = |gguf: &offshoot_models::gguf::Gguf<'_>| -> Vec<String> {
            gguf.tensors().map(|(name, _)| name.to_owned()).collect()
        };
        assert_eq!(names(&before), names(&after));
    }
}

#[test]
fn a_float_file_of_a_float_file_has_the_same_weights() {
    for tiny in [Tiny::llama(), Tiny::qwen2()] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let checkpoint = open(&tiny.bytes(), dir.path());
        let id = BaseId::of(&checkpoint).unwrap();
        let float = file(&checkpoint, Recipe::F32, true).unwrap();
        let float = open(&float, other.path());
        assert_eq!(BaseId::of(&float).unwrap(), id, "q and k are stored as they were");
        assert_eq!(file(&float, Recipe::F32, false).unwrap(), std::fs::read(float.path()).unwrap());
    }
}

#[test]
fn ends_that_no_other_key_names_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = folder(64, true);
    folder.put("generation_config.json", &json!({ "eos_token_id": [0, 2] }));
    let plain = Checkpoint::open(&saved(&folder, dir.path())).unwrap();
    assert!(plain.stop_tokens().contains(&0), "{:?}", plain.stop_tokens());
    let written = file(&plain, Recipe::F16, false).unwrap();
    assert!(parse(&written).unwrap().get("offshoot.stop_tokens").is_some());
    let stops = plain.stop_tokens().to_vec();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let read = open(&written, first.path());
    assert_eq!(read.stop_tokens(), stops);
    assert_eq!(
        TokenizerId::of(read.tokenizer().unwrap()),
        TokenizerId::of(plain.tokenizer().unwrap())
    );
    let again = open(&file(&read, Recipe::F32, false).unwrap(), second.path());
    assert_eq!(again.stop_tokens(), stops, "a copy of the copy");
    let mut tiny = Tiny::llama();
    tiny.set(
        "offshoot.stop_tokens",
        [1u32, 500].into_iter().collect::<offshoot_models::gguf::Array<'_>>(),
    );
    let error = support::walk(&tiny.bytes()).unwrap_err();
    support::assert_one_line(&error, "stop tokens");
    assert!(error.to_string().contains("offshoot.stop_tokens"), "{error}");
}

#[test]
fn a_weight_that_is_no_number_is_refused_with_its_tensor_and_row() {
    let name = "model.layers.0.mlp.up_proj.weight";
    for (weight, recipe) in [
        (f32::NAN, Recipe::Q8_0),
        (f32::INFINITY, Recipe::Q4_1),
        (f32::NEG_INFINITY, Recipe::F16),
        (1e9, Recipe::Q4_0),
        (f32::NAN, Recipe::F32),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = single(folder(64, true));
        let tensor = folder.tensors.get_mut(name).unwrap();
        let at = 4 * (5 * tensor.shape[1] + 7);
        tensor.bytes[at..at + 4].copy_from_slice(&weight.to_le_bytes());
        let path = saved(&folder, dir.path());
        let plain = Checkpoint::open(&path).unwrap();
        let error = file(&plain, recipe, false).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("row 5"), "{error}");
        assert!(error.contains("weight 7") && !error.contains('\n'), "{error}");
        if recipe.is_quantised() {
            let checkpoint = Arc::new(plain.quantized(recipe));
            let error = PackedModel::load(checkpoint, &cpu(2), None).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("row 5"), "{error}");
        }
    }
}

#[test]
fn a_file_is_the_same_on_any_number_of_threads_and_its_progress_ends_at_all_weights() {
    let checkpoint = folder(64, false).open().unwrap();
    let options = ExportOptions { recipe: Recipe::Q4_1, requantize: false, name: None };
    let export = Export::new(&checkpoint, &options).unwrap();
    let mut files = Vec::new();
    for threads in [1, 2, 3, 8] {
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        let mut progress = |done| {
            seen.push(done);
            true
        };
        export.write(&cpu(threads), &mut out, &mut progress).unwrap();
        assert!(seen.is_sorted() && seen.last() == Some(&export.weights()), "{seen:?}");
        files.push(out);
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]));
    let stopped = export.write(&cpu(2), &mut Vec::new(), &mut |done| done < 100);
    assert!(matches!(stopped, Err(ExportError::Stopped)));
}

#[test]
fn an_output_that_is_full_says_so() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let checkpoint = folder(64, true).open().unwrap();
    let options = ExportOptions { recipe: Recipe::Q8_0, requantize: false, name: None };
    let export = Export::new(&checkpoint, &options).unwrap();
    for room in [0, 10, 3000] {
        match export.write(&cpu(1), &mut Full(room), &mut |_| true) {
            Err(ExportError::Output(e)) => assert_eq!(e.kind(), std::io::ErrorKind::StorageFull),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_vector_that_is_no_number_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = single(folder(64, true));
    let tensor = folder.tensors.get_mut("model.norm.weight").unwrap();
    tensor.bytes[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    let plain = Checkpoint::open(&saved(&folder, dir.path())).unwrap();
    let error = file(&plain, Recipe::Q8_0, false).unwrap_err().to_string();
    assert!(error.starts_with("tensor model.norm.weight: F32: weight 3 is NaN"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rows that are stored in another order are the rows that were meant.
    #[test]
    fn stored_rows_and_canonical_rows_are_inverse(half in 1usize..40, heads in 1usize..5) {
        let order = offshoot_models::RowOrder::RotaryPairs { head_dim: 2 * half };
        for row in 0..2 * half * heads {
            prop_assert_eq!(order.canonical(order.stored(row)), row);
            prop_assert_eq!(order.stored(order.canonical(row)), row);
        }
    }
}
