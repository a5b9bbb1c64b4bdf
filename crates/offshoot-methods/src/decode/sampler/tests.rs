//! Laws of sampling, and agreement with the warpers of the transformers library.

use super::*;
use proptest::prelude::*;

/// Everything off but a temperature of 1, so that a test turns on what it is about.
fn plain(seed: u64) -> SamplingOptions {
    SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(seed),
        ..SamplingOptions::default()
    }
}

/// The distribution that `options` draw from, by rising token.
fn distribution(options: SamplingOptions, logits: &[f32], context: &[u32]) -> Vec<(u32, f64)> {
    let mut sampler = Sampler::new(options).unwrap();
    let mut logits = logits.to_vec();
    let mut law = Vec::new();
    sampler.distribution(&mut logits, context, &mut law).unwrap();
    law
}

fn tokens(distribution: &[(u32, f64)]) -> Vec<u32> {
    distribution.iter().map(|&(token, _)| token).collect()
}

/// Draws position after position and counts the tokens.
fn histogram(options: SamplingOptions, logits: &[f32], n: u64) -> Vec<u64> {
    let mut sampler = Sampler::new(options).unwrap();
    let mut counts = vec![0; logits.len()];
    for position in 0..n {
        let sampled = sampler.sample(&mut logits.to_vec(), &[], 0, position).unwrap();
        counts[sampled.token as usize] += 1;
    }
    counts
}

/// Softmax in the most direct way.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Tokens by falling probability, the lower of equals first.
fn ranking(logits: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    // The sort is stable, so equal logits stay in the order of their tokens.
    order.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap());
    order
}

fn logits(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![-8f32..8.0, (-3i8..3).prop_map(f32::from)], n)
}

proptest! {
    #[test]
    fn top_k_keeps_exactly_the_k_best_ranked(logits in logits(1..150), k in 1u32..160) {
        let kept = distribution(SamplingOptions { top_k: k, ..plain(0) }, &logits, &[]);
        let mut best = ranking(&logits);
        best.truncate(k as usize);
        best.sort();
        prop_assert_eq!(tokens(&kept), best);
    }

    #[test]
    fn top_p_keeps_the_shortest_front_of_the_ranking_that_holds_the_mass(
        logits in logits(1..800),
        top_p in 0f32..1.0,
        temperature in 0.3f32..4.0,
    ) {
        let options = SamplingOptions { top_p, temperature, ..plain(0) };
        let kept = tokens(&distribution(options, &logits, &[]));
        let p = softmax(&logits, f64::from(temperature));
        let mut front = ranking(&logits);
        front.truncate(kept.len());
        let mass = |front: &[u32]| front.iter().map(|&t| p[t as usize]).sum::<f64>();
        prop_assert!(mass(&front) >= f64::from(top_p) - 1e-9);
        prop_assert!(mass(&front[..front.len() - 1]) < f64::from(top_p) + 1e-9);
        front.sort();
        prop_assert_eq!(kept, front);
    }

    #[test]
    fn min_p_keeps_what_is_probable_enough_beside_the_best(
        logits in logits(1..150),
        min_p in 0f32..=1.0,
    ) {
        let kept = tokens(&distribution(SamplingOptions { min_p, ..plain(0) }, &logits, &[]));
        let p = softmax(&logits, 1.0);
        let best = p.iter().copied().fold(0.0, f64::max);
        for (token, p) in p.iter().enumerate() {
            let margin = p / best - f64::from(min_p);
            if margin.abs() > 1e-9 {
                prop_assert_eq!(kept.contains(&(token as u32)), margin > 0.0);
            }
        }
        prop_assert!(!kept.is_empty());
    }

    #[test]
    fn penalties_follow_their_formulas(
        logits in logits(8..9),
        context in prop::collection::vec(0u32..8, 0..40),
        window in prop::option::of(0u32..50),
        (repetition, presence, frequency) in (0.5f32..2.0, -2f32..2.0, -2f32..2.0),
        bias in -5f32..5.0,
    ) {
        let mut sampler = Sampler::new(SamplingOptions {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            penalty_window: window,
            logit_bias: [(2, bias)].into(),
            ..SamplingOptions::greedy()
        })?;
        let mut changed = logits.clone();
        sampler.sample(&mut changed, &context, 0, 0)?;
        let n = window.map_or(context.len(), |n| context.len().min(n as usize));
        for token in 0..8u32 {
            let start = logits[token as usize] + if token == 2 { bias } else { 0.0 };
            let seen = context[context.len() - n..].iter().filter(|&&t| t == token).count() as f32;
            let expected = match seen {
                0.0 => start,
                _ if start > 0.0 => start / repetition - seen * frequency - presence,
                _ => start * repetition - seen * frequency - presence,
            };
            prop_assert_eq!(changed[token as usize], expected);
        }
        prop_assert!(sampler.counts.iter().all(|&count| count == 0));
    }

    #[test]
    fn a_seed_fixes_the_token_whatever_was_drawn_before(
        logits in logits(2..60),
        seed in any::<u64>(),
        position in any::<u64>(),
        earlier in prop::collection::vec(any::<u64>(), 0..5),
    ) {
        let options = SamplingOptions { seed: Some(seed), ..SamplingOptions::default() };
        let mut busy = Sampler::new(options.clone())?;
        for other in earlier {
            busy.sample(&mut logits.clone(), &[], 0, other)?;
        }
        let fresh = Sampler::new(options)?.sample(&mut logits.clone(), &[], 0, position)?;
        prop_assert_eq!(busy.sample(&mut logits.clone(), &[], 0, position)?, fresh);
    }

    #[test]
    fn greedy_is_the_limit_of_small_temperatures(logits in logits(1..60), seed in any::<u64>()) {
        let best = argmax(&logits)?;
        let runner_up = logits.iter().filter(|&&l| l < best.logit);
        let gap = runner_up.map(|l| best.logit - l).fold(1.0, f32::min);
        prop_assume!(logits.iter().filter(|&&l| l == best.logit).count() == 1);
        let cold = SamplingOptions { temperature: gap / 100.0, ..plain(seed) };
        let token = Sampler::new(cold)?.sample(&mut logits.clone(), &[], 0, 0)?.token;
        prop_assert_eq!(token, best.token);
        let greedy = Sampler::new(SamplingOptions::greedy())?.sample(&mut logits.clone(), &[], 0, 0)?;
        prop_assert_eq!(greedy, Sampled { token: best.token, logprob: 0.0 });
    }

    #[test]
    fn the_reported_logprob_is_that_of_the_drawn_distribution(
        logits in logits(1..60),
        seed in any::<u64>(),
    ) {
        let options = SamplingOptions { seed: Some(seed), ..SamplingOptions::default() };
        let sampled = Sampler::new(options.clone())?.sample(&mut logits.clone(), &[], 0, 0)?;
        let drawn_from = distribution(options, &logits, &[]);
        let (_, p) = drawn_from.iter().find(|(token, _)| *token == sampled.token).unwrap();
        prop_assert!((sampled.logprob - p.ln()).abs() < 1e-12);
    }
}

