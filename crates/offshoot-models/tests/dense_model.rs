//! A dense model's weights: where they come from, and which are refused.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use logits::{MODELS, checkpoint, reference};
use offshoot_models::{
    DenseCache, DenseHooks, DenseModel, Error, LinearId, LogitRows, NoHooks, Segment, SegmentRows,
    VariantId, chain,
};

fn load(name: &str) -> DenseModel {
    DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F32).unwrap()
}

fn tensors(model: &DenseModel) -> BTreeMap<String, Tensor> {
    let names = model.names().map(str::to_owned);
    names.map(|name| (name.clone(), model.tensor(&name).unwrap().clone())).collect()
}

#[test]
fn norms_of_gemma_keep_what_half_precision_would_take_from_a_weight_near_1() {
    for (name, norm) in [("gemma3_linear", DType::F32), ("qwen3_tied", DType::BF16)] {
        let checkpoint = checkpoint(name);
        let model = DenseModel::load(&checkpoint, &Device::Cpu, DType::BF16).unwrap();
        assert_eq!(model.dtype(), DType::BF16);
        for stored in checkpoint.tensors().filter(|t| t.name.ends_with("norm.weight")) {
            let weights = model.tensor(stored.name).unwrap();
            assert_eq!(weights.dtype(), norm, "{name}: {}", stored.name);
            let mut expected = vec![0.0; stored.len()];
            stored.read_row(0, &mut expected).unwrap();
            if norm == DType::F32 {
                assert_eq!(weights.to_vec1::<f32>().unwrap(), expected);
            }
        }
        // A model of tensors that exist is held to the same.
        let mut tensors = tensors(&model);
        let rounded = tensors["model.norm.weight"].to_dtype(DType::F16).unwrap();
        DenseModel::from_tensors(model.config().clone(), tensors.clone()).unwrap();
        tensors.insert("model.norm.weight".to_owned(), rounded);
        let error = DenseModel::from_tensors(model.config().clone(), tensors).unwrap_err();
        let expected = format!("type f16, expected {}", norm.as_str());
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn the_weights_are_those_of_the_checkpoint() {
    for name in MODELS {
        let (model, checkpoint) = (load(name), checkpoint(name));
        let names: Vec<_> = checkpoint.tensors().map(|t| t.name).collect();
        assert_eq!(model.names().collect::<Vec<_>>(), names);
        for stored in checkpoint.tensors() {
            let weights = model.tensor(stored.name).unwrap();
            assert_eq!(weights.dims(), stored.info.shape);
            let weights: Vec<f32> = weights.flatten_all().unwrap().to_vec1().unwrap();
            let mut row = vec![0.0; stored.cols()];
            for (index, weights) in weights.chunks(stored.cols()).enumerate() {
                stored.read_row(index, &mut row).unwrap();
                assert_eq!(weights, row);
            }
        }
    }
}

#[test]
fn a_model_of_given_tensors_needs_each_in_its_form() {
    let model = load("qwen2_untied");
    let refuse = |name: &str, tensor: Option<Tensor>, expected: &str| {
        let mut given = tensors(&model);
        match tensor {
            Some(tensor) => given.insert(name.to_owned(), tensor),
            None => given.remove(name),
        };
        let error = DenseModel::from_tensors(model.config().clone(), given).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor {name}: {expected}"));
    };
    let zeros = |shape: &[usize], dtype| Some(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
    let bias = "model.layers.1.self_attn.k_proj.bias";
    refuse(bias, None, "the model has none of that name");
    refuse(bias, zeros(&[17], DType::F32), "shape [17], expected [16]");
    refuse(bias, zeros(&[16], DType::F16), "type f16, expected f32");
    refuse("lm_head.weight", zeros(&[48, 101], DType::F32), "shape [48, 101], expected [101, 48]");
    let embedding = "model.embed_tokens.weight";
    let integers = "is of type u32, expected a float type";
    refuse(embedding, zeros(&[101, 48], DType::U32), integers);

    let mut given = tensors(&model);
    given.insert("left.over".to_owned(), zeros(&[1], DType::F32).unwrap());
    let same = DenseModel::from_tensors(model.config().clone(), given).unwrap();
    assert!(same.tensor("left.over").is_err());
    assert_eq!(same.names().count(), model.names().count());
}

#[test]
fn replaced_weights_keep_their_form() {
    let mut model = load("llama_biases");
    let name = "model.norm.weight";
    let ones = Tensor::ones(40, DType::F32, &Device::Cpu).unwrap();
    model.set(name, ones.clone()).unwrap();
    assert_eq!(model.tensor(name).unwrap().to_vec1::<f32>().unwrap(), [1.0; 40]);
    for wrong in [ones.reshape((1, 40)).unwrap(), ones.to_dtype(DType::F64).unwrap()] {
        let error = model.set(name, wrong).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }), "{error}");
    }
    assert!(model.set("lm_head.weight", ones.clone()).is_err(), "a tied head has no weights");
    assert!(model.variable("lm_head.weight").is_err());
    // Made a variable twice, it is one variable.
    let first = model.variable(name).unwrap();
    first.set(&(ones * 2.0).unwrap()).unwrap();
    assert_eq!(model.tensor(name).unwrap().to_vec1::<f32>().unwrap(), [2.0; 40]);
    assert_eq!(model.variable(name).unwrap().as_tensor().id(), first.as_tensor().id());
}

