//! Weights that lie in a file: the same bits as in memory, by every method, and each read and written once
//! in a step.
#![cfg(unix)]

use std::path::Path;
use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, Metric, MetricKind, Objective, Space, StepLimits,
    TRAJECTORY_FILE, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_kernels::{Cpu, Traffic};
use offshoot_methods::tune::{METHODS, RateOptions, TensorSpec};
use offshoot_models::{Checkpoint, Tokenizer};
use serde_json::json;

use crate::setting::{cpu, full, probe, texts, tokens, values};
use crate::tiny::Tiny;

/// All weights of model `name`, in memory or on the disk of a folder.
fn trainer(name: &str, method: &str, folder: Option<&Path>, threads: usize) -> ZerothOrderTrainer {
    let cpu = cpu(threads);
    let space = FullOptions { folder: folder.map(Path::to_owned), ..FullOptions::default() };
    let options = ZerothOrderOptions {
        method: method.to_owned(),
        options: json!({"eps": 1e-3, "directions": 2}),
        decay: 0.01,
        auto_rate: Some(RateOptions { probes: 4, interval: 3, ..RateOptions::default() }),
        ..ZerothOrderOptions::default()
    };
    let space = Box::new(full(name, &cpu, &space));
    ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

/// The same with rates that are given, by the method's own options and within `limits`.
fn by_rate(folder: Option<&Path>, method: &str, limits: StepLimits) -> ZerothOrderTrainer {
    let cpu = cpu(2);
    let space = FullOptions { folder: folder.map(Path::to_owned), ..FullOptions::default() };
    let space = Box::new(full("qwen2_tied", &cpu, &space));
    let options = ZerothOrderOptions { method: method.to_owned(), limits, ..Default::default() };
    ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

/// What is read and written of the weights of `space` when it is each of them once: of all matrices, and
/// of the output head, which is read twice where it is the embedding.
fn once(space: &dyn Space) -> (u64, u64) {
    // In tiles of 16 rows.
    let size = |t: &TensorSpec| 64 * (t.rows.div_ceil(16) * t.cols) as u64;
    let matrices = || space.layout().tensors.iter().filter(|tensor| !tensor.vector);
    let all = matrices().map(size).sum();
    let tied = space.model().config().tie_word_embeddings;
    let head = matrices().filter(|t| tied && t.layer.is_none()).map(size).sum::<u64>();
    (head + all, all)
}

/// What `act` reads and writes.
fn traffic(
    trainer: &mut ZerothOrderTrainer,
    act: impl FnOnce(&mut ZerothOrderTrainer),
) -> (u64, u64) {
    let now = |trainer: &ZerothOrderTrainer| trainer.space().traffic().unwrap();
    let before: Traffic = now(trainer);
    act(trainer);
    let after = now(trainer);
    (after.read - before.read, after.written - before.written)
}

fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) {
    let all = texts(8);
    for step in steps {
        let first = step as usize * 3 % 6;
        let batch: Vec<&Example> = all[first..first + 2].iter().collect();
        trainer.step(step, 0.0, &batch).unwrap();
    }
}

#[test]
fn every_method_makes_the_same_run_as_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut methods = 0;
    for card in METHODS.iter().filter(|card| card.space.is_none()) {
        let mut here = trainer("qwen2_tied", card.name, None, 2);
        let mut there = trainer("qwen2_tied", card.name, Some(dir.path()), 3);
        let first = values(there.space());
        run(&mut here, 0..5);
        run(&mut there, 0..5);
        there.settle().unwrap();
        assert!(here.trajectory() == there.trajectory(), "{}", card.name);
        assert!(values(here.space()) == values(there.space()), "{}", card.name);
        assert!(values(there.space()) != first, "{} changes nothing", card.name);
        methods += 1;
    }
    assert!(methods >= 12, "{methods} methods");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing has a name there");
}

