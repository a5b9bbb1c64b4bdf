//! Drafting changes no token on the dense executor either, where a row's logits depend on the rows
//! beside it: drafters of every kind beside plain decoding, and what the guard has to do for that.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the tiny models only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::sync::Arc;

use habits::{Habit, N_VOCAB, load, load_for, oracle};
use offshoot_engine::spec::{Acceptance, GuardStats, SpecOptions};
use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{
    Answer, Control, Error, ExecutorKind, GenerateOptions, LoadOptions, Model, Session,
};
use offshoot_kernels::BlockType;
use offshoot_methods::draft::Typical;
use offshoot_methods::{FilterState, SamplingOptions, TokenFilter};
use offshoot_models::LogitRows;
use tiny::{HIDDEN, TOKENS, Tiny};

fn generate(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Answer {
    session.generate(model, prompt, options, |_| Control::Continue).unwrap()
}

fn options(sampling: SamplingOptions, max_tokens: usize) -> GenerateOptions {
    let ignore_eos = true;
    GenerateOptions { sampling, max_tokens: Some(max_tokens), ignore_eos, ..Default::default() }
}

fn samplings() -> [SamplingOptions; 4] {
    let warm = SamplingOptions { temperature: 1.1, seed: Some(5), ..SamplingOptions::default() };
    let penalty =
        SamplingOptions { repetition_penalty: 1.3, presence_penalty: 0.4, ..warm.clone() };
    let all = SamplingOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..warm.clone() };
    [SamplingOptions::greedy(), warm, penalty, all]
}

/// A model whose logits are of the size that trained models' are.
fn tame() -> Tiny {
    let mut tiny = Tiny::qwen2();
    let names: Vec<String> = tiny.tensors.keys().cloned().collect();
    for name in names {
        let shape = tiny.tensors[&name].shape.clone();
        let mut state = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = match (shape.len(), name.contains("norm")) {
            (_, true) => (0..shape[0]).map(|_| 1.0 + 0.2 * value()).collect(),
            _ => (0..shape.iter().product()).map(|_| 0.4 * value()).collect(),
        };
        tiny.floats(&name, &shape, &values);
    }
    tiny
}

/// As [`tame`], but each token of the head has a twin that differs from it by next to nothing: no
/// choice among twins is safe from rounding.
fn twins() -> Tiny {
    let mut tiny = tame();
    let head = &tiny.tensors["output.weight"];
    let mut rows: Vec<f32> =
        head.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    for token in 0..TOKENS.len() / 2 {
        for i in 0..HIDDEN {
            let twin = rows[2 * token * HIDDEN + i];
            // A change of the last bit here and there.
            let bit = u32::from((i * 7 + token).is_multiple_of(3));
            rows[(2 * token + 1) * HIDDEN + i] = f32::from_bits(twin.to_bits() ^ bit);
        }
    }
    tiny.floats("output.weight", &[TOKENS.len(), HIDDEN], &rows);
    assert_eq!(tiny.tensors["output.weight"].block, BlockType::F32);
    tiny
}

fn prompts() -> impl Iterator<Item = Vec<u32>> {
    (0..6u32).map(|seed| (0..4 + seed).map(|i| 3 + (seed * 5 + i * i * 3) % 9).collect())
}

