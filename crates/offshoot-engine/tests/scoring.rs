//! What is told of a given text: how likely its tokens are, and one vector for all of it.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the support only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use habits::load_for;
use offshoot_engine::{
    Control, Error, ExecutorKind, GenerateOptions, Model, Pooling, Session, embed, normalize, score,
};
use offshoot_methods::SamplingOptions;
use offshoot_models::LogitRows;
use tiny::Tiny;

const BOTH: [ExecutorKind; 2] = [ExecutorKind::Packed, ExecutorKind::DENSE];

fn load(kind: ExecutorKind) -> (Model, Session) {
    load_for(kind, Tiny::qwen2(), 2)
}

/// Tokens of no meaning, more than a step of states takes.
fn text(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + i * i % 7).collect()
}

#[test]
fn an_answer_is_scored_as_it_was_when_it_was_made() {
    for kind in BOTH {
        let (model, mut session) = load(kind);
        let prompt = [5, 9, 4];
        let options = GenerateOptions {
            sampling: SamplingOptions::greedy(),
            max_tokens: Some(100),
            ignore_eos: true,
            logprobs: Some(2),
            ..GenerateOptions::default()
        };
        let mut made = Vec::new();
        let answer = session
            .generate(&model, &prompt, &options, |piece| {
                made.extend(piece.logprob.map(|logprob| (logprob, piece.top.to_vec())));
                Control::Continue
            })
            .unwrap();
        let tokens = [&prompt[..], &answer.tokens].concat();
        let mut told = Vec::new();
        let scores = score(&model, &mut session, &tokens, 3, 2, |done| told.push(done)).unwrap();
        assert_eq!((scores.len(), told.last()), (100, Some(&103)));
        for (score, (logprob, top)) in scores.iter().zip(made) {
            assert!((score.logprob - logprob).abs() < 1e-3, "{kind:?}: {score:?} {logprob}");
            // Greedily chosen; another may be as likely.
            assert_eq!(score.rank, 1);
            assert_eq!(score.top[0].token, top[0].token);
        }
        // Scores do not depend on where they begin.
        let fewer = score(&model, &mut session, &tokens, 90, 2, |_| {}).unwrap();
        for (a, b) in fewer.iter().zip(&scores[87..]) {
            assert_eq!((a.token, a.rank), (b.token, b.rank));
            assert!((a.logprob - b.logprob).abs() < 1e-3);
        }
        assert!(session.cached().is_empty());
    }
}

#[test]
fn the_rank_counts_likelier_tokens() {
    let (model, mut session) = load(ExecutorKind::Packed);
    let tokens = text(40);
    let all = model.config().vocab_size;
    for score in score(&model, &mut session, &tokens, 1, all, |_| {}).unwrap() {
        let place = score.top.iter().position(|t| t.token == score.token).unwrap();
        let likelier = score.top.iter().filter(|t| t.logprob > score.logprob).count();
        assert!(score.rank == likelier + 1 && score.rank <= place + 1, "{score:?}");
        assert!((score.top.iter().map(|t| t.logprob.exp()).sum::<f64>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_vector_is_the_mean_or_the_last_of_what_the_head_multiplies() {
    for kind in BOTH {
        let (model, mut session) = load(kind);
        let tokens = text(300);
        let width = model.config().hidden_size;
        let mut states = Vec::new();
        for &token in &tokens {
            // Asking for logits changes no state.
            session.feed(&model, &[token], LogitRows::Last).unwrap();
            session.truncate(session.cached().len() - 1);
            states.extend_from_slice(session.feed_states(&model, &[token]).unwrap());
        }
        let mean: Vec<f32> = (0..width)
            .map(|i| {
                let column = states.iter().skip(i).step_by(width);
                (column.map(|&x| f64::from(x)).sum::<f64>() / 300.0) as f32
            })
            .collect();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let found = embed(&model, &mut session, &tokens, Pooling::Mean).unwrap();
        assert!(near(&found, &mean), "{kind:?}: {found:?} {mean:?}");
        let mut found = embed(&model, &mut session, &tokens, Pooling::Last).unwrap();
        assert!(near(&found, &states[299 * width..]), "{kind:?}");
        normalize(&mut found);
        assert!((found.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        let mut zeros = vec![0.0; 4];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 4]);
        assert!(session.cached().is_empty());
    }
}

#[test]
fn on_the_packed_executor_the_size_of_steps_changes_no_bit() {
    let (model, mut session) = load(ExecutorKind::Packed);
    let tokens = text(300);
    let whole = embed(&model, &mut session, &tokens, Pooling::Last).unwrap();
    for &token in &tokens[..299] {
        session.feed(&model, &[token], LogitRows::None).unwrap();
    }
    assert_eq!(session.feed_states(&model, &tokens[299..]).unwrap(), whole);
}

#[test]
fn texts_that_cannot_be_told_of_are_refused() {
    let (model, mut session) = load(ExecutorKind::Packed);
    let too_long = text(session.context() + 1);
    for from in [0, 3] {
        let error = score(&model, &mut session, &[3, 4, 5], from, 0, |_| {}).unwrap_err();
        assert!(matches!(error, Error::EmptyPrompt), "{error}");
    }
    let error = score(&model, &mut session, &too_long, 1, 0, |_| {}).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { .. }), "{error}");
    let error = embed(&model, &mut session, &[], Pooling::Mean).unwrap_err();
    assert!(matches!(error, Error::EmptyPrompt), "{error}");
    let error = embed(&model, &mut session, &too_long, Pooling::Last).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { .. }), "{error}");
}
