//! The rules of acceptance on models of a few kilobytes and on a real one: rejection leaves the law of the text as it
//! is, typical acceptance does not, both are greedy at temperature 0, and a seed names a text.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::sync::Arc;

use habits::{CONTEXT, Habit, N_VOCAB, load, oracle};
use offshoot_engine::spec::{Acceptance, SamplingClass, SpecOptions};
use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{
    Answer, Control, FinishReason, GenerateOptions, LoadOptions, Model, Piece, QuantizeOptions,
    Session, quantize,
};
use offshoot_methods::draft::Typical;
use offshoot_methods::{FilterState, LogProbabilities, Sampler, SamplingOptions, TokenFilter};
use offshoot_models::{LogitRows, Recipe};
use tiny::{HIDDEN, Tiny};

const TYPICAL: Acceptance = Acceptance::Typical(Typical { epsilon: 0.09, delta: 0.3 });
/// A text that repeats itself, so that the suffix automaton has guesses.
const PROMPT: [u32; 14] = [3, 9, 4, 5, 3, 9, 4, 5, 3, 9, 4, 5, 3, 9];

/// A model of fewer layers that agrees with the other one more often than not.
fn small() -> Model {
    let mut tiny = Tiny::smallest("qwen2");
    let norm: Vec<f32> = (0..HIDDEN).map(|i| 0.5 + (i * 5 % HIDDEN) as f32 / 16.0).collect();
    tiny.floats("output_norm.weight", &[HIDDEN], &norm);
    load(tiny, 1).0
}

/// Drafts with these drafters, of which one may be a model.
fn draft_with(mode: &str, small: Model, model: &Model, session: &mut Session) {
    let options = SpecOptions {
        mode: mode.parse().unwrap(),
        draft_model: Some(Arc::new(small)),
        ..SpecOptions::default()
    };
    let speculator = options.speculator(model, session).unwrap();
    session.set_speculator(speculator);
}

fn warm(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: 0.6, seed: Some(seed), ..SamplingOptions::default() }
}

fn options(
    sampling: SamplingOptions,
    acceptance: Acceptance,
    max_tokens: Option<usize>,
) -> GenerateOptions {
    let ignore_eos = true;
    GenerateOptions { sampling, acceptance, max_tokens, ignore_eos, ..GenerateOptions::default() }
}

fn generate(model: &Model, session: &mut Session, options: &GenerateOptions) -> Answer {
    session.truncate(0);
    session.generate(model, &PROMPT, options, |_| Control::Continue).unwrap()
}

/// Lets through, in three states, all tokens but some.
#[derive(Clone, Copy)]
struct Walk;

impl TokenFilter for Walk {
    fn start(&mut self) -> FilterState {
        FilterState(1)
    }

    fn next(&mut self, FilterState(at): FilterState, token: u32) -> Option<FilterState> {
        (!(token + at).is_multiple_of(3)).then_some(FilterState((at + token) % 3))
    }

