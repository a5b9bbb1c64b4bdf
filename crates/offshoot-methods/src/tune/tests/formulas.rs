//! Each method against its paper's formula, worked out densely in double precision.

use serde_json::{Value, json};

use super::quadratic::{Quadratic, flat, flat_direction, setting, step, weights};
use crate::tune::{Direction, Distribution, Form, Mask, MethodCard, Probe, Side, Term, Weights};

const RATE: f64 = 0.02;

/// Runs `steps` steps of a method, telling `formula` the weights before each and the slope along
/// each of the directions that it names, and compares the weights after all of them.
struct Check<'a> {
    name: &'a str,
    options: Value,
    steps: u32,
}

impl Check<'_> {
    fn against(self, mut formula: impl FnMut(&Weights, u32, &[f64]) -> Vec<f64>) {
        let card = MethodCard::named(self.name).unwrap();
        let mut method = card.start(&self.options, &setting(0.0)).unwrap();
        let (mut w, loss) = (weights(card.distribution), Quadratic::coupled(4.0));
        for t in 0..self.steps {
            let before = flat(&w);
            let expected = formula(&w, t, &before);
            step(method.as_mut(), &mut w, &loss, (t, RATE));
            for (got, expected) in flat(&w).iter().zip(&expected) {
                let bound = 2e-5 * (1.0 + expected.abs());
                assert!((got - expected).abs() < bound, "{} {t}: {got} {expected}", self.name);
            }
        }
    }
}

fn loss_at(w: &Weights, terms: &[(f64, &Direction)]) -> f64 {
    let term =
        |(scale, d): &(f64, &Direction)| Term { scale: *scale as f32, direction: (*d).clone() };
    Quadratic::coupled(4.0).loss_at(w, &Probe { terms: terms.iter().map(term).collect() })
}

fn slope(w: &Weights, direction: &Direction, eps: f64) -> f64 {
    (loss_at(w, &[(eps, direction)]) - loss_at(w, &[(-eps, direction)])) / (2.0 * eps)
}

fn add(w: &mut [f64], scale: f64, z: &[f64]) {
    w.iter_mut().zip(z).for_each(|(w, z)| *w += scale * z);
}

/// The mean over directions of slope times direction.
fn estimate(w: &Weights, directions: &[Direction], eps: f64) -> Vec<f64> {
    let mut sum = vec![0.0; flat(w).len()];
    for direction in directions {
        let g = slope(w, direction, eps);
        add(&mut sum, g / directions.len() as f64, &flat_direction(w, direction));
    }
    sum
}

fn dense(step: u32, n: u32) -> Vec<Direction> {
    (0..n).map(|index| Direction::dense(step, index)).collect()
}

fn probe(n: u32) -> Value {
    json!({"probe": {"directions": n, "eps": 0.01}})
}

fn with(mut options: Value, more: Value) -> Value {
    let (to, Value::Object(from)) = (options.as_object_mut().unwrap(), more) else { panic!() };
    to.extend(from);
    options
}

#[test]
fn mezo_descends_along_the_mean_of_its_estimates() {
    for n in [1, 3] {
        Check { name: "mezo", options: probe(n), steps: 20 }.against(|w, t, before| {
            let mut after = before.to_vec();
            add(&mut after, -RATE, &estimate(w, &dense(t, n), 0.01));
            after
        });
    }
}

#[test]
fn sign_takes_steps_of_equal_size() {
    Check { name: "sign", options: probe(2), steps: 20 }.against(|w, t, before| {
        let mut after = before.to_vec();
        for d in dense(t, 2) {
            add(&mut after, -RATE / 2.0 * slope(w, &d, 0.01).signum(), &flat_direction(w, &d));
        }
        after
    });
}

