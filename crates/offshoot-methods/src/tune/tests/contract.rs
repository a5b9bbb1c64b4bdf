//! What every method in the catalogue promises.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::quadratic::{Quadratic, run, setting, step, weights};
use crate::tune::{METHODS, MethodCard, Plan, RateUnit, Record, Update, ZerothOrder, apply_update};

fn start(card: &MethodCard, given: &Value) -> Box<dyn ZerothOrder> {
    card.start(given, &setting(0.0)).unwrap_or_else(|e| panic!("{}: {e}", card.name))
}

#[test]
fn names_are_unique_and_words_are_there() {
    let names: BTreeSet<&str> = METHODS.iter().map(|card| card.name).collect();
    assert_eq!(names.len(), METHODS.len());
    for card in METHODS {
        assert!(card.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", card.name);
        assert!(card.paper.starts_with("https://arxiv.org/abs/"), "{}", card.name);
        assert!(!card.summary.is_empty() && !card.forwards.is_empty() && !card.memory.is_empty());
        assert!(card.rate > 0.0 && card.rate < 1e-2, "{}", card.name);
        assert_eq!(MethodCard::named(card.name).unwrap().summary, card.summary);
    }
}

#[test]
fn pages_have_an_equation_defaults_as_they_are_results_and_a_warning() {
    for card in METHODS {
        let page = card.page();
        for part in ["\n    ", "\nPublished: ", "\nOurs: ", "\nWhen not to use it: ", card.paper] {
            assert!(page.contains(part), "{}: no {part:?} in {page}", card.name);
        }
        let told =
            page.split("\nDefaults: ").nth(1).and_then(|rest| rest.split("\nPublished").next());
        let told = told.unwrap_or_else(|| panic!("{}: no defaults", card.name)).replace('\n', " ");
        let defaults = card.defaults();
        for (name, value) in
            defaults.as_object().unwrap().iter().filter(|(name, _)| *name != "probe")
        {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let part = format!("`{name}` {value}");
            assert!(told.contains(&part), "{}: no {part} in {told}", card.name);
        }
        assert!(
            told.contains(&format!("{:e}", card.rate)) || card.space.is_some(),
            "{}",
            card.name
        );
    }
}

#[test]
fn defaults_pass_their_own_bounds_and_survive_being_written() {
    for card in METHODS {
        let defaults = card.defaults();
        start(card, &defaults);
        let read: Value = serde_json::from_str(&defaults.to_string()).unwrap();
        assert_eq!(card.options(&read), defaults, "{}", card.name);
        assert_eq!(card.options(&json!({})), defaults, "{}", card.name);
    }
}

#[test]
fn bad_options_are_refused_by_name() {
    let wrong = [
        (json!({"probe": {"eps": -1.0}}), "probe.eps"),
        (json!({"probe": {"epsilon": 1.0}}), "epsilon"),
        (json!({"no such option": 1}), "no such option"),
        (json!({"probe": {"directions": 1.5}}), "1.5"),
        (json!([]), "table"),
    ];
    for card in METHODS {
        for (options, word) in &wrong {
            let error = card.start(options, &setting(0.0)).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(card.name), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = card.start(&json!({}), &setting(f64::NAN)).unwrap_err().to_string();
        assert!(error.contains("decay"), "{error}");
    }
}

/// The least loss after 150 steps over a grid of rates, as a share of the first.
fn best(card: &MethodCard, given: &Value, loss: &Quadratic) -> f64 {
    let unit = match card.unit {
        RateUnit::Gradient => 1.0 / loss.trace(),
        RateUnit::Normalized => 0.1,
    };
    let share = |power: i32| {
        let mut weights = weights(card.distribution);
        let first = loss.loss_of(&weights);
        let mut method = start(card, given);
        run(method.as_mut(), &mut weights, loss, (150, unit * 0.4_f64.powi(power)));
        loss.loss_of(&weights) / first
    };
    (0..5).map(share).fold(f64::INFINITY, f64::min)
}

/// With defaults but for rate and eps. A quarter of the elements, as `sparse` has it, cannot take
/// away more than their own share of the loss.
#[test]
fn every_method_reduces_a_quadratic() {
    for (condition, most) in [(1.0, 0.9), (100.0, 0.95)] {
        let loss = Quadratic::new(condition);
        for card in METHODS {
            let share = best(card, &json!({"probe": {"eps": 1e-3}}), &loss);
            assert!(share < most, "{}: {share} at condition {condition}", card.name);
        }
    }
}

#[test]
fn every_method_descends_along_several_directions() {
    let loss = Quadratic::new(10.0);
    for card in METHODS {
        let share = best(card, &json!({"probe": {"eps": 1e-3, "directions": 3}}), &loss);
        assert!(share < 0.9, "{}: {share}", card.name);
    }
}

#[test]
fn a_step_asks_for_as_many_losses_as_it_says() {
    let (loss, options) = (Quadratic::new(1.0), json!({"probe": {"directions": 3}}));
    for card in METHODS {
        let mut method = start(card, &options);
        let weights = weights(card.distribution);
        let (mut asked, mut plan) = (0, method.begin(0, 1e-3));
        while let Plan::Evaluate(probes) = plan {
            asked += probes.len();
            let losses: Vec<f64> = probes.iter().map(|p| loss.loss_at(&weights, p)).collect();
            plan = method.answer(&losses);
        }
        assert_eq!(asked, method.forwards(0), "{}", card.name);
    }
}

/// Losses that depend on nothing but their place.
fn invented(step: u32, plan: usize, probe: usize) -> f64 {
    let mixed = (u64::from(step) * 31 + plan as u64 * 7 + probe as u64 * 13) % 23;
    1.0 + mixed as f64 / 100.0
}

#[test]
fn the_same_losses_make_the_same_plans() {
    for card in METHODS {
        let mut methods = [start(card, &json!({})), start(card, &json!({}))];
        for step in 0..60 {
            let mut plans = methods.each_mut().map(|method| method.begin(step, 1e-3));
            for turn in 0.. {
                assert_eq!(plans[0], plans[1], "{}", card.name);
                let Plan::Evaluate(probes) = &plans[0] else { break };
                let losses: Vec<f64> =
                    (0..probes.len()).map(|probe| invented(step, turn, probe)).collect();
                plans = methods.each_mut().map(|method| method.answer(&losses));
            }
        }
    }
}

/// A run whose losses fail in the eighth step, under every guard, with decay: the records alone
/// make the same updates, the same weights and a method that goes on in the same way.
#[test]
fn a_replay_has_the_bits_of_the_run() {
    let loss = Quadratic::new(30.0);
    let given = json!({"probe": {"directions": 2, "clip_g": 1.5, "clip_z": 3.0}});
    for card in METHODS {
        let start = || card.start(&given, &setting(0.1)).unwrap();
        let (mut method, mut twin) = (start(), start());
        let mut run_weights = weights(card.distribution);
        let mut replayed = run_weights.clone();
        for t in 0..70 {
            let rate = 1e-3 * f64::from(100 - t);
            let update = if t == 8 {
                let plan = method.begin(t, rate);
                assert!(matches!(plan, Plan::Evaluate(_)));
                let Plan::Update(update) = method.answer(&[f64::NAN]) else { panic!() };
                update
            } else {
                step(method.as_mut(), &mut run_weights, &loss, (t, rate))
            };
            let again = twin.replay(t, rate, method.record()).unwrap();
            assert_eq!(again, update, "{} step {t}", card.name);
            assert_eq!(twin.guarded(), method.guarded());
            apply_update(&again, &mut replayed);
        }
        assert_eq!(bits(&replayed.tensors), bits(&run_weights.tensors), "{}", card.name);
        assert_eq!(method.begin(70, 1e-3), twin.begin(70, 1e-3));
    }
}

fn bits(tensors: &[Vec<f32>]) -> Vec<u32> {
    tensors.iter().flatten().map(|w| w.to_bits()).collect()
}

#[test]
fn losses_that_are_no_numbers_do_nothing_and_are_recorded() {
    for card in METHODS {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut method = start(card, &json!({}));
            let Plan::Evaluate(probes) = method.begin(0, 1e-3) else { panic!("{}", card.name) };
            let mut losses = vec![1.0; probes.len()];
            losses[probes.len() - 1] = bad;
            assert_eq!(method.answer(&losses), Plan::Update(Update::nothing()), "{}", card.name);
            assert_eq!(method.record(), &Record { skipped: true, numbers: vec![] });
        }
        let mut method = start(card, &json!({}));
        method.begin(0, 1e-3);
        assert_eq!(method.answer(&[]), Plan::Update(Update::nothing()), "{}", card.name);
    }
}

/// One batch in a run that stands far out takes no step, and is counted.
#[test]
fn a_slope_far_beyond_the_median_is_rejected() {
    for card in METHODS.iter().filter(|card| card.name != "fzoo") {
        let mut method = start(card, &json!({"probe": {"clip_z": 20.0}}));
        let mut tell = |step: u32, slope: f64| {
            let mut plan = method.begin(step, 1.0);
            loop {
                match plan {
                    Plan::Update(update) => break (update, method.guarded()),
                    Plan::Evaluate(probes) => {
                        let near = |i: usize| 1.0 + slope * [1.0, -1.0][i % 2] - 0.01 * i as f64;
                        plan = method.answer(&(0..probes.len()).map(near).collect::<Vec<f64>>());
                    }
                }
            }
        };
        (0..40).for_each(|step| assert_eq!(tell(step, 1e-3).1.rejected, 0, "{}", card.name));
        let (update, guarded) = tell(40, 1e3);
        assert!(guarded.rejected > 0, "{}", card.name);
        let largest = update.terms().iter().fold(0.0_f32, |most, t| most.max(t.scale.abs()));
        assert!(largest < 1e3, "{}: {largest}", card.name);
    }
}

/// Finite losses whose slope does not fit into single precision.
#[test]
fn an_overflowing_slope_is_no_number_either() {
    let mut method = start(MethodCard::named("mezo").unwrap(), &json!({}));
    method.begin(0, 1e-3);
    assert_eq!(method.answer(&[1e300, -1e300]), Plan::Update(Update::nothing()));
    assert!(method.record().skipped);
}

#[test]
fn records_that_do_not_fit_are_refused() {
    for card in METHODS {
        let mut method = start(card, &json!({}));
        let long = Record { skipped: false, numbers: vec![0.5; 1000] };
        assert!(method.replay(0, 1e-3, &long).is_err(), "{}", card.name);
        let bad = Record { skipped: false, numbers: vec![f32::NAN] };
        assert!(method.replay(0, 1e-3, &bad).is_err(), "{}", card.name);
    }
}

#[test]
fn decay_is_eta_times_lambda() {
    let loss = Quadratic::new(1.0);
    for card in METHODS {
        let mut method = card.start(&json!({}), &setting(0.25)).unwrap();
        let mut weights = weights(card.distribution);
        let update = step(method.as_mut(), &mut weights, &loss, (0, 0.5));
        let (Update::Linear { decay, .. } | Update::Moments { decay, .. }) = update;
        assert_eq!(decay, 0.125, "{}", card.name);
    }
}
