//! The automatic learning rate on losses whose curvature is known.

use super::quadratic::{Quadratic, flat, run, setting, weights};
use crate::tune::{
    Direction, Distribution, METHODS, Plan, RateEstimate, RateOptions, RateUnit, Weights,
};

fn estimate(w: &Weights, loss: &Quadratic, probes: u32) -> RateEstimate {
    let options = RateOptions { probes, ..RateOptions::default() };
    let points = options.plan(&Direction::default(), 0.05);
    assert_eq!(points.len(), 2 * probes as usize + 1);
    let losses: Vec<f64> = points.iter().map(|p| loss.loss_at(w, p)).collect();
    options.estimate(0.05, &losses).unwrap()
}

#[test]
fn probes_see_trace_gradient_and_curvature() {
    let (w, loss) = (weights(Distribution::GaussQ8), Quadratic::new(20.0));
    let gradient = loss.gradient(&flat(&w));
    let square: f64 = gradient.iter().map(|g| g * g).sum();
    let along: f64 = gradient.iter().zip(&loss.curvature).map(|(g, h)| g * g * h).sum();
    let seen = estimate(&w, &loss, 4096);
    assert!((seen.trace / loss.trace() - 1.0).abs() < 0.02, "{seen:?}");
    assert!((seen.square / square - 1.0).abs() < 0.15, "{seen:?}");
    assert!((seen.along / (along / square) - 1.0).abs() < 0.6, "{seen:?} {}", along / square);
    assert!(seen.error < 0.01 * seen.trace);
}

/// The rate found with 16 probes descends with every method, at one and at several directions.
#[test]
fn the_rate_that_is_found_descends_with_every_method() {
    let loss = Quadratic::new(5.0);
    for card in METHODS {
        for n in [4, 12] {
            let mut w = weights(card.distribution);
            let seen = estimate(&w, &loss, 16);
            let options = serde_json::json!({"probe": {"directions": n, "eps": 1e-3}});
            let mut method = card.start(&options, &setting(0.0)).unwrap();
            let rate = seen.rate(&RateOptions::default(), n, card.unit, method.gain()).unwrap();
            let first = loss.loss_of(&w);
            run(method.as_mut(), &mut w, &loss, (40, rate));
            let share = loss.loss_of(&w) / first;
            assert!(share < 0.97, "{} n = {n}: {share} at {rate}", card.name);
        }
    }
}

#[test]
fn more_directions_allow_more_up_to_the_gradients_own_step() {
    let seen = RateEstimate { eps: 1e-3, square: 4.0, trace: 100.0, error: 1.0, along: 5.0 };
    let options = RateOptions::default();
    let rate = |n| seen.rate(&options, n, RateUnit::Gradient, 1.0).unwrap();
    assert_eq!([rate(1), rate(10), rate(20), rate(1000)], [0.005, 0.05, 0.1, 0.1]);
    assert_eq!(seen.rate(&options, 1, RateUnit::Normalized, 1.0), Some(0.01));
    assert_eq!(seen.rate(&options, 1, RateUnit::Gradient, 10.0), Some(0.0005));
}

/// What was seen about SmolLM2-135M: a slope of 32 and no curvature to speak of.
#[test]
fn a_longer_run_takes_shorter_steps_and_no_step_goes_beyond_what_was_probed() {
    let seen = RateEstimate { eps: 1e-3, square: 1024.0, trace: -520.0, error: 450.0, along: 0.0 };
    let rate = |steps, n, unit| {
        seen.rate(&RateOptions { steps, ..RateOptions::default() }, n, unit, 1.0).unwrap()
    };
    let near = |got: f64, wanted: f64| assert!((got / wanted - 1.0).abs() < 0.02, "{got}");
    near(rate(300, 1, RateUnit::Gradient), 0.9e-5);
    near(rate(20_000, 1, RateUnit::Gradient), 1.1e-6);
    near(rate(5, 1, RateUnit::Gradient), 0.5e-3 / 32.0);
    near(rate(300, 4, RateUnit::Gradient), 1.8e-5);
    near(rate(300, 1, RateUnit::Normalized), 32.0 * 0.9e-5);
    let curved = RateEstimate { trace: 1e6, ..seen };
    let options = RateOptions { steps: 300, ..RateOptions::default() };
    assert_eq!(curved.rate(&options, 1, RateUnit::Gradient, 1.0), Some(0.5e-6));
}

#[test]
fn a_curvature_within_its_error_gives_no_rate() {
    let options = RateOptions::default();
    let seen = |trace| RateEstimate { eps: 0.1, square: 4.0, trace, error: 1.0, along: 0.0 };
    for trace in [-5.0, 0.0, 1.9, f64::NAN, f64::INFINITY] {
        assert_eq!(seen(trace).rate(&options, 1, RateUnit::Gradient, 1.0), None, "{trace}");
    }
    let flat = RateEstimate { eps: 0.1, square: 0.0, trace: 0.0, error: 0.0, along: 0.0 };
    let known = RateOptions { steps: 9, ..options };
    assert_eq!(flat.rate(&known, 1, RateUnit::Gradient, 1.0), None);
    assert_eq!(options.estimate(0.1, &[]), None);
    assert_eq!(options.estimate(0.1, &[f64::NAN; 33]), None);
}

/// A step's own directions and those of its probes for a rate are never the same.
#[test]
fn probes_for_a_rate_are_no_steps_directions() {
    let card = &METHODS[0];
    let mut method = card.start(&serde_json::json!({}), &setting(0.0)).unwrap();
    let Plan::Evaluate(probes) = method.begin(5, 1.0) else { panic!() };
    let like = method.like(5);
    let rate = RateOptions::default().plan(&like, 0.1);
    assert_eq!(rate[1].terms[0].direction.step, 5);
    let of_step = &probes[0].terms[0].direction;
    assert!(rate.iter().flat_map(|p| &p.terms).all(|term| &term.direction != of_step));
}
