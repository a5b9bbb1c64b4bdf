//! Gradients through the dense executor: every weight has one, and it is right.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use candle_core::{D, DType, Device, Tensor};
use logits::{checkpoint, reference};
use offshoot_models::{
    DenseCache, DenseModel, LogitRows, NoHooks, RopeId, Segment, VariantId, chain,
};

/// Four forms; between them experts, biases everywhere, tied and untied heads, groups of heads,
/// heads of which a part is rotated.
const FAMILIES: [&str; 5] =
    ["llama_biases", "llama_factors", "qwen2_untied", "qwen3_moe", "phi3_partial"];

fn load(name: &str, dtype: DType) -> DenseModel {
    DenseModel::load(&checkpoint(name), &Device::Cpu, dtype).unwrap()
}

/// Logits of the next tokens, `[tokens, vocab_size]`.
fn next_logits(model: &DenseModel, cache: &mut DenseCache, tokens: &[u32]) -> Tensor {
    let start = cache.len() as u32;
    let positions: Vec<_> = (start..start + tokens.len() as u32).collect();
    let segment = Segment {
        cache,
        tokens,
        parents: &chain(tokens.len()),
        positions: &positions,
        rope: RopeId::default(),
        variant: VariantId::default(),
        logits: LogitRows::All,
    };
    model.step(&mut [segment], &mut NoHooks).unwrap()
}