    fn mask(&mut self, state: FilterState, logits: &mut [f32]) {
        for (token, logit) in logits.iter_mut().enumerate() {
            if self.next(state, token as u32).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Tokens of a text whose law is compared.
const COMPARED: usize = 3;

/// The law of the first tokens behind `prompt`, by going through all of them.
fn law(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    sampling: &SamplingOptions,
    filtered: bool,
) -> BTreeMap<Vec<u32>, f64> {
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    let mut texts = vec![(Vec::new(), 1.0, Walk.start())];
    for _ in 0..COMPARED {
        let mut longer = Vec::new();
        for (text, chance, state) in texts {
            let context = [prompt, &text].concat();
            session.truncate(0);
            session.read(model, &context[..context.len() - 1]).unwrap();
            let last = &context[context.len() - 1..];
            let logits = session.feed(model, last, LogitRows::Last).unwrap();
            if filtered {
                Walk.mask(state, logits);
            }
            let mut p = Vec::new();
            sampler.distribution(logits, &context, &mut p).unwrap();
            longer.extend(p.into_iter().map(|(token, share)| {
                let state = if filtered { Walk.next(state, token).unwrap() } else { state };
                ([&text[..], &[token]].concat(), chance * share, state)
            }));
        }
        texts = longer;
    }
    texts.into_iter().map(|(text, chance, _)| (text, chance)).collect()
}

/// Pearson's statistic over its bound, which one good generator in 10,000 passes. Texts expected
/// fewer than five times are one cell.
fn misfit(counts: &BTreeMap<Vec<u32>, usize>, law: &BTreeMap<Vec<u32>, f64>) -> f64 {
    let n: usize = counts.values().sum();
    assert!(counts.keys().all(|text| law.contains_key(text)), "a text that cannot be");
    let (mut cells, mut rest) = (Vec::new(), (0.0, 0.0));
    for (text, chance) in law {
        let (expected, found) = (chance * n as f64, counts.get(text).copied().unwrap_or(0) as f64);
        if expected >= 5.0 {
            cells.push((expected, found));
        } else {
            rest = (rest.0 + expected, rest.1 + found);
        }
    }
    if rest.0 > 0.0 {
        cells.push(rest);
    }
    assert!(cells.len() > 8, "{} cells", cells.len());
    let found: f64 =
        cells.iter().map(|(expected, found)| (found - expected).powi(2) / expected).sum();
    // Wilson and Hilferty's approximation of the quantile.
    let degrees = cells.len() as f64 - 1.0;
    let spread = 2.0 / (9.0 * degrees);
    found / (degrees * (1.0 - spread + 3.719 * spread.sqrt()).powi(3))
}

/// What many seeds make of `prompt`: how often each text came, and guesses proposed and accepted.
fn counted(
    model: &Model,
    session: &mut Session,
    (prompt, seeds): (&[u32], u64),
    sampling: &SamplingOptions,
    acceptance: Acceptance,
    filtered: bool,
) -> (BTreeMap<Vec<u32>, usize>, usize, usize) {
    let (mut counts, mut proposed, mut accepted) = (BTreeMap::new(), 0, 0);
    for seed in 0..seeds {
        let sampling = SamplingOptions { seed: Some(seed), ..sampling.clone() };
        let options = options(sampling, acceptance, Some(COMPARED + 2));
        session.truncate(0);
        let listen = |_: Piece<'_>| Control::Continue;
        let answer = match filtered {
            true => session.generate_filtered(model, prompt, &options, &mut Walk, listen),
            false => session.generate(model, prompt, &options, listen),
        };
        let answer = answer.unwrap();
        *counts.entry(answer.tokens[..COMPARED].to_vec()).or_default() += 1;
        for drafter in &answer.spec.unwrap().drafters {
            proposed += drafter.proposed;
            accepted += drafter.accepted;
        }
    }
    (counts, proposed, accepted)
}

#[test]
fn rejection_leaves_the_law_of_the_text_as_it_is_and_typical_acceptance_does_not() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let few = SamplingOptions { top_k: 5, top_p: 1.0, min_p: 0.0, ..warm(0) };
    let penalty = SamplingOptions { repetition_penalty: 1.4, presence_penalty: 0.3, ..few.clone() };
    let biased = SamplingOptions { logit_bias: [(4, 0.7), (7, -0.9)].into(), ..warm(0) };
    for (mode, sampling, filtered) in [
        ("draft", &few, false),
        ("draft", &penalty, false),
        ("draft", &biased, true),
        ("suffix,draft", &few, false),
        ("suffix,draft", &penalty, true),
    ] {
        session.set_speculator(None);
        let law = law(&model, &mut session, &PROMPT, sampling, filtered);
        draft_with(mode, small(), &model, &mut session);
        let rejection = Acceptance::Rejection;
        let (counts, proposed, accepted) =
            counted(&model, &mut session, (&PROMPT, 5000), sampling, rejection, filtered);
        assert!(accepted > 500 && proposed > accepted + 500, "{mode}: {accepted} of {proposed}");
        let found = misfit(&counts, &law);
        assert!(found < 1.0, "{mode} {filtered}: {found}");
        // The comparison is one that can fail.
        let (counts, ..) =
            counted(&model, &mut session, (&PROMPT, 5000), sampling, TYPICAL, filtered);
        let found = misfit(&counts, &law);
        assert!(found > 2.0, "{mode} {filtered}: typical acceptance goes unnoticed, {found}");
    }
}

#[test]
fn rejection_leaves_the_law_of_a_real_model_that_a_coarser_one_drafts_for() {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let (model, cpu) = Model::load(&path, &LoadOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let coarse = dir.path().join("coarse.gguf");
    let recipe = QuantizeOptions { recipe: Recipe::Q4_0, requantize: true, variant: None };
    quantize(&cpu, &path, &coarse, recipe, &mut |_, _| true).unwrap();
    let draft = Model::load_on(&cpu, &coarse, &LoadOptions::default()).unwrap();
    let mut session = Session::new(&model, cpu, CONTEXT).unwrap();
    let prompt = model.encode_text("The colours of the flag are").unwrap();
    let three = SamplingOptions { top_k: 3, top_p: 1.0, min_p: 0.0, ..warm(0) };
    let sampling = SamplingOptions { temperature: 1.0, ..three };
    let law = law(&model, &mut session, &prompt, &sampling, false);
    draft_with("draft", draft, &model, &mut session);
    let run = (&prompt[..], 300);
    let (counts, proposed, accepted) =
        counted(&model, &mut session, run, &sampling, Acceptance::Rejection, false);
    assert!(accepted > 300 && proposed > accepted + 50, "{accepted} of {proposed}");
    let found = misfit(&counts, &law);
    assert!(found < 1.0, "{found}");
    let (counts, ..) = counted(&model, &mut session, run, &sampling, TYPICAL, false);
    let found = misfit(&counts, &law);
    assert!(found > 2.0, "typical acceptance goes unnoticed, {found}");
}

#[test]
fn at_temperature_0_every_rule_is_greedy() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    for penalty in [1.0, 1.3] {
        let greedy = SamplingOptions { repetition_penalty: penalty, ..SamplingOptions::greedy() };
        let of = |acceptance| options(greedy.clone(), acceptance, Some(200));
        session.set_speculator(None);
        let plain = generate(&model, &mut session, &of(Acceptance::Exact));
        for acceptance in [Acceptance::Rejection, TYPICAL] {
            draft_with("suffix,draft", small(), &model, &mut session);
            let drafted = generate(&model, &mut session, &of(acceptance));
            assert_eq!(drafted.tokens, plain.tokens);
            for habit in Habit::all(2) {
                session.set_speculator(Some(oracle(&habit, &plain.tokens).0));
                let drafted = generate(&model, &mut session, &of(acceptance));
                assert_eq!(drafted.tokens, plain.tokens, "{habit:?}");
                assert!(drafted.spec.unwrap().guesses > 0);
            }
        }
    }
}

/// As far as the likeliest token is ahead of the next by so much that a draw at this temperature falls
/// on another one in e^40 times.
#[test]
fn next_to_temperature_0_every_rule_is_greedy() {
    const COLD: f32 = 1e-3;
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let plain = generate(
        &model,
        &mut session,
        &options(SamplingOptions::greedy(), Acceptance::Exact, Some(400)),
    );
    session.truncate(0);
    session.read(&model, &PROMPT[..PROMPT.len() - 1]).unwrap();
    let mut last = PROMPT[PROMPT.len() - 1];
    let mut ahead = |&token: &u32| {
        let logits = session.feed(&model, &[last], LogitRows::Last).unwrap();
        let others = logits.iter().enumerate().filter(|&(other, _)| other != token as usize);
        let next = others.map(|(_, &logit)| logit).fold(f32::MIN, f32::max);
        last = token;
        logits[token as usize] - next > 40.0 * COLD
    };
    let sure = plain.tokens.iter().take_while(|&token| ahead(token)).count();
    assert!(sure > 50, "only {sure} tokens are certain");
    for acceptance in [Acceptance::Exact, Acceptance::Rejection, TYPICAL] {
        for seed in 1..=3 {
            let cold = SamplingOptions { temperature: COLD, ..warm(seed) };
            let of = options(cold, acceptance, Some(sure));
            draft_with("suffix,draft", small(), &model, &mut session);
            let drafted = generate(&model, &mut session, &of);
            assert_eq!(drafted.tokens, plain.tokens[..sure], "{acceptance}, seed {seed}");
            let (speculator, _) = oracle(&Habit::Random { width: 6 }, &[]);
            session.set_speculator(Some(speculator));
            let drafted = generate(&model, &mut session, &of);
            assert_eq!(drafted.tokens, plain.tokens[..sure], "{acceptance}, seed {seed}");
            assert!(drafted.spec.unwrap().guesses > 0);
        }
    }
}

#[test]
fn a_seed_names_a_text_on_any_number_of_threads_and_whatever_was_answered_before() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let (other, mut two) = load(Tiny::qwen2(), 2);
    for acceptance in [Acceptance::Rejection, TYPICAL] {
        for mode in ["draft", "suffix,draft"] {
            draft_with(mode, small(), &model, &mut session);
            draft_with(mode, small(), &other, &mut two);
            let of = |seed| options(warm(seed), acceptance, Some(300));
            let first = generate(&model, &mut session, &of(7));
            let between = generate(&model, &mut session, &of(8));
            assert_ne!(between.tokens, first.tokens);
            let again = generate(&model, &mut session, &of(7));
            assert_eq!(again.tokens, first.tokens, "{acceptance} {mode}");
            let threads = generate(&other, &mut two, &of(7));
            assert_eq!(threads.tokens, first.tokens, "{acceptance} {mode}");
            let spec = threads.spec.unwrap();
            assert_eq!((spec.acceptance, spec.guesses), (acceptance, first.spec.unwrap().guesses));
            assert!(spec.guesses > 50, "{acceptance} {mode}: {spec:?}");
        }
    }
}

#[test]
fn without_drafts_every_rule_is_plain_sampling_and_rejection_without_draws() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let plain = generate(&model, &mut session, &options(warm(3), Acceptance::Exact, Some(60)));
    draft_with("suffix", small(), &model, &mut session);
    let set = generate(&model, &mut session, &options(warm(3), Acceptance::Rejection, Some(60)));
    assert_eq!(set.tokens, plain.tokens);
    assert_eq!(set.spec.unwrap().acceptance, Acceptance::Exact);
    session.set_speculator(None);
    for acceptance in [Acceptance::Rejection, TYPICAL] {
        let answer = generate(&model, &mut session, &options(warm(3), acceptance, Some(60)));
        assert_eq!(answer.tokens, plain.tokens);
    }
}