/// Answers plainly and with every habit; gives the guards' sums.
fn compare(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> GuardStats {
    session.set_speculator(None);
    let plain = generate(model, session, prompt, options);
    let cached = session.cached().to_vec();
    let mut sum = GuardStats::default();
    for habit in Habit::all(model.stop_tokens()[0]) {
        let (speculator, seen) = oracle(&habit, &plain.tokens);
        session.set_speculator(Some(speculator));
        let drafted = generate(model, session, prompt, options);
        assert_eq!(drafted.tokens, plain.tokens, "{habit:?} {:?}", options.sampling);
        assert_eq!((&drafted.text, drafted.finish), (&plain.text, plain.finish), "{habit:?}");
        assert_eq!(session.cached(), cached, "{habit:?}: what is kept");
        assert!(!seen.lock().unwrap().is_empty(), "{habit:?} was never asked");
        let spec = drafted.spec.unwrap();
        assert!(spec.guesses > 0, "{habit:?}: nothing was checked");
        let guard = spec.guard.unwrap();
        sum.asked += guard.asked;
        sum.acted += guard.acted;
        sum.remade += guard.remade;
    }
    session.set_speculator(None);
    sum
}

#[test]
fn text_is_that_of_plain_decoding_whoever_drafts() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, tame(), 1);
    let mut sum = GuardStats::default();
    for (prompt, sampling) in prompts().zip(samplings().into_iter().cycle()) {
        let guard = compare(&model, &mut session, &prompt, &options(sampling, 90));
        sum.asked += guard.asked;
        sum.acted += guard.acted;
    }
    assert!(sum.asked > 1000 && sum.acted * 10 < sum.asked, "{sum:?}");
}

/// Where nothing is sure every token is decided by a plain step.
#[test]
fn a_guard_that_trusts_nothing_leaves_every_token_to_plain_steps() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, tame(), 1);
    session.set_noise(f32::INFINITY);
    for (prompt, sampling) in prompts().zip(samplings()) {
        let guard = compare(&model, &mut session, &prompt, &options(sampling, 40));
        assert!(guard.asked > 100 && guard.acted == guard.asked, "{guard:?}");
        assert_eq!(guard.remade, 0, "nothing was kept that plain decoding does not make");
    }
}

#[test]
fn a_guard_that_trusts_everything_never_acts() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, tame(), 1);
    session.set_noise(0.0);
    assert_eq!(session.noise(), Some(0.0));
    let options = options(SamplingOptions::greedy(), 60);
    let plain = generate(&model, &mut session, &[3, 4, 5], &options);
    let (speculator, _) = oracle(&Habit::Right, &plain.tokens);
    session.set_speculator(Some(speculator));
    let spec = generate(&model, &mut session, &[3, 4, 5], &options).spec.unwrap();
    let guard = spec.guard.unwrap();
    assert!(guard.asked > 40 && spec.tokens_per_step() > 5.0, "{spec:?}");
    assert_eq!((guard.acted, guard.remade), (0, 0));
}

/// Twins are told apart by rounding alone, so steps of several rows choose others: without the guard
/// the text changes, and with it it does not.
#[test]
fn near_ties_change_the_text_without_the_guard_and_not_with_it() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, twins(), 1);
    let noise = session.noise().unwrap();
    let (mut changed, mut sum) = (0, GuardStats::default());
    for prompt in prompts().take(3) {
        for sampling in samplings() {
            let options = options(sampling, 40);
            session.set_noise(noise);
            let guard = compare(&model, &mut session, &prompt, &options);
            (sum.acted, sum.remade) = (sum.acted + guard.acted, sum.remade + guard.remade);
            let plain = generate(&model, &mut session, &prompt, &options);
            session.set_noise(0.0);
            let (speculator, _) = oracle(&Habit::Random { width: 6 }, &plain.tokens);
            session.set_speculator(Some(speculator));
            let drafted = generate(&model, &mut session, &prompt, &options);
            changed += usize::from(drafted.tokens != plain.tokens);
        }
    }
    assert!(changed > 0, "the test's model has no near ties");
    assert!(sum.acted > 100 && sum.remade > 100, "{sum:?}");
}

/// Lets some of the tokens through, by a state that depends on all that came before.
struct Walk;

impl TokenFilter for Walk {
    fn start(&mut self) -> FilterState {
        FilterState(0)
    }

    fn next(&mut self, FilterState(at): FilterState, token: u32) -> Option<FilterState> {
        (!(token + at).is_multiple_of(3)).then_some(FilterState((2 * at + token + 1) % 5))
    }

