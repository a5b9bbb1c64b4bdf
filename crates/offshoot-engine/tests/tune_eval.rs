//! Scores of many sequences are those of each alone, bit for bit, and evaluation is what they say.
#![allow(clippy::unwrap_used, dead_code)] // test code; of the support only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use habits::{CONTEXT, N_VOCAB, load, load_for};
use offshoot_engine::tune::eval::{
    EvalOptions, Metrics, PackedScorer, SessionScorer, evaluate, scorer,
};
use offshoot_engine::tune::{Example, Scored, Scorer, Sequence};
use offshoot_engine::{Control, Error, ExecutorKind, GenerateOptions, Model, Session, score};
use offshoot_methods::SamplingOptions;
use proptest::prelude::*;
use tiny::Tiny;

/// Tokens of no meaning.
fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 7 * salt + i / 3) % N_VOCAB).collect()
}

/// What `offshoot score` says of the trained tokens of a sequence.
fn alone(model: &Model, session: &mut Session, sequence: &Sequence) -> Scored {
    let scores = score(model, session, &sequence.tokens, 1, 0, |_| {}).unwrap();
    let mut sum = Scored { logprob: 0.0, tokens: 0, greedy: 0 };
    for (score, _) in scores.iter().zip(&sequence.trained[1..]).filter(|(_, trained)| **trained) {
        sum.logprob += score.logprob;
        sum.tokens += 1;
        sum.greedy += usize::from(score.rank == 1);
    }
    sum
}

/// Texts, conversations with several answers, candidates of one prompt, a long one among short ones.
fn sequences() -> Vec<Sequence> {
    let mut all = vec![Sequence::of(&[], &tokens(40, 1)), Sequence::of(&tokens(9, 2), &[4, 5])];
    let (prompt, long) = (tokens(30, 3), tokens(300, 4));
    for candidate in [&[3][..], &[4], &[5, 6, 7], &[9, 3, 1, 1]] {
        all.push(Sequence::of(&prompt, candidate));
    }
    for candidate in [&[3, 4][..], &[4]] {
        all.push(Sequence::of(&long, candidate));
    }
    let mut talk = Sequence::of(&tokens(5, 5), &tokens(60, 6));
    (20..40).for_each(|i| talk.trained[i] = false);
    all.push(talk);
    all.push(Sequence::of(&tokens(400, 7), &tokens(200, 8)));
    all
}

#[test]
fn sequences_together_score_as_each_alone() {
    for family in Tiny::families() {
        let (model, mut session) = load(family, 2);
        let all = sequences();
        let refs: Vec<&Sequence> = all.iter().collect();
        let expected: Vec<Scored> =
            all.iter().map(|sequence| alone(&model, &mut session, sequence)).collect();
        for (rows, logits) in [(256, 256), (64, 10), (7, 3), (1000, 1)] {
            let mut scorer = PackedScorer::new(&model, session.cpu(), CONTEXT).unwrap();
            scorer = scorer.with_rows(rows, logits);
            assert_eq!(scorer.score(&refs).unwrap(), expected, "{rows} rows, {logits} logits");
            // Registers and caches that were used before are as new ones.
            let reversed: Vec<&Sequence> = refs.iter().rev().copied().collect();
            let mut again = scorer.score(&reversed).unwrap();
            again.reverse();
            assert_eq!(again, expected);
        }
    }
}

#[test]
fn any_executor_is_scored_and_the_dense_one_is_near() {
    let all = sequences();
    let refs: Vec<&Sequence> = all.iter().collect();
    let scores = |kind| {
        let (model, session) = load_for(kind, Tiny::qwen2(), 2);
        scorer(&model, session.cpu(), CONTEXT).unwrap().score(&refs).unwrap()
    };
    let (packed, dense) = (scores(ExecutorKind::Packed), scores(ExecutorKind::DENSE));
    for (a, b) in packed.iter().zip(&dense) {
        assert_eq!(a.tokens, b.tokens);
        // The packed executor multiplies in eight bits.
        assert!((a.logprob - b.logprob).abs() < 0.05 * a.logprob.abs() + 0.05, "{a:?} {b:?}");
    }
}

