//! Draft heads that learn beside LoRA's matrices: gradients against finite differences, guesses against
//! the kernels that serve them.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use logits::{checkpoint, difference, dot, numbers, reference};
use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::medusa::{Head, HeadMatrix, HeadsFile, MedusaHeads, ResBlock};
use offshoot_models::{
    DenseModel, DenseTuning, DraftTarget, Drafts, GradientOptions, Gradients, LogitRows,
    LoraAdapter, PackedAdapters, PackedExecutor, PackedModel, Segment, TextTarget, VariantId,
    chain,
};

/// Tied and untied heads, capped logits, experts.
const FAMILIES: [&str; 4] = ["llama_biases", "qwen2_untied", "gemma3_linear", "qwen3_moe"];
const LAMBDA: f64 = 0.7;

/// Differences of every matrix of the model but experts, the output head's among them.
fn adapter(model: &DenseModel) -> LoraAdapter {
    let mut adapter = LoraAdapter::default();
    let linears = model.blueprint().linears.iter().enumerate();
    for (place, linear) in linears.filter(|(_, linear)| !linear.routed) {
        let seed = 2 * place as u64;
        adapter.matrices.insert(linear.name.clone(), difference(linear, 2, seed));
    }
    adapter
}

/// Two heads of two blocks that score every other token.
fn heads(model: &DenseModel, sees_token: bool) -> HeadsFile {
    let d = model.config().hidden_size;
    let matrix = |rows: usize, cols: usize, seed: u64| {
        let values = numbers(rows * cols, seed, 0.4);
        HeadMatrix::new(BlockType::F32, (rows, cols), &values)
    };
    let block = |k: u64, l: u64| ResBlock {
        weight: matrix(d, if l == 0 && sees_token { 2 * d } else { d }, 90 + 10 * k + l),
        bias: matrix(1, d, 190 + 10 * k + l),
    };
    let head = |k| Head { blocks: vec![block(k, 0), block(k, 1)], output: None };
    let vocabulary = (0..model.config().vocab_size as u32).step_by(2).collect();
    HeadsFile {
        hidden_size: d,
        heads: vec![head(0), head(1)],
        vocabulary: Some(vocabulary),
        card: None,
    }
}

fn tuning(name: &str, dtype: DType, sees_token: bool) -> DenseTuning {
    let model = DenseModel::load(&checkpoint(name), &Device::Cpu, dtype).unwrap();
    let (low, file) = (adapter(&model), heads(&model, sees_token));
    DenseTuning::lora(model, &low, false).unwrap().with_heads(&file).unwrap()
}

/// What is learned of two texts of a model's reference text.
struct Lesson {
    texts: Vec<Vec<u32>>,
    targets: Vec<TextTarget>,
    drafts: Vec<DraftTarget>,
}

impl Lesson {
    fn new(name: &str) -> Self {
        let tokens = reference(name).tokens;
        let texts = vec![tokens[..7].to_vec(), tokens[5..14].to_vec()];
        let (mut targets, mut drafts) = (Vec::new(), Vec::new());
        for (text, place) in [(1, 4), (0, 2), (0, 5), (1, 7)] {
            let chosen = texts[text][place + 1];
            targets.push(TextTarget { text, place, token: chosen, weight: 0.25 });
            for head in 0..2 {
                let token = 2 * ((place + 3 * head + text) as u32 % 20);
                let weight = 0.8 / (1.0 + head as f64);
                drafts.push(DraftTarget { text, place, chosen, head, token, weight });
            }
        }
        // The second head has less to guess than the first.
        drafts.pop();
        Self { texts, targets, drafts }
    }

    fn learned(
        &self,
        tuning: &DenseTuning,
        (checkpointing, teacher, alone): (bool, bool, bool),
    ) -> Gradients {
        let texts: Vec<&[u32]> = self.texts.iter().map(Vec::as_slice).collect();
        let drafts = Drafts { targets: &self.drafts, weight: LAMBDA, alone };
        let options = GradientOptions {
            checkpointing,
            drafts: Some(drafts),
            teacher,
            ..GradientOptions::default()
        };
        tuning.gradients(&texts, &self.targets, options).unwrap()
    }
}

fn is_of_heads(name: &str) -> bool {
    name.starts_with("medusa_head.")
}