    fn mask(&mut self, state: FilterState, logits: &mut [f32]) {
        for (token, logit) in logits.iter_mut().enumerate() {
            if self.next(state, token as u32).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[test]
fn a_filter_moves_on_by_the_tokens_that_stand_and_by_no_other() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, twins(), 1);
    let noise = session.noise().unwrap();
    for sampling in samplings() {
        let options = options(sampling, 40);
        let filtered = |session: &mut Session| {
            let prompt = [3, 9, 4, 5, 3, 9];
            let listen = |_: offshoot_engine::Piece<'_>| Control::Continue;
            session.generate_filtered(&model, &prompt, &options, &mut Walk, listen).unwrap()
        };
        session.set_speculator(None);
        let plain = filtered(&mut session).tokens;
        let start = Some(Walk.start());
        let passes = plain.iter().fold(start, |state, &token| Walk.next(state?, token)).is_some();
        assert!(passes && plain.len() == 40);
        for (habit, noise) in
            [(Habit::Right, noise), (Habit::Random { width: 6 }, noise), (Habit::Right, f32::MAX)]
        {
            session.set_noise(noise);
            let (speculator, _) = oracle(&habit, &plain);
            session.set_speculator(Some(speculator));
            let drafted = filtered(&mut session);
            assert_eq!(drafted.tokens, plain, "{habit:?}");
            assert!(drafted.spec.unwrap().guard.unwrap().asked > 0);
        }
    }
}

#[test]
fn drafts_of_a_chain_of_answers_change_none_of_them() {
    let (model, mut plainly) = load_for(ExecutorKind::DENSE, twins(), 1);
    let mut drafting = Session::new(&model, plainly.cpu().clone(), habits::CONTEXT).unwrap();
    let options = options(SamplingOptions::greedy(), 30);
    let mut text: Vec<u32> = (0..300).map(|i| 3 + (i * i * 3 + i) % 9).collect();
    for turn in 0..5 {
        let plain = generate(&model, &mut plainly, &text, &options);
        let (speculator, _) = oracle(&Habit::RightThenWrong, &plain.tokens);
        drafting.set_speculator(Some(speculator));
        let drafted = generate(&model, &mut drafting, &text, &options);
        assert_eq!(drafted.tokens, plain.tokens, "turn {turn}");
        // What was written is read again, so that a text does not depend on what was said before.
        let reused = if turn == 0 { 0 } else { 256 };
        assert_eq!((plain.reused_tokens, drafted.reused_tokens), (reused, reused));
        let mut fresh = Session::new(&model, plainly.cpu().clone(), habits::CONTEXT).unwrap();
        assert_eq!(generate(&model, &mut fresh, &text, &options).tokens, plain.tokens);
        text.extend_from_slice(&plain.tokens);
        text.extend([3, 4, 5]);
    }
}

#[test]
fn drafting_has_to_be_asked_for_and_rules_that_are_not_exact_are_refused() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, tame(), 1);
    assert!(SpecOptions::default().speculator(&model, &session).unwrap().is_none(), "auto is off");
    let spec = |mode: &str| SpecOptions { mode: mode.parse().unwrap(), ..SpecOptions::default() };
    let suffix = spec("suffix").speculator(&model, &session).unwrap();
    assert!(suffix.is_some());
    session.set_speculator(suffix);
    let [greedy, warm, ..] = samplings();
    for acceptance in [Acceptance::Typical(Typical::default()), Acceptance::Rejection] {
        // Without a distribution to draw from, and greedily, these are the exact rule.
        let cold = GenerateOptions { acceptance, ..options(greedy.clone(), 5) };
        assert_eq!(generate(&model, &mut session, &[3, 4], &cold).tokens.len(), 5);
        let warm = GenerateOptions { acceptance, ..options(warm.clone(), 5) };
        let done = session.generate(&model, &[3, 4], &warm, |_| Control::Continue);
        match acceptance {
            Acceptance::Typical(_) => {
                let error = done.unwrap_err();
                assert!(matches!(error, Error::OnlyExact { .. }), "{error}");
                assert!(error.to_string().contains("--acceptance typical: the dense"), "{error}");
            }
            _ => assert_eq!(done.unwrap().tokens.len(), 5),
        }
    }
    assert!(matches!(model.packed().unwrap_err(), Error::OnlyPacked));
    let (packed, _) = load(Tiny::qwen2(), 1);
    assert!(matches!(packed.dense().unwrap_err(), Error::OnlyDense));
    let wrong = session.generate(&packed, &[3, 4], &options(greedy, 5), |_| Control::Continue);
    assert!(matches!(wrong.unwrap_err(), Error::OnlyDense));
}

