//! What drafting is worth on real prompts: each drafter alone and all together, beside plain
//! decoding, in turns.

use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::Prior;
use serde::Serialize;

use super::{SpecStats, Speculator};
use crate::bench::median;
use crate::{Control, Error, GenerateOptions, Model, Session};

/// What is compared.
#[derive(Debug)]
pub struct SpecArm {
    /// Its name in reports.
    pub name: String,
    /// Its drafters; `None` is plain decoding.
    pub speculator: Option<Speculator>,
}

/// How it is compared.
#[derive(Debug, Clone)]
pub struct SpecBenchOptions {
    /// Tokens of each answer.
    pub max_tokens: usize,
    /// Repetitions; medians are given.
    pub rounds: usize,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
}

/// One arm on one workload.
#[derive(Debug, Clone, Serialize)]
pub struct ArmResult {
    /// Its name.
    pub arm: String,
    /// Tokens of all answers of a round.
    pub tokens: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens a second behind the first of each answer: the median round.
    pub tokens_per_s: f64,
    /// Times the rate of plain decoding: the median round.
    pub speedup: f64,
    /// Tokens a step.
    pub tokens_per_step: f64,
    /// Tokens a step that the trees promised.
    pub predicted_tokens_per_step: f64,
    /// Guesses a step.
    pub guesses_per_step: f64,
    /// Milliseconds of a step: drafting, checking and keeping.
    pub ms_per_step: f64,
    /// Milliseconds of it in drafting.
    pub draft_ms_per_step: f64,
    /// Right guesses by drafter.
    pub accepted: std::collections::BTreeMap<String, usize>,
    /// Tokens that differ from those of plain decoding, or in a later round from the first.
    pub differences: usize,
}

/// A workload's results.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadResult {
    /// What kind of prompts it has.
    pub kind: String,
    /// Its prompts.
    pub prompts: usize,
    /// By arm.
    pub arms: Vec<ArmResult>,
}

/// What a drafter's scores turned out to be worth: hits and guesses, by class and score.
#[derive(Debug, Clone, Serialize)]
pub struct Learned {
    /// The arm.
    pub arm: String,
    /// The drafter.
    pub drafter: String,
    /// Hits and guesses seen.
    pub counts: Prior,
    /// Mean squared error of its chances.
    pub brier: f32,
}

/// What the arms have learned so far.
pub fn learned(arms: &[SpecArm]) -> Vec<Learned> {
    let each = arms.iter().filter_map(|arm| Some((arm, arm.speculator.as_ref()?)));
    each.flat_map(|(arm, speculator)| {
        let names = speculator.stats().drafters.iter();
        names.zip(speculator.calibrations()).map(|(drafter, calibration)| Learned {
            arm: arm.name.clone(),
            drafter: drafter.name.to_owned(),
            counts: calibration.counts(),
            brier: calibration.brier(),
        })
    })
    .collect()
}

/// Counts and seconds of one arm.
#[derive(Debug, Clone, Default)]
struct Sums {
    tokens: usize,
    /// Answers, whose first tokens belong to the prompt's time.
    answers: usize,
    prompt_tokens: usize,
    /// Seconds of each round.
    rounds: Vec<f64>,
    spec: SpecStats,
    accepted: std::collections::BTreeMap<String, usize>,
    differences: usize,
    texts: Vec<Vec<u32>>,
}

