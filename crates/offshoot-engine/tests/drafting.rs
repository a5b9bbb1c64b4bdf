//! Drafting changes no token: drafters of every kind beside plain decoding, on models of a few
//! kilobytes and on a real one.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/drafters.rs"]
mod drafters;
#[path = "support/habits.rs"]
mod habits;
#[path = "support/stores.rs"]
mod stores;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::convert::Infallible;
use std::sync::Arc;

use drafters::{heads, store};
use habits::{CONTEXT, FREE, Habit, load, oracle, oracle_at};
use offshoot_engine::spec::{
    Drafter, MedusaDrafter, ModelDrafter, RestDrafter, SpecOptions, Speculator, SuffixDrafter,
    lacks_times, measure_missing,
};
use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{
    Answer, Control, FinishReason, GenerateOptions, LoadOptions, Model, Session,
};
use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::{StepTimes, TokenTree, follow};
use tiny::Tiny;

fn tiny_model(threads: usize) -> (Model, Session) {
    load(Tiny::qwen2(), threads)
}

fn published(name: &str, threads: usize) -> (Model, Session) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&name.parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let (model, cpu) =
        Model::load(&path, &LoadOptions { threads, ..LoadOptions::default() }).unwrap();
    let session = Session::new(&model, cpu, CONTEXT).unwrap();
    (model, session)
}

/// Drafts as `--spec auto` does.
fn auto(model: &Model, session: &mut Session) {
    let speculator = SpecOptions::default().speculator(model, session).unwrap();
    session.set_speculator(speculator);
}