#[test]
fn gradients_through_the_heads_are_the_slopes_of_the_joint_loss() {
    for (name, teacher) in FAMILIES.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (tuning, lesson) = (tuning(name, DType::F64, true), Lesson::new(name));
        let ours = lesson.learned(&tuning, (true, teacher, false));
        assert!(ours.drafts.iter().all(|loss| *loss > 0.1), "{name}: {:?}", ours.drafts);
        let (mut of_model, mut of_heads) = (0, 0);
        for (seed, ((variable, var), gradient)) in
            (1..).zip(tuning.variables().iter().zip(&ours.tensors))
        {
            let gradient = gradient.as_ref().unwrap();
            let direction = numbers(var.elem_count(), seed, 1.0);
            let direction = Tensor::from_vec(direction, var.dims(), &Device::Cpu).unwrap();
            let direction = direction.to_dtype(DType::F64).unwrap();
            let at = var.as_tensor().copy().unwrap().detach();
            // The heads' own loss is not weighed for them.
            let value = |step: f64| {
                var.set(&(&at + (&direction * step).unwrap()).unwrap()).unwrap();
                let moved = lesson.learned(&tuning, (false, teacher, false));
                var.set(&at).unwrap();
                match is_of_heads(variable) {
                    true => moved.drafts.iter().sum(),
                    false => moved.loss,
                }
            };
            let slope: f64 = (value(1e-5) - value(-1e-5)) / 2e-5;
            let size = dot(gradient, gradient).sqrt();
            let error = (slope - dot(gradient, &direction)).abs() / size.max(1e-4);
            assert!(error < 1e-5, "{name}, teacher {teacher}: {variable} is off by {error}");
            *if is_of_heads(variable) { &mut of_heads } else { &mut of_model } += 1;
        }
        assert!(of_heads == 8 && of_model > 8, "{of_heads} and {of_model}");
    }
}

#[test]
fn what_the_model_hears_of_the_heads_is_in_its_gradients_alone() {
    let (name, dtype) = ("llama_biases", DType::F64);
    let (tuning, lesson) = (tuning(name, dtype, true), Lesson::new(name));
    let both = lesson.learned(&tuning, (true, false, false));
    let alone = lesson.learned(&tuning, (true, false, true));
    let texts: Vec<&[u32]> = lesson.texts.iter().map(Vec::as_slice).collect();
    let none = tuning.gradients(&texts, &lesson.targets, GradientOptions::default()).unwrap();
    assert!(none.drafts.is_empty());
    let expected = none.loss + LAMBDA * both.drafts.iter().sum::<f64>();
    assert!((both.loss - expected).abs() < 1e-12 * expected);
    assert_eq!((alone.loss, &alone.drafts), (both.loss, &both.drafts));
    let all =
        tuning.variables().iter().zip(&both.tensors).zip(alone.tensors.iter().zip(&none.tensors));
    for (((variable, _), both), (alone, none)) in all {
        match is_of_heads(variable) {
            true => {
                assert!(none.is_none(), "{variable}");
                let (both, alone) = (both.as_ref().unwrap(), alone.as_ref().unwrap());
                assert_eq!(dot(&(both - alone).unwrap(), both), 0.0, "{variable}");
            }
            false => {
                assert!(alone.is_none(), "{variable}");
                let (both, none) = (both.as_ref().unwrap(), none.as_ref().unwrap());
                let heard = (both - none).unwrap();
                // The output head's own matrices are not on the way to the heads.
                let heard = dot(&heard, &heard).sqrt();
                assert_eq!(
                    heard > 1e-6,
                    variable.starts_with("model.layers"),
                    "{variable}: {heard}"
                );
            }
        }
    }
}

#[test]
fn a_teacher_is_the_model_without_lora_and_a_model_that_is_it_has_nothing_to_learn() {
    for name in FAMILIES {
        let model = DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F64).unwrap();
        let mut low = adapter(&model);
        low.matrices.values_mut().for_each(|low| low.b.fill(0.0));
        let file = heads(&model, true);
        let tuning = DenseTuning::lora(model, &low, false).unwrap().with_heads(&file).unwrap();
        let lesson = Lesson::new(name);
        let same = lesson.learned(&tuning, (true, true, false));
        let divergence = same.loss - LAMBDA * same.drafts.iter().sum::<f64>();
        assert!(divergence.abs() < 1e-10, "{name}: {divergence}");
        let moved = lesson.learned(&self::tuning(name, DType::F64, true), (true, true, false));
        assert!(moved.loss - LAMBDA * moved.drafts.iter().sum::<f64>() > 1e-3, "{name}");
    }
}

