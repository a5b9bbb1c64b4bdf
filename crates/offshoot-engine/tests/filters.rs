//! A token filter decides what may come, whoever drafts: filtered answers beside a loop that masks
//! each row, and the trees of drafts beside what the filter lets through.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use habits::{Habit, N_VOCAB, load, oracle};
use offshoot_engine::{Answer, Control, Error, GenerateOptions, Model, Session};
use offshoot_methods::{FilterState, Sampler, SamplingOptions, TokenFilter};
use offshoot_models::LogitRows;
use tiny::Tiny;

/// Filters, each a table: the state behind a token, or none.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Even and odd tokens take turns.
    Alternating,
    /// Three tokens never come.
    Banned,
    /// These tokens, then the end.
    Forced(&'static [u32]),
    /// Some of the tokens, by a state that depends on all that came before.
    Walk,
}

const END: u32 = 2;
const RULES: [Rule; 4] =
    [Rule::Alternating, Rule::Banned, Rule::Forced(&[4, 4, 9, 5, 3, 11, 7, 4, 8, 8]), Rule::Walk];

impl TokenFilter for Rule {
    fn start(&mut self) -> FilterState {
        FilterState(0)
    }

    fn next(&mut self, FilterState(at): FilterState, token: u32) -> Option<FilterState> {
        let next = match self {
            Self::Alternating => (token % 2 == at).then_some(1 - at),
            Self::Banned => (![3, 7, 11].contains(&token)).then_some(0),
            Self::Forced(text) => {
                (token == text.get(at as usize).copied().unwrap_or(END)).then_some(at + 1)
            }
            Self::Walk => (!(token + at).is_multiple_of(3)).then_some((2 * at + token + 1) % 5),
        };
        next.map(FilterState)
    }

    fn mask(&mut self, state: FilterState, logits: &mut [f32]) {
        for (token, logit) in logits.iter_mut().enumerate() {
            if self.next(state, token as u32).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Whether `text` may come.
fn passes(mut rule: Rule, text: &[u32]) -> bool {
    let start = Some(rule.start());
    text.iter().fold(start, |state, &token| rule.next(state?, token)).is_some()
}

/// What filtered decoding is: mask, choose, move on.
fn naive(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    mut rule: Rule,
) -> Vec<u32> {
    session.truncate(0);
    session.read(model, &prompt[..prompt.len() - 1]).unwrap();
    let mut sampler = Sampler::new(options.sampling.clone()).unwrap();
    let (mut text, mut state) = (prompt.to_vec(), rule.start());
    while text.len() - prompt.len() < options.max_tokens.unwrap() {
        let logits = session.feed(model, &[text[text.len() - 1]], LogitRows::Last).unwrap();
        rule.mask(state, logits);
        let position = (text.len() - prompt.len()) as u64;
        let token = sampler.sample(logits, &text, options.choice, position).unwrap().token;
        if token == END && !options.ignore_eos {
            break;
        }
        state = rule.next(state, token).unwrap();
        text.push(token);
    }
    text.split_off(prompt.len())
}

fn filtered(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    mut rule: Rule,
) -> Answer {
    session.truncate(0);
    let listen = |_: offshoot_engine::Piece<'_>| Control::Continue;
    session.generate_filtered(model, prompt, options, &mut rule, listen).unwrap()
}

fn samplings() -> [SamplingOptions; 4] {
    let warm = SamplingOptions { temperature: 1.3, seed: Some(5), ..SamplingOptions::default() };
    let penalty =
        SamplingOptions { repetition_penalty: 1.3, presence_penalty: 0.4, ..warm.clone() };
    let all = SamplingOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..warm.clone() };
    [SamplingOptions::greedy(), warm, penalty, all]
}

#[test]
fn a_filtered_answer_is_that_of_masking_each_row_whoever_drafts() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    assert_eq!(model.stop_tokens(), [END]);
    let prompt = [3, 9, 4, 5, 3, 9];
    let mut nodes = 0;
    for (rule, sampling) in RULES.into_iter().flat_map(|r| samplings().map(|s| (r, s))) {
        for ignore_eos in [false, true] {
            let options = GenerateOptions {
                sampling: sampling.clone(),
                max_tokens: Some(120),
                ignore_eos,
                ..GenerateOptions::default()
            };
            let expected = naive(&model, &mut session, &prompt, &options, rule);
            assert!(passes(rule, &expected));
            session.set_speculator(None);
            let plain = filtered(&model, &mut session, &prompt, &options, rule);
            assert_eq!(plain.tokens, expected, "{rule:?}");
            for habit in Habit::all(END) {
                let (speculator, seen) = oracle(&habit, &expected);
                session.set_speculator(Some(speculator));
                let drafted = filtered(&model, &mut session, &prompt, &options, rule);
                assert_eq!(drafted.tokens, expected, "{rule:?} {habit:?}");
                assert_eq!(drafted.finish, plain.finish, "{rule:?} {habit:?}");
                // What is checked is part of what was grown.
                let seen = seen.lock().unwrap();
                nodes += seen.len();
                let forbidden = seen.iter().filter(|text| !passes(rule, text)).count();
                assert_eq!(forbidden, 0, "{rule:?} {habit:?}");
                let steps = drafted.spec.unwrap().tokens_per_step();
                if matches!(habit, Habit::Right) && expected.len() > 100 {
                    assert!(steps > 5.0, "{rule:?}: {steps} tokens a step");
                }
            }
        }
    }
    assert!(nodes > 10_000, "{nodes}");
}

#[test]
fn a_forced_text_ends_where_the_filter_ends_it() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let rule = RULES[2];
    let Rule::Forced(text) = rule else { panic!("{rule:?}") };
    let options =
        GenerateOptions { sampling: SamplingOptions::greedy(), ..GenerateOptions::default() };
    let answer = filtered(&model, &mut session, &[3, 4], &options, rule);
    assert_eq!(answer.tokens, text);
    assert_eq!(answer.finish, offshoot_engine::FinishReason::EndToken(END));
}

