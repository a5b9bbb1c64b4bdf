//! What theory says of the estimator, measured. Margins are at least five standard errors.

use serde_json::json;

use super::quadratic::{Quadratic, flat, flat_direction, layout, setting, step, weights};
use crate::tune::{Direction, Distribution, MethodCard, Plan, Probe, Term, Update, Weights};

fn slopes(weights: &Weights, loss: &Quadratic, step: u32, n: u32) -> Vec<(Vec<f64>, f64)> {
    slopes_at(weights, loss, step, n, 1e-2)
}

/// By points this far from the weights.
fn slopes_at(
    weights: &Weights,
    loss: &Quadratic,
    step: u32,
    n: u32,
    eps: f32,
) -> Vec<(Vec<f64>, f64)> {
    let slope = |index| {
        let direction = Direction::dense(step, index);
        let at = |scale| {
            let probe = Probe { terms: vec![Term { scale, direction: direction.clone() }] };
            loss.loss_at(weights, &probe)
        };
        let g = (at(eps) - at(-eps)) / (2.0 * f64::from(eps));
        (flat_direction(weights, &direction), g)
    };
    (0..n).map(slope).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The one error left is that of the points' weights, rounded to single precision: 6e-8 of them over
/// eps, so a great eps shows the law best.
#[test]
fn a_slope_is_exact_on_a_quadratic() {
    for distribution in Distribution::ALL {
        let (w, loss) = (weights(distribution), Quadratic::new(50.0));
        let gradient = loss.gradient(&flat(&w));
        for (z, g) in slopes_at(&w, &loss, 3, 20, 0.5) {
            let exact = dot(&gradient, &z);
            assert!((g - exact).abs() < 1e-6, "{g} {exact}");
        }
    }
}

/// The relative error of a mean of `count` estimates is about `sqrt((d + 1) / count)`, and its own
/// spread is `1 / sqrt(2 d)` of that.
#[test]
fn the_mean_estimate_is_the_gradient() {
    for distribution in Distribution::ALL {
        let (w, loss) = (weights(distribution), Quadratic::new(5.0));
        let gradient = loss.gradient(&flat(&w));
        let (d, count) = (gradient.len() as f64, 6000);
        let mut mean = vec![0.0; gradient.len()];
        let mut square = 0.0;
        for (z, g) in slopes(&w, &loss, 4, count) {
            mean.iter_mut().zip(&z).for_each(|(m, z)| *m += g * z / f64::from(count));
            square += g * g * dot(&z, &z) / f64::from(count);
        }
        let error: Vec<f64> = mean.iter().zip(&gradient).map(|(m, g)| m - g).collect();
        let size = dot(&gradient, &gradient);
        let relative = (dot(&error, &error) / size).sqrt();
        let expected = ((d + 1.0) / f64::from(count)).sqrt();
        assert!((relative / expected - 1.0).abs() < 0.6, "{distribution:?}: {relative} {expected}");
        let moment = match distribution {
            Distribution::Rademacher => d,
            Distribution::GaussQ8 | Distribution::GaussBoxMuller => d + 2.0,
        };
        // g^2 has a relative deviation of sqrt(2), so 6,000 of them one of 1.8 %.
        assert!((square / size / moment - 1.0).abs() < 0.1, "{distribution:?}: {}", square / size);
    }
}

/// `E |ghat|^2 = (d + n + 1) / n |grad|^2` for Gaussian directions.
#[test]
fn more_directions_shorten_the_estimate() {
    let (w, loss) = (weights(Distribution::GaussQ8), Quadratic::new(5.0));
    let gradient = loss.gradient(&flat(&w));
    let (d, n, steps) = (gradient.len() as f64, 16, 400);
    let mut square = 0.0;
    for step in 0..steps {
        let mut estimate = vec![0.0; gradient.len()];
        for (z, g) in slopes(&w, &loss, step, n) {
            estimate.iter_mut().zip(&z).for_each(|(e, z)| *e += g * z / f64::from(n));
        }
        square += dot(&estimate, &estimate) / f64::from(steps);
    }
    let (got, n) = (square / dot(&gradient, &gradient), f64::from(n));
    let expected = (d + n + 1.0) / n;
    assert!((got / expected - 1.0).abs() < 0.15, "{got} {expected}");
}

/// The step's share along the estimate, `N eps / sigma` over `|grad| / eta`, is near 1 in the mean
/// whatever the gradient's length: 1.20, 1.06 and 1.03 at N = 4, 8 and 16.
#[test]
fn a_step_of_fzoo_has_mean_length_eta_along_the_gradient() {
    let eta = 1e-3;
    for (n, expected) in [(4, 1.20), (8, 1.06), (16, 1.03)] {
        for scale in [1.0, 1000.0] {
            let mut loss = Quadratic::new(1.0);
            loss.curvature.iter_mut().for_each(|h| *h *= scale);
            let w = weights(Distribution::Rademacher);
            let gradient = loss.gradient(&flat(&w));
            let length = dot(&gradient, &gradient).sqrt();
            let options = json!({"probe": {"directions": n}});
            let card = MethodCard::named("fzoo").unwrap();
            let mut method = card.start(&options, &setting(0.0)).unwrap();
            let (steps, mut along) = (2000, 0.0);
            for t in 0..steps {
                let mut moved = w.clone();
                step(method.as_mut(), &mut moved, &loss, (t, eta));
                let change: Vec<f64> =
                    flat(&w).iter().zip(flat(&moved)).map(|(a, b)| a - b).collect();
                along += dot(&change, &gradient) / length / eta / f64::from(steps);
            }
            assert!((along - expected).abs() < 0.1, "N = {n}, scale {scale}: {along}");
        }
    }
}

#[test]
fn directions_of_different_steps_indices_and_tensors_do_not_correlate() {
    let w = weights(Distribution::GaussQ8);
    let size = layout().elements() as f64;
    let mut sum = 0.0;
    for step in 0..200 {
        let a = flat_direction(&w, &Direction::dense(step, 0));
        let b = flat_direction(&w, &Direction::dense(step, 1));
        let c = flat_direction(&w, &Direction::dense(step + 1, 0));
        sum += dot(&a, &b) + dot(&a, &c) + dot(&a[15..27], &a[27..39]);
    }
    let deviation = (200.0 * (2.0 * size + 12.0)).sqrt();
    assert!(sum.abs() < 5.0 * deviation, "{sum}");
}

/// The step subtracts: a sign turned over would climb.
#[test]
fn a_step_descends() {
    let (mut w, loss) = (weights(Distribution::GaussQ8), Quadratic::new(1.0));
    let card = MethodCard::named("mezo").unwrap();
    let mut method = card.start(&json!({}), &setting(0.0)).unwrap();
    for t in 0..20 {
        let before = loss.loss_of(&w);
        step(method.as_mut(), &mut w, &loss, (t, 0.1 / loss.trace()));
        assert!(loss.loss_of(&w) < before, "step {t}");
    }
}

#[test]
fn a_probe_is_the_weights_and_what_is_added_to_them() {
    let w = weights(Distribution::GaussQ8);
    let card = MethodCard::named("mezo").unwrap();
    let mut method = card.start(&json!({"probe": {"eps": 0.5}}), &setting(0.0)).unwrap();
    let Plan::Evaluate(probes) = method.begin(7, 1.0) else { panic!() };
    let z = w.entries(&Direction::dense(7, 0), 2);
    for (probe, sign) in probes.iter().zip([0.5, -0.5]) {
        for ((got, w), z) in w.at(probe, 2).iter().zip(&w.tensors[2]).zip(&z) {
            assert_eq!(*got, w + sign * z);
        }
    }
    assert_eq!(
        method.answer(&[3.0, 1.0]),
        Plan::Update(Update::Linear {
            decay: 0.0,
            terms: vec![Term { scale: 2.0, direction: Direction::dense(7, 0) }],
        })
    );
}