#[test]
fn typical_acceptance_keeps_more_of_likely_guesses() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let mut per_step = |acceptance| {
        let of_seed = |seed| {
            let (speculator, _) = oracle(&Habit::Random { width: 6 }, &[]);
            session.set_speculator(Some(speculator));
            let answer =
                generate(&model, &mut session, &options(warm(seed), acceptance, Some(400)));
            answer.spec.unwrap().tokens_per_step()
        };
        (1..=4).map(of_seed).sum::<f64>()
    };
    let (exact, typical) = (per_step(Acceptance::Exact), per_step(TYPICAL));
    // 1.4 and more times as many on the processors tried, whose logits differ in their last bits.
    assert!(typical > 1.2 * exact, "{typical} beside {exact} tokens in four steps");
}

#[test]
fn answers_end_where_they_should_under_every_rule() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    for acceptance in [Acceptance::Rejection, TYPICAL] {
        draft_with("suffix,draft", small(), &model, &mut session);
        for most in 1..12 {
            let answer = generate(&model, &mut session, &options(warm(4), acceptance, Some(most)));
            assert_eq!((answer.tokens.len(), answer.finish), (most, FinishReason::MaxTokens));
        }
        let whole = options(warm(4), acceptance, None);
        let full = generate(&model, &mut session, &whole);
        assert_eq!(full.finish, FinishReason::ContextFull);
        assert_eq!(PROMPT.len() + full.tokens.len(), CONTEXT + 1);
        // Who listens ends it; what is kept is the text, and the cache is that of reading it.
        for after in [1, 2, 3, 50, 51, 52, 53] {
            session.truncate(0);
            let mut left = after;
            let listen = |piece: Piece<'_>| {
                left -= usize::from(piece.token.is_some());
                if left == 0 { Control::Stop } else { Control::Continue }
            };
            let answer = session.generate(&model, &PROMPT, &whole, listen).unwrap();
            assert_eq!(answer.tokens, full.tokens[..after]);
            let cached = session.cached().to_vec();
            assert!([&PROMPT[..], &answer.tokens].concat().starts_with(&cached));
            let bits = |logits: &mut [f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let kept = bits(session.feed(&model, &[5], LogitRows::Last).unwrap());
            session.truncate(0);
            session.read(&model, &cached).unwrap();
            assert_eq!(bits(session.feed(&model, &[5], LogitRows::Last).unwrap()), kept);
        }
        let letters: Vec<char> = full.text.chars().collect();
        for at in [5, 33] {
            let stop: String = letters[at..at + 3].iter().collect();
            let options = GenerateOptions { stop: vec![stop.clone()], ..whole.clone() };
            let answer = generate(&model, &mut session, &options);
            assert_eq!(answer.finish, FinishReason::StopText(0));
            assert_eq!(answer.text, full.text[..full.text.find(&stop).unwrap()]);
        }
    }
}