/// At a rate so large that descending overshoots in some steps.
#[test]
fn cons_takes_the_best_of_three() {
    let card = MethodCard::named("cons").unwrap();
    let mut method = card.start(&probe(1), &setting(0.0)).unwrap();
    let (mut w, loss) = (weights(Distribution::GaussQ8), Quadratic::coupled(4.0));
    let (rate, mut chosen) = (0.06, [0; 3]);
    for t in 0..60 {
        let u = estimate(&w, &dense(t, 1), 0.01);
        let candidate = |sign: f64| {
            let mut at = flat(&w);
            add(&mut at, sign * rate, &u);
            at
        };
        let candidates = [0.0, -1.0, 1.0].map(candidate);
        let losses = candidates.each_ref().map(|at| loss.loss(at));
        let best = (0..3).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
        chosen[best] += 1;
        step(method.as_mut(), &mut w, &loss, (t, rate));
        for (got, expected) in flat(&w).iter().zip(&candidates[best]) {
            assert!((got - expected).abs() < 2e-5, "{t}");
        }
    }
    assert!(chosen[0] > 0 && chosen[1] > 0, "{chosen:?}");
}

#[test]
fn mmt_keeps_a_momentum() {
    let options = with(probe(2), json!({"beta": 0.8, "history": 200}));
    let mut m = vec![0.0; flat(&weights(Distribution::GaussQ8)).len()];
    Check { name: "mmt", options, steps: 30 }.against(|w, t, before| {
        m.iter_mut().for_each(|m| *m *= 0.8);
        add(&mut m, 1.0, &estimate(w, &dense(t, 2), 0.01));
        let mut after = before.to_vec();
        add(&mut after, -RATE, &m);
        after
    });
}

#[test]
fn mmt_forgets_what_is_older_than_its_history() {
    let options = with(probe(1), json!({"beta": 0.9, "history": 3}));
    let mut past: Vec<Vec<f64>> = Vec::new();
    Check { name: "mmt", options, steps: 12 }.against(|w, t, before| {
        past.push(estimate(w, &dense(t, 1), 0.01));
        let mut after = before.to_vec();
        for (age, g) in past.iter().rev().take(3).enumerate() {
            add(&mut after, -RATE * 0.9_f64.powi(age as i32), g);
        }
        after
    });
}

fn moments(past: &[Vec<f64>], beta: [f64; 2], place: usize) -> [f64; 2] {
    past.iter().fold([0.0; 2], |[m, v], g| {
        let g = g[place];
        [beta[0] * m + (1.0 - beta[0]) * g, beta[1] * v + (1.0 - beta[1]) * g * g]
    })
}

#[test]
fn adam_has_corrected_moments_of_the_whole_gradient() {
    let options = with(probe(2), json!({"beta2": 0.95, "history": 100, "epsilon": 1e-3}));
    let mut past = Vec::new();
    Check { name: "adam", options, steps: 25 }.against(|w, t, before| {
        past.push(estimate(w, &dense(t, 2), 0.01));
        let left = [0.9_f64, 0.95].map(|beta| 1.0 - beta.powi(t as i32 + 1));
        let one = |(place, w): (usize, &f64)| {
            let [m, v] = moments(&past, [0.9, 0.95], place);
            w - RATE * (m / left[0]) / ((v / left[1]).sqrt() + 1e-3)
        };
        before.iter().enumerate().map(one).collect()
    });
}

#[test]
fn adamezo_has_plain_moments_of_a_horizon() {
    let options = with(probe(1), json!({"beta2": 0.8, "history": 4, "epsilon": 1e-2}));
    let mut past = Vec::new();
    Check { name: "adamezo", options, steps: 12 }.against(|w, t, before| {
        past.push(estimate(w, &dense(t, 1), 0.01));
        let seen = &past[past.len().saturating_sub(4)..];
        let one = |(place, w): (usize, &f64)| {
            let [m, v] = moments(seen, [0.9, 0.8], place);
            w - RATE * m / (v.sqrt() + 1e-2)
        };
        before.iter().enumerate().map(one).collect()
    });
}

#[test]
fn meazo_divides_by_one_running_root() {
    let options = with(probe(2), json!({"beta": 0.7, "zeta": 0.1}));
    let mut v = 0.0;
    Check { name: "meazo", options, steps: 25 }.against(|w, t, before| {
        let slopes: Vec<f64> = dense(t, 2).iter().map(|d| slope(w, d, 0.01)).collect();
        let square = (slopes[0] * slopes[0] + slopes[1] * slopes[1]) / 2.0;
        v = 0.7 * v + 0.3 * square;
        let root = (v / (1.0 - 0.7_f64.powi(t as i32 + 1))).sqrt();
        let mut after = before.to_vec();
        add(&mut after, -RATE / (root + 0.1), &estimate(w, &dense(t, 2), 0.01));
        after
    });
}

