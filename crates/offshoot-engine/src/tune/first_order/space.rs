//! What is tuned, by the options' names.

use std::collections::BTreeMap;

use candle_core::Var;
use offshoot_methods::Philox;
use offshoot_methods::optim::TensorShape;
use offshoot_models::{Blueprint, DenseModel, DenseTuning, LinearSpec, LoraAdapter, LowRank};
use sha2::{Digest, Sha256};

use super::options::{FirstOrderOptions, FirstOrderSpace, LoraMatrices, LoraOptions, TensorNames};
use crate::Error;

/// What numbers of LoRA's first matrices are drawn for, apart from all other draws of a seed.
const PURPOSE: u32 = 7 << 24;
/// Numbers of a draw.
const LANES: usize = 4;

/// The tuning that the options ask for.
pub(super) fn tuning(model: DenseModel, options: &FirstOrderOptions) -> Result<DenseTuning, Error> {
    match &options.space {
        FirstOrderSpace::Lora(lora) => {
            let adapter = initial(model.blueprint(), lora, options.seed)?;
            Ok(DenseTuning::lora(model, &adapter, lora.freeze_a)?)
        }
        FirstOrderSpace::Full(names) => {
            let names = weights(&model, names)?;
            Ok(DenseTuning::full(model, &names)?)
        }
    }
}

/// The form of a variable.
pub(super) fn shape(name: &str, variable: &Var) -> TensorShape {
    match *variable.dims() {
        [rows, cols] => {
            let by_token = ["model.embed_tokens.weight", "lm_head.weight"].contains(&name);
            TensorShape::Matrix { rows, cols, by_token }
        }
        _ => TensorShape::Vector { len: variable.elem_count() },
    }
}

/// Whether `name` is `pattern`, or ends so behind a dot.
fn fits(name: &str, pattern: &str) -> bool {
    name.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn weights(model: &DenseModel, names: &TensorNames) -> Result<Vec<String>, Error> {
    let all: Vec<String> = model.names().map(str::to_owned).collect();
    let TensorNames::Named(patterns) = names else { return Ok(all) };
    for pattern in patterns {
        if !all.iter().any(|name| fits(name, pattern)) {
            return Err(Error::Training(format!("no tensor of the model ends in {pattern:?}")));
        }
    }
    Ok(all.into_iter().filter(|name| patterns.iter().any(|p| fits(name, p))).collect())
}

/// LoRA's matrices before the first step.
fn initial(blueprint: &Blueprint, options: &LoraOptions, seed: u64) -> Result<LoraAdapter, Error> {
    let mut adapter = LoraAdapter::default();
    let chosen = chosen(blueprint, &options.matrices)?;
    for pattern in options.rank_pattern.keys().chain(options.alpha_pattern.keys()) {
        if !chosen.iter().any(|linear| fits(&linear.name, pattern)) {
            let what = format!("{pattern:?} fits none of the matrices that LoRA is added to");
            return Err(Error::Training(what));
        }
    }
    for linear in chosen {
        let rank = matching(&options.rank_pattern, &linear.name).unwrap_or(options.rank);
        let alpha = matching(&options.alpha_pattern, &linear.name).unwrap_or(options.alpha);
        let root = if options.rslora { (rank as f64).sqrt() } else { rank as f64 };
        let name = format!("{}.lora_A.weight", linear.name);
        let low = LowRank {
            rank,
            scale: (alpha / root) as f32,
            a: uniform(seed, &name, rank * linear.cols, 1.0 / (linear.cols as f32).sqrt()),
            b: vec![0.0; linear.rows * rank],
        };
        adapter.matrices.insert(linear.name.clone(), low);
    }
    Ok(adapter)
}

fn chosen<'a>(
    blueprint: &'a Blueprint,
    matrices: &LoraMatrices,
) -> Result<Vec<&'a LinearSpec>, Error> {
    let is_head = |place: usize| place + 1 == blueprint.linears.len();
    let is_router = |linear: &LinearSpec| linear.name.ends_with(".mlp.gate");
    let LoraMatrices::Named(patterns) = matrices else {
        let all = blueprint.linears.iter().enumerate();
        let all = all.filter(|&(at, l)| !is_head(at) && !l.routed && !is_router(l));
        return Ok(all.map(|(_, linear)| linear).collect());
    };
    // A tied head has the embedding's name, and everybody calls it by its own.
    let named = |(at, linear): (usize, &LinearSpec), pattern: &String| {
        fits(&linear.name, pattern) || (is_head(at) && pattern == "lm_head")
    };
    for pattern in patterns {
        if !blueprint.linears.iter().enumerate().any(|linear| named(linear, pattern)) {
            return Err(Error::Training(format!("no matrix of the model ends in {pattern:?}")));
        }
    }
    let all = blueprint.linears.iter().enumerate();
    let all = all.filter(|&linear| patterns.iter().any(|pattern| named(linear, pattern)));
    Ok(all.map(|(_, linear)| linear).collect())
}