#[test]
fn trained_heads_guess_what_the_served_ones_do() {
    for (name, sees_token) in FAMILIES.into_iter().flat_map(|name| [(name, true), (name, false)]) {
        let tuning = tuning(name, DType::F32, sees_token);
        let text = reference(name).tokens[..9].to_vec();
        let cpu = Cpu::new(Isa::best(), 1);
        let base = Arc::new(checkpoint(name));
        let packed = PackedModel::load(base, &cpu, None).unwrap();
        let low = tuning.adapter().unwrap().unwrap();
        let mut hooks = PackedAdapters::new(&cpu, packed.blueprint(), &[low]).unwrap();
        let mut executor = PackedExecutor::new(cpu.clone(), packed.config());
        let mut cache = packed.new_cache(text.len());
        let segment = Segment {
            cache: &mut cache,
            tokens: &text,
            parents: &chain(text.len()),
            positions: &(0..text.len() as u32).collect::<Vec<_>>(),
            rope: packed.config().rope_for(text.len()),
            variant: VariantId(1),
            logits: LogitRows::All,
        };
        executor.step(&packed, &mut [segment], &mut hooks).unwrap();
        let file = tuning.heads().unwrap().unwrap();
        let all = file.vocabulary.as_ref().unwrap().len();
        let mut served = MedusaHeads::new(&cpu, &packed, &file, all).unwrap();
        let places: Vec<(usize, u32)> = (0..8).map(|place| (place, text[place + 1])).collect();
        let found = tuning.guesses(&text, &places, all).unwrap();
        for (&(place, chosen), found) in places.iter().zip(found.chunks_exact(2 * all)) {
            let state = executor.head_input_row(place);
            let expected = served.evaluate(&cpu, state, chosen).unwrap();
            for (found, expected) in found.chunks_exact(all).zip(expected.chunks_exact(all)) {
                assert!(found.is_sorted_by(|a, b| a.probability >= b.probability));
                let of =
                    |token| found.iter().find(|found| found.token == token).unwrap().probability;
                for expected in expected {
                    let off = (of(expected.token) - expected.probability).abs();
                    // Served heads, and some of the weights, are rounded to 8 bits.
                    assert!(off < 0.05, "{name}: {expected:?} is off by {off}");
                }
            }
        }
    }
}

#[test]
fn heads_and_targets_that_cannot_be_trained_are_told() {
    let name = "qwen2_untied";
    let model = || DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F32).unwrap();
    let names: Vec<String> = model().names().map(str::to_owned).collect();
    let full = DenseTuning::full(model(), &names).unwrap();
    let file = heads(&model(), true);
    let told = full.with_heads(&file).unwrap_err().to_string();
    assert!(told.contains("LoRA"), "{told}");
    let lora = || DenseTuning::lora(model(), &adapter(&model()), false).unwrap();
    let narrow = HeadsFile { hidden_size: 8, ..file.clone() };
    assert!(lora().with_heads(&narrow).is_err());
    let (tuning, lesson) = (lora().with_heads(&file).unwrap(), Lesson::new(name));
    let texts: Vec<&[u32]> = lesson.texts.iter().map(Vec::as_slice).collect();
    let refused = |tuning: &DenseTuning, change: &dyn Fn(&mut DraftTarget)| {
        let mut drafts = lesson.drafts.clone();
        change(&mut drafts[0]);
        let drafts = Drafts { targets: &drafts, weight: 1.0, alone: false };
        let options = GradientOptions { drafts: Some(drafts), ..GradientOptions::default() };
        tuning.gradients(&texts, &lesson.targets, options).is_err()
    };
    assert!(!refused(&tuning, &|_| {}));
    assert!(refused(&tuning, &|draft| draft.text = 2), "no such text");
    assert!(refused(&tuning, &|draft| draft.place = 9), "no such place");
    assert!(refused(&tuning, &|draft| draft.head = 2), "no such head");
    assert!(refused(&tuning, &|draft| draft.token = 3), "not scored");
    assert!(refused(&tuning, &|draft| draft.weight = f64::NAN), "no weight");
    assert!(refused(&tuning, &|draft| draft.chosen ^= 1), "two tokens at a place");
    assert!(refused(&lora(), &|_| {}), "no heads");
    assert!(tuning.drafts(2) && !tuning.drafts(3) && !lora().drafts(2));
    assert!(lora().guesses(texts[0], &[(0, 1)], 3).is_err());
}

/// What runs where a model is on another device than the processor, here on the processor.
#[test]
fn the_librarys_operations_give_the_gradients_of_our_own() {
    for (name, teacher) in FAMILIES.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        // The library's GELU is good to single precision alone.
        let close = if name.starts_with("gemma3") { 1e-5 } else { 1e-9 };
        for (checkpointing, alone) in [(true, false), (false, false), (false, true)] {
            let lesson = Lesson::new(name);
            let how = (checkpointing, teacher, alone);
            let ours = lesson.learned(&tuning(name, DType::F64, true), how);
            let theirs = lesson.learned(&tuning(name, DType::F64, true).by_library(), how);
            assert!((ours.loss - theirs.loss).abs() < close * ours.loss.abs(), "{name}");
            for (ours, theirs) in ours.drafts.iter().zip(&theirs.drafts) {
                assert!((ours - theirs).abs() < close * ours.abs(), "{name}");
            }
            let names = tuning(name, DType::F64, true);
            let both = ours.tensors.iter().zip(&theirs.tensors);
            for ((variable, _), (ours, theirs)) in names.variables().iter().zip(both) {
                assert_eq!(ours.is_some(), theirs.is_some(), "{name}: {variable}");
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                let off = (ours - theirs).unwrap();
                let (error, size) = (dot(&off, &off).sqrt(), dot(ours, ours).sqrt());
                assert!(error <= close * size, "{name} {how:?}: {variable}: {error} of {size}");
            }
        }
    }
}
