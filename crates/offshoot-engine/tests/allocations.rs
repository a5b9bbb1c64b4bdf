//! Making a token allocates nothing, once the first ones have made room.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::alloc::System;

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{Control, GenerateOptions, LoadOptions, Model, Session};
use offshoot_methods::SamplingOptions;
use offshoot_models::LogitRows;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens that make room: registers, samplers and tables grow with the first ones.
const WARM: usize = 16;
/// Tokens that must do with it.
const WATCHED: usize = 64;

fn load(model: &str) -> (Model, Session) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&model.parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let options = LoadOptions { threads: 2, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let session = Session::new(&model, cpu, 512).unwrap();
    (model, session)
}

/// What single-token steps behind 200 positions allocate.
///
/// The rotary table doubles as a session reaches further than ever before, which is a cost of
/// positions and not of tokens: the session was further once.
fn steps(model: &Model, session: &mut Session) -> Stats {
    session.read(model, &[1; 300]).unwrap();
    session.truncate(200);
    for token in 0..WARM as u32 {
        session.feed(model, &[token], LogitRows::Last).unwrap();
    }
    let region = Region::new(ALLOCATOR);
    for token in 0..WATCHED as u32 {
        session.feed(model, &[token], LogitRows::Last).unwrap();
    }
    region.change()
}

/// What an answer's tokens allocate, from the logits to the text.
fn tokens(model: &Model, session: &mut Session, sampling: SamplingOptions) -> Stats {
    let prompt = model.encode_text("The three largest rivers of Europe are").unwrap();
    let options = GenerateOptions {
        sampling,
        max_tokens: Some(WARM + WATCHED),
        ignore_eos: true,
        stop: vec!["\u{0}".to_owned()],
        ..GenerateOptions::default()
    };
    let mut region = Region::new(ALLOCATOR);
    let mut change = None;
    let mut made = 0;
    session
        .generate(model, &prompt, &options, |_| {
            made += 1;
            match made {
                WARM => region.reset(),
                n if n == WARM + WATCHED => change = Some(region.change()),
                _ => {}
            }
            Control::Continue
        })
        .unwrap();
    change.unwrap()
}

/// Alone in its program, as tests run side by side.
#[test]
fn a_token_allocates_nothing() {
    let count = |stats: Stats| (stats.allocations, stats.reallocations, stats.deallocations);
    for name in ["smollm2", "qwen2.5-coder"] {
        let (model, mut session) = load(name);
        assert_eq!(count(steps(&model, &mut session)), (0, 0, 0), "{name}: steps");
        let greedy = tokens(&model, &mut session, SamplingOptions::greedy());
        assert_eq!(count(greedy), (0, 0, 0), "{name}: greedy answer");
        let sampling = SamplingOptions {
            temperature: 0.8,
            top_k: 0,
            top_p: 0.9,
            repetition_penalty: 1.1,
            seed: Some(1),
            ..SamplingOptions::default()
        };
        let sampled = tokens(&model, &mut session, sampling);
        assert_eq!(count(sampled), (0, 0, 0), "{name}: sampled answer");
    }
}