/// What the longest pattern that fits says.
fn matching<T: Copy>(patterns: &BTreeMap<String, T>, name: &str) -> Option<T> {
    let fitting = patterns.iter().filter(|(pattern, _)| fits(name, pattern));
    fitting.max_by_key(|(pattern, _)| pattern.len()).map(|(_, value)| *value)
}

/// `n` numbers between `-bound` and `bound`, of the seed and the tensor's name.
fn uniform(seed: u64, name: &str, n: usize, bound: f32) -> Vec<f32> {
    let digest = Sha256::digest(name.as_bytes());
    let tensor = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let mut numbers = Vec::with_capacity(n.next_multiple_of(LANES));
    for block in 0..n.div_ceil(LANES) {
        let words = Philox::block(Philox::key(seed), [block as u32, tensor, 0, PURPOSE]);
        // 24 bits and a half: between 0 and 1, never at either.
        let unit = words.map(|word| ((word >> 8) as f32 + 0.5) / (1 << 24) as f32);
        numbers.extend(unit.map(|u| bound * (2.0 * u - 1.0)));
    }
    numbers.truncate(n);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_matrices_fill_their_bounds_evenly_and_differ_by_name_and_seed() {
        let numbers = uniform(1, "a.lora_A.weight", 40_000, 0.5);
        assert!(numbers.iter().all(|x| x.abs() < 0.5));
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / 4e4;
        let square = numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 4e4;
        // Five deviations: 0.29 and 0.075 over the root of 40,000.
        assert!(mean.abs() < 0.008 && (square - 1.0 / 12.0).abs() < 0.002, "{mean} {square}");
        assert_eq!(uniform(1, "a.lora_A.weight", 10, 0.5), numbers[..10]);
        assert_ne!(uniform(2, "a.lora_A.weight", 10, 0.5), numbers[..10]);
        assert_ne!(uniform(1, "b.lora_A.weight", 10, 0.5), numbers[..10]);
    }

    #[test]
    fn a_pattern_is_a_name_or_its_end_behind_a_dot() {
        assert!(fits("model.layers.1.mlp.up_proj", "up_proj"));
        assert!(fits("model.layers.1.mlp.up_proj", "layers.1.mlp.up_proj"));
        assert!(fits("up_proj", "up_proj"));
        assert!(!fits("model.layers.1.mlp.up_proj", "p_proj"));
        assert!(!fits("model.layers.11.mlp.up_proj", "1.mlp.up_proj"));
        let patterns = BTreeMap::from([("up_proj".to_owned(), 2), ("mlp.up_proj".to_owned(), 3)]);
        assert_eq!(matching(&patterns, "model.layers.1.mlp.up_proj"), Some(3));
        assert_eq!(matching(&patterns, "q_proj"), None);
    }
}
