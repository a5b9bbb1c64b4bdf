//! Carries a method's plans out.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_methods::tune::{
    Hash, Layout, MethodCard, Plan, Probe, RateEstimate, RateOptions, Schedule, Setting, SpaceKind,
    Term, Trajectory, ZerothOrder, common_rate, differences,
};
use offshoot_models::PackedExecutor;
use serde_json::Value;

use super::dense::DensePoints;
use super::forward::{Forward, StepLimits, TokenScore};
use super::noise;
use super::objective::Objective;
use super::record::{Origin, Recorder, header, weights_hash};
use super::snapshot;
use super::space::Space;
use super::together::Share;
use super::tree::TextTree;
use crate::beside::write_whole;
use crate::tune::exchange::{Fingerprint, Pieces, agree, digest};
use crate::tune::{Alone, Example, Exchange, Scored, Scorer, Sequence, StepReport, Trainer};
use crate::{DenseDevice, DenseType, Error};

/// Steps in a row whose losses were no numbers, after which a run ends.
const LOST_MAX: u32 = 20;
/// What a run's trajectory is called.
pub const TRAJECTORY_FILE: &str = "trajectory.traj";
/// What the tuned tensors of a checkpoint are called.
const SNAPSHOT_FILE: &str = "tuned.safetensors";

/// How a space is tuned.
#[derive(Debug, Clone, PartialEq)]
pub struct ZerothOrderOptions {
    /// The method's name in [`METHODS`](offshoot_methods::tune::METHODS).
    pub method: String,
    /// What its options are other than its defaults.
    pub options: Value,
    /// Decoupled weight decay: a step at rate `eta` takes `eta * decay` of each weight.
    pub decay: f64,
    /// How the rate is found, if it is: the rates that steps are given do not count then.
    pub auto_rate: Option<RateOptions>,
    /// The course of the rates. Without a curve each change of a step's rate is kept by itself; with
    /// one, the rates that steps are given have to follow it.
    pub schedule: Schedule,
    /// What the run is made of.
    pub origin: Origin,
    /// What a step may take.
    pub limits: StepLimits,
}

impl Default for ZerothOrderOptions {
    fn default() -> Self {
        Self {
            method: "mezo".to_owned(),
            options: Value::Null,
            decay: 0.0,
            auto_rate: None,
            schedule: Schedule::default(),
            origin: Origin::default(),
            limits: StepLimits::default(),
        }
    }
}

