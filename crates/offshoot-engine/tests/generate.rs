//! What a session makes of the options of an answer, on a real model.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{Answer, Control, GenerateOptions, LoadOptions, Model, Session};
use offshoot_methods::{SamplingOptions, TokenLogprob};
use offshoot_models::{LogitRows, Message};

fn load() -> (Model, Session) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let (model, cpu) = Model::load(&path, &LoadOptions::default()).unwrap();
    let session = Session::new(&model, cpu, 1024).unwrap();
    (model, session)
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    let sampling = SamplingOptions::greedy();
    GenerateOptions { sampling, max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

fn answer(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Answer {
    session.generate(model, prompt, options, |_| Control::Continue).unwrap()
}

/// The tokens of an answer with their log-probabilities and alternatives.
fn scored(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Vec<(u32, f64, Vec<TokenLogprob>)> {
    let mut scored = Vec::new();
    let listen = |piece: offshoot_engine::Piece<'_>| {
        if let Some(token) = piece.token {
            scored.push((token, piece.logprob.unwrap(), piece.top.to_vec()));
        }
        Control::Continue
    };
    session.generate(model, prompt, options, listen).unwrap();
    scored
}

#[test]
fn log_probabilities_are_the_models_own_whatever_the_options_do() {
    let (model, mut session) = load();
    let prompt = model.encode_text("One, two, three, four,").unwrap();
    let plain = GenerateOptions { logprobs: Some(3), ..greedy(4) };
    let likeliest = scored(&model, &mut session, &prompt, &plain);
    for (token, logprob, top) in &likeliest {
        assert_eq!((top.len(), top[0].token, top[0].logprob), (3, *token, *logprob));
        assert!(top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(top.iter().map(|t| t.logprob.exp()).sum::<f64>() < 1.0 + 1e-9);
    }
    // A bias bans the first choice; the second comes, and is as likely as it was.
    let (banned, second) = (likeliest[0].0, likeliest[0].2[1]);
    let mut biased = plain;
    biased.sampling.logit_bias = [(banned, -100.0)].into();
    let (token, logprob, top) = scored(&model, &mut session, &prompt, &biased).swap_remove(0);
    assert_eq!((token, logprob), (second.token, second.logprob));
    assert_eq!(top, likeliest[0].2);
}

#[test]
fn penalties_end_repetition() {
    let (model, mut session) = load();
    let prompt = model.encode_text("la la la la la la la la la la la la").unwrap();
    let repeats =
        |tokens: &[u32]| (1..tokens.len()).filter(|&i| tokens[..i].contains(&tokens[i])).count();
    let plain = answer(&model, &mut session, &prompt, &greedy(16));
    assert!(repeats(&plain.tokens) >= 8, "{:?}", plain.text);
    for penalize in [
        |s: &mut SamplingOptions| s.presence_penalty = 100.0,
        |s: &mut SamplingOptions| s.frequency_penalty = 100.0,
        |s: &mut SamplingOptions| s.repetition_penalty = 100.0,
    ] {
        let mut options = greedy(16);
        penalize(&mut options.sampling);
        let other = answer(&model, &mut session, &prompt, &options);
        assert_eq!(repeats(&other.tokens), 0, "{:?}", other.text);
        assert!(other.tokens.iter().all(|token| !prompt.contains(token)), "{:?}", other.text);
    }
}

#[test]
fn choices_of_one_seed_differ_and_come_again() {
    let (model, mut session) = load();
    let prompt = model.encode_text("Once upon a time").unwrap();
    let mut make = |choice| {
        let sampling = SamplingOptions { seed: Some(7), ..SamplingOptions::default() };
        let options = GenerateOptions { sampling, choice, ..greedy(12) };
        answer(&model, &mut session, &prompt, &options).tokens
    };
    let first = [make(0), make(1), make(2)];
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
    assert_eq!(first, [make(0), make(1), make(2)]);
}

/// A prompt longer than a chunk, read at once, token by token, and behind a kept prefix.
#[test]
fn how_a_prompt_is_cut_changes_no_bit_of_its_logits() {
    let (model, mut session) = load();
    let prompt: Vec<u32> = (0..600).map(|i| 300 + i * 7919 % 40_000).collect();
    let (last, before) = prompt.split_last().unwrap();
    let mut logits = |prefix: usize, chunk: usize| {
        session.truncate(prefix);
        for tokens in before[prefix..].chunks(chunk) {
            session.read(&model, tokens).unwrap();
        }
        let out = session.feed(&model, &[*last], LogitRows::Last).unwrap();
        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let whole = logits(0, 600);
    for (prefix, chunk) in [(0, 1), (0, 37), (300, 600), (599, 1)] {
        assert!(logits(prefix, chunk) == whole, "prefix {prefix}, chunks of {chunk}");
    }
}

#[test]
fn the_next_turn_of_a_chat_reads_only_what_is_new() {
    let (model, mut session) = load();
    let mut messages = vec![Message::new("user", "Name one river.")];
    let first_prompt = model.encode_chat(&messages).unwrap().unwrap();
    let first = answer(&model, &mut session, &first_prompt, &greedy(24));
    assert_eq!(first.reused_tokens, 0);
    messages.push(Message::new("assistant", first.text.clone()));
    messages.push(Message::new("user", "And one more."));
    let prompt = model.encode_chat(&messages).unwrap().unwrap();
    let second = answer(&model, &mut session, &prompt, &greedy(24));
    assert!(second.reused_tokens >= first_prompt.len(), "{} tokens", second.reused_tokens);
    session.truncate(0);
    let fresh = answer(&model, &mut session, &prompt, &greedy(24));
    assert_eq!((fresh.reused_tokens, &fresh.tokens), (0, &second.tokens));
}

#[test]
fn a_prompt_that_fills_the_context_says_how_long_both_are() {
    let (model, mut session) = load();
    let answer = session.generate(&model, &[300; 1024], &greedy(1), |_| Control::Continue);
    assert_eq!(
        answer.unwrap_err().to_string(),
        "the prompt has 1024 tokens, the context 1024: shorten the prompt or raise --ctx-size"
    );
    assert_eq!(session.cached().len(), 0, "nothing was read");
}