/// Adds to the logits of variant `v` of a model with so many matrices: `v / 100` times the token.
struct Adds(usize);

impl DenseHooks for Adds {
    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        if linear.index() + 1 != self.0 {
            return Ok(None);
        }
        assert_eq!(x.dim(0)?, rows.rows);
        let all = Tensor::arange(0f32, 10_000.0, &Device::Cpu)?.narrow(0, 0, VOCAB)?;
        let all = (all * (f64::from(rows.variant.0) / 100.0))?;
        Ok(Some(all.broadcast_as((rows.rows, VOCAB))?.contiguous()?))
    }
}

/// Tokens of the model that is added to.
const VOCAB: usize = 100;

/// The tokens of two sequences, one of them a tree, and which rows of theirs have logits.
struct Sequences<'a> {
    tokens: [&'a [u32]; 2],
    parents: [Vec<Option<u32>>; 2],
    positions: [Vec<u32>; 2],
    logits: [LogitRows<'a>; 2],
}

impl Sequences<'_> {
    /// Calls `f` with their segments.
    fn run<T>(&self, model: &DenseModel, f: impl FnOnce(&mut [Segment<'_, DenseCache>]) -> T) -> T {
        let mut caches = [DenseCache::new(model.config()), DenseCache::new(model.config())];
        let segments = caches.iter_mut().enumerate().map(|(i, cache)| Segment {
            cache,
            tokens: self.tokens[i],
            parents: &self.parents[i],
            positions: &self.positions[i],
            rope: model.config().rope_for(20),
            variant: VariantId(1 + i as u32),
            logits: self.logits[i],
        });
        f(&mut segments.collect::<Vec<_>>())
    }
}

/// Holds scores to the logits that a step gives.
fn check_scores(name: &str, sequences: &Sequences<'_>, hooks: &mut dyn DenseHooks) {
    let model = load(name);
    let logits = sequences.run(&model, |segments| model.step(segments, hooks).unwrap());
    let logits = logits.to_vec2::<f32>().unwrap();
    let best =
        |row: &[f32]| row.iter().enumerate().fold(0, |m, (i, x)| if *x > row[m] { i } else { m });
    let mut asked = Vec::new();
    for (row, logits) in logits.iter().enumerate().filter(|(row, _)| row % 3 != 1) {
        let other = row * 7 % logits.len();
        asked.extend([(row, best(logits) as u32), (row, other as u32)]);
    }
    let scores =
        sequences.run(&model, |segments| model.step_scores(segments, hooks, &asked).unwrap());
    assert_eq!(scores.len(), asked.len());
    for ((row, token), (logprob, greatest)) in asked.iter().zip(scores) {
        let logits = &logits[*row];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let exact = f64::from(logits[*token as usize]) - sum.ln();
        assert!((logprob - exact).abs() < 1e-5 * exact.abs().max(1.0), "{name}: {logprob} {exact}");
        assert_eq!(greatest, *token as usize == best(logits), "{name}");
    }
    for wrong in [(logits.len(), 0), (0, logits[0].len() as u32)] {
        let told = sequences.run(&model, |segments| model.step_scores(segments, hooks, &[wrong]));
        assert!(told.unwrap_err().to_string().contains("other rows or tokens"), "{name}");
    }
}

#[test]
fn scores_are_those_of_the_logits_that_a_step_gives() {
    for name in MODELS {
        let tokens = reference(name).tokens;
        let sequences = Sequences {
            tokens: [&tokens[..7], &tokens[..5]],
            parents: [chain(7), vec![None, Some(0), Some(0), Some(1), Some(2)]],
            positions: [(0..7).collect(), vec![0, 1, 1, 2, 2]],
            logits: [LogitRows::These(&[2, 5, 6]), LogitRows::All],
        };
        check_scores(name, &sequences, &mut NoHooks);
    }
    // More rows than are scored at a time, and what is added of each variant.
    let name = "llama_linear";
    let long: Vec<u32> = (0..300).map(|i| i * i % 50).collect();
    let sequences = Sequences {
        tokens: [&long[..200], &long],
        parents: [chain(200), chain(300)],
        positions: [(0..200).collect(), (0..300).collect()],
        logits: [LogitRows::All, LogitRows::All],
    };
    let model = load(name);
    assert_eq!(model.config().vocab_size, VOCAB);
    check_scores(name, &sequences, &mut Adds(model.blueprint().linears.len()));
    let told = sequences.run(&model, |segments| {
        segments.iter_mut().for_each(|segment| segment.logits = LogitRows::None);
        model.step_scores(segments, &mut NoHooks, &[(0, 0)])
    });
    assert!(told.unwrap_err().to_string().contains("not asked for"));
}