/// A space, an objective and a method, and the executor that they share.
#[derive(Debug)]
pub struct ZerothOrderTrainer {
    pub(super) space: Box<dyn Space>,
    pub(super) objective: Box<dyn Objective>,
    pub(super) method: Box<dyn ZerothOrder>,
    pub(super) card: &'static MethodCard,
    pub(super) options: ZerothOrderOptions,
    pub(super) layout: Arc<Layout>,
    pub(super) forward: Forward,
    recorder: Recorder,
    /// Steps in a row that did nothing, as a loss was no number.
    lost: u32,
    /// What probes for a rate saw in this step.
    seen: Option<RateEstimate>,
    /// The processes that make the run, and how they share a step.
    pub(super) exchange: Rc<dyn Exchange>,
    pub(super) share: Share,
    /// How many examples this process has, where each has its own.
    pub(super) examples: u64,
    /// Tokens that the other processes ran.
    pub(super) rows_elsewhere: usize,
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
        let layout = Arc::new(space.layout().clone());
        let setting =
            Setting { seed: space.seed(), layout: Arc::clone(&layout), decay: options.decay };
        let card = MethodCard::named(&options.method)?;
        if let Some(only) = card.space.filter(|&only| only != space.kind()) {
            let (name, kind) = (card.name, space.kind());
            let what = format!("method {name} is for {only:?} alone, and this space is {kind:?}");
            return Err(Error::Training(what));
        }
        let method = card.start(&options.options, &setting)?;
        options.auto_rate.as_ref().map_or(Ok(()), RateOptions::validate)?;
        options.schedule.validate()?;
        let ZerothOrderOptions { origin, schedule, decay, .. } = options;
        let header = header(&*space, (card, &options.options), origin, *schedule, *decay);
        let executor = PackedExecutor::new(cpu.clone(), space.model().config());
        Ok(Self {
            space,
            objective,
            method,
            card,
            options: options.clone(),
            layout,
            forward: Forward::new(executor, options.limits),
            recorder: Recorder::start(header)?,
            lost: 0,
            seen: None,
            exchange: Rc::new(Alone),
            share: Share::default(),
            examples: 1,
            rows_elsewhere: 0,
        })
    }

    /// Makes every step together with the other processes of `exchange`. How they `share` it, and how
    /// many they are, changes no bit of the run, unless its method's steps are rounds that each makes of
    /// `examples` of its own.
    ///
    /// # Errors
    /// If the run's header cannot be written.
    pub fn among(
        mut self,
        exchange: Rc<dyn Exchange>,
        share: Share,
        examples: u64,
    ) -> Result<Self, Error> {
        if self.method.local_steps().is_some() {
            self.recorder.header.processes = exchange.size() as u32;
            self.recorder = Recorder::start(self.recorder.header)?;
        }
        (self.exchange, self.share, self.examples) = (exchange, share, examples);
        Ok(self)
    }

    /// Computes losses on the dense executor, on `device` in numbers of type `dtype`. What is
    /// tuned, directions, updates and the trajectory are as on the packed executor, to the bit
    /// where the same losses are given.
    ///
    /// # Errors
    /// [`Error::OnlyPacked`] if the space is one of the packed executor alone; as
    /// [`DensePoints::new`].
    pub fn on(mut self, device: DenseDevice, dtype: DenseType) -> Result<Self, Error> {
        let mut dense = DensePoints::new(self.space.model().checkpoint(), device, dtype)?;
        self.space.stand_on(&[Probe::default()], &mut dense)?;
        self.forward.dense = Some(dense);
        Ok(self)
    }

    /// The dense executor and the point at which it stands, if losses are computed on it.
    pub fn dense(&self) -> Option<&DensePoints> {
        self.forward.dense.as_ref()
    }

    /// What is tuned; its numbers can be read once the trainer is [settled](Trainer::settle).
    pub fn space(&self) -> &dyn Space {
        &*self.space
    }

    /// Tokens that were run through the model so far, once for each point.
    pub fn rows(&self) -> usize {
        self.forward.rows + self.rows_elsewhere
    }

    /// The run's trajectory as of now, as the bytes of its file.
    pub fn trajectory(&self) -> Vec<u8> {
        self.recorder.bytes(None)
    }

    /// The base of the schedule at `step`, whose rate is given as `rate` or found on `batch`.
    fn base_rate(&mut self, step: u32, rate: f64, batch: &[&Example]) -> Result<f64, Error> {
        let base = self.recorder.base_rate;
        if let Some(auto) = self.options.auto_rate {
            return match step.is_multiple_of(auto.interval) {
                true => {
                    let found = self.find_rate(step, auto, batch)?;
                    let told = self.exchange.broadcast(&found.to_le_bytes())?;
                    Ok(Pieces::of(0, &told).f64()?)
                }
                false => Ok(base),
            };
        }
        let schedule = self.options.schedule;
        if step > 0 && schedule.rate(base, step).to_bits() == rate.to_bits() {
            return Ok(base);
        }
        // The base that makes this rate, if the division undoes the multiplication.
        let share = schedule.rate(1.0, step);
        let found = if share == 0.0 { base } else { rate / share };
        match schedule.rate(found, step).to_bits() == rate.to_bits() {
            true => Ok(found),
            false => Err(Error::Training(format!(
                "step {step}: rate {rate} is not of the run's schedule, so no trajectory could make \
                 the step again"
            ))),
        }
    }

    /// A rate from the losses about the weights, or the field's common one if these say nothing.
    fn find_rate(
        &mut self,
        step: u32,
        auto: RateOptions,
        batch: &[&Example],
    ) -> Result<f64, Error> {
        let Some((like, directions)) = self.directions(step) else {
            return Ok(self.recorder.base_rate);
        };
        let eps = f64::from(like.scale.abs());
        let losses = self.losses(&auto.plan(&self.method.like(step), eps), batch)?;
        let estimate = auto.estimate(eps, &losses);
        let (unit, gain) = (self.card.unit, self.method.gain());
        let rate = estimate.and_then(|e| e.rate(&auto, directions, unit, gain));
        self.seen = estimate;
        let known = self.recorder.base_rate;
        let weights = self.space.model().weights() as u64;
        Ok(rate.unwrap_or_else(|| match (step, self.space.kind()) {
            (0, SpaceKind::Full) => self.card.rate,
            (0, kind) => common_rate(kind, weights).0,
            _ => known,
        }))
    }

    /// The first direction that step `step` asks along, and how many it asks along. The method begins
    /// the step anew after.
    fn directions(&mut self, step: u32) -> Option<(Term, u32)> {
        let Plan::Evaluate(asked) = self.method.begin(step, 1.0) else { return None };
        let mut terms: Vec<&Term> = asked.iter().filter_map(|probe| probe.terms.last()).collect();
        let like = terms.first().map(|term| (*term).clone())?;
        terms.dedup_by(|a, b| a.direction == b.direction);
        Some((like, terms.len() as u32))
    }

    /// The share of noise in what points differ by, where products round; an error if it is too great.
    fn measure_noise(&mut self, batch: &[&Example]) -> Result<Option<f64>, Error> {
        let Some((like, _)) = self.directions(0).filter(|_| self.space.rounds()) else {
            return Ok(None);
        };
        let probes = noise::probes(&like);
        let rounded = self.losses(&probes, batch)?;
        self.space.set_rounding(false);
        let float = self.losses(&probes, batch);
        self.space.set_rounding(true);
        let share = noise::share(&rounded, &float?);
        noise::check(share)?;
        Ok(Some(share))
    }

    /// Runs a step's plans to their end; the losses that were asked for.
    fn carry_out(&mut self, step: u32, rate: f64, batch: &[&Example]) -> Result<Vec<f64>, Error> {
        if let Some(local_steps) = self.method.local_steps() {
            return self.round(step, rate, batch, local_steps);
        }
        let mut plan = self.method.begin(step, rate);
        let mut all = Vec::new();
        loop {
            match plan {
                Plan::Evaluate(probes) => {
                    let losses = self.losses(&probes, batch)?;
                    plan = self.answer(step, rate, &losses)?;
                    all.extend(losses);
                }
                Plan::Update(update) => {
                    self.space.apply(step, &update)?;
                    return Ok(all);
                }
            }
        }
    }

    /// Takes up a run from the bytes of its trajectory: its method's state and, if there is no
    /// snapshot of them, its weights, made again step by step.
    ///
    /// # Errors
    /// If it is damaged or another run's.
    fn take_up(&mut self, bytes: &[u8], snapshot: Option<&Path>) -> Result<(), Error> {
        let trajectory = Trajectory::from_bytes(bytes)?;
        let [part] = &trajectory.parts[..] else {
            return Err(Error::Training("a merged trajectory cannot be gone on with".to_owned()));
        };
        let differing = differences(&self.recorder.header, &part.header)?;
        if let Some(field) = differing.iter().find(|d| d.field != "program" && d.field != "rate") {
            return Err(Error::Training(format!(
                "the checkpoint is another run's: {} is {}, here {}",
                field.field, field.right, field.left
            )));
        }
        self.method = part.resume(&self.layout)?;
        match snapshot {
            Some(path) => snapshot::read(path, &mut *self.space)?,
            None => super::replay::carry_out(&trajectory, &mut *self.space)?,
        }
        let steps = part.steps.len() as u32;
        let base_rate = match steps {
            0 => part.header.rate,
            _ => part.base_rate(part.next_step() - 1),
        };
        let header = part.header.clone();
        self.recorder = Recorder::resume(header, bytes, (steps, base_rate))?;
        let skipped = part.steps.iter().rev().take_while(|step| step.record.skipped);
        self.lost = skipped.count() as u32;
        Ok(())
    }
}