#[test]
fn every_method_reads_and_writes_each_block_once_in_a_step() {
    let dir = tempfile::tempdir().unwrap();
    for card in METHODS.iter().filter(|card| card.space.is_none()) {
        let mut there = by_rate(Some(dir.path()), card.name, StepLimits::default());
        let (read, written) = once(there.space());
        // Points that hang on the step's other losses need a reading of their own.
        let readings = match card.name {
            "block" => there.space().model().config().num_hidden_layers as u64 + 1,
            "cons" => 2,
            _ => 1,
        };
        let all = texts(8);
        let batch: Vec<&Example> = all.iter().collect();
        let mut step = 0;
        let mut next = |trainer: &mut ZerothOrderTrainer| {
            trainer.step(step, 1e-3, &batch).unwrap();
            step += 1;
        };
        // The first makes no update; what it leaves to be made is with the second.
        let first = traffic(&mut there, &mut next).1;
        assert_eq!(first, 0, "{}", card.name);
        for _ in 0..3 {
            let found = traffic(&mut there, &mut next);
            assert_eq!(found, (readings * read, written), "{}", card.name);
        }
        // Whatever reads the weights meanwhile finds nothing left to be done, or does it.
        let settled = traffic(&mut there, |trainer| trainer.settle().unwrap());
        assert_eq!(settled.1, written, "{}", card.name);
        assert_eq!(traffic(&mut there, |trainer| trainer.settle().unwrap()), (0, 0));
        assert_eq!(traffic(&mut there, &mut next).1, 0, "{}", card.name);
    }
}

#[test]
fn rows_beyond_what_is_kept_are_run_in_further_readings_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let all = texts(8);
    let batch: Vec<&Example> = all.iter().collect();
    let mut here = by_rate(None, "mezo", StepLimits::default());
    for step in 0..3 {
        here.step(step, 1e-3, &batch).unwrap();
    }
    let rows = here.rows() / 3;
    // All rows of both points; those of one; steps of a few rows, of which several go together; and steps
    // that are each too large.
    for (limit, side_by_side, readings) in
        [(1024, rows, 1), (1024, rows / 2, 2), (1024, rows - 1, 2), (20, 40, 0), (1, 1, 16)]
    {
        let limits = StepLimits { rows: limit, side_by_side, ..StepLimits::default() };
        let mut there = by_rate(Some(dir.path()), "mezo", limits);
        let (read, written) = once(there.space());
        there.step(0, 1e-3, &batch).unwrap();
        for step in 1..3 {
            let next = |trainer: &mut ZerothOrderTrainer| {
                trainer.step(step, 1e-3, &batch).unwrap();
            };
            let found = traffic(&mut there, next);
            assert_eq!(found.1, written);
            match readings {
                0 => assert!(found.0 > 2 * read && found.0 < 8 * read, "{found:?} of {read}"),
                n => assert_eq!(found.0, n * read),
            }
        }
        there.settle().unwrap();
        assert!(values(there.space()) == values(here.space()) && there.rows() == 3 * rows);
    }
}

/// An evaluation in the middle of a run sees what the step before it learned, and so does whatever else
/// reads the weights.
#[test]
fn what_a_step_learned_is_seen_by_whatever_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["qwen2_tied", "llama_linear"] {
        let mut here = trainer(name, "mezo", None, 2);
        let mut there = trainer(name, "mezo", Some(dir.path()), 3);
        let text = Sequence::of(&tokens(1, 4), &tokens(2, 5));
        let prompt = tokens(3, 5);
        let mut seen = Vec::new();
        for step in 0..4 {
            run(&mut here, step..step + 1);
            run(&mut there, step..step + 1);
            let found = there.score(&[&text, &text]).unwrap();
            assert_eq!(found, here.score(&[&text, &text]).unwrap(), "{name}");
            seen.push(found[0].logprob.to_bits());
            run_out(&mut here, &mut there, &prompt);
        }
        seen.dedup();
        assert_eq!(seen.len(), 4, "{name}: each step is felt");
        let state = dir.path().join(name);
        std::fs::create_dir(&state).unwrap();
        run(&mut there, 4..5);
        let told = there.save(&state).unwrap_err().to_string();
        assert!(told.contains("before the last step's update"), "{told}");
        assert!(there.write_variant(&state).is_err());
        there.settle().unwrap();
        there.save(&state).unwrap();
        // A trajectory's steps are made again one after the other, with nothing left to be done.
        let mut again = trainer(name, "mezo", Some(dir.path()), 1);
        std::fs::remove_file(state.join("tuned.safetensors")).unwrap();
        again.restore(&state).unwrap();
        assert!(values(again.space()) == values(there.space()), "{name}");
    }
}

/// Both write the same behind `prompt`.
fn run_out(here: &mut ZerothOrderTrainer, there: &mut ZerothOrderTrainer, prompt: &[u32]) {
    let made = there.generate(&[prompt, &prompt[1..]], 4).unwrap();
    assert_eq!(here.generate(&[prompt, &prompt[1..]], 4).unwrap(), made);
}

