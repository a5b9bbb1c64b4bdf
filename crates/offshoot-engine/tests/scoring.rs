//! What is told of a given text: how likely its tokens are, and one vector for all of it.

#![allow(clippy::unwrap_used, dead_code)] // test code; of the support only some parts are used

#[path = "support/habits.rs"]
mod habits;
#[path = "../../offshoot-models/tests/support/logits.rs"]
mod logits;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::io::Write;
use std::path::Path;

use habits::load_for;
use offshoot_engine::{
    Control, Error, ExecutorKind, GenerateOptions, LoadOptions, Model, Pooling, Session, embed,
    normalize, score,
};
use offshoot_methods::SamplingOptions;
use offshoot_models::LogitRows;
use offshoot_models::gguf::{Array, Writer, parse};
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

/// A file of `scripts/oracles/logits.py` with as many tokens as its embedding has rows.
fn with_tokenizer(bytes: &[u8]) -> Vec<u8> {
    let file = parse(bytes).unwrap();
    let rows = file.contents().unwrap().config.vocab_size;
    let texts: Vec<String> = (0..rows).map(|id| format!("t{id}")).collect();
    let mut writer = Writer::new();
    for (key, value) in file.metadata() {
        writer.key(key, value.clone()).unwrap();
    }
    let tokens: Array<'_> = texts.iter().map(String::as_str).collect();
    let merges: Array<'_> = [""; 0].into_iter().collect();
    for (key, value) in [("tokens", tokens), ("merges", merges)] {
        writer.key(&format!("tokenizer.ggml.{key}"), value).unwrap();
    }
    for (key, value) in [("model", "gpt2"), ("pre", "gpt-2")] {
        writer.key(&format!("tokenizer.ggml.{key}"), value).unwrap();
    }
    for (name, tensor) in file.tensors() {
        writer.tensor(name, &tensor.shape, tensor.block).unwrap();
    }
    let mut written = Vec::new();
    let data =
        |name: &str, out: &mut dyn Write| out.write_all(file.data(file.tensor(name).unwrap()));
    writer.write(&mut written, data).unwrap();
    written
}

#[test]
fn vectors_are_those_of_transformers() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../offshoot-models/tests/data/logits");
    let dir = tempfile::tempdir().unwrap();
    for name in logits::MODELS {
        let path = dir.path().join(name);
        let bytes = std::fs::read(data.join(format!("{name}.gguf"))).unwrap();
        std::fs::write(&path, with_tokenizer(&bytes)).unwrap();
        let tokens = logits::reference_at(&data.join(format!("{name}.logits"))).tokens;
        let pooled = std::fs::read(data.join(format!("{name}.pooled"))).unwrap();
        let pooled: Vec<f32> =
            pooled.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        // The packed executor keeps keys and values in half precision.
        for (executor, close) in [(ExecutorKind::Packed, 2.5e-3), (ExecutorKind::DENSE, 2.5e-5)] {
            let options = LoadOptions { executor, threads: 2, ..LoadOptions::default() };
            let (model, cpu) = Model::load(&path, &options).unwrap();
            let width = model.config().hidden_size;
            assert_eq!(pooled.len(), 2 * width);
            let mut session = Session::new(&model, cpu, tokens.len()).unwrap();
            for (pooling, expected) in
                [Pooling::Mean, Pooling::Last].into_iter().zip(pooled.chunks(width))
            {
                let ours = embed(&model, &mut session, &tokens, pooling).unwrap();
                let greatest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
                let error = logits::max_error(&ours, expected);
                println!("{name} {executor:?} {pooling:?}: {:e} of the greatest", error / greatest);
                assert!(error < close * greatest, "{name} {executor:?}: {error} of {greatest}");
            }
        }
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