impl Trainer for ZerothOrderTrainer {
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error> {
        let next = self.recorder.next_step();
        if step != u64::from(next) {
            let what = format!("step {step} was asked for, and step {next} comes next");
            return Err(Error::Training(what));
        }
        let noise = if next == 0 { self.measure_noise(batch)? } else { None };
        let base = self.base_rate(next, rate, batch)?;
        let rate = self.options.schedule.rate(base, next);
        let rows = self.rows();
        let losses = self.carry_out(next, rate, batch)?;
        // Every point runs the same tokens; a round's local steps run them at two points and more.
        let points = self.method.local_steps().map_or(losses.len(), |n| losses.len() / n as usize);
        let tokens = (self.rows() - rows) / points.max(1);
        let record = self.method.record().clone();
        let guarded = self.method.guarded();
        self.lost = if record.skipped { self.lost + 1 } else { 0 };
        let mut numbers = vec![
            ("rate", rate),
            ("points", losses.len() as f64),
            ("skipped", f64::from(u8::from(record.skipped))),
            ("clipped", f64::from(guarded.clipped)),
            ("rejected", f64::from(guarded.rejected)),
        ];
        if let Some(first) = record.numbers.first() {
            numbers.push(("projected_gradient", f64::from(*first)));
        }
        numbers.extend(noise.map(|share| ("noise_floor", share)));
        if let Some(seen) = self.seen.take() {
            numbers.extend([("gradient_norm", seen.square.sqrt()), ("trace", seen.trace)]);
        }
        self.recorder.push(record, base);
        if self.lost >= LOST_MAX {
            return Err(Error::Training(format!(
                "the loss was no number in {LOST_MAX} steps in a row: take a smaller learning rate \
                 or eps"
            )));
        }
        let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok(StepReport { loss, tokens, numbers })
    }