/// Mean surprise at each next token, in nats, of a text run in `pieces`.
fn loss(model: &DenseModel, text: &[u32], pieces: &[usize], detached: bool) -> Tensor {
    let mut cache = DenseCache::new(model.config());
    let (mut logits, mut start) = (Vec::new(), 0);
    for &piece in pieces {
        logits.push(next_logits(model, &mut cache, &text[start..start + piece]));
        cache.commit(&(0..piece).collect::<Vec<_>>()).unwrap();
        if detached {
            cache.detach();
        }
        start += piece;
    }
    let logits = Tensor::cat(&logits, 0).unwrap();
    let targets = Tensor::new(&text[1..=start], &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let chosen = logits.gather(&targets, D::Minus1).unwrap().squeeze(1).unwrap();
    (logits.log_sum_exp(D::Minus1).unwrap() - chosen).unwrap().mean_all().unwrap()
}

fn number(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    number(&(a * b).unwrap().sum_all().unwrap())
}

/// All weights as variables, and the gradient of the loss for each.
fn gradients(name: &str, dtype: DType, pieces: &[usize]) -> (DenseModel, Vec<(String, Tensor)>) {
    let (mut model, text) = (load(name, dtype), reference(name).tokens);
    let names: Vec<_> = model.names().map(str::to_owned).collect();
    let variables: Vec<_> = names.iter().map(|name| model.variable(name).unwrap()).collect();
    let found = loss(&model, &text, pieces, false).backward().unwrap();
    let gradients = variables.iter().map(|variable| {
        found.get(variable).cloned().unwrap_or_else(|| variable.zeros_like().unwrap())
    });
    let gradients = names.into_iter().zip(gradients.collect::<Vec<_>>()).collect();
    (model, gradients)
}

/// A fixed direction like a vector of weights, uniform in -1 to 1, from xorshift64*.
fn direction(like: &Tensor, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let numbers: Vec<f64> = (0..like.elem_count())
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    let tensor = Tensor::from_vec(numbers, like.dims(), &Device::Cpu).unwrap();
    tensor.to_dtype(like.dtype()).unwrap()
}

/// `(loss(w + step d) - loss(w - step d)) / (2 step)` for directions `d` of some weights.
fn central_difference(
    model: &DenseModel,
    along: &[(&str, Tensor)],
    text: &[u32],
    step: f64,
) -> f64 {
    let at = |step: f64| {
        let mut moved = model.clone();
        for (name, direction) in along {
            let weights = model.tensor(name).unwrap().detach();
            moved.set(name, (weights + (direction * step).unwrap()).unwrap()).unwrap();
        }
        number(&loss(&moved, text, &[text.len() - 1], false))
    };
    (at(step) - at(-step)) / (2.0 * step)
}

#[test]
fn every_weight_has_a_gradient() {
    for name in FAMILIES {
        for dtype in [DType::F32, DType::F64] {
            let (model, gradients) = gradients(name, dtype, &[23]);
            assert_eq!(gradients.len(), model.names().count());
            for (weight, gradient) in gradients {
                let size = dot(&gradient, &gradient).sqrt();
                assert!(size.is_finite() && size > 1e-6, "{name}: {weight} has gradient {size}");
            }
        }
    }
}

#[test]
fn each_gradient_in_f64_is_the_slope_of_the_loss() {
    for name in FAMILIES {
        let (model, gradients) = gradients(name, DType::F64, &[23]);
        let text = reference(name).tokens;
        for (seed, (weight, gradient)) in gradients.iter().enumerate() {
            let d = direction(gradient, 1 + seed as u64);
            let expected = dot(gradient, &d);
            let slope = central_difference(&model, &[(weight, d)], &text, 1e-5);
            let size = dot(gradient, gradient).sqrt();
            // The quotient's own errors: 1e-10 of the third derivative, 1e-16 / 1e-5 of rounding.
            let error = (slope - expected).abs() / size;
            assert!(error < 1e-6, "{name}: {weight} is off by {error}: {slope} {expected}");
        }
    }
}

#[test]
fn the_gradient_in_f32_is_the_slope_of_the_loss() {
    // Steps this long lead a row from one expert to another, which is no slope.
    for name in FAMILIES.into_iter().filter(|name| *name != "qwen3_moe") {
        let (model, gradients) = gradients(name, DType::F32, &[23]);
        let text = reference(name).tokens;
        for seed in 0..8 {
            let along: Vec<_> = gradients
                .iter()
                .enumerate()
                .map(|(i, (weight, g))| {
                    (weight.as_str(), direction(g, 1000 * (seed + 1) + i as u64))
                })
                .collect();
            let expected: f64 =
                gradients.iter().zip(&along).map(|((_, g), (_, d))| dot(g, d)).sum();
            let slope = central_difference(&model, &along, &text, 3e-4);
            // Of slopes about 1: 1e-3 of the third derivative, 1e-3 of rounding.
            let error = (slope - expected).abs() / expected.abs();
            assert!(error <= 1e-2, "{name}, direction {seed}: {slope}, expected {expected}");
        }
    }
}

#[test]
fn gradients_flow_through_the_cache_unless_it_is_detached() {
    let name = "qwen2_untied";
    let (_, whole) = gradients(name, DType::F64, &[23]);
    let (mut model, pieces) = gradients(name, DType::F64, &[4, 1, 18]);
    for ((weight, a), (_, b)) in whole.iter().zip(&pieces) {
        let off = (a - b).unwrap();
        let error = (dot(&off, &off) / dot(a, a)).sqrt();
        assert!(error < 1e-9, "{weight}: {error}");
    }
    // Detached, the first piece's keys are constants: what is left is another, smaller gradient.
    let weight = "model.layers.0.self_attn.k_proj.weight";
    let variable = model.variable(weight).unwrap();
    let text = reference(name).tokens;
    let found = loss(&model, &text, &[4, 1, 18], true).backward().unwrap();
    let (_, expected) = pieces.iter().find(|(name, _)| name == weight).unwrap();
    let off = (found.get(&variable).unwrap() - expected).unwrap();
    assert!((dot(&off, &off) / dot(expected, expected)).sqrt() > 1e-3);
}

#[test]
fn a_step_down_the_gradient_lowers_the_loss() {
    let text = reference("llama_linear").tokens;
    let mut model = load("llama_linear", DType::F32);
    let weight = "model.layers.1.mlp.down_proj.weight";
    let variable = model.variable(weight).unwrap();
    let before = loss(&model, &text, &[23], false);
    let gradient = before.backward().unwrap().get(&variable).unwrap().clone();
    variable.set(&(variable.as_tensor() - (gradient * 0.1).unwrap()).unwrap()).unwrap();
    let after = loss(&model, &text, &[23], false);
    assert!(number(&after) < number(&before), "the variable is the model's own memory");
}
