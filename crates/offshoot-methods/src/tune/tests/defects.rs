//! Faults that other implementations of these methods have had, each with the test that would find
//! it.
//!
//! Those of HiZOO's program, which keeps curvatures in half precision where they cannot change, and of
//! MeZO-SVRG's, whose anchor is the weights themselves, have no counterpart here: these methods are not
//! built.

use serde_json::{Value, json};

use super::quadratic::{Quadratic, layout, run, setting, step, weights};
use crate::tune::{
    Direction, Distribution, Form, Layout, MethodCard, Plan, TensorSpec, Update, Weights,
    ZerothOrder,
};

fn start(name: &str, options: Value) -> Box<dyn ZerothOrder> {
    MethodCard::named(name).unwrap().start(&options, &setting(0.0)).unwrap()
}

/// The directions of a step's probes, and those of its update.
fn both(method: &mut dyn ZerothOrder, step: u32) -> (Vec<Direction>, Vec<Direction>) {
    let Plan::Evaluate(probes) = method.begin(step, 1.0) else { panic!() };
    let losses: Vec<f64> = (0..probes.len()).map(|i| i as f64 * 0.5 + 1.0).rev().collect();
    let Plan::Update(update) = method.answer(&losses) else { panic!() };
    let terms = probes.iter().flat_map(|probe| &probe.terms);
    let mut measured: Vec<Direction> = terms.map(|term| term.direction.clone()).collect();
    measured.dedup();
    (measured, update.terms().iter().map(|term| term.direction.clone()).collect())
}

/// One stream for both factors makes the update of the first step of an interval another direction
/// than the one that was measured.
#[test]
fn low_rank_updates_go_along_what_was_measured_in_every_step() {
    for name in ["lozo", "subzero"] {
        let mut method = start(name, json!({"interval": 5, "rank": 2}));
        let w = weights(Distribution::GaussQ8);
        for t in 0..17 {
            let (measured, updated) = both(method.as_mut(), t);
            assert_eq!(measured, updated, "{name} step {t}");
            let [a, b] = [&measured[0], &updated[0]].map(|d| w.entries(d, 1));
            assert_eq!(a, b);
        }
    }
}

/// The newest of a momentum's directions is the measured one too, in the first step of an interval.
#[test]
fn low_rank_momentum_ends_with_what_was_measured() {
    let mut method = start("lozo-m", json!({"interval": 5, "rank": 2}));
    for t in 0..17 {
        let (measured, updated) = both(method.as_mut(), t);
        assert_eq!(measured.last(), updated.last(), "step {t}");
        assert!(matches!(measured[0].form, Form::LowRank { epoch, .. } if epoch == t / 5));
    }
}

/// A seed begun anew in each block gives blocks of equal shapes equal directions.
#[test]
fn blocks_of_equal_shapes_have_directions_of_their_own() {
    let w = weights(Distribution::GaussQ8);
    let mut method = start("block", json!({}));
    let mut plan = method.begin(0, 1e-3);
    let mut seen: Vec<Vec<f32>> = Vec::new();
    while let Plan::Evaluate(probes) = plan {
        let last = &probes[0].terms[probes[0].terms.len() - 1].direction;
        for tensor in (1..5).filter(|&tensor| last.covers(tensor)) {
            seen.push(w.entries(last, tensor));
        }
        plan = method.answer(&vec![1.0; probes.len()]);
    }
    assert_eq!(seen.len(), 4);
    for (i, a) in seen.iter().enumerate() {
        assert!(seen[..i].iter().all(|b| a != b));
    }
}

/// Several directions: each has its own slope and all are in the sum, under a mask as well.
#[test]
fn several_directions_are_summed_under_the_mask() {
    let w = weights(Distribution::GaussQ8);
    let options = json!({"probe": {"directions": 3}, "density": 0.5});
    let mut method = start("sparse", options);
    let Plan::Evaluate(probes) = method.begin(0, 3.0) else { panic!() };
    assert_eq!(probes.len(), 6);
    let Plan::Update(update) = method.answer(&[1.2, 1.0, 1.0, 1.4, 1.6, 1.0]) else { panic!() };
    let scales: Vec<f32> = update.terms().iter().map(|term| term.scale).collect();
    for (got, expected) in scales.iter().zip([100.0, -200.0, 300.0]) {
        assert!((got - expected).abs() < 1e-3, "{scales:?}");
    }
    let zeros: Vec<Vec<bool>> = (update.terms().iter())
        .map(|term| w.entries(&term.direction, 1).iter().map(|z| *z == 0.0).collect())
        .collect();
    assert_eq!(zeros[0].iter().filter(|zero| **zero).count(), 6);
    assert!(zeros.iter().all(|mask| mask == &zeros[0]));
    assert_ne!(
        w.entries(&update.terms()[0].direction, 1),
        w.entries(&update.terms()[1].direction, 1)
    );
}