#[test]
fn log_probabilities_are_of_the_model_and_not_of_the_filter() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let sampling = SamplingOptions::greedy();
    let options = GenerateOptions {
        sampling,
        max_tokens: Some(1),
        logprobs: Some(N_VOCAB as usize),
        ..GenerateOptions::default()
    };
    let mut tops = Vec::new();
    let mut listen = |piece: offshoot_engine::Piece<'_>| {
        if piece.token.is_some() {
            tops.push(piece.top.to_vec());
        }
        Control::Continue
    };
    session.generate(&model, &[3, 4], &options, &mut listen).unwrap();
    session.truncate(0);
    let mut rule = Rule::Banned;
    session.generate_filtered(&model, &[3, 4], &options, &mut rule, &mut listen).unwrap();
    assert_eq!(tops[0], tops[1]);
    assert_eq!(tops[0].len(), N_VOCAB as usize);
}

/// Lets all through, or nothing, and has no state behind any token.
struct Broken {
    nothing: bool,
}

impl TokenFilter for Broken {
    fn start(&mut self) -> FilterState {
        FilterState(0)
    }

    fn next(&mut self, _: FilterState, _: u32) -> Option<FilterState> {
        None
    }

    fn mask(&mut self, _: FilterState, logits: &mut [f32]) {
        if self.nothing {
            logits.fill(f32::NEG_INFINITY);
        }
    }
}

#[test]
fn a_filter_that_cannot_go_on_is_an_error_and_the_session_stays_usable() {
    let (model, mut session) = load(Tiny::qwen2(), 1);
    let options = GenerateOptions {
        sampling: SamplingOptions::greedy(),
        max_tokens: Some(20),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let listen = |_: offshoot_engine::Piece<'_>| Control::Continue;
    let plain = session.generate(&model, &[3, 4], &options, listen).unwrap();
    for habit in [None, Some(Habit::Right)] {
        let speculator = habit.map(|habit| oracle(&habit, &plain.tokens).0);
        session.set_speculator(speculator);
        let mut fails = |nothing: bool| {
            let mut filter = Broken { nothing };
            session.generate_filtered(&model, &[3, 4], &options, &mut filter, listen).unwrap_err()
        };
        assert!(matches!(fails(false), Error::Filter { token } if token == plain.tokens[0]));
        let none = fails(true).to_string();
        assert!(none.contains("a filter or the model allows none"), "{none}");
        let again = session.generate(&model, &[3, 4], &options, listen).unwrap();
        assert_eq!(again.tokens, plain.tokens);
    }
}
