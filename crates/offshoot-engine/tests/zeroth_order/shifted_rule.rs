//! Three hundred steps from losses alone, of a model that knows a rule and is shown another: it learns
//! it, and of what it was not shown, too.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    Classification, FullOptions, FullSpace, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{
    ChoiceLoss, Example, FirstOrder, FirstOrderOptions, FirstOrderSpace, Scorer, Sequence,
    TensorNames, Trainer,
};
use offshoot_methods::tune::RateOptions;
use offshoot_models::Checkpoint;
use serde_json::json;

use crate::setting::{checkpoint, cpu, tokens};

const STEPS: u64 = 300;
const BATCH: usize = 16;
/// Labels are the tokens behind these.
const TOKENS: usize = 56;

/// Prompts of no meaning whose last token says which label is right: the second from `from` on.
fn rule(from: usize, examples: std::ops::Range<usize>) -> Vec<Example> {
    let choice = |i: usize| {
        let last = i * 37 % TOKENS;
        let mut prompt: Vec<u32> = tokens(i, 2 + i % 4).iter().map(|t| t % TOKENS as u32).collect();
        prompt.push(last as u32);
        let candidates = [0, 1].map(|label| vec![(TOKENS + label) as u32]).to_vec();
        Example::Choice { prompt, candidates, answers: vec![usize::from(last >= from)] }
    };
    examples.map(choice).collect()
}

/// The mean surprise at the right candidate.
fn loss(scorer: &mut dyn Scorer, choices: &[Example]) -> f64 {
    let mut sum = 0.0;
    for choice in choices {
        let Example::Choice { prompt, candidates, answers } = choice else { unreachable!() };
        let texts: Vec<_> = candidates.iter().map(|c| Sequence::of(prompt, c)).collect();
        let scored = scorer.score(&texts.iter().collect::<Vec<_>>()).unwrap();
        let means: Vec<f64> = scored.iter().map(|s| s.logprob / s.tokens as f64).collect();
        sum += means.iter().map(|mean| mean.exp()).sum::<f64>().ln() - means[answers[0]];
    }
    sum / choices.len() as f64
}

/// The batch of a step: each example once, then again.
fn batch(all: &[Example], step: u64) -> Vec<&Example> {
    let first = step as usize * BATCH;
    (first..first + BATCH).map(|at| &all[at % all.len()]).collect()
}

fn median(losses: &[f64]) -> f64 {
    let mut sorted = losses.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn by_gradients(base: Arc<Checkpoint>, space: FirstOrderSpace) -> FirstOrder {
    let choice = ChoiceLoss::Candidates;
    let options = FirstOrderOptions { space, choice, ..FirstOrderOptions::default() };
    FirstOrder::new(base, options).unwrap()
}

/// A small random model that was taught by gradients where the labels part.
fn taught(examples: &[Example]) -> (tempfile::TempDir, Arc<Checkpoint>) {
    let base = Arc::new(checkpoint("llama_linear"));
    let mut teacher = by_gradients(base, FirstOrderSpace::Full(TensorNames::All));
    for step in 0..150 {
        teacher.step(step, 2e-3, &batch(examples, step)).unwrap();
    }
    assert!(loss(&mut teacher, examples) < 0.3, "the first rule is known");
    let folder = tempfile::tempdir().unwrap();
    teacher.write_variant(folder.path()).unwrap();
    let taught = Arc::new(Checkpoint::open(folder.path()).unwrap());
    (folder, taught)
}

#[test]
fn another_rule_is_learned_from_losses_and_better_from_gradients() {
    let (_folder, base) = taught(&rule(28, 0..256));
    let (train, held_out) = (rule(18, 256..512), rule(18, 512..640));
    let mut gradients = by_gradients(Arc::clone(&base), FirstOrderSpace::default());
    for step in 0..100 {
        gradients.step(step, 1e-3, &batch(&train, step)).unwrap();
    }
    let better = loss(&mut gradients, &held_out);
    let cpu = cpu(1);
    let (mut begun, mut reached) = (0.0, 0.0);
    for seed in 1..4 {
        let space = FullOptions { seed, ..FullOptions::default() };
        let space = Box::new(FullSpace::new(&cpu, Arc::clone(&base), &space).unwrap());
        let options = ZerothOrderOptions {
            options: json!({"eps": 1e-3, "directions": 8}),
            auto_rate: Some(RateOptions { steps: STEPS as u32, ..RateOptions::default() }),
            ..ZerothOrderOptions::default()
        };
        let objective = Box::new(Classification);
        let mut trainer = ZerothOrderTrainer::new(&cpu, space, objective, &options).unwrap();
        let before = loss(&mut trainer, &held_out);
        let step = |step| trainer.step(step, f64::NAN, &batch(&train, step)).unwrap().loss;
        let told: Vec<f64> = (0..STEPS).map(step).collect();
        let (first, last) = (median(&told[..100]), median(&told[200..]));
        let after = loss(&mut trainer, &held_out);
        println!("seed {seed}: {first} to {last}; held out {before} to {after}, {better}");
        assert!(last < 0.95 * first, "seed {seed}: training loss {first} to {last}");
        (begun, reached) = (begun + before / 3.0, reached + after / 3.0);
        assert!(better < after, "seed {seed}: {better} by gradients, {after} without");
    }
    assert!(reached < 0.99 * begun, "held out, in the mean: {begun} to {reached}");
}
