//! Losses and gradients of whole texts: against the dense executor's own graph, with and without
//! checkpointing, for LoRA matrices and for all weights.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use logits::{MODELS, checkpoint, difference, dot, numbers, reference};
use offshoot_models::{
    DenseAdapters, DenseCache, DenseHooks, DenseModel, DenseTuning, DropoutMasks, GradientOptions,
    Gradients, LinearId, LogitRows, LoraAdapter, NoHooks, Segment, TextTarget, VariantId, chain,
};

fn load(name: &str, dtype: DType) -> DenseModel {
    DenseModel::load(&checkpoint(name), &Device::Cpu, dtype).unwrap()
}

/// Differences of every matrix of the model, the head's among them.
fn adapter(model: &DenseModel) -> LoraAdapter {
    let mut adapter = LoraAdapter::default();
    for (place, linear) in model.blueprint().linears.iter().enumerate() {
        let low = difference(linear, 1 + place % 3, 2 * place as u64);
        adapter.matrices.insert(linear.name.clone(), low);
    }
    adapter
}

/// Three texts of a model's reference text, and what is to be predicted in them.
fn texts(name: &str) -> (Vec<Vec<u32>>, Vec<TextTarget>) {
    let tokens = reference(name).tokens;
    let texts = vec![tokens[..9].to_vec(), tokens[5..6].to_vec(), tokens[8..].to_vec()];
    let mut targets = Vec::new();
    for (text, place, weight) in
        [(2, 3, 0.4), (0, 0, 0.25), (0, 7, 0.5), (2, 15, 1.0), (0, 7, -0.1), (1, 0, 0.3)]
    {
        let token = tokens[(3 * place + text + targets.len()) % tokens.len()];
        targets.push(TextTarget { text, place, token, weight });
    }
    (texts, targets)
}

fn slices(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

/// The loss by the dense executor's steps.
fn loss_of_steps(
    model: &DenseModel,
    hooks: &mut dyn DenseHooks,
    texts: &[Vec<u32>],
    targets: &[TextTarget],
) -> Tensor {
    let mut parts = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let mut cache = DenseCache::new(model.config());
        let segment = Segment {
            cache: &mut cache,
            tokens: text,
            parents: &chain(text.len()),
            positions: &(0..text.len() as u32).collect::<Vec<_>>(),
            rope: model.config().rope_for(text.len()),
            variant: VariantId(1),
            logits: LogitRows::All,
        };
        let logits = model.step(&mut [segment], hooks).unwrap();
        let sums = logits.log_sum_exp(D::Minus1).unwrap().unsqueeze(1).unwrap();
        let logs = logits.broadcast_sub(&sums).unwrap();
        let mut weights = vec![0.0; logs.elem_count()];
        for target in targets.iter().filter(|target| target.text == number) {
            let at = target.place * model.config().vocab_size + target.token as usize;
            weights[at] -= target.weight;
        }
        let weights = Tensor::from_vec(weights, logs.shape(), &Device::Cpu).unwrap();
        let weights = weights.to_dtype(logs.dtype()).unwrap();
        parts.push((logs * weights).unwrap().sum_all().unwrap());
    }
    Tensor::stack(&parts, 0).unwrap().sum_all().unwrap()
}