/// A packed model drafts for a dense one.
#[test]
fn a_model_on_another_executor_may_draft() {
    let (model, mut session) = load_for(ExecutorKind::DENSE, tame(), 1);
    let (own, _) = load(tame(), 1);
    for sampling in samplings() {
        let options = options(sampling, 80);
        session.set_speculator(None);
        let plain = generate(&model, &mut session, &[3, 9, 4, 5], &options);
        let spec = SpecOptions {
            mode: "draft".parse().unwrap(),
            draft_model: None,
            ..SpecOptions::default()
        };
        let missing = spec.speculator(&model, &session).unwrap_err().to_string();
        assert!(missing.contains("--draft-model"), "{missing}");
        let spec = SpecOptions { draft_model: Some(Arc::new(load(tame(), 1).0)), ..spec };
        session.set_speculator(spec.speculator(&model, &session).unwrap());
        let drafted = generate(&model, &mut session, &[3, 9, 4, 5], &options);
        assert_eq!(drafted.tokens, plain.tokens);
    }
    assert_eq!(own.config().vocab_size as u32, N_VOCAB);
}

fn smollm2() -> (Model, Session) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let options = LoadOptions { executor: ExecutorKind::DENSE, ..LoadOptions::default() };
    let (model, cpu) = Model::load(&path, &options).unwrap();
    let session = Session::new(&model, cpu, 512).unwrap();
    (model, session)
}

/// One model for all that is asked of it, as loading takes the most time.
#[test]
fn a_real_model_writes_the_same_with_and_without_drafts() {
    let (model, mut session) = smollm2();
    let prompt = "Count: one, two, three, four. Again: one, two, three, four. Again: one,";
    let prompt = model.encode_text(prompt).unwrap();
    let sampled = SamplingOptions { seed: Some(3), ..SamplingOptions::default() };
    for (sampling, tokens) in [(SamplingOptions::greedy(), 40), (sampled, 20)] {
        let options = options(sampling, tokens);
        session.set_speculator(None);
        let plain = generate(&model, &mut session, &prompt, &options);
        let spec = SpecOptions { mode: "suffix".parse().unwrap(), ..SpecOptions::default() };
        session.set_speculator(spec.speculator(&model, &session).unwrap());
        let drafted = generate(&model, &mut session, &prompt, &options);
        assert_eq!(drafted.tokens, plain.tokens);
        let spec = drafted.spec.unwrap();
        assert!(spec.guesses > 0 && spec.guard.unwrap().asked > 0, "{spec:?}");
    }
    assert!(noise(&model, &mut session, &prompt[..24]) < session.noise().unwrap());
}

/// Rows of a step, as drafts make them.
const WIDTH: usize = 6;

/// The largest change of a logit between steps of several rows, each behind what those before it put
/// into the cache, and steps of one; over the greatest magnitude in its row.
fn noise(model: &Model, session: &mut Session, tokens: &[u32]) -> f32 {
    session.truncate(0);
    let mut together = Vec::new();
    for rows in tokens.chunks(WIDTH) {
        together.extend_from_slice(session.feed(model, rows, LogitRows::All).unwrap());
    }
    session.truncate(0);
    let mut most = 0f32;
    for (token, together) in tokens.iter().zip(together.chunks_exact(model.config().vocab_size)) {
        let alone = session.feed(model, &[*token], LogitRows::All).unwrap();
        let differ = alone.iter().zip(together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let greatest = alone.iter().map(|x| x.abs()).fold(0.0, f32::max);
        most = most.max(differ / greatest);
    }
    assert!(most > 0.0, "rows are computed alike: no guard is needed");
    most
}
