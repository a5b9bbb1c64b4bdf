//! A run that several processes make.
//!
//! Process 0 drives the run: it has the folder, the log and the checkpoints, and decides when to
//! evaluate and when to end. The others follow: they are told what comes next, and do it.

use std::path::Path;
use std::rc::Rc;

use super::{BatchOrder, Checkpoints, Evaluate, Examples, Run, RunDescription, RunPlan, TRAINER};
use crate::tune::exchange::{Exchange, ExchangeError, Pieces, SharedScorer, Writer};
use crate::tune::{Example, Trainer};
use crate::{Control, Error};

/// Steps after which the weights of all processes are compared, beside checkpoints.
pub(super) const AGREE_EVERY: u64 = 100;

/// What all processes do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Command {
    /// Take up the trainer's state of the checkpoint after this many steps.
    Restore(u64),
    /// Make this step at this rate.
    Step(u64, f64),
    /// Evaluate the held-out examples together.
    Evaluate,
    /// Compare the weights.
    Agree,
    /// Nothing: the run is over, or pauses.
    End,
}

impl Command {
    /// Process 0 tells the others.
    pub(super) fn tell(self, exchange: &dyn Exchange) -> Result<(), ExchangeError> {
        let (what, step, rate) = match self {
            Self::Restore(step) => (0, step, 0.0),
            Self::Step(step, rate) => (1, step, rate),
            Self::Evaluate => (2, 0, 0.0),
            Self::Agree => (3, 0, 0.0),
            Self::End => (4, 0, 0.0),
        };
        let mut record = Writer(vec![what]);
        record.u64(step);
        record.f64(rate);
        exchange.broadcast(&record.0).map(|_| ())
    }

    fn hear(exchange: &dyn Exchange) -> Result<Self, ExchangeError> {
        let record = exchange.broadcast(&[])?;
        let mut pieces = Pieces::of(0, &record);
        let (what, step, rate) = (pieces.u8()?, pieces.u64()?, pieces.f64()?);
        Ok(match what {
            0 => Self::Restore(step),
            1 => Self::Step(step, rate),
            2 => Self::Evaluate,
            3 => Self::Agree,
            4 => Self::End,
            _ => return Err(pieces.wrong("it is no command")),
        })
    }
}

impl RunDescription {
    /// Makes sure that all processes were started alike, and gives them one description: that of process
    /// 0. Of a method whose rounds each makes of examples of its own, the examples are all of theirs.
    ///
    /// # Errors
    /// [`ExchangeError::Differs`] in those that were started otherwise.
    pub fn join(mut self, exchange: &dyn Exchange) -> Result<Self, Error> {
        if exchange.size() == 1 {
            return Ok(self);
        }
        let wrong = ExchangeError::Message { rank: 0, what: "it is no run's description" };
        let own_examples = self.config.has_local_steps();
        if own_examples {
            let mut digests = blake3::Hasher::new();
            let mut record = Writer::default();
            record.u64(self.examples as u64);
            record.0.extend(self.data.as_bytes());
            self.examples = 0;
            for (rank, record) in exchange.all_gather(&record.0)?.iter().enumerate() {
                self.examples += Pieces::of(rank, record).u64()? as usize;
                digests.update(record);
            }
            self.data = digests.finalize().to_hex().to_string();
        }
        let told = exchange.broadcast(&serde_json::to_vec(&self).unwrap_or_default())?;
        let mut first: Self = serde_json::from_slice(&told).map_err(|_| wrong)?;
        if own_examples {
            first.held_out_data.clone_from(&self.held_out_data);
        }
        let differences = first.differences(&self);
        match differences.is_empty() {
            true => Ok(self),
            false => Err(ExchangeError::Differs { rank: exchange.rank(), differences }.into()),
        }
    }
}