/// Answers every prompt with every arm, `rounds` times in turns. The first arm is what the others
/// are compared with. Each round begins with what was believed of the drafters before the first: who
/// learned from an answer would only repeat it.
///
/// # Errors
/// As [`Session::generate`].
pub fn measure_spec(
    model: &Model,
    session: &mut Session,
    (kind, prompts): (&str, &[Vec<u32>]),
    arms: &mut [SpecArm],
    options: &SpecBenchOptions,
    mut progress: impl FnMut(&str),
) -> Result<WorkloadResult, Error> {
    let generate = GenerateOptions {
        sampling: options.sampling.clone(),
        max_tokens: Some(options.max_tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut sums = vec![Sums::default(); arms.len()];
    let before = arms.iter().map(|arm| arm.speculator.as_ref().map(Speculator::beliefs));
    let before: Vec<_> = before.collect();
    for round in 0..options.rounds.max(1) {
        for (arm, before) in arms.iter_mut().zip(&before) {
            if let (Some(speculator), Some(before)) = (&mut arm.speculator, before) {
                speculator.go_back(before);
            }
        }
        sums.iter_mut().for_each(|sum| sum.rounds.push(0.0));
        for (number, prompt) in prompts.iter().enumerate() {
            for (arm, sum) in arms.iter_mut().zip(&mut sums) {
                progress(&format!("{kind} {}/{}: {}", number + 1, prompts.len(), arm.name));
                session.truncate(0);
                let mine = arm.speculator.take();
                let before = session.set_speculator(mine);
                let answer = session.generate(model, prompt, &generate, |_| Control::Continue);
                arm.speculator = session.set_speculator(before);
                let answer = answer?;
                sum.rounds[round] += answer.timings.decode.as_secs_f64();
                if let Some(text) = sum.texts.get(number) {
                    sum.differences += differences(&answer.tokens, text);
                    continue;
                }
                sum.tokens += answer.tokens.len();
                sum.answers += 1;
                sum.prompt_tokens += answer.prompt_tokens;
                if let Some(spec) = &answer.spec {
                    sum.add(spec);
                }
                sum.texts.push(answer.tokens);
            }
        }
    }
    let plain = sums[0].clone();
    for sum in &mut sums {
        let pairs = sum.texts.iter().zip(&plain.texts);
        sum.differences += pairs.map(|(a, b)| differences(a, b)).sum::<usize>();
    }
    let results = arms.iter().zip(&sums).map(|(arm, sum)| sum.result(&arm.name, &plain));
    Ok(WorkloadResult { kind: kind.to_owned(), prompts: prompts.len(), arms: results.collect() })
}

/// Places at which two texts differ, and what one has more than the other.
fn differences(a: &[u32], b: &[u32]) -> usize {
    let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
    differ + a.len().abs_diff(b.len())
}

impl Sums {
    fn add(&mut self, spec: &SpecStats) {
        self.spec.steps += spec.steps;
        self.spec.tokens += spec.tokens;
        self.spec.guesses += spec.guesses;
        self.spec.promised += spec.promised;
        self.spec.draft += spec.draft;
        self.spec.check += spec.check;
        self.spec.commit += spec.commit;
        for drafter in &spec.drafters {
            *self.accepted.entry(drafter.name.to_owned()).or_default() += drafter.accepted;
        }
    }

    fn result(&self, name: &str, plain: &Sums) -> ArmResult {
        let timed = self.tokens - self.answers;
        let rates: Vec<f64> = self.rounds.iter().map(|s| timed as f64 / s).collect();
        let ratios: Vec<f64> = self.rounds.iter().zip(&plain.rounds).map(|(a, b)| b / a).collect();
        let spec = &self.spec;
        let steps = if spec.steps == 0 { timed } else { spec.steps }.max(1) as f64;
        let plain_ms = 1e3 * median(&self.rounds) / steps;
        let all = (spec.draft + spec.check + spec.commit).as_secs_f64() * 1e3 / steps;
        ArmResult {
            arm: name.to_owned(),
            tokens: self.tokens,
            prompt_tokens: self.prompt_tokens,
            tokens_per_s: median(&rates),
            speedup: median(&ratios),
            tokens_per_step: if spec.steps == 0 { 1.0 } else { spec.tokens_per_step() },
            predicted_tokens_per_step: if spec.steps == 0 { 1.0 } else { spec.promised_per_step() },
            guesses_per_step: spec.guesses as f64 / steps,
            ms_per_step: if spec.steps == 0 { plain_ms } else { all },
            draft_ms_per_step: spec.draft.as_secs_f64() * 1e3 / steps,
            accepted: self.accepted.clone(),
            differences: self.differences,
        }
    }
}
