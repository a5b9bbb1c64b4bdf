//! A hundred thousand drafted steps leave no more memory in use than the first ones did.
//!
//! Steps are in windows, and behind each the bytes in use are counted. Buffers make room for the
//! largest that they had to hold so far, and how large a tree is, and so how wide a step, follows
//! from measured times: on a busy machine one that is larger than all before may come at any time.
//! The widest step is made first. What else makes room are few lists, each of which grows a few
//! times at most, so that in most windows none does; what leaks does so in all of them.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
//! It is built with checks for overflow, so that a counter that overflows fails it.
#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/drafters.rs"]
mod drafters;
#[path = "support/stores.rs"]
mod stores;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use offshoot_engine::spec::{Drafter, MedusaDrafter, RestDrafter, Speculator, SuffixDrafter, View};
use offshoot_engine::{Control, Error, FinishReason, GenerateOptions, LoadOptions, Model, Session};
use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::{Guess, Prior, StepTimes, TokenTree};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use drafters::{heads, store};
use tiny::Tiny;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const STEPS: usize = 100_000;
const CONTEXT: usize = 160;
/// Windows of as many steps each, the first of which make most of the room.
const WINDOWS: usize = 25;
const WARM: usize = 5;
/// What rooms may have grown by in all windows behind those. The list of a tree's guesses, which is
/// doubled in some runs and not in others, takes 17 kB more then.
const SLACK: i64 = 64 << 10;
/// Rows of the widest step that drafts are checked in.
const ROWS: usize = 32;
/// Step times with which every tree pays.
const FREE: [(usize, f64); 2] = [(1, 1.0), (64, 1.001)];

/// The suffix automaton, whose asked steps are counted.
#[derive(Debug, Default)]
struct Counted(SuffixDrafter, Arc<AtomicUsize>);

impl Drafter for Counted {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn prior(&self) -> Prior {
        self.0.prior()
    }

    fn begin(&mut self, text: &[u32]) {
        self.0.begin(text);
    }

    fn extend(&mut self, tokens: &[u32]) {
        self.0.extend(tokens);
    }

    fn prepare(&mut self, view: View<'_>) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.prepare(view)
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        self.0.guess(tree, node, out);
    }
}

fn model() -> (Model, Session) {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::smallest("qwen2");
    tiny.set("qwen2.context_length", CONTEXT as u32);
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny.bytes()).unwrap();
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let session = Session::new(&model, cpu, CONTEXT).unwrap();
    (model, session)
}

/// Prompt and options of answer `number`: greedy and not, some up to the end of the context, some
/// that continue what is cached and some that do not.
fn request(number: usize) -> (Vec<u32>, GenerateOptions) {
    let (family, n) = (number / 3, number as u32);
    let prompt = (0..8 + 4 * (number % 3)).map(|i| 3 + ((family * 5 + i * i * 3) % 9) as u32);
    let temperature = [0.0, 0.8, 1.3][number % 3];
    let sampling =
        SamplingOptions { temperature, seed: Some(n.into()), ..SamplingOptions::default() };
    let max_tokens = (!number.is_multiple_of(7)).then_some(40 + number % 50);
    let options =
        GenerateOptions { sampling, max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    (prompt.collect(), options)
}

/// Makes the room of the widest step, by far the largest: when drafts come to one nobody knows.
fn widest_step(model: &Model, session: &mut Session) {
    let mut tree = TokenTree::new(3);
    for node in 0..ROWS - 1 {
        tree.push(node, 4);
    }
    assert_eq!(tree.len(), ROWS);
    session.time_step(model, &tree).unwrap();
}

fn live_bytes() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

#[test]
fn memory_in_use_does_not_grow_over_a_hundred_thousand_drafted_steps() {
    let (model, mut session) = model();
    let suffix = Counted::default();
    let asked = Arc::clone(&suffix.1);
    let asked = || asked.load(Ordering::Relaxed);
    let drafters: Vec<Box<dyn Drafter>> = vec![
        Box::new(suffix),
        Box::new(RestDrafter::new(store()).unwrap()),
        Box::new(MedusaDrafter::new(heads(&model, &session), None, session.cpu().clone())),
    ];
    session.set_speculator(Some(Speculator::new(drafters, StepTimes::new(&FREE))));
    widest_step(&model, &mut session);
    let (mut number, mut full, mut in_use) = (0, 0, Vec::with_capacity(WINDOWS));
    let (mut steps, mut tokens, mut guesses, mut proposed) = (0, 0, 0, [0; 3]);
    while asked() < STEPS || guesses < STEPS {
        let (prompt, options) = request(number);
        if number.is_multiple_of(5) {
            session.truncate(0);
        }
        let answer = session.generate(&model, &prompt, &options, |_| Control::Continue).unwrap();
        full += usize::from(answer.finish == FinishReason::ContextFull);
        let spec = answer.spec.unwrap();
        assert_eq!(spec.tokens, answer.tokens.len());
        assert!(spec.steps <= spec.tokens && spec.promised >= spec.steps as f64);
        (steps, tokens, guesses) =
            (steps + spec.steps, tokens + spec.tokens, guesses + spec.guesses);
        for (sum, drafter) in proposed.iter_mut().zip(&spec.drafters) {
            assert!(drafter.accepted <= drafter.proposed && drafter.proposed <= spec.guesses);
            *sum += drafter.proposed;
        }
        number += 1;
        // What is in use between answers, not what this one holds.
        drop((prompt, options, answer.tokens, answer.text, spec));
        if asked().min(guesses) >= (in_use.len() + 1) * STEPS / WINDOWS {
            in_use.push(live_bytes());
        }
    }
    let done = format!(
        "{steps} steps, {tokens} tokens, {guesses} guesses {proposed:?}, {number} answers, \
         {full} to the end; bytes in use behind each window: {in_use:?}"
    );
    assert_eq!(in_use.len(), WINDOWS, "{done}");
    let (first, later) = in_use.split_at(WARM);
    let (mut most, mut grown) = (first[WARM - 1], 0);
    for &bytes in later {
        grown += usize::from(bytes > most);
        most = most.max(bytes);
    }
    assert!(2 * grown < later.len(), "more in use behind {grown} of {}: {done}", later.len());
    assert!(most <= first[WARM - 1] + SLACK, "{done}");
    assert!(number > 500 && full > 50 && proposed.iter().all(|&n| n > 500), "{done}");
    let speculator = session.speculator().unwrap();
    assert!((1..=64).all(|rows| speculator.times().seconds(rows).is_finite()));
    for calibration in speculator.calibrations() {
        let cells = calibration.counts();
        let mut cells = cells.iter().flatten();
        assert!(cells.all(|&(hits, seen)| 0.0 <= hits && hits <= seen && seen < 101.0));
    }
}