#[test]
fn answers_together_are_those_of_each_alone() {
    for kind in [ExecutorKind::Packed, ExecutorKind::DENSE] {
        for family in [Tiny::llama(), Tiny::mistral(), Tiny::gemma3()] {
            let (model, mut session) = load_for(kind, family, 2);
            let prompts: Vec<Vec<u32>> = [3, 40, 1, 300, 17]
                .iter()
                .map(|&n| tokens(n, n as u32).into_iter().map(|t| t.max(3)).collect())
                .collect();
            let expected: Vec<Vec<u32>> = prompts
                .iter()
                .map(|prompt| {
                    let options = GenerateOptions {
                        sampling: SamplingOptions::greedy(),
                        max_tokens: Some(20),
                        ..GenerateOptions::default()
                    };
                    session.truncate(0);
                    let answer =
                        session.generate(&model, prompt, &options, |_| Control::Continue).unwrap();
                    let stops = model.stop_tokens();
                    answer.tokens.into_iter().filter(|token| !stops.contains(token)).collect()
                })
                .collect();
            let refs: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            let cpu = session.cpu().clone();
            let mut all = scorer(&model, &cpu, CONTEXT).unwrap();
            assert_eq!(all.generate(&refs, 20).unwrap(), expected, "{kind:?}");
        }
    }
}

#[test]
fn what_the_context_does_not_hold_is_refused() {
    let (model, session) = load(Tiny::llama(), 1);
    let mut scorers: Vec<Box<dyn Scorer>> =
        vec![Box::new(PackedScorer::new(&model, session.cpu(), 20).unwrap())];
    let short = Session::new(&model, session.cpu().clone(), 20).unwrap();
    scorers.push(Box::new(SessionScorer::new(&model, short)));
    for scorer in &mut scorers {
        let long = Sequence::of(&[3], &tokens(20, 1));
        let error = scorer.score(&[&long]).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { prompt: 21, context: 20 }), "{error}");
        assert!(scorer.generate(&[&tokens(20, 1)], 3).is_err());
        let said =
            scorer.generate(&[&[3, 4, 5, 6, 7, 8, 9, 10, 11, 3, 4, 5, 6, 7, 8, 9, 10, 11]], 9);
        assert!(said.unwrap()[0].len() <= 2);
        let none = Sequence { tokens: vec![3, 4], trained: vec![false, false] };
        let scored = scorer.score(&[&none, &Sequence::of(&[3], &[4])]).unwrap();
        assert_eq!((scored[0].tokens, scored[1].tokens), (0, 1));
    }
    assert!(matches!(
        PackedScorer::new(&model, session.cpu(), 1 << 20),
        Err(Error::Context { limit: CONTEXT, .. })
    ));
}

fn examples() -> Vec<Example> {
    let mut all = Vec::new();
    for i in 0..7u32 {
        all.push(Example::Text(Sequence::of(&[3], &tokens(9 + i as usize, i))));
        all.push(Example::Choice {
            prompt: tokens(12, i),
            candidates: vec![vec![3], vec![4], vec![5, 6]],
            answers: vec![i as usize % 3],
        });
        all.push(Example::Answer {
            gold: Sequence::of(&tokens(6, i), &[5, 6]),
            prompt: 6,
            answers: vec!["ab".to_owned(), "cd".to_owned()],
        });
        all.push(Example::Preference {
            chosen: Sequence::of(&tokens(6, i), &[5]),
            rejected: Sequence::of(&tokens(6, i), &[6, 7]),
            rewards: None,
        });
    }
    all
}