fn number(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f64 {
    let off = (a - b).unwrap();
    (dot(&off, &off) / dot(b, b)).sqrt()
}

fn all_names(model: &DenseModel) -> Vec<String> {
    model.names().map(str::to_owned).collect()
}

fn found(tuning: &DenseTuning, name: &str, options: GradientOptions<'_>) -> Gradients {
    let (texts, targets) = texts(name);
    tuning.gradients(&slices(&texts), &targets, options).unwrap()
}

const CHECKPOINTED: GradientOptions<'_> =
    GradientOptions { checkpointing: true, dropout: None, drafts: None, teacher: false };

#[test]
fn the_gradients_of_all_weights_are_those_of_the_dense_executors_steps() {
    for name in MODELS {
        let tuning =
            DenseTuning::full(load(name, DType::F64), &all_names(&load(name, DType::F64))).unwrap();
        let (texts, targets) = texts(name);
        let loss = loss_of_steps(tuning.model(), &mut NoHooks, &texts, &targets);
        let store = loss.backward().unwrap();
        let ours = found(&tuning, name, GradientOptions::default());
        assert!((ours.loss - number(&loss)).abs() < 1e-10 * ours.loss.abs(), "{name}");
        for ((weight, variable), gradient) in tuning.variables().iter().zip(&ours.tensors) {
            let Some(expected) = store.get(variable) else {
                assert!(gradient.is_none(), "{name}: {weight}");
                continue;
            };
            let error = far(gradient.as_ref().unwrap(), expected);
            assert!(error < 1e-9, "{name}: {weight} is off by {error}");
        }
    }
}

/// By finite differences: the executor's adapters take their numbers in single precision.
#[test]
fn the_gradients_of_lora_matrices_are_the_slopes_of_the_loss() {
    for name in MODELS {
        let model = load(name, DType::F64);
        let tuning = DenseTuning::lora(model.clone(), &adapter(&model), false).unwrap();
        let (texts, targets) = texts(name);
        let ours = found(&tuning, name, CHECKPOINTED);
        let loss = || {
            let scores = tuning.score(&slices(&texts), &targets).unwrap();
            targets.iter().zip(scores).map(|(t, (log, _))| -t.weight * log).sum::<f64>()
        };
        assert!((ours.loss - loss()).abs() < 1e-10 * ours.loss.abs(), "{name}");
        let mut hooks = DenseAdapters::new(&model, &[adapter(&model)]).unwrap();
        let steps = number(&loss_of_steps(&model, &mut hooks, &texts, &targets));
        assert!((ours.loss - steps).abs() < 1e-6 * ours.loss.abs(), "{name}: {steps}");
        for (seed, ((matrix, variable), gradient)) in
            (1..).zip(tuning.variables().iter().zip(&ours.tensors))
        {
            // An expert that no row goes through has none.
            let Some(gradient) = gradient else {
                assert!(matrix.contains(".experts."), "{name}: {matrix}");
                continue;
            };
            let direction = numbers(variable.elem_count(), seed, 1.0);
            let direction = Tensor::from_vec(direction, variable.dims(), &Device::Cpu).unwrap();
            let direction = direction.to_dtype(DType::F64).unwrap();
            let at = variable.as_tensor().copy().unwrap().detach();
            let value = |step: f64| {
                variable.set(&(&at + (&direction * step).unwrap()).unwrap()).unwrap();
                let value = loss();
                variable.set(&at).unwrap();
                value
            };
            let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
            let size = dot(gradient, gradient).sqrt();
            let error = (slope - dot(gradient, &direction)).abs() / size.max(1e-4);
            assert!(error < 1e-5, "{name}: {matrix} is off by {error}");
        }
    }
}

/// What reads one tensor may be summed in another order, in single precision.
fn check_same(name: &str, tuning: &DenseTuning, plain: &Gradients, other: &Gradients) {
    assert!((plain.loss - other.loss).abs() < 1e-6 * plain.loss.abs(), "{name}");
    let both = plain.tensors.iter().zip(&other.tensors);
    for ((weight, _), (plain, other)) in tuning.variables().iter().zip(both) {
        assert_eq!(plain.is_some(), other.is_some(), "{name}: {weight}");
        if let (Some(plain), Some(other)) = (plain, other) {
            // An expert all of whose inputs were dropped.
            if dot(plain, plain) == 0.0 {
                assert_eq!(dot(other, other), 0.0, "{name}: {weight}");
                continue;
            }
            let error = far(other, plain);
            assert!(error < 1e-5, "{name}: {weight} is off by {error}");
        }
    }
}

#[test]
fn checkpointing_changes_no_gradient() {
    for name in MODELS {
        let model = load(name, DType::F32);
        let names = all_names(&model);
        let some = names.iter().filter(|name| name.contains("layers.1.")).cloned();
        for tuning in [
            DenseTuning::lora(model.clone(), &adapter(&model), false).unwrap(),
            DenseTuning::lora(model.clone(), &adapter(&model), true).unwrap(),
            DenseTuning::full(model.clone(), &names).unwrap(),
            DenseTuning::full(model.clone(), &some.collect::<Vec<_>>()).unwrap(),
            DenseTuning::full(model.clone(), &["model.norm.weight".to_owned()]).unwrap(),
        ] {
            let plain = found(&tuning, name, GradientOptions::default());
            let other = found(&tuning, name, CHECKPOINTED);
            check_same(name, &tuning, &plain, &other);
        }
    }
}

#[test]
fn only_what_is_trained_is_a_variable() {
    let model = load("llama_linear", DType::F32);
    let low = adapter(&model);
    let all = DenseTuning::lora(model.clone(), &low, false).unwrap();
    let frozen = DenseTuning::lora(model.clone(), &low, true).unwrap();
    assert_eq!(all.variables().len(), 2 * frozen.variables().len());
    assert!(frozen.variables().iter().all(|(name, _)| name.ends_with(".lora_B.weight")));
    assert_eq!(all.adapter().unwrap(), Some(low.clone()));
    assert_eq!(frozen.adapter().unwrap(), Some(low));
    let names = vec!["model.norm.weight".to_owned()];
    let full = DenseTuning::full(model.clone(), &names).unwrap();
    assert_eq!((full.variables().len(), full.adapter().unwrap()), (1, None));
    assert!(DenseTuning::full(model.clone(), &[]).is_err());
    assert!(DenseTuning::full(model.clone(), &["model.none".to_owned()]).is_err());
    assert!(DenseTuning::lora(model, &LoraAdapter::default(), false).is_err());
}

#[test]
fn texts_and_targets_that_cannot_be_run_are_told() {
    let model = load("llama_linear", DType::F32);
    let tuning = DenseTuning::lora(model.clone(), &adapter(&model), false).unwrap();
    let told = |texts: &[&[u32]], targets: &[(usize, usize)]| {
        let targets: Vec<_> = targets
            .iter()
            .map(|&(text, place)| TextTarget { text, place, token: 1, weight: 1.0 })
            .collect();
        tuning.score(texts, &targets).unwrap_err().to_string()
    };
    assert!(told(&[], &[(0, 0)]).contains("no texts"));
    assert!(told(&[&[1], &[]], &[(0, 0)]).contains("text 1 has no tokens"));
    assert!(told(&[&[1, 9_999_999]], &[(0, 0)]).contains("token 9999999"));
    assert!(told(&[&[1, 2]], &[(0, 1), (0, 2)]).contains("target 1 is in none"));
    assert!(told(&[&[1, 2]], &[]).contains("no token is to be predicted"));
}

#[test]
fn a_model_that_stays_in_its_file_gives_the_gradients_of_one_in_memory() {
    for name in MODELS {
        let file = Arc::new(checkpoint(name));
        let model = load(name, DType::F32);
        let stored = DenseModel::stored(&file).unwrap();
        let held = DenseTuning::lora(model.clone(), &adapter(&model), false).unwrap();
        let lean = DenseTuning::lora(stored, &adapter(&model), false).unwrap();
        let (held, lean) = (found(&held, name, CHECKPOINTED), found(&lean, name, CHECKPOINTED));
        assert!((held.loss - lean.loss).abs() < 1e-6 * held.loss.abs(), "{name}");
        for (held, lean) in held.tensors.iter().zip(&lean.tensors) {
            assert_eq!(held.is_some(), lean.is_some(), "{name}");
            if let (Some(held), Some(lean)) = (held, lean) {
                assert!(far(lean, held) < 1e-5, "{name}");
            }
        }
    }
}

/// Drops the rows of even numbers.
struct EvenRows;

impl DropoutMasks for EvenRows {
    fn mask(&self, _: LinearId, rows: &[u32], cols: usize) -> Vec<f32> {
        rows.iter().flat_map(|row| vec![2.0 * (row % 2) as f32; cols]).collect()
    }
}

#[test]
fn dropped_inputs_of_lora_have_no_part_in_the_loss_and_checkpointing_still_changes_nothing() {
    for name in MODELS {
        let model = load(name, DType::F32);
        let tuning = DenseTuning::lora(model.clone(), &adapter(&model), false).unwrap();
        let options = |checkpointing| GradientOptions {
            checkpointing,
            dropout: Some(&EvenRows),
            ..GradientOptions::default()
        };
        let plain = found(&tuning, name, options(false));
        let other = found(&tuning, name, options(true));
        check_same(name, &tuning, &plain, &other);
        let whole = found(&tuning, name, CHECKPOINTED);
        assert!((whole.loss - other.loss).abs() > 1e-4, "{name}: {}", whole.loss);
    }
}

/// How near the library's operations are to ours: its GELU is good to single precision alone.
fn close(name: &str) -> f64 {
    if name.starts_with("gemma3") { 1e-5 } else { 1e-9 }
}

/// What runs where a model is on another device than the processor, here on the processor.
#[test]
fn the_librarys_operations_give_the_losses_and_gradients_of_our_own() {
    for name in MODELS {
        let model = load(name, DType::F64);
        let low = adapter(&model);
        let lora = |freeze_a| DenseTuning::lora(model.clone(), &low, freeze_a).unwrap();
        let full = |names: &[String]| DenseTuning::full(model.clone(), names).unwrap();
        let tunings = || {
            let some = ["model.norm.weight".to_owned(), "model.embed_tokens.weight".to_owned()];
            [lora(false), lora(true), full(&all_names(&model)), full(&some)]
        };
        let (texts, targets) = texts(name);
        for (ours, theirs) in tunings().into_iter().zip(tunings()) {
            let theirs = theirs.by_library();
            let of_lora = ours.variables().iter().any(|(name, _)| name.contains(".lora_"));
            let dropouts = [None, Some(&EvenRows as &dyn DropoutMasks)];
            for dropout in dropouts.into_iter().filter(|dropout| of_lora || dropout.is_none()) {
                for (checkpointing, teacher) in [(false, false), (true, false), (true, true)]
                    .into_iter()
                    .take(2 + usize::from(of_lora))
                {
                    let drafts = None;
                    let options = GradientOptions { checkpointing, dropout, drafts, teacher };
                    let (ours, other) =
                        (found(&ours, name, options), found(&theirs, name, options));
                    let off = (ours.loss - other.loss).abs();
                    assert!(off < close(name) * ours.loss.abs(), "{name}: {}", ours.loss);
                    let both = ours.tensors.iter().zip(&other.tensors);
                    for ((weight, _), (ours, other)) in theirs.variables().iter().zip(both) {
                        assert_eq!(ours.is_some(), other.is_some(), "{name}: {weight}");
                        let (Some(ours), Some(other)) = (ours, other) else { continue };
                        let size = dot(ours, ours).sqrt();
                        let off = (ours - other).unwrap();
                        let error = dot(&off, &off).sqrt();
                        assert!(error <= close(name) * size, "{name}: {weight}: {error} of {size}");
                    }
                }
            }
            let scores = |tuning: &DenseTuning| tuning.score(&slices(&texts), &targets).unwrap();
            for (ours, theirs) in scores(&ours).iter().zip(scores(&theirs)) {
                assert!((ours.0 - theirs.0).abs() < close(name) * ours.0.abs(), "{name}");
                assert_eq!(ours.1, theirs.1, "{name}");
            }
        }
    }
}