#[test]
fn of_equal_logits_the_lowest_token_wins() {
    let mut greedy = Sampler::new(SamplingOptions::greedy()).unwrap();
    assert_eq!(greedy.sample(&mut [1.0, 5.0, 5.0, 5.0], &[], 0, 0).unwrap().token, 1);
    for options in [
        SamplingOptions { top_k: 1, ..plain(0) },
        SamplingOptions { top_p: 0.0, ..plain(0) },
        SamplingOptions { top_p: 0.2, ..plain(0) },
    ] {
        assert_eq!(tokens(&distribution(options.clone(), &[1.0, 5.0, 5.0, 5.0], &[])), [1]);
        assert_eq!(tokens(&distribution(options, &[-1.0, -0.0, 0.0], &[])), [1]);
    }
    assert_eq!(greedy.sample(&mut [-1.0, -0.0, 0.0], &[], 0, 0).unwrap().token, 1);
}

/// Equal logits weigh exactly 1 each, so these land on the bounds without rounding.
#[test]
fn a_token_exactly_on_the_bound_stays_and_the_next_goes() {
    let kept = |options| tokens(&distribution(options, &[2.0; 4], &[]));
    assert_eq!(kept(SamplingOptions { min_p: 1.0, ..plain(0) }), [0, 1, 2, 3]);
    assert_eq!(kept(SamplingOptions { top_p: 0.5, ..plain(0) }), [0, 1]);
}

/// Pearson's statistic has 5 degrees of freedom here and passes 25.74 once in 10,000.
#[test]
fn frequencies_match_the_softmax() {
    let (logits, n) = ([0.3, -1.0, 1.2, 0.0, -2.5, 0.9], 40_000);
    for temperature in [0.7, 1.0, 1.8] {
        let options = SamplingOptions { temperature, ..plain(17) };
        let expected = softmax(&logits, f64::from(temperature));
        let chi_square: f64 = histogram(options, &logits, n)
            .iter()
            .zip(expected)
            .map(|(&count, p)| (count as f64 - p * n as f64).powi(2) / (p * n as f64))
            .sum();
        assert!(chi_square < 25.74, "{chi_square} at temperature {temperature}");
    }
}