fn measured(model: &Model, threads: &Session, batch: usize, examples: &[Example]) -> Metrics {
    let options = EvalOptions { batch, max_new_tokens: 5, ..EvalOptions::default() };
    let mut scorer = scorer(model, threads.cpu(), CONTEXT).unwrap();
    let mut source = examples.iter().cloned().map(Ok);
    let (tokenizer, mut told) = (model.tokenizer(), Vec::new());
    let metrics = evaluate(&mut *scorer, &mut source, tokenizer, &options, &mut |done| {
        told.push(done);
        Control::Continue
    });
    assert_eq!(told.last(), Some(&(examples.len() as u64)));
    metrics.unwrap()
}

#[test]
fn neither_batch_nor_threads_change_a_metric() {
    let all = examples();
    let (model, session) = load(Tiny::llama(), 1);
    let first = measured(&model, &session, 1, &all);
    assert_eq!(first.examples, 28);
    let names: Vec<&str> = first.named().iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(measured(&model, &session, 5, &all), first);
    let (model, session) = load(Tiny::llama(), 3);
    assert_eq!(measured(&model, &session, 100, &all), first);
}

#[test]
fn loss_and_accuracy_are_what_the_scores_say() {
    let (model, mut session) = load(Tiny::qwen3(), 2);
    let (mut logprob, mut count, mut right) = (0.0, 0, 0);
    let choices: Vec<Example> =
        examples().into_iter().filter(|e| matches!(e, Example::Choice { .. })).collect();
    for example in &choices {
        let Example::Choice { prompt, candidates, answers } = example else { unreachable!() };
        let each = candidates.iter().map(|c| alone(&model, &mut session, &Sequence::of(prompt, c)));
        let each: Vec<Scored> = each.collect();
        let mean = |s: &Scored| s.logprob / s.tokens as f64;
        let best = (0..3).rev().max_by(|&a, &b| mean(&each[a]).total_cmp(&mean(&each[b]))).unwrap();
        logprob += each[answers[0]].logprob;
        count += each[answers[0]].tokens;
        right += usize::from(best == answers[0]);
    }
    let metrics = measured(&model, &session, 4, &choices);
    assert_eq!(metrics.tokens, count as u64);
    assert!((metrics.loss.unwrap() + logprob / count as f64).abs() < 1e-12);
    assert_eq!(metrics.accuracy, Some(right as f64 / 7.0));
    assert!((metrics.perplexity.unwrap().ln() - metrics.loss.unwrap()).abs() < 1e-12);
}

#[test]
fn an_evaluation_can_be_stopped() {
    let (model, session) = load(Tiny::llama(), 1);
    let mut scorer = scorer(&model, session.cpu(), CONTEXT).unwrap();
    let options = EvalOptions { batch: 2, ..EvalOptions::default() };
    let mut source = examples().into_iter().map(Ok);
    let stopped = evaluate(&mut *scorer, &mut source, model.tokenizer(), &options, &mut |done| {
        if done < 4 { Control::Continue } else { Control::Stop }
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(source.count(), 24);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Trees of any shape and steps of any size.
    #[test]
    fn shared_prompts_equal_separate_ones(
        shapes in prop::collection::vec((1usize..40, prop::collection::vec(1usize..6, 1..5)), 1..8),
        rows in 3usize..90, logits in 1usize..20, salt in 0u32..9,
    ) {
        thread_local! {
            static MODEL: (Model, Session) = load(Tiny::mistral(), 2);
        }
        let mut all = Vec::new();
        for (i, (prompt, candidates)) in shapes.iter().enumerate() {
            for (j, &n) in candidates.iter().enumerate() {
                let behind = tokens(n, salt + j as u32);
                all.push(Sequence::of(&tokens(*prompt, salt + i as u32), &behind));
            }
        }
        let refs: Vec<&Sequence> = all.iter().collect();
        MODEL.with(|(model, session)| {
            let new = || PackedScorer::new(model, session.cpu(), CONTEXT).unwrap();
            let together = new().with_rows(rows, logits).score(&refs).unwrap();
            let mut one = new();
            let separate: Vec<Scored> =
                refs.iter().map(|sequence| one.score(&[sequence]).unwrap()[0]).collect();
            prop_assert_eq!(together, separate);
            Ok(())
        })?;
    }
}