/// Follows a run of process 0 in `folder`, which this process reads only to take up a run that goes on.
/// `trainer` and the examples are as those of [`Run::drive`].
///
/// # Errors
/// Those of the trainer, and [`ExchangeError`] if another process is gone.
pub fn follow(
    folder: &Path,
    exchange: &Rc<dyn Exchange>,
    trainer: &mut dyn Trainer,
    (train, held_out): (&dyn Examples, &dyn Examples),
    plan: &RunPlan,
    evaluate: Evaluate<'_>,
) -> Result<(), Error> {
    let mut order = BatchOrder::new(plan.seed, train.count() as u32, plan.batch);
    loop {
        match Command::hear(&**exchange)? {
            Command::Restore(step) => {
                let checkpoints = Checkpoints::of(folder.join("checkpoints"), String::new());
                trainer.restore(&checkpoints.path(step).join(TRAINER))?;
            }
            Command::Step(step, rate) => {
                let batch = batch(&mut order, train, step)?;
                trainer.step(step, rate, &batch.iter().collect::<Vec<_>>())?;
            }
            Command::Evaluate => {
                let mut shared = SharedScorer { inner: trainer, exchange: &**exchange };
                let mut heard = |_| agreed(&**exchange, Control::Continue);
                match evaluate(&mut shared, held_out, &mut heard) {
                    // Process 0 says what comes next.
                    Err(Error::Stopped) => {}
                    measured => drop(measured?),
                }
            }
            Command::Agree => {
                trainer.settle()?;
                trainer.agree()?;
            }
            Command::End => return Ok(()),
        }
    }
}

/// Whether an evaluation goes on, which process 0 decides. One that is gone is noticed by what is
/// exchanged next.
pub(super) fn agreed(exchange: &dyn Exchange, own: Control) -> Control {
    let told = exchange.broadcast(&[u8::from(own == Control::Stop)]);
    match told.as_deref() {
        Ok([0]) | Err(_) => Control::Continue,
        Ok(_) => Control::Stop,
    }
}

/// The examples of step `step`.
pub(super) fn batch(
    order: &mut BatchOrder,
    train: &dyn Examples,
    step: u64,
) -> Result<Vec<Example>, Error> {
    order.batch(step).iter().map(|&i| train.example(i as usize)).collect()
}

impl Run {
    /// Drives the run as process 0 of `exchange`; the others [`follow`].
    #[must_use]
    pub fn leading(mut self, exchange: Rc<dyn Exchange>) -> Self {
        self.exchange = exchange;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunConfig;
    use super::super::description::tests::description;
    use super::*;
    use crate::tune::Threads;

    #[test]
    fn commands_are_heard_as_they_are_told() {
        let all = [
            Command::Restore(7),
            Command::Step(u64::MAX, -0.5),
            Command::Evaluate,
            Command::Agree,
            Command::End,
        ];
        Threads::run(3, |own| match own.rank() {
            0 => all.iter().for_each(|command| command.tell(&own).unwrap()),
            _ => all.iter().for_each(|told| assert_eq!(Command::hear(&own).unwrap(), *told)),
        });
    }

    #[test]
    fn who_was_started_otherwise_is_told_in_what() {
        let found = Threads::run(3, |own| {
            let mut description = description(RunConfig::default());
            if own.rank() == 2 {
                description.config.batch = 9;
                description.data = "f".repeat(64);
            }
            description.join(&own).map_err(|error| error.to_string())
        });
        assert!(found[0].is_ok() && found[1].is_ok());
        let told = found[2].as_ref().unwrap_err();
        for part in ["process 2 was started otherwise", "batch: 8 then, 9 now", "data: \"ddd"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn processes_with_examples_of_their_own_are_described_by_all_of_them() {
        let joined = |size: usize| {
            Threads::run(size, |own| {
                let config =
                    RunConfig { method: "fedkseed".parse().unwrap(), ..RunConfig::default() };
                let mut description = description(config);
                description.examples = own.rank() + 1;
                description.data = own.rank().to_string();
                description.join(&own).unwrap()
            })
        };
        let three = joined(3);
        assert!(three.iter().all(|one| (one.examples, &one.data) == (6, &three[0].data)));
        assert_ne!(joined(2)[0].data, three[0].data);
        assert_eq!(joined(1)[0].data, "0");
    }
}