#[test]
fn choices_of_one_request_differ() {
    let mut sampler = Sampler::new(plain(1)).unwrap();
    let mut text = |choice| -> Vec<u32> {
        let draw = |position| sampler.sample(&mut [0.0; 50], &[], choice, position).unwrap().token;
        (0..20).map(draw).collect()
    };
    assert_ne!(text(0), text(1));
}

/// Worked by hand: weights 1, 2, 5 of tokens 0, 1, 2 put the boundaries at 1/8 and 3/8.
#[test]
fn the_inverse_runs_in_the_order_of_the_tokens() {
    let weights = [1.0, 2.0, 5.0];
    let candidates: Vec<_> =
        (0..3).map(|t| Candidate { weight: weights[t], ..Candidate::new(t, 0.0) }).collect();
    let token = |u| invert(&candidates, u).token;
    let below_one = 1.0 - f64::EPSILON / 2.0;
    assert_eq!([0.0, 0.1249, 0.125, 0.3749, 0.375, below_one].map(token), [0, 0, 1, 1, 2, 2]);
}

#[test]
fn a_sampler_without_a_seed_is_refused_unless_greedy() {
    let options = SamplingOptions { seed: None, ..SamplingOptions::default() };
    assert_eq!(Sampler::new(options).unwrap_err(), Error::SeedMissing);
    assert!(Sampler::new(SamplingOptions::greedy()).is_ok());
}

#[test]
fn bad_rows_and_tokens_are_refused_and_leave_the_sampler_usable() {
    let options = SamplingOptions { presence_penalty: 1.0, ..plain(0) };
    let mut sampler = Sampler::new(options).unwrap();
    let mut refused =
        |row: &mut [f32], context: &[u32]| sampler.sample(row, context, 0, 0).unwrap_err();
    assert!(matches!(refused(&mut [0.0, 1.0, f32::NAN], &[]), Error::Logit { token: 2, .. }));
    assert!(matches!(refused(&mut [f32::INFINITY, 1.0], &[]), Error::Logit { token: 0, .. }));
    let masked = Error::NoTokenAllowed { n_vocab: 3 };
    assert_eq!(refused(&mut [f32::NEG_INFINITY; 3], &[]), masked);
    assert_eq!(refused(&mut [], &[]), Error::NoTokenAllowed { n_vocab: 0 });
    let outside = Error::TokenOutOfRange { place: "the context", token: 7, n_vocab: 3 };
    assert_eq!(refused(&mut [0.0; 3], &[1, 1, 7]), outside);
    let mut row = [0.0; 3];
    sampler.sample(&mut row, &[1], 0, 0).unwrap();
    assert_eq!(row, [0.0, -1.0, 0.0]);
}

#[test]
fn a_bias_outside_the_vocabulary_is_refused() {
    let options = SamplingOptions { logit_bias: [(3, 1.0)].into(), ..SamplingOptions::greedy() };
    let error = Sampler::new(options).unwrap().sample(&mut [0.0; 3], &[], 0, 0).unwrap_err();
    assert_eq!(error, Error::TokenOutOfRange { place: "logit_bias", token: 3, n_vocab: 3 });
}

#[test]
fn the_buffers_are_reused() {
    let mut sampler = Sampler::new(plain(0)).unwrap();
    sampler.sample(&mut [0.0; 500], &[], 0, 0).unwrap();
    let (at, room) = (sampler.candidates.as_ptr(), sampler.candidates.capacity());
    sampler.sample(&mut [0.0; 500], &[], 0, 1).unwrap();
    assert_eq!((sampler.candidates.as_ptr(), sampler.candidates.capacity()), (at, room));
}

#[derive(serde::Deserialize)]
struct Case {
    options: SamplingOptions,
    context: Vec<u32>,
    logits: Vec<f32>,
    distribution: Vec<(u32, f64)>,
}

/// Made by `scripts/oracles/sampling.py`, which runs the warpers of transformers in this order.
#[test]
fn distributions_equal_those_of_transformers() {
    let golden = include_str!("../../../golden/sampling.json");
    let cases: Vec<Case> = serde_json::from_str(golden).unwrap();
    assert_eq!(cases.len(), 24);
    for (index, case) in cases.into_iter().enumerate() {
        let ours = distribution(case.options, &case.logits, &case.context);
        assert_eq!(tokens(&ours), tokens(&case.distribution), "case {index}");
        for ((token, p), (_, expected)) in ours.iter().zip(&case.distribution) {
            assert!((p - expected).abs() < 1e-6, "case {index}: p({token}) = {p}, not {expected}");
        }
    }
}