    fn settle(&mut self) -> Result<(), Error> {
        self.space.settle()
    }

    fn agree(&self) -> Result<(), Error> {
        if self.exchange.size() == 1 {
            return Ok(());
        }
        let mut values = Vec::new();
        let own = self.layout.tensors.iter().enumerate().map(|(tensor, spec)| {
            values.resize(spec.rows * spec.cols, 0.0);
            self.space.read(tensor, &mut values)?;
            Ok(Fingerprint { tensor: spec.name.clone(), digest: digest(&values) })
        });
        let own = own.collect::<Result<Vec<_>, Error>>()?;
        agree(&*self.exchange, &own)
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        self.space.sync()?;
        snapshot::write(&folder.join(SNAPSHOT_FILE), &*self.space)?;
        write_whole(&folder.join(TRAJECTORY_FILE), &self.recorder.bytes(None))
    }

    fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        let bytes = super::replay::read_bytes(&folder.join(TRAJECTORY_FILE))?;
        let snapshot = folder.join(SNAPSHOT_FILE);
        self.take_up(&bytes, snapshot.exists().then_some(&*snapshot))
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.space.sync()?;
        self.space.write_variant(folder)?;
        let end: Hash = weights_hash(&*self.space)?;
        write_whole(&folder.join(TRAJECTORY_FILE), &self.recorder.bytes(Some(&end)))
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
        let lost = || Error::Training("a logit is no number: the weights are spoiled".to_owned());
        made.into_iter().flatten().map(|text| text.ok_or_else(lost)).collect()
    }
}