#[test]
fn fzoo_measures_in_units_of_the_losses_spread() {
    Check { name: "fzoo", options: probe(5), steps: 20 }.against(|w, t, before| {
        let directions = dense(t, 5);
        let l0 = loss_at(w, &[]);
        let l: Vec<f64> = directions.iter().map(|d| loss_at(w, &[(0.01, d)])).collect();
        let mean = l.iter().sum::<f64>() / 5.0;
        let sigma = (l.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 5.0).sqrt();
        let mut after = before.to_vec();
        for (d, l) in directions.iter().zip(&l) {
            add(&mut after, -RATE / 5.0 * (l - l0) / sigma, &flat_direction(w, d));
        }
        after
    });
}

fn of_form(step: u32, n: u32, form: Form) -> Vec<Direction> {
    dense(step, n).into_iter().map(|d| Direction { form, ..d }).collect()
}

#[test]
fn lozo_draws_its_right_factor_once_an_interval() {
    let options = with(probe(2), json!({"rank": 3, "interval": 4}));
    Check { name: "lozo", options, steps: 12 }.against(|w, t, before| {
        let form = Form::LowRank { rank: 3, epoch: t / 4 };
        let mut after = before.to_vec();
        add(&mut after, -RATE, &estimate(w, &of_form(t, 2, form), 0.01));
        after
    });
}

/// Within an interval the momentum of `U` times the shared `V` is that of the directions; where `V`
/// changes, the matrix that the momentum stood for is multiplied by `V V^T / n` of the new one.
#[test]
fn lozo_m_carries_its_momentum_from_one_right_factor_to_the_next() {
    let options = with(probe(1), json!({"rank": 2, "interval": 5, "beta": 0.7, "history": 100}));
    let mut m = vec![0.0; flat(&weights(Distribution::GaussQ8)).len()];
    Check { name: "lozo-m", options, steps: 14 }.against(|w, t, before| {
        let form = Form::LowRank { rank: 2, epoch: t / 5 };
        if t > 0 && t % 5 == 0 {
            m = projected(w, &m, t / 5);
        }
        m.iter_mut().for_each(|m| *m *= 0.7);
        add(&mut m, 0.3, &estimate(w, &of_form(t, 1, form), 0.01));
        let mut after = before.to_vec();
        add(&mut after, -RATE, &m);
        after
    });
}

/// `M V V^T / n` of each matrix, with `V` of an epoch.
fn projected(w: &Weights, m: &[f64], epoch: u32) -> Vec<f64> {
    let (mut out, mut at) = (Vec::new(), 0);
    for tensor in &w.layout.tensors {
        let (rows, n) = (tensor.rows, tensor.cols);
        let matrix = &m[at..at + rows * n];
        at += rows * n;
        if rows == 1 {
            out.extend_from_slice(matrix);
            continue;
        }
        let draw = crate::tune::Draw {
            seed: w.seed,
            distribution: w.distribution,
            tensor: offshoot_kernels::tensor_id(&tensor.name),
            rows,
            cols: n,
        };
        let direction = &of_form(0, 1, Form::LowRank { rank: 2, epoch })[0];
        let v = draw.factors(direction).unwrap().right;
        for row in matrix.chunks(n) {
            for j in 0..n {
                let entry = |k: usize, l: usize| f64::from(v[k * 2 + l]) * f64::from(v[j * 2 + l]);
                let dot = |k: usize| entry(k, 0) + entry(k, 1);
                out.push((0..n).map(|k| row[k] * dot(k)).sum::<f64>() / n as f64);
            }
        }
    }
    out
}

#[test]
fn subzero_keeps_its_subspace_for_an_interval() {
    let options = with(probe(2), json!({"rank": 2, "interval": 3}));
    Check { name: "subzero", options, steps: 7 }.against(|w, t, before| {
        let form = Form::Subspace { rank: 2, epoch: t / 3 };
        let mut after = before.to_vec();
        add(&mut after, -RATE, &estimate(w, &of_form(t, 2, form), 0.01));
        after
    });
}

