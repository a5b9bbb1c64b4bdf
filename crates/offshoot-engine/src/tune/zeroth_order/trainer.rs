//! Carries a method's plans out.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_methods::tune::{MethodCard, Plan, Probe, Setting, ZerothOrder};
use offshoot_models::PackedExecutor;
use serde_json::Value;

use super::forward::{Forward, StepLimits, TokenScore};
use super::objective::{Objective, Points, mean};
use super::space::Space;
use super::tree::TextTree;
use crate::Error;
use crate::tune::{Example, Scored, Scorer, Sequence, StepReport, Trainer};

/// Steps in a row whose losses were no numbers, after which a run ends.
const LOST_MAX: usize = 20;

/// How a space is tuned.
#[derive(Debug, Clone, PartialEq)]
pub struct ZerothOrderOptions {
    /// The method's name in [`METHODS`](offshoot_methods::tune::METHODS).
    pub method: String,
    /// What its options are other than its defaults.
    pub options: Value,
    /// Decoupled weight decay: a step at rate `eta` takes `eta * decay` of each weight.
    pub decay: f64,
    /// What a step may take.
    pub limits: StepLimits,
}

impl Default for ZerothOrderOptions {
    fn default() -> Self {
        Self {
            method: "mezo".to_owned(),
            options: Value::Null,
            decay: 0.0,
            limits: StepLimits::default(),
        }
    }
}

/// A space, an objective and a method, and the executor that they share.
#[derive(Debug)]
pub struct ZerothOrderTrainer {
    space: Box<dyn Space>,
    objective: Box<dyn Objective>,
    method: Box<dyn ZerothOrder>,
    forward: Forward,
    /// Steps in a row that did nothing, as a loss was no number.
    lost: usize,
}

impl ZerothOrderTrainer {
    /// Tunes `space` so that `objective` becomes less.
    ///
    /// # Errors
    /// [`Error::Method`] if there is no such method, or its options are wrong.
    pub fn new(
        cpu: &Cpu,
        space: Box<dyn Space>,
        objective: Box<dyn Objective>,
        options: &ZerothOrderOptions,
    ) -> Result<Self, Error> {
        let setting = Setting {
            seed: space.seed(),
            layout: Arc::new(space.layout().clone()),
            decay: options.decay,
        };
        let method = MethodCard::named(&options.method)?.start(&options.options, &setting)?;
        let executor = PackedExecutor::new(cpu.clone(), space.model().config());
        let forward = Forward::new(executor, options.limits);
        Ok(Self { space, objective, method, forward, lost: 0 })
    }

    /// What is tuned.
    pub fn space(&self) -> &dyn Space {
        &*self.space
    }

    /// Tokens that were run through the model so far, once for each point.
    pub fn rows(&self) -> usize {
        self.forward.rows
    }

    /// The losses of `batch` at `probes`.
    ///
    /// # Errors
    /// If an example is not what the objective takes, or the model cannot run it.
    pub fn losses(&mut self, probes: &[Probe], batch: &[&Example]) -> Result<Vec<f64>, Error> {
        let Self { space, forward, objective, .. } = self;
        let mut points = Points { forward, space: &mut **space, probes };
        let parts = objective.parts(&mut points, batch)?;
        Ok(parts.iter().map(|parts| mean(parts)).collect())
    }
}

impl Trainer for ZerothOrderTrainer {
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error> {
        let number = u32::try_from(step)
            .map_err(|_| Error::Training(format!("step {step}: at most {}", u32::MAX)))?;
        let rows = self.forward.rows;
        let mut plan = self.method.begin(number, rate);
        let mut all = Vec::new();
        let update = loop {
            match plan {
                Plan::Evaluate(probes) => {
                    let losses = self.losses(&probes, batch)?;
                    plan = self.method.answer(&losses);
                    all.extend(losses);
                }
                Plan::Update(update) => break update,
            }
        };
        self.space.apply(&update)?;
        let record = self.method.record();
        self.lost = if record.skipped { self.lost + 1 } else { 0 };
        if self.lost >= LOST_MAX {
            return Err(Error::Training(format!(
                "the loss was no number in {LOST_MAX} steps in a row: take a smaller learning rate \
                 or eps"
            )));
        }
        Ok(StepReport {
            loss: all.iter().sum::<f64>() / all.len() as f64,
            tokens: self.forward.rows - rows,
            numbers: vec![
                ("points", all.len() as f64),
                ("skipped", f64::from(u8::from(record.skipped))),
            ],
        })
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        let _ = folder;
        Ok(())
    }

    fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        let _ = folder;
        Ok(())
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.space.write_variant(folder)
    }
}

impl Scorer for ZerothOrderTrainer {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        let texts: Vec<_> = sequences.iter().map(|sequence| TextTree::of(sequence)).collect();
        let scores = self.forward.score(&mut *self.space, &[Probe::default()], &texts)?;
        let scored = |scores: Vec<TokenScore>| Scored {
            logprob: scores.iter().fold(0.0, |sum, score| sum + score.logprob),
            tokens: scores.len(),
            greedy: scores.iter().filter(|score| score.greatest).count(),
        };
        Ok(scores.into_iter().flatten().map(scored).collect())
    }

    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let probes = [Probe::default()];
        let made = self.forward.generate(&mut *self.space, &probes, prompts, max_tokens)?;
        Ok(made.into_iter().flatten().collect())
    }
}
