//! What does not change a loss: other points, other texts, how they are cut into steps, threads.

use offshoot_engine::tune::zeroth_order::{
    Classification, CrossEntropy, Objective, StepLimits, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Scorer, Sequence};
use offshoot_methods::tune::{Direction, Probe, Term};

use crate::setting::{choices, cpu, lora, probe, texts, trainer};

fn bits(losses: &[f64]) -> Vec<u64> {
    losses.iter().map(|loss| loss.to_bits()).collect()
}

fn losses(
    threads: usize,
    limits: StepLimits,
    objective: impl Objective + 'static,
    batch: &[Example],
    one_by_one: bool,
) -> Vec<f64> {
    let cpu = cpu(threads);
    let mut trainer = trainer(&cpu, lora("qwen2_tied", &cpu), objective, limits);
    let batch: Vec<&Example> = batch.iter().collect();
    let two = Probe {
        terms: (0..2).map(|i| Term { scale: 0.02, direction: Direction::dense(3, i) }).collect(),
    };
    let probes = [probe(0, 1e-2), probe(0, -1e-2), Probe::default(), two];
    match one_by_one {
        true => probes
            .iter()
            .flat_map(|p| trainer.losses(std::slice::from_ref(p), &batch).unwrap())
            .collect(),
        false => trainer.losses(&probes, &batch).unwrap(),
    }
}

#[test]
fn how_a_batch_is_cut_and_who_runs_it_changes_no_bit_of_a_loss() {
    let batch = texts(9);
    let whole = losses(2, StepLimits::default(), CrossEntropy, &batch, false);
    assert!(whole.windows(2).all(|pair| pair[0] != pair[1]));
    for rows in [1, 10, 37] {
        let limits = StepLimits { rows, ..StepLimits::default() };
        assert_eq!(bits(&losses(2, limits, CrossEntropy, &batch, false)), bits(&whole));
    }
    let limits = StepLimits { rows: 5, ..StepLimits::default() };
    for threads in [1, 3] {
        assert_eq!(bits(&losses(threads, limits, CrossEntropy, &batch, false)), bits(&whole));
    }
    assert_eq!(bits(&losses(1, StepLimits::default(), CrossEntropy, &batch, true)), bits(&whole));
}

#[test]
fn candidates_that_share_their_prompt_score_as_texts_of_their_own() {
    let cpu = cpu(2);
    for name in ["llama_linear", "qwen2_tied", "gemma3_linear", "mistral_window"] {
        let mut trainer = trainer(&cpu, lora(name, &cpu), Classification, StepLimits::default());
        for example in choices() {
            let shared = trainer.losses(&[Probe::default()], &[&example]).unwrap()[0];
            let Example::Choice { prompt, candidates, answers } = &example else { unreachable!() };
            let texts: Vec<_> = candidates.iter().map(|c| Sequence::of(prompt, c)).collect();
            let scored = trainer.score(&texts.iter().collect::<Vec<_>>()).unwrap();
            let means: Vec<f64> = scored.iter().map(|s| s.logprob / s.tokens as f64).collect();
            let total = means.iter().map(|mean| mean.exp()).sum::<f64>().ln();
            let apart = total - means[answers[0]];
            assert!((shared - apart).abs() < 1e-5, "{name}: {shared} {apart}");
        }
    }
}

#[test]
fn a_choice_runs_its_prompt_once() {
    let cpu = cpu(1);
    let mut trainer =
        trainer(&cpu, lora("qwen2_tied", &cpu), Classification, StepLimits::default());
    let batch = choices();
    let rows = |trainer: &mut ZerothOrderTrainer, i: usize| {
        let before = trainer.rows();
        trainer.losses(&[Probe::default(), probe(0, 1e-2)], &[&batch[i]]).unwrap();
        trainer.rows() - before
    };
    // Two points each; of candidates, all but the last tokens, once each.
    assert_eq!(rows(&mut trainer, 0), 2 * 5);
    assert_eq!(rows(&mut trainer, 1), 2 * (6 + 2));
    assert_eq!(rows(&mut trainer, 2), 2 * (7 + 4));
}