#[test]
fn an_end_token_ends_the_answer_in_the_middle_of_a_step() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    for acceptance in [Acceptance::Rejection, TYPICAL] {
        draft_with("suffix,draft", small(), &model, &mut session);
        let mut ended = 0;
        for seed in 0..40 {
            let sampling = SamplingOptions { logit_bias: [(2, 1.5)].into(), ..warm(seed) };
            let options =
                GenerateOptions { ignore_eos: false, ..options(sampling, acceptance, Some(60)) };
            let answer = generate(&model, &mut session, &options);
            assert!(!answer.tokens.contains(&2));
            ended += usize::from(answer.finish == FinishReason::EndToken(2));
        }
        assert!(ended > 5, "{acceptance}: {ended}");
    }
}

#[test]
fn log_probabilities_are_the_models_own_under_every_rule() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    for acceptance in [Acceptance::Rejection, TYPICAL] {
        draft_with("suffix,draft", small(), &model, &mut session);
        let options = GenerateOptions {
            logprobs: Some(2),
            ..options(SamplingOptions { repetition_penalty: 1.3, ..warm(1) }, acceptance, Some(80))
        };
        session.truncate(0);
        let mut told = Vec::new();
        let answer = session.generate(&model, &PROMPT, &options, |piece| {
            told.extend(piece.token.zip(piece.logprob));
            Control::Continue
        });
        assert_eq!(answer.unwrap().tokens.len(), told.len());
        session.truncate(0);
        session.read(&model, &PROMPT[..PROMPT.len() - 1]).unwrap();
        let mut last = PROMPT[PROMPT.len() - 1];
        for (token, logprob) in told {
            let logits = session.feed(&model, &[last], LogitRows::Last).unwrap();
            assert_eq!(LogProbabilities::of(logits).unwrap().get(token), Some(logprob));
            assert!(token < N_VOCAB);
            last = token;
        }
    }
}

