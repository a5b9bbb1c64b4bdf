//! What all methods have in common: the order of a step, the rule for losses that are no numbers,
//! and the two ways, by losses and by records, to the same update.

use super::probing::{Guards, ProbeOptions};
use super::{Direction, Form, Guarded, Plan, Probe, Record, Setting, Term, Update, ZerothOrder};
use crate::Error;

/// What a rule wants to know next, or what it now knows.
pub(crate) enum Measure {
    /// The losses at these points.
    Ask(Vec<Probe>),
    /// The step's numbers.
    Numbers(Vec<f64>),
}

/// Where in a step a rule is.
pub(crate) struct Moment<'a> {
    pub(crate) step: u32,
    pub(crate) rate: f64,
    pub(crate) guards: &'a Guards,
    /// The losses of the plans before, one list a plan.
    pub(crate) told: &'a [Vec<f64>],
}

/// What is a method's own: along what it measures, and what it makes of the numbers.
pub(crate) trait Rule: std::fmt::Debug + Send {
    /// Along what step `step` measures.
    fn directions(&self, step: u32) -> Vec<Direction>;

    /// How it measures; two-sided along all directions at once unless a method says otherwise.
    fn measure(&self, probe: &ProbeOptions, moment: &Moment) -> Measure {
        match moment.told {
            [] => Measure::Ask(probe.two_sided(&self.directions(moment.step), &[])),
            [losses, ..] => Measure::Numbers(probe.slopes(losses)),
        }
    }

    /// The step's update, from the numbers that the guards let through. This is the one place where
    /// a method's state changes. Plain descent unless a method says otherwise.
    fn update(&mut self, step: u32, rate: f64, decay: f32, numbers: &[f32]) -> Update {
        Update::Linear { decay, terms: mean_terms(&self.directions(step), rate, numbers) }
    }

    /// How many numbers step `step` measures.
    fn numbers(&self, step: u32) -> usize {
        self.directions(step).len()
    }

    /// How many losses step `step` asks for at most.
    fn forwards(&self, step: u32) -> usize {
        2 * self.numbers(step)
    }

    /// A direction like those of step `step`.
    fn like(&self, step: u32) -> Direction {
        self.directions(step).into_iter().next().unwrap_or_else(|| Direction::dense(step, 0))
    }

    /// What a slope that lasts is multiplied by.
    fn gain(&self) -> f64 {
        1.0
    }

    /// Batches that a step goes through by itself.
    fn local_steps(&self) -> Option<u32> {
        None
    }
}

/// `rate / n * number` of each of `n` directions; those of scale zero are left out, which changes
/// no bit of the sum.
pub(crate) fn mean_terms(directions: &[Direction], rate: f64, numbers: &[f32]) -> Vec<Term> {
    let n = numbers.len() as f64;
    let scale = |number: f32| (rate * f64::from(number) / n) as f32;
    let terms = directions.iter().zip(numbers);
    let terms = terms.map(|(d, &g)| Term { scale: scale(g), direction: d.clone() });
    terms.filter(|term| term.scale != 0.0).collect()
}

/// The independent directions `0..n` of a step.
pub(crate) fn dense_directions(step: u32, n: u32) -> Vec<Direction> {
    (0..n).map(|index| Direction::dense(step, index)).collect()
}

/// The same of another form than dense.
pub(crate) fn formed_directions(step: u32, n: u32, form: Form) -> Vec<Direction> {
    let dense = dense_directions(step, n).into_iter();
    dense.map(|direction| Direction { form, ..direction }).collect()
}

/// A rule in its run.
#[derive(Debug)]
pub(crate) struct Stepper<R> {
    rule: R,
    probe: ProbeOptions,
    guards: Guards,
    decay: f64,
    step: u32,
    rate: f64,
    /// What the step has been told.
    told: Vec<Vec<f64>>,
    /// How many losses the last plan asked for.
    asked: usize,
    record: Record,
    guarded: Guarded,
}

impl<R: Rule + 'static> Stepper<R> {
    pub(crate) fn boxed(
        rule: R,
        probe: ProbeOptions,
        setting: &Setting,
    ) -> Result<Box<dyn ZerothOrder>, Error> {
        let decay = setting.decay;
        super::probing::within("decay", decay, 0.0..=1e6, "between 0 and a million")?;
        let guards = Guards::new(&probe);
        let (told, record, guarded) = (Vec::new(), Record::default(), Guarded::default());
        let (step, rate, asked) = (0, 0.0, 0);
        Ok(Box::new(Self { rule, probe, guards, decay, step, rate, told, asked, record, guarded }))
    }

    fn advance(&mut self) -> Plan {
        let Self { step, rate, guards, told, .. } = &*self;
        let moment = Moment { step: *step, rate: *rate, guards, told };
        match self.rule.measure(&self.probe, &moment) {
            Measure::Ask(probes) => {
                self.asked = probes.len();
                Plan::Evaluate(probes)
            }
            Measure::Numbers(numbers) => {
                let numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
                if numbers.iter().all(|number| number.is_finite()) {
                    Plan::Update(self.finish(numbers))
                } else {
                    self.skip()
                }
            }
        }
    }

    /// Ends the step with nothing done: its state is as before.
    fn skip(&mut self) -> Plan {
        self.record = Record { skipped: true, numbers: Vec::new() };
        self.guarded = Guarded::default();
        Plan::Update(Update::nothing())
    }

    fn finish(&mut self, numbers: Vec<f32>) -> Update {
        let (kept, guarded) = self.guards.judge(&numbers);
        self.guards.remember(&numbers);
        self.guarded = guarded;
        self.record = Record { skipped: false, numbers };
        let decay = (self.rate * self.decay) as f32;
        self.rule.update(self.step, self.rate, decay, &kept)
    }

    fn start(&mut self, step: u32, rate: f64) {
        self.step = step;
        self.rate = rate;
        self.told.clear();
    }
}

impl<R: Rule + 'static> ZerothOrder for Stepper<R> {
    fn begin(&mut self, step: u32, rate: f64) -> Plan {
        self.start(step, rate);
        self.advance()
    }

    fn answer(&mut self, losses: &[f64]) -> Plan {
        if losses.len() != self.asked || losses.iter().any(|loss| !loss.is_finite()) {
            return self.skip();
        }
        self.told.push(losses.to_vec());
        self.advance()
    }

    fn record(&self) -> &Record {
        &self.record
    }

    fn guarded(&self) -> Guarded {
        self.guarded
    }

    fn replay(&mut self, step: u32, rate: f64, record: &Record) -> Result<Update, Error> {
        self.start(step, rate);
        if record.skipped {
            self.skip();
            return Ok(Update::nothing());
        }
        let expected = self.rule.numbers(step);
        let is_finite = record.numbers.iter().all(|number| number.is_finite());
        if record.numbers.len() != expected || !is_finite {
            return Err(Error::Record { step, expected, got: record.numbers.len() });
        }
        Ok(self.finish(record.numbers.clone()))
    }

    fn forwards(&self, step: u32) -> usize {
        self.rule.forwards(step)
    }

    fn like(&self, step: u32) -> Direction {
        self.rule.like(step)
    }

    fn gain(&self) -> f64 {
        self.rule.gain()
    }

    fn local_steps(&self) -> Option<u32> {
        self.rule.local_steps()
    }
}
