//! Losses without a gradient.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Metric, MetricCommand,
    MetricKind, Objective, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_engine::{LoadOptions, Model};
use offshoot_kernels::Cpu;
use offshoot_methods::tune::Probe;
use offshoot_models::{Controls, Tokenizer};
use serde_json::{Value, json};

use crate::tiny::Tiny;

/// A model of twelve tokens that has a tokenizer.
fn load() -> (Model, Cpu) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, Tiny::llama().bytes()).unwrap();
    Model::load(&path, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap()
}

fn trainer(
    model: &Model,
    cpu: &Cpu,
    objective: impl Objective + 'static,
    eps: f64,
) -> ZerothOrderTrainer {
    let lora = LoraOptions { rank: 2, seed: 1, ..LoraOptions::default() };
    let space = LoraSpace::new(cpu, model.shared_packed().unwrap(), &lora).unwrap();
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": eps}}),
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(objective), &options).unwrap()
}

fn prompts() -> [Vec<u32>; 3] {
    [vec![3, 4], vec![5, 9, 4, 3], vec![6]]
}

/// Answers of which some are what the model writes.
fn answers(model: &Model, cpu: &Cpu, right: [bool; 3]) -> Vec<Example> {
    let mut writer = trainer(model, cpu, CrossEntropy, 1e-3);
    let prompts = prompts();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let made = writer.generate(&all, 5).unwrap();
    let answer = |((prompt, tokens), right): ((&Vec<u32>, &Vec<u32>), bool)| {
        let text = model.tokenizer().decode(tokens, Controls::Skip);
        let text = if right { text } else { "something else".to_owned() };
        let (gold, prompt) = (Sequence::of(prompt, &[7]), prompt.len());
        Example::Answer { gold, prompt, answers: vec!["no such thing".to_owned(), text] }
    };
    prompts.iter().zip(&made).zip(right).map(answer).collect()
}

fn loss(trainer: &mut ZerothOrderTrainer, batch: &[Example]) -> f64 {
    let batch: Vec<&Example> = batch.iter().collect();
    trainer.losses(&[Probe::default()], &batch).unwrap()[0]
}

#[test]
fn answers_that_are_written_count_and_others_do_not() {
    let (model, cpu) = load();
    let tokenizer: Arc<Tokenizer> = Arc::clone(model.tokenizer());
    for kind in [MetricKind::ExactMatch, MetricKind::TokenF1] {
        for (right, expected) in
            [([true, true, true], -1.0), ([true, false, true], -2.0 / 3.0), ([false; 3], 0.0)]
        {
            let metric = Metric::new(kind, Arc::clone(&tokenizer), 5, None);
            let batch = answers(&model, &cpu, right);
            let got = loss(&mut trainer(&model, &cpu, metric, 1e-3), &batch);
            assert!((got - expected).abs() < 1e-12, "{kind:?}: {got}, expected {expected}");
        }
    }
}

/// What the model writes is compared up to the text that ends an answer.
#[test]
fn an_answer_ends_at_the_text_that_the_task_names() {
    let (model, cpu) = load();
    let tokenizer: Arc<Tokenizer> = Arc::clone(model.tokenizer());
    let mut writer = trainer(&model, &cpu, CrossEntropy, 1e-3);
    let made = writer.generate(&[&[3, 4]], 5).unwrap().remove(0);
    let text = tokenizer.decode(&made, Controls::Skip);
    let end: String = text.chars().skip(text.chars().count() - 1).collect();
    let before = text[..text.find(&end).unwrap()].trim().to_owned();
    let answer = |answer: &str| {
        let gold = Sequence::of(&[3, 4], &[7]);
        vec![Example::Answer { gold, prompt: 2, answers: vec![answer.to_owned()] }]
    };
    let loss_of = |end: Option<String>, right: &str| {
        let metric = Metric::new(MetricKind::ExactMatch, Arc::clone(&tokenizer), 5, end);
        loss(&mut trainer(&model, &cpu, metric, 1e-3), &answer(right))
    };
    assert_eq!(loss_of(Some(end), &before), -1.0);
    assert_eq!(loss_of(None, &text), -1.0);
    assert_eq!(loss_of(None, &format!("{text} and more")), 0.0);
}