/// A conservative step that walks between candidates by optimiser steps does not come back; probes
/// are all about the same weights.
#[test]
fn conservative_candidates_stand_about_the_weights() {
    let mut method = start("cons", json!({}));
    method.begin(0, 0.5);
    let Plan::Evaluate(tried) = method.answer(&[2.0, 1.0]) else { panic!() };
    assert_eq!(tried[0].terms, []);
    let [down, up] = [&tried[1].terms[0], &tried[2].terms[0]];
    assert_eq!(down.direction, up.direction);
    assert_eq!(down.scale, -up.scale);
    assert!((down.scale + 250.0).abs() < 1e-3);
    let Plan::Update(Update::Linear { terms, .. }) = method.answer(&[3.0, 2.0, 1.0]) else {
        panic!()
    };
    assert_eq!(terms[0].scale, -up.scale, "climbing subtracts the negative");
}

/// Directions of an anchor or an earlier step that depend on a generator's state cannot be had
/// again: here a step's plan depends on its number alone, in whatever order steps are asked for.
#[test]
fn directions_do_not_depend_on_what_was_drawn_before() {
    for name in ["mezo", "lozo", "subzero", "sparse", "lezo", "block"] {
        let mut straight = start(name, json!({}));
        for t in 0..5 {
            straight.begin(t, 1.0);
        }
        assert_eq!(straight.begin(5, 1.0), start(name, json!({})).begin(5, 1.0), "{name}");
    }
}

/// Every vector is left out of decay, whatever it is called, and no matrix is, though it may have one
/// row, as LoRA's first factors of rank 1 do.
#[test]
fn vectors_do_not_decay_and_a_matrix_of_one_row_does() {
    let loss = Quadratic::new(1.0);
    let card = MethodCard::named("mezo").unwrap();
    let mut method = card.start(&json!({}), &setting(1.0)).unwrap();
    let mut w = weights(Distribution::GaussQ8);
    let before = w.clone();
    method.begin(0, 0.5);
    let Plan::Update(update) = method.answer(&[1.0, 1.0]) else { panic!() };
    crate::tune::apply_update(&update, &mut w);
    for (i, tensor) in layout().tensors.iter().enumerate() {
        let keep = if tensor.name.contains("norm") { 1.0 } else { 0.5 };
        let expected: Vec<f32> = before.tensors[i].iter().map(|w| w * keep).collect();
        assert_eq!(w.tensors[i], expected, "{}", tensor.name);
    }
    let spec = |name: &str, vector| TensorSpec {
        name: name.to_owned(),
        rows: 1,
        cols: 2,
        layer: None,
        vector,
    };
    let layout = Layout { tensors: vec![spec("q_proj.lora_A", false), spec("q_proj.bias", true)] };
    let tensors = vec![vec![4.0, -2.0]; 2];
    let mut one_row = Weights::new(1, Distribution::GaussQ8, layout, tensors);
    crate::tune::apply_update(&Update::Linear { decay: 0.5, terms: Vec::new() }, &mut one_row);
    assert_eq!(one_row.tensors, [[2.0, -1.0], [4.0, -2.0]]);
    step(method.as_mut(), &mut w, &loss, (1, 0.0));
}

/// Weights are read by probes and changed by updates alone: where all slopes are zero a run ends
/// where it began, to the bit.
#[test]
fn measuring_changes_no_weight() {
    let flat = Quadratic { coupling: 0.0, curvature: vec![0.0; 67], target: vec![0.0; 67] };
    for card in crate::tune::METHODS {
        let mut w = weights(card.distribution);
        let before = w.tensors.clone();
        run(start(card.name, json!({})).as_mut(), &mut w, &flat, (5, 1.0));
        assert_eq!(w.tensors, before, "{}", card.name);
    }
}