/// Rules other than exact begin anew with each answer, so nothing is kept of them; and what is kept
/// of the exact one is apart for texts of more or less chance.
#[test]
fn what_is_learned_is_of_exact_answers_by_how_much_chance_is_in_them() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    draft_with("suffix,draft", small(), &model, &mut session);
    let mut learned = |sampling: SamplingOptions, acceptance| {
        generate(&model, &mut session, &options(sampling, acceptance, Some(200)));
        session.speculator().unwrap().calibrated().drafters
    };
    let cool = SamplingOptions { temperature: 0.5, ..warm(1) };
    let greedy = learned(SamplingOptions::greedy(), Acceptance::Exact);
    assert_eq!(greedy.keys().collect::<Vec<_>>(), [&SamplingClass::Greedy]);
    let all = learned(warm(1), Acceptance::Exact);
    assert_eq!(all.len(), 2);
    assert_eq!(all[&SamplingClass::Greedy], greedy[&SamplingClass::Greedy]);
    assert_ne!(all[&SamplingClass::Warm], greedy[&SamplingClass::Greedy]);
    for rule in [Acceptance::Rejection, TYPICAL] {
        assert_eq!(learned(cool.clone(), rule), all, "{rule}");
        assert_eq!(learned(warm(1), rule), all, "{rule}");
    }
    assert_eq!(learned(cool, Acceptance::Exact).len(), 3);
    let again = learned(SamplingOptions::greedy(), Acceptance::Exact);
    assert_ne!(again[&SamplingClass::Greedy], all[&SamplingClass::Greedy]);
    assert_eq!(again[&SamplingClass::Warm], all[&SamplingClass::Warm]);
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let typical = Acceptance::Typical(Typical { epsilon: 0.7, ..Typical::default() });
    let options = options(warm(1), typical, Some(3));
    let error = session.generate(&model, &PROMPT, &options, |_| Control::Continue).unwrap_err();
    assert!(error.to_string().starts_with("epsilon is 0.7, but must be"), "{error}");
}
