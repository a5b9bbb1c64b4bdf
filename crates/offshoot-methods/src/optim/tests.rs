//! Optimisers against PyTorch's numbers, made by `scripts/oracles/optimizers.py`.

use serde::Deserialize;

use super::*;

/// A run of PyTorch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    name: String,
    options: OptimizerOptions,
    rate: f64,
    rows: usize,
    cols: usize,
    begin: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    /// The weights after each step.
    weights: Vec<Vec<f32>>,
}

fn runs() -> Vec<Run> {
    serde_json::from_str(include_str!("tests/optimizers.json")).unwrap()
}

fn shape(run: &Run) -> TensorShape {
    match run.rows {
        1 => TensorShape::Vector { len: run.cols },
        rows => TensorShape::Matrix { rows, cols: run.cols, by_token: false },
    }
}

#[test]
fn weights_are_those_of_pytorch_after_each_step() {
    for run in runs() {
        let (optimizer, shape) = (run.options.optimizer().unwrap(), shape(&run));
        let mut weights = run.begin.clone();
        let mut state = vec![vec![0.0; weights.len()]; optimizer.states(shape)];
        for (step, (gradient, expected)) in (1..).zip(run.gradients.iter().zip(&run.weights)) {
            let size = StepSize { step, rate: run.rate };
            let state = &mut state;
            optimizer.update(shape, size, &mut weights, gradient, state, &PlainProducts);
            let moved = square_norm(&difference(expected, &run.begin)).sqrt();
            let off = square_norm(&difference(expected, &weights)).sqrt() / moved;
            assert!(off < 1e-5, "{} after step {step}: off by {off} of the way", run.name);
        }
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn every_optimiser_is_compared_and_has_a_name_of_its_own() {
    let compared: Vec<String> = runs().into_iter().map(|run| run.name).collect();
    for (place, card) in OPTIMIZERS.iter().enumerate() {
        assert!(compared.iter().any(|name| name.starts_with(card.name)), "{}", card.name);
        assert!(OPTIMIZERS[..place].iter().all(|other| other.name != card.name));
        let options = (card.default)();
        let text = serde_json::to_string(&options).unwrap();
        assert!(text.contains(&format!("\"name\":\"{}\"", card.name)), "{text}");
        assert_eq!(serde_json::from_str::<OptimizerOptions>(&text).unwrap(), options);
        assert!(options.optimizer().is_ok());
    }
}

/// `0.5 x^T x` has its least value at 0, and every optimiser comes near it.
#[test]
fn every_optimiser_finds_the_bottom_of_a_bowl() {
    let shape = TensorShape::Matrix { rows: 2, cols: 3, by_token: false };
    for card in OPTIMIZERS {
        let optimizer = (card.default)().optimizer().unwrap();
        let mut weights = vec![1.0, -0.5, 0.3, -0.8, 0.2, 0.9];
        let mut state = vec![vec![0.0; 6]; optimizer.states(shape)];
        for step in 1..=400 {
            let size = StepSize { step, rate: 0.03 * (1.0 - (step - 1) as f64 / 400.0) };
            let gradient = weights.clone();
            optimizer.update(shape, size, &mut weights, &gradient, &mut state, &PlainProducts);
        }
        let left = square_norm(&weights).sqrt();
        assert!(left < 0.02, "{}: {left} from the bottom", card.name);
    }
}

#[test]
fn matrices_decay_and_vectors_do_not() {
    for card in OPTIMIZERS {
        let options = match (card.default)() {
            OptimizerOptions::AdamW(o) => OptimizerOptions::AdamW(AdamW { weight_decay: 0.5, ..o }),
            OptimizerOptions::Sgd(o) => OptimizerOptions::Sgd(Sgd { weight_decay: 0.5, ..o }),
            OptimizerOptions::Muon(o) => OptimizerOptions::Muon(Muon { weight_decay: 0.5, ..o }),
        };
        let optimizer = options.optimizer().unwrap();
        let after = |shape: TensorShape| {
            let (mut weights, size) = (vec![2.0; 4], StepSize { step: 1, rate: 0.1 });
            let mut state = vec![vec![0.0; 4]; optimizer.states(shape)];
            optimizer.update(shape, size, &mut weights, &[0.0; 4], &mut state, &PlainProducts);
            weights[0]
        };
        let matrix = TensorShape::Matrix { rows: 2, cols: 2, by_token: false };
        assert_eq!(after(TensorShape::Vector { len: 4 }), 2.0, "{}", card.name);
        assert!((after(matrix) - 1.9).abs() < 1e-6, "{}", card.name);
    }
}

#[test]
fn muon_brings_all_singular_values_near_1() {
    // Of a matrix of two orthogonal rows the singular values are their lengths.
    let (rows, cols) = (2, 4);
    let x = vec![3.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0];
    for (x, shape) in [(x.clone(), (rows, cols)), (transposed(&x), (cols, rows))] {
        let matrix = TensorShape::Matrix { rows: shape.0, cols: shape.1, by_token: false };
        let muon = Muon { weight_decay: 0.0, momentum: 0.0, nesterov: false, ..Muon::default() };
        let mut weights = vec![0.0; 8];
        let size = StepSize { step: 1, rate: 1.0 / (0.2 * 2.0) };
        let mut state = vec![vec![0.0; 8]];
        muon.update(matrix, size, &mut weights, &x, &mut state, &PlainProducts);
        let lengths = if shape.0 == 2 { weights } else { transposed(&weights) };
        for row in lengths.chunks_exact(4) {
            let length = square_norm(row).sqrt();
            assert!((0.65..1.25).contains(&length), "{length}");
        }
    }
}

/// `[2, 4]` and `[4, 2]` into each other.
fn transposed(x: &[f32]) -> Vec<f32> {
    let rows_first = x[1] == 0.0 && x[2] == 0.0 && x[3] == 0.0;
    let (rows, cols) = if rows_first { (2, 4) } else { (4, 2) };
    (0..8).map(|at| x[(at % rows) * cols + at / rows]).collect()
}

#[test]
fn settings_out_of_bounds_are_named() {
    for (options, field) in [
        (OptimizerOptions::AdamW(AdamW { beta1: 1.0, ..AdamW::default() }), "beta1"),
        (OptimizerOptions::AdamW(AdamW { epsilon: 0.0, ..AdamW::default() }), "epsilon"),
        (OptimizerOptions::Sgd(Sgd { momentum: -0.1, ..Sgd::default() }), "momentum"),
        (
            OptimizerOptions::Sgd(Sgd { momentum: 0.0, nesterov: true, ..Sgd::default() }),
            "momentum",
        ),
        (OptimizerOptions::Muon(Muon { iterations: 0, ..Muon::default() }), "iterations"),
        (
            OptimizerOptions::Muon(Muon { weight_decay: f64::NAN, ..Muon::default() }),
            "weight_decay",
        ),
    ] {
        assert!(options.optimizer().unwrap_err().to_string().contains(field));
    }
}