fn generate(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Answer {
    session.truncate(0);
    session.generate(model, prompt, options, |_| Control::Continue).unwrap()
}

/// Answers `prompt` greedily and drawn by `seed`, each time plainly and as [`auto`] drafts, and
/// compares; gives what was asked for and the drafted answers.
fn auto_answers(
    (model, session): (&Model, &mut Session),
    prompt: &str,
    seed: u64,
    max_tokens: usize,
) -> [(GenerateOptions, Answer); 2] {
    let prompt = model.encode_text(prompt).unwrap();
    let drawn = SamplingOptions { seed: Some(seed), ..SamplingOptions::default() };
    [SamplingOptions::greedy(), drawn].map(|sampling| {
        let options = options(sampling, Some(max_tokens));
        let options = GenerateOptions { ignore_eos: true, ..options };
        session.set_speculator(None);
        let plain = generate(model, session, &prompt, &options);
        auto(model, session);
        let drafted = generate(model, session, &prompt, &options);
        assert_eq!(drafted.tokens, plain.tokens);
        assert_eq!(drafted.spec.as_ref().unwrap().tokens, plain.tokens.len());
        (options, drafted)
    })
}

/// Answers `prompt` plainly and with every habit, and compares.
fn compare(model: &Model, session: &mut Session, prompt: &[u32], options: &GenerateOptions) {
    session.set_speculator(None);
    let plain = generate(model, session, prompt, options);
    let cached = session.cached().to_vec();
    for habit in Habit::all(model.stop_tokens()[0]) {
        let (speculator, seen) = oracle(&habit, &plain.tokens);
        session.set_speculator(Some(speculator));
        let drafted = generate(model, session, prompt, options);
        assert_eq!(drafted.tokens, plain.tokens, "{habit:?}");
        assert_eq!((&drafted.text, drafted.finish), (&plain.text, plain.finish), "{habit:?}");
        assert_eq!(session.cached(), cached, "{habit:?}: what is kept");
        let spec = drafted.spec.unwrap();
        if plain.tokens.len() > 50 {
            assert!(!seen.lock().unwrap().is_empty(), "{habit:?} was never asked");
            assert!(spec.guesses > 0, "{habit:?}: nothing was checked");
            if let Habit::Right = habit {
                assert!(spec.tokens_per_step() > 8.0, "{}", spec.tokens_per_step());
            }
        }
    }
    session.set_speculator(None);
}

fn options(sampling: SamplingOptions, max_tokens: Option<usize>) -> GenerateOptions {
    GenerateOptions { sampling, max_tokens, ..GenerateOptions::default() }
}

/// Twenty prompts of the tiny vocabulary.
fn prompts() -> impl Iterator<Item = Vec<u32>> {
    (0..20u32).map(|seed| (0..4 + seed).map(|i| 3 + (seed * 5 + i * i * 3) % 9).collect())
}

#[test]
fn greedy_text_is_that_of_plain_decoding_up_to_the_end_of_the_context() {
    let (model, mut session) = tiny_model(1);
    for (i, prompt) in prompts().enumerate() {
        let mut options = options(SamplingOptions::greedy(), None);
        options.ignore_eos = true;
        compare(&model, &mut session, &prompt, &options);
        let text = generate(&model, &mut session, &prompt, &options).tokens;
        assert!(text.len() >= 1024, "{}", text.len());
        options.ignore_eos = false;
        if i < 4 {
            compare(&model, &mut session, &prompt, &options);
        }
    }
}

/// Trees of few guesses and of many, contexts short and long, several threads: the text is one.
#[test]
fn no_budget_and_no_context_changes_a_token() {
    const TIMES: [&[(usize, f64)]; 3] =
        [&[(1, 1.0), (2, 1.0), (3, 9.0)], &[(1, 1.0), (5, 1.1), (6, 4.0)], &FREE];
    for tiny in Tiny::families() {
        let (model, session) = load(tiny, 2);
        let cpu = session.cpu().clone();
        for context in [64, 257] {
            let mut session = Session::new(&model, cpu.clone(), context).unwrap();
            for prompt in prompts().step_by(7) {
                let options = options(SamplingOptions::greedy(), None);
                let options = GenerateOptions { ignore_eos: true, ..options };
                session.set_speculator(None);
                let plain = generate(&model, &mut session, &prompt, &options);
                assert_eq!(plain.finish, FinishReason::ContextFull);
                for times in TIMES {
                    for habit in [Habit::RightSecond, Habit::Random { width: 6 }] {
                        let (speculator, _) = oracle_at(&habit, &plain.tokens, times);
                        session.set_speculator(Some(speculator));
                        let drafted = generate(&model, &mut session, &prompt, &options);
                        assert_eq!(drafted.tokens, plain.tokens, "{habit:?}, {context}");
                        assert!(drafted.spec.unwrap().guesses > 0, "{habit:?}, {context}");
                    }
                }
            }
        }
    }
}

/// Each real drafter alone and all together: no text changes, drawn or not.
#[test]
fn every_drafter_leaves_the_text_as_it_is() {
    let (model, mut session) = tiny_model(1);
    let small = Arc::new(load(Tiny::smallest("qwen2"), 1).0);
    let own = Arc::new(tiny_model(1).0);
    let cpu = session.cpu().clone();
    let drafter = |which: usize, session: &Session| -> Box<dyn Drafter> {
        match which {
            0 => Box::new(SuffixDrafter::new()),
            1 => Box::new(RestDrafter::new(store()).unwrap()),
            2 => Box::new(MedusaDrafter::new(heads(&model, session), None, cpu.clone())),
            other => {
                let guesser = if other == 3 { &small } else { &own };
                let mine = Session::new(guesser, cpu.clone(), CONTEXT).unwrap();
                Box::new(ModelDrafter::new(&model, Arc::clone(guesser), mine).unwrap())
            }
        }
    };
    let sets: [&[usize]; 6] = [&[0], &[1], &[2], &[3], &[4], &[0, 1, 2, 4]];
    let mut proposed = [0; 6];
    for (temperature, seed) in [(0.0, 1), (0.3, 2), (0.7, 3), (1.0, 4), (1.5, 5)] {
        for prompt in prompts().step_by(4) {
            let sampling =
                SamplingOptions { temperature, seed: Some(seed), ..SamplingOptions::default() };
            let options = options(sampling, Some(300));
            let options = GenerateOptions { ignore_eos: true, ..options };
            session.set_speculator(None);
            let plain = generate(&model, &mut session, &prompt, &options);
            for (set, proposed) in sets.iter().zip(&mut proposed) {
                let drafters = set.iter().map(|&which| drafter(which, &session)).collect();
                session.set_speculator(Some(Speculator::new(drafters, StepTimes::new(&FREE))));
                let drafted = generate(&model, &mut session, &prompt, &options);
                assert_eq!(drafted.tokens, plain.tokens, "{set:?} at {temperature}");
                *proposed += drafted.spec.unwrap().guesses;
            }
        }
    }
    // A model that drafts for one as small takes too long, and is soon asked no more.
    let (models, others) = (&proposed[3..5], [&proposed[..3], &proposed[5..]].concat());
    assert!(others.iter().all(|&guesses| guesses > 1000), "{proposed:?}");
    assert!(models.iter().all(|&guesses| guesses > 100), "{proposed:?}");
}

#[test]
fn seeded_text_is_that_of_plain_decoding() {
    let (model, mut session) = tiny_model(1);
    let samplings =
        [0.3, 0.7, 1.0, 1.5].into_iter().enumerate().map(|(i, temperature)| SamplingOptions {
            temperature,
            top_k: [0, 4, 8, 0][i],
            top_p: [1.0, 0.9, 0.95, 0.8][i],
            min_p: [0.0, 0.05, 0.0, 0.02][i],
            repetition_penalty: [1.0, 1.2, 1.0, 1.1][i],
            presence_penalty: [0.0, 0.0, 0.5, 0.0][i],
            seed: Some(40 + i as u64),
            ..SamplingOptions::default()
        });
    for sampling in samplings {
        for prompt in prompts().take(5) {
            let mut options = options(sampling.clone(), Some(1030));
            options.ignore_eos = true;
            compare(&model, &mut session, &prompt, &options);
        }
    }
}

#[test]
fn an_answer_ends_where_it_would_in_the_middle_of_a_step() {
    let (model, mut session) = tiny_model(1);
    let prompt = [3, 4, 5, 6, 3, 4];
    let sampling =
        SamplingOptions { temperature: 1.2, seed: Some(3), ..SamplingOptions::default() };
    for max_tokens in 1..24 {
        let mut options = options(sampling.clone(), Some(max_tokens));
        compare(&model, &mut session, &prompt, &options);
        options.ignore_eos = true;
        compare(&model, &mut session, &prompt, &options);
    }
    // A stop text that begins in one token and ends in a later one.
    let mut long = options(sampling, Some(400));
    long.ignore_eos = true;
    session.set_speculator(None);
    let text = generate(&model, &mut session, &prompt, &long).text;
    let letters: Vec<char> = text.chars().collect();
    for at in [5, 20, 77] {
        let stop: String = letters[at..at + 3].iter().collect();
        let options = GenerateOptions { stop: vec![stop], ..long.clone() };
        compare(&model, &mut session, &prompt, &options);
    }
}

#[test]
fn who_listens_may_end_the_answer_in_the_middle_of_a_step() {
    let (model, mut session) = tiny_model(2);
    let options = options(SamplingOptions::greedy(), Some(300));
    let options = GenerateOptions { ignore_eos: true, ..options };
    let prompt = [3, 4, 5, 6];
    let stopped = |session: &mut Session, after: usize| {
        session.truncate(0);
        let mut left = after;
        let answer = session.generate(&model, &prompt, &options, |piece| {
            left -= usize::from(piece.token.is_some());
            if left == 0 { Control::Stop } else { Control::Continue }
        });
        (answer.unwrap(), session.cached().to_vec())
    };
    for after in [1, 7, 40] {
        session.set_speculator(None);
        let (plain, plain_cached) = stopped(&mut session, after);
        auto(&model, &mut session);
        let (drafted, cached) = stopped(&mut session, after);
        assert_eq!(drafted.finish, FinishReason::Stopped);
        assert_eq!((drafted.tokens, cached), (plain.tokens, plain_cached));
    }
}

/// After any accepted path the cache holds what plain decoding of the same tokens would have put
/// there: a thousand steps, in which rows are kept that stand behind others which are not, then the next
/// logits.
#[test]
fn a_cache_of_accepted_paths_is_that_of_plain_decoding() {
    for tiny in Tiny::families() {
        accepted_paths(tiny);
    }
}

fn accepted_paths(tiny: Tiny) {
    let (model, mut session) = load(tiny, 2);
    let options = options(SamplingOptions::greedy(), Some(1050));
    let options = GenerateOptions { ignore_eos: true, ..options };
    let rows = offshoot_models::LogitRows::Last;
    let mut steps = 0;
    while steps < 1000 {
        session.set_speculator(None);
        let prompt = [3, 4 + (steps % 8) as u32, 5];
        let text = generate(&model, &mut session, &prompt, &options).tokens;
        for habit in [Habit::RightSecond, Habit::RightThenWrong] {
            let (speculator, _) = oracle(&habit, &text);
            session.set_speculator(Some(speculator));
            let drafted = generate(&model, &mut session, &prompt, &options);
            assert_eq!(drafted.tokens, text);
            steps += drafted.spec.unwrap().steps;
            let tokens = session.cached().to_vec();
            let after: Vec<u32> =
                session.feed(&model, &[5], rows).unwrap().iter().map(|x| x.to_bits()).collect();
            session.truncate(0);
            session.read(&model, &tokens).unwrap();
            let anew: Vec<u32> =
                session.feed(&model, &[5], rows).unwrap().iter().map(|x| x.to_bits()).collect();
            assert_eq!(after, anew);
        }
    }
}

#[test]
fn a_real_model_writes_the_same_with_and_without_drafts() {
    let prompts = [
        "Repeat after me: the quick brown fox jumps over the lazy dog. The quick brown fox",
        "List the numbers from one to thirty: one, two, three,",
        "zebra lamp of under quartz seven vow if",
    ];
    let (model, mut session) = published("smollm2", 2);
    let (other, mut single) = published("smollm2", 1);
    let mut proposed = [0; 3];
    for (seed, prompt) in (0..).zip(prompts) {
        for (options, drafted) in auto_answers((&model, &mut session), prompt, seed, 250) {
            let spec = drafted.spec.unwrap();
            // The heads and the store that come with the program are in use without being asked for.
            let names: Vec<_> = spec.drafters.iter().map(|drafter| drafter.name).collect();
            assert_eq!(names, ["suffix", "rest", "medusa"]);
            let counts = spec.drafters.iter().map(|drafter| drafter.proposed);
            proposed.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
            auto(&other, &mut single);
            let prompt = other.encode_text(prompt).unwrap();
            let one = generate(&other, &mut single, &prompt, &options);
            assert_eq!(one.tokens, drafted.tokens, "on one thread");
        }
    }
    assert!(proposed.iter().all(|&n| n > 0), "{proposed:?}");
}

/// A vocabulary of more than 150,000 tokens.
#[test]
fn a_real_model_of_a_large_vocabulary_writes_the_same_with_and_without_drafts() {
    let (model, mut session) = published("qwen2.5-coder", 2);
    let code = "def add(a, b):\n    return a + b\n\n\ndef add_three(a, b, c):\n    return";
    for (_, drafted) in auto_answers((&model, &mut session), code, 7, 64) {
        assert!(drafted.spec.unwrap().guesses > 0);
    }
}

#[test]
fn unknown_step_times_are_measured_between_answers_and_change_none() {
    let (model, mut session) = tiny_model(2);
    let options = options(SamplingOptions::greedy(), Some(60));
    let prompt = [3, 4, 5, 6];
    let plain = generate(&model, &mut session, &prompt, &options).tokens;
    assert!(!lacks_times(&session), "without drafters no times are wanted");
    assert_eq!(measure_missing(&model, &mut session, || false).unwrap(), 0);
    auto(&model, &mut session);
    assert!(lacks_times(&session));
    let mut asked = 0;
    let mut until = |steps: usize, session: &mut Session| {
        asked = 0;
        let stop = || {
            asked += 1;
            asked > steps
        };
        (measure_missing(&model, session, stop).unwrap(), asked)
    };
    assert_eq!(until(0, &mut session), (0, 1), "stopped before the first step");
    assert_eq!(until(20, &mut session), (1, 21), "a width is ten steps");
    assert!(session.speculator().unwrap().times().knows(2) && lacks_times(&session));
    let cached = session.cached().to_vec();
    let (widths, steps) = until(usize::MAX, &mut session);
    // All of the table's, or all but the last where wide steps are dear.
    assert!((7..=9).contains(&widths) && steps == 10 * widths + 1, "{widths} in {steps} steps");
    assert!(!lacks_times(&session));
    assert_eq!(session.cached(), cached);
    assert_eq!(generate(&model, &mut session, &prompt, &options).tokens, plain);
}

#[test]
fn a_walk_that_fails_reports_it() {
    let tree = TokenTree::new(1);
    let mut path = Vec::new();
    let failed = follow(&tree, &mut path, |_| Err::<Option<u32>, _>("no logits"));
    assert_eq!(failed, Err("no logits"));
    let fine: Result<_, Infallible> = follow(&tree, &mut path, |_| Ok(None));
    assert_eq!(fine, Ok(None));
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    let (model, mut session) = tiny_model(1);
    let (own, _) = tiny_model(1);
    let options = options(SamplingOptions::greedy(), Some(600));
    let options = GenerateOptions { ignore_eos: true, ..options };
    let spec = SpecOptions {
        mode: "draft".parse().unwrap(),
        draft_model: Some(Arc::new(own)),
        ..SpecOptions::default()
    };
    // It takes as long as what it saves: how soon a text gives it up goes by the clock, so in each it
    // begins anew.
    let mut accepted = 0;
    for prompt in prompts() {
        session.set_speculator(None);
        let plain = generate(&model, &mut session, &prompt, &options);
        let speculator = spec.speculator(&model, &session).unwrap();
        session.set_speculator(speculator);
        let drafted = generate(&model, &mut session, &prompt, &options);
        assert_eq!(drafted.tokens, plain.tokens);
        accepted += drafted.spec.unwrap().drafters[0].accepted;
    }
    assert!(accepted > 20, "{accepted}");
}

#[test]
fn a_drafter_that_is_not_at_hand_is_missed_only_by_name() {
    let (model, session) = tiny_model(1);
    let spec = SpecOptions { mode: "draft".parse().unwrap(), ..SpecOptions::default() };
    let error = spec.speculator(&model, &session).unwrap_err().to_string();
    assert!(error.contains("--spec draft: give --draft-model"), "{error}");
    assert!(SpecOptions::default().speculator(&model, &session).unwrap().is_some());
}