#[test]
fn accuracy_is_the_share_of_choices_whose_likeliest_candidate_is_right() {
    let (model, cpu) = load();
    let tokenizer = Arc::clone(model.tokenizer());
    let candidates = vec![vec![3], vec![5, 6], vec![8]];
    let mut scorer = trainer(&model, &cpu, CrossEntropy, 1e-3);
    let best = |prompt: &Vec<u32>, scorer: &mut ZerothOrderTrainer| {
        let texts: Vec<_> = candidates.iter().map(|c| Sequence::of(prompt, c)).collect();
        let scored = scorer.score(&texts.iter().collect::<Vec<_>>()).unwrap();
        let mean = |i: &usize| scored[*i].logprob / scored[*i].tokens as f64;
        (0..3).max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap()
    };
    let choices: Vec<Example> = prompts()
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let best = best(prompt, &mut scorer);
            // The first is right, the second wrong, the third right as its second answer.
            let answers = match i {
                0 => vec![best],
                1 => vec![(best + 1) % 3],
                _ => vec![(best + 1) % 3, best],
            };
            let (prompt, candidates) = (prompt.clone(), candidates.clone());
            Example::Choice { prompt, candidates, answers }
        })
        .collect();
    let metric = Metric::new(MetricKind::Accuracy, tokenizer, 5, None);
    let got = loss(&mut trainer(&model, &cpu, metric, 1e-3), &choices);
    assert!((got + 2.0 / 3.0).abs() < 1e-12, "{got}");
}

/// Prompts of no meaning whose last token says which of two candidates is right.
fn lights(first: usize, count: usize) -> Vec<Example> {
    let row = |i: usize| {
        let i = first + i;
        let token = |place: usize| 3 + ((i * i * 7 + i * 5 + place * (i + 3)) % 8) as u32;
        let mut prompt: Vec<u32> = (0..2 + i % 3).map(token).collect();
        let last = 3 + (i * 5 % 8) as u32;
        prompt.push(last);
        let answers = vec![usize::from(last > 6)];
        Example::Choice { prompt, candidates: vec![vec![4], vec![9]], answers }
    };
    (0..count).map(row).collect()
}

/// Nothing but how many are right is told, and what was not shown gets right, too.
#[test]
fn accuracy_as_the_objective_raises_that_of_choices_which_were_held_out() {
    let (train, held_out) = (lights(0, 48), lights(48, 200));
    for seed in 0..2 {
        let (model, cpu) = load();
        let options = FullOptions { seed, ..FullOptions::default() };
        let checkpoint = Arc::clone(model.shared_packed().unwrap().checkpoint());
        let space = FullSpace::new(&cpu, checkpoint, &options).unwrap();
        let metric = Metric::new(MetricKind::Accuracy, Arc::clone(model.tokenizer()), 5, None);
        let options = ZerothOrderOptions {
            options: json!({"probe": {"eps": 0.1, "directions": 4}}),
            ..ZerothOrderOptions::default()
        };
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, Box::new(space), Box::new(metric), &options).unwrap();
        let before = loss(&mut trainer, &held_out);
        let batch: Vec<&Example> = train.iter().collect();
        for step in 0..60 {
            trainer.step(step, 0.1, &batch).unwrap();
        }
        // From a half to three quarters.
        let after = loss(&mut trainer, &held_out);
        assert!(after < before - 0.1, "seed {seed}: {before} to {after}");
    }
}

#[test]
fn a_metric_that_no_point_changes_changes_nothing() {
    let (model, cpu) = load();
    let metric = Metric::new(MetricKind::ExactMatch, Arc::clone(model.tokenizer()), 5, None);
    let batch = answers(&model, &cpu, [true, false, true]);
    let mut trainer = trainer(&model, &cpu, metric, 1e-9);
    let before = crate::setting::values(trainer.space());
    let report = trainer.step(0, 1.0, &batch.iter().collect::<Vec<_>>()).unwrap();
    assert!((report.loss + 2.0 / 3.0).abs() < 1e-12);
    assert!(crate::setting::values(trainer.space()) == before);
}

#[cfg(unix)]
#[test]
fn a_program_is_shown_what_was_written_and_its_number_counts() {
    let (model, cpu) = load();
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen.jsonl");
    let shell = |script: String| MetricCommand::new(script, Arc::clone(model.tokenizer()), 5);
    let batch = answers(&model, &cpu, [true; 3]);
    let command = shell(format!("cat > '{}'; echo ' 0.25 '", seen.display()));
    assert_eq!(loss(&mut trainer(&model, &cpu, command, 1e-3), &batch), -0.25);
    let lines = std::fs::read_to_string(&seen).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for (line, prompt) in lines.iter().zip(prompts()) {
        let prompt = model.tokenizer().decode(&prompt, Controls::Skip);
        assert_eq!(line["prompt"], prompt.as_str());
        assert_eq!(line["generated"], line["answers"][1]);
    }
    // One that reads nothing and one that says nothing of use.
    assert_eq!(loss(&mut trainer(&model, &cpu, shell("echo 3".to_owned()), 1e-3), &batch), -3.0);
    for (script, what) in [("echo much", "printed \"much\""), ("exit 7", "ended with")] {
        let mut trainer = trainer(&model, &cpu, shell(script.to_owned()), 1e-3);
        let batch: Vec<&Example> = batch.iter().collect();
        let told = trainer.losses(&[Probe::default()], &batch).unwrap_err().to_string();
        assert!(told.contains(what) && !told.contains('\n'), "{told}");
    }
}