#[test]
fn sparse_moves_the_masked_elements_alone() {
    let random = json!({"density": 0.5, "choice": "random", "resample": 4});
    let choices = [(json!({"density": 0.5}), None), (random, Some(4))];
    for (choice, resample) in choices {
        let options = with(probe(2), choice);
        Check { name: "sparse", options, steps: 12 }.against(|w, t, before| {
            let mask = match resample {
                None => Mask::Magnitude { density: 0.5, side: Side::Smallest },
                Some(every) => Mask::Random { density: 0.5, draw: t / every },
            };
            let masked = dense(t, 2).into_iter().map(|d| Direction { mask, ..d });
            let mut after = before.to_vec();
            add(&mut after, -RATE, &estimate(w, &masked.collect::<Vec<_>>(), 0.01));
            let moved = after.iter().zip(before).filter(|(a, b)| a != b).count();
            assert!(moved > 0 && moved < before.len(), "{moved}");
            after
        });
    }
}

/// Of two layers a sparsity of one half leaves one, and over the steps both have their turn.
#[test]
fn lezo_moves_the_drawn_layers_and_what_has_none() {
    let (mut w, loss) = (weights(Distribution::GaussQ8), Quadratic::coupled(4.0));
    let card = MethodCard::named("lezo").unwrap();
    let options = with(probe(1), json!({"sparsity": 0.5}));
    let mut method = card.start(&options, &setting(0.0)).unwrap();
    let mut turns = [0; 2];
    for t in 0..40 {
        let before = w.clone();
        step(method.as_mut(), &mut w, &loss, (t, RATE));
        let moved: Vec<bool> =
            (0..6).map(|tensor| w.tensors[tensor] != before.tensors[tensor]).collect();
        assert!(moved[0] && moved[5]);
        assert_eq!(moved[1], moved[2]);
        assert_eq!(moved[3], moved[4]);
        assert_ne!(moved[1], moved[3]);
        turns[usize::from(moved[3])] += 1;
    }
    // A fair coin of 40 throws leaves this range once in 30,000 runs; the seed is fixed.
    assert!(turns.iter().all(|turns| (7..=33).contains(turns)), "{turns:?}");
}

#[test]
fn block_measures_each_block_where_those_before_it_have_moved_to() {
    Check { name: "block", options: probe(2), steps: 10 }.against(|w, t, _| {
        let mut moved = w.clone();
        let blocks = [vec![1, 2], vec![3, 4], vec![0, 5]];
        for block in blocks {
            let tensors: std::sync::Arc<[bool]> = (0..6).map(|i| block.contains(&i)).collect();
            let within = |d| Direction { tensors: Some(tensors.clone()), ..d };
            let directions: Vec<Direction> = dense(t, 2).into_iter().map(within).collect();
            let mut at = flat(&moved);
            add(&mut at, -RATE, &estimate(&moved, &directions, 0.01));
            let mut next = at.into_iter();
            for tensor in &mut moved.tensors {
                tensor.iter_mut().for_each(|w| *w = next.next().unwrap() as f32);
            }
        }
        flat(&moved)
    });
}

#[test]
fn adazeta_takes_more_directions_from_epoch_to_epoch() {
    let options = with(probe(1), json!({"epoch_steps": 2, "alpha": 1.0, "directions_max": 3}));
    let count = |step: u32| (f64::from(step / 2).sqrt().floor() as u32).clamp(1, 3);
    assert_eq!([0, 8, 18, 40].map(count), [1, 2, 3, 3]);
    Check { name: "adazeta", options, steps: 24 }.against(|w, t, before| {
        let mut after = before.to_vec();
        add(&mut after, -RATE, &estimate(w, &dense(t, count(t)), 0.01));
        after
    });
}

#[test]
fn qzo_cuts_its_slopes() {
    let options = json!({"probe": {"eps": 0.01, "clip_g": 0.5}});
    let mut cut = 0;
    Check { name: "qzo", options, steps: 20 }.against(|w, t, before| {
        let d = Direction::dense(t, 0);
        let g = slope(w, &d, 0.01);
        cut += usize::from(g.abs() > 0.5);
        let mut after = before.to_vec();
        add(&mut after, -RATE * g.clamp(-0.5, 0.5), &flat_direction(w, &d));
        after
    });
    assert!(cut > 0);
}