/// Answers that are written at several points of a step, all of which go through a layer together.
#[test]
fn answers_are_written_at_all_points_over_one_reading_of_each_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, Tiny::llama().bytes()).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let tokenizer = Arc::new(Tokenizer::new(checkpoint.tokenizer().unwrap()).unwrap());
    let cpu: Cpu = cpu(2);
    let of = |folder: Option<&Path>| {
        let space = FullOptions { folder: folder.map(Path::to_owned), ..FullOptions::default() };
        let space = FullSpace::new(&cpu, Arc::clone(&checkpoint), &space).unwrap();
        let metric = Metric::new(MetricKind::TokenF1, Arc::clone(&tokenizer), 5, None);
        let objective: Box<dyn Objective> = Box::new(metric);
        let options = ZerothOrderOptions::default();
        ZerothOrderTrainer::new(&cpu, Box::new(space), objective, &options).unwrap()
    };
    let (mut here, mut there) = (of(None), of(Some(dir.path())));
    let prompts = [vec![3, 4], vec![5, 9, 4, 3], vec![6]];
    let made = here.generate(&[&prompts[0], &prompts[1], &prompts[2]], 5).unwrap();
    let answer = |(prompt, tokens): (&Vec<u32>, &Vec<u32>)| Example::Answer {
        gold: Sequence::of(prompt, &[7]),
        prompt: prompt.len(),
        answers: vec![tokenizer.decode(tokens, offshoot_models::Controls::Skip)],
    };
    let batch: Vec<Example> = prompts.iter().zip(&made).map(answer).collect();
    let batch: Vec<&Example> = batch.iter().collect();
    let points = [0.0, 2.0, -2.0].map(|scale| probe(0, scale));
    let expected = here.losses(&points, &batch).unwrap();
    // What loading left of the weights is let go.
    there.losses(&points[..1], &batch).unwrap();
    let mut found = Vec::new();
    let act = |trainer: &mut ZerothOrderTrainer| found = trainer.losses(&points, &batch).unwrap();
    let (read, _) = traffic(&mut there, act);
    assert_eq!(found, expected);
    assert!(expected[0] == -1.0 && expected != [-1.0; 3], "{expected:?}");
    let (each, _) = once(there.space());
    assert!(read.is_multiple_of(each) && (1..=5).contains(&(read / each)), "{read} of {each}");
}

/// Embeddings of their own, norms behind products, experts, biases, and the form of Phi-3.
#[test]
fn every_kind_of_model_scores_writes_and_goes_on_as_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama_linear", "gemma3_linear", "qwen3_moe", "phi3_short"] {
        let mut here = trainer(name, "mezo", None, 2);
        let mut there = trainer(name, "mezo", Some(dir.path()), 2);
        run(&mut here, 0..3);
        run(&mut there, 0..2);
        let (state, variant) = (dir.path().join("state"), dir.path().join("variant"));
        std::fs::create_dir(&state).unwrap();
        there.settle().unwrap();
        there.save(&state).unwrap();
        drop(there);
        // What was on disk goes on in memory, and the other way round.
        let mut between = trainer(name, "mezo", None, 1);
        between.restore(&state).unwrap();
        run(&mut between, 2..3);
        let mut again = trainer(name, "mezo", Some(dir.path()), 2);
        again.restore(&state).unwrap();
        run(&mut again, 2..3);
        again.settle().unwrap();
        for other in [&between, &again] {
            assert!(values(other.space()) == values(here.space()), "{name}");
        }
        let text = Sequence::of(&[1, 2, 3], &[4, 5, 6]);
        assert_eq!(here.score(&[&text]).unwrap(), again.score(&[&text]).unwrap(), "{name}");
        let prompt = [7, 8, 9];
        let made = again.generate(&[&prompt], 4).unwrap();
        assert_eq!(here.generate(&[&prompt], 4).unwrap(), made, "{name}");
        let files = [&here, &again].map(|trainer| {
            std::fs::create_dir(&variant).unwrap();
            trainer.write_variant(&variant).unwrap();
            let read = |file: &str| std::fs::read(variant.join(file)).unwrap();
            let files = ["model.safetensors", "config.json", TRAJECTORY_FILE].map(read);
            std::fs::remove_dir_all(&variant).unwrap();
            files
        });
        assert!(files[0] == files[1], "{name}");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
