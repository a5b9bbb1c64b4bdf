//! What a run drives.

use std::path::Path;

use super::{Example, Scorer};
use crate::Error;

/// What a step did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepReport {
    /// The loss of the batch at the weights before the step, or the mean of those near them.
    pub loss: f64,
    /// Tokens that were run through the model, once each however often they were.
    pub tokens: usize,
    /// Further numbers for the log, by name: `grad_norm`, `projected_gradient`.
    pub numbers: Vec<(&'static str, f64)>,
}

/// A model in training. A step is a function of the state, the step's number, the rate and the batch.
pub trait Trainer: Scorer {
    /// Makes step `step`, counted from 0.
    ///
    /// # Errors
    /// If the model cannot run the batch; the state is then as before.
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error>;

    /// Further metrics of held-out examples as the model is now, by name: what an evaluation by
    /// [`Scorer`] alone cannot see. There are none unless a trainer has some.
    ///
    /// # Errors
    /// Those of `examples`, or if the model cannot run them.
    fn measure(
        &mut self,
        examples: &mut dyn Iterator<Item = Result<Example, Error>>,
    ) -> Result<Vec<(String, f64)>, Error> {
        let _ = examples;
        Ok(Vec::new())
    }

    /// Carries out what steps left to be done later. Before it the model says nothing but what
    /// [`Scorer`] asks of it.
    ///
    /// # Errors
    /// If weights are on a disk that fails.
    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes sure that all processes that make the run together hold the same weights, to the bit. One
    /// that works alone does. They are [settled](Trainer::settle), as for what is written.
    ///
    /// # Errors
    /// [`ExchangeError::Disagree`](super::ExchangeError::Disagree) with the first tensor that differs.
    fn agree(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Writes all that [`Trainer::restore`] needs as files into `folder`, which is empty.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<(), Error>;

    /// Takes up the state that [`Trainer::save`] wrote.
    ///
    /// # Errors
    /// If a file is missing, damaged or another run's.
    fn restore(&mut self, folder: &Path) -> Result<(), Error>;

    /// Writes what was learned into `folder` in the form in which it is served: an adapter as PEFT
    /// saves it, or a whole model's weights.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn write_variant(&self, folder: &Path) -> Result<(), Error>;
}
