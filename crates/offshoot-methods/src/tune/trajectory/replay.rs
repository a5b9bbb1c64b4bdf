//! From a trajectory back to the updates of its run.

use std::sync::Arc;

use serde::Serialize;

use super::{Damage, Part, Reading, Trajectory, TrajectoryError};
use crate::Error;
use crate::tune::{Layout, MethodCard, Setting, Update, ZerothOrder};
/// A step, made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// Which of the trajectory's parts it is of.
    pub part: usize,
    /// Its number.
    pub step: u32,
    /// Its learning rate.
    pub rate: f64,
    /// Whether it did nothing because a loss was not finite.
    pub skipped: bool,
    /// What it does to the weights, the part's weight included. Directions are drawn with the seed
    /// and the distribution of the part's header.
    pub update: Update,
}

/// The updates of a trajectory in their order; ends with the first error.
#[derive(Debug)]
pub struct Replay<'a> {
    parts: &'a [Part],
    layout: Arc<Layout>,
    part: usize,
    at: usize,
    base: f64,
    method: Option<Box<dyn ZerothOrder>>,
}

impl Part {
    /// The method of the run, before the first step.
    ///
    /// # Errors
    /// If the header's method is not known or does not take its options or the layout.
    pub fn method(&self, layout: &Arc<Layout>) -> Result<Box<dyn ZerothOrder>, TrajectoryError> {
        let header = &self.header;
        let got = layout.hash();
        if got != header.tensors {
            return Err(TrajectoryError::Layout { expected: header.tensors, got });
        }
        if header.first_step != 0 {
            return Err(TrajectoryError::Beginning(header.first_step));
        }
        let (seed, decay) = (header.seed, header.decay);
        let setting = Setting { seed, layout: layout.clone(), decay };
        let card = MethodCard::named(&header.method.name)?;
        Ok(card.start(&header.method.options, &setting)?)
    }

    /// The method of the run, after its last step: what goes on from there goes on as the run would
    /// have.
    ///
    /// # Errors
    /// As [`Self::method`], or if a record does not fit.
    pub fn resume(&self, layout: &Arc<Layout>) -> Result<Box<dyn ZerothOrder>, TrajectoryError> {
        let mut method = self.method(layout)?;
        let mut base = self.header.rate;
        for (step, kept) in (0..).zip(&self.steps) {
            base = kept.rate.unwrap_or(base);
            method.replay(step, self.header.schedule.rate(base, step), &kept.record)?;
        }
        Ok(method)
    }
}

impl Trajectory {
    /// The updates of all parts, one after the other.
    ///
    /// # Errors
    /// If a part's method cannot be started on `layout`.
    pub fn replay(&self, layout: &Arc<Layout>) -> Result<Replay<'_>, TrajectoryError> {
        for part in &self.parts {
            part.method(layout)?;
        }
        let (parts, layout) = (&self.parts[..], layout.clone());
        Ok(Replay { parts, layout, part: 0, at: 0, base: 0.0, method: None })
    }
}

impl Replay<'_> {
    fn step(&mut self, part: &Part) -> Result<Replayed, TrajectoryError> {
        let mut method = match self.method.take() {
            Some(method) => method,
            None => {
                self.base = part.header.rate;
                part.method(&self.layout)?
            }
        };
        let kept = &part.steps[self.at];
        self.base = kept.rate.unwrap_or(self.base);
        let step = self.at as u32;
        let rate = part.header.schedule.rate(self.base, step);
        let update = method.replay(step, rate, &kept.record)?;
        self.method = Some(method);
        self.at += 1;
        let update = weighted(update, part.header.weight);
        Ok(Replayed { part: self.part, step, rate, skipped: kept.record.skipped, update })
    }
}

impl Iterator for Replay<'_> {
    type Item = Result<Replayed, TrajectoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let parts = self.parts;
        while self.at == parts.get(self.part)?.steps.len() {
            self.part += 1;
            self.at = 0;
            self.method = None;
        }
        let replayed = self.step(&parts[self.part]);
        if replayed.is_err() {
            self.part = parts.len();
        }
        Some(replayed)
    }
}

/// `update` with its change multiplied by `weight`.
fn weighted(mut update: Update, weight: f64) -> Update {
    if weight == 1.0 {
        return update;
    }
    let times = |x: f32| (weight * f64::from(x)) as f32;
    match &mut update {
        Update::Linear { terms, .. } => terms.iter_mut().for_each(|t| t.scale = times(t.scale)),
        Update::Moments { rate, .. } => *rate = times(*rate),
    }
    update
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// Steps whose bytes are whole.
    pub steps: usize,
    /// What is damaged behind them.
    pub damage: Option<Damage>,
    /// Steps that were made again from their records, if a layout was given.
    pub replayed: Option<usize>,
}

/// Checks the bytes of a trajectory: their checksums, that methods are known and take their
/// options, and, given the layout of what is tuned, that every record is one that the method can
/// have made.
///
/// # Errors
/// If the header is not whole, the layout is another, or a method refuses its options or a record.
pub fn verify(bytes: &[u8], layout: Option<&Arc<Layout>>) -> Result<Verification, TrajectoryError> {
    let Reading { trajectory, damage } = Trajectory::read(bytes)?;
    let steps = trajectory.parts.iter().map(|part| part.steps.len()).sum();
    for part in &trajectory.parts {
        MethodCard::named(&part.header.method.name)?;
        part.header.schedule.validate()?;
    }
    let replayed = match layout {
        None => None,
        Some(layout) => {
            let mut count = 0;
            for replayed in trajectory.replay(layout)? {
                replayed?;
                count += 1;
            }
            Some(count)
        }
    };
    Ok(Verification { steps, damage, replayed })
}

impl TrajectoryError {
    /// The error of a method, if it is one.
    pub fn as_method(&self) -> Option<&Error> {
        match self {
            Self::Method(error) => Some(error),
            _ => None,
        }
    }
}
