//! The loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::checkpoint::{Best, Checkpoints, Progress};
use super::events::EventFile;
use super::files::output;
use super::lock::RunLock;
use super::log::{RunLog, finite};
use super::ranks::{self, AGREE_EVERY, Command};
use super::{
    BatchOrder, EndReason, EvalLine, Evaluate, Examples, LogLine, RunDescription, RunError,
    RunPlan, StartLine, StepLine, card, read_log, variant,
};
use crate::beside::write_whole;
use crate::tune::exchange::SharedScorer;
use crate::tune::{Alone, Example, Exchange, StepReport, Trainer};
use crate::{Control, Error, peak_rss_bytes};

/// Losses in a row that are no numbers, after which a run gives up.
const NOT_FINITE_MAX: u32 = 20;
/// A held-out loss of more than this times the least, so often in a row, ends a run.
const DIVERGED: (f64, u32) = (2.0, 3);
/// A least loss below this counts as this there: what is small may double.
const SMALL_LOSS: f64 = 0.5;
/// What a run makes in its folder beside its description.
const OWN: [&str; 5] = ["log.jsonl", "report.html", "tensorboard", "checkpoints", variant::FOLDER];

/// What whoever watches a run is told.
#[derive(Debug)]
pub enum Happening<'h> {
    /// A line was written to the log.
    Line(&'h LogLine),
    /// An evaluation goes on.
    Evaluating {
        /// Held-out examples that are done.
        done: u64,
    },
    /// A checkpoint is whole.
    Checkpoint {
        /// Steps made by then.
        step: u64,
    },
    /// A damaged checkpoint was passed over.
    PassedOver {
        /// Why.
        why: &'h str,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why; `None` if it was stopped and can go on.
    pub reason: Option<EndReason>,
    /// Steps made.
    pub step: u64,
    /// Step and metric of the best evaluation, if there was one.
    pub best: Option<(u64, f64)>,
    /// Seconds of the run, those before pauses too.
    pub elapsed_s: f64,
    /// The folder of the variant.
    pub variant: PathBuf,
}

/// A run that is about to begin or to go on. Its folder is locked while this lives.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    description: RunDescription,
    checkpoints: Checkpoints,
    passed_over: Vec<String>,
    /// Where it goes on, if it does.
    resumed: bool,
    progress: Progress,
    /// The processes that make it.
    pub(super) exchange: Rc<dyn Exchange>,
    _lock: RunLock,
}

impl Run {
    /// Refuses a folder in which there is a run already, or what a new one would write over.
    ///
    /// # Errors
    /// [`RunError::Exists`], [`RunError::Foreign`].
    pub fn refuse_another(folder: &Path) -> Result<(), Error> {
        if RunDescription::is_in(folder) {
            return Err(RunError::Exists { folder: folder.to_owned() }.into());
        }
        match OWN.iter().find(|name| folder.join(name).exists()) {
            None => Ok(()),
            Some(name) => {
                let (folder, name) = (folder.to_owned(), (*name).to_owned());
                Err(RunError::Foreign { folder, name }.into())
            }
        }
    }

    /// Makes the folder of a new run. Its name in `description` is filled in.
    ///
    /// # Errors
    /// [`RunError::Exists`], [`RunError::Foreign`], [`RunError::Locked`], [`Error::Output`].
    pub fn begin(folder: &Path, mut description: RunDescription) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(output(folder))?;
        let lock = RunLock::take(folder)?;
        Self::refuse_another(folder)?;
        let unique = format!("{:?} {}", SystemTime::now(), std::process::id());
        description.id = blake3::hash(unique.as_bytes()).to_hex()[..32].to_owned();
        description.write(folder)?;
        Ok(Self::of(folder, description, lock))
    }

    /// Takes up the run in `folder`, which `asked` must agree with.
    ///
    /// # Errors
    /// [`RunError::Differs`] field by field, [`RunError::NothingToResume`], [`RunError::Locked`].
    pub fn resume(folder: &Path, asked: RunDescription) -> Result<Self, Error> {
        let begun = RunDescription::read(folder)?;
        let lock = RunLock::take(folder)?;
        let differences = begun.differences(&asked);
        if !differences.is_empty() {
            return Err(RunError::Differs { folder: folder.to_owned(), differences }.into());
        }
        let description = RunDescription { id: begun.id, command: begun.command, ..asked };
        let mut run = Self::of(folder, description, lock);
        let (newest, passed_over) = run.checkpoints.newest();
        if newest.is_none() && !passed_over.is_empty() {
            let what = format!("no checkpoint is whole: {}", passed_over.join("; "));
            return Err(RunError::NothingToResume { folder: folder.to_owned(), what }.into());
        }
        // Killed before its first checkpoint, it begins anew.
        run.progress = newest.unwrap_or_default();
        run.checkpoints.clear_behind(run.progress.step)?;
        run.description.write(folder)?;
        (run.resumed, run.passed_over) = (true, passed_over);
        Ok(run)
    }

    fn of(folder: &Path, description: RunDescription, lock: RunLock) -> Self {
        let checkpoints = Checkpoints::of(folder.join("checkpoints"), description.id.clone());
        Self {
            folder: folder.to_owned(),
            description,
            checkpoints,
            passed_over: Vec::new(),
            resumed: false,
            progress: Progress::default(),
            exchange: Rc::new(Alone),
            _lock: lock,
        }
    }

    /// What the run is.
    pub fn description(&self) -> &RunDescription {
        &self.description
    }

    /// Steps that were made already.
    pub fn step(&self) -> u64 {
        self.progress.step
    }

    /// Drives `trainer`, which is as it was made, over `train`, with `evaluate` on `held_out`,
    /// until the plan is fulfilled or `watch` says stop: the step under way is then finished, or the
    /// evaluation left, which is made again when the run goes on; and a checkpoint is written.
    ///
    /// # Errors
    /// Those of the trainer, [`Error::Output`], [`RunError::NotFinite`]. The last checkpoint is
    /// whole then, and the run can go on from it.
    pub fn drive(
        self,
        trainer: &mut dyn Trainer,
        (train, held_out): (&dyn Examples, &dyn Examples),
        plan: &RunPlan,
        evaluate: Evaluate<'_>,
        watch: &mut dyn FnMut(&Happening<'_>) -> Control,
    ) -> Result<Outcome, Error> {
        if self.progress.step > 0 {
            let state = self.checkpoints.path(self.progress.step).join(TRAINER);
            Command::Restore(self.progress.step).tell(&*self.exchange)?;
            trainer.restore(&state)?;
            Command::Agree.tell(&*self.exchange)?;
            trainer.agree()?;
        }
        let mut records = Records::open(&self, plan, watch)?;
        for why in &self.passed_over {
            records.tell(&Happening::PassedOver { why });
        }
        let order = BatchOrder::new(plan.seed, train.count() as u32, plan.batch);
        let Self { folder, description, checkpoints, progress, exchange, _lock, .. } = self;
        let before_s = progress.elapsed_s;
        Driven {
            folder,
            description,
            checkpoints,
            progress,
            plan,
            trainer,
            order,
            train,
            held_out,
            evaluate,
            exchange,
            records,
            since: Instant::now(),
            before_s,
        }
        .run()
    }
}

/// The trainer's part of a checkpoint.
pub(super) const TRAINER: &str = "trainer";

/// Log, event file and whoever watches.
struct Records<'w> {
    log: RunLog,
    events: EventFile,
    started_s: f64,
    stop: bool,
    watch: &'w mut dyn FnMut(&Happening<'_>) -> Control,
}

impl<'w> Records<'w> {
    fn open(
        run: &Run,
        plan: &RunPlan,
        watch: &'w mut dyn FnMut(&Happening<'_>) -> Control,
    ) -> Result<Self, Error> {
        let path = run.folder.join("log.jsonl");
        let log = RunLog::open(&path, run.progress.log_bytes)?;
        let lines = read_log(&path)?;
        let started_s = lines.iter().find_map(LogLine::start).map(|start| start.unix_s);
        let begun = started_s.is_some();
        let started_s = started_s.unwrap_or_else(unix_s);
        let events = EventFile::create(&run.folder.join("tensorboard"), started_s, &lines)?;
        let mut records = Self { log, events, started_s, stop: false, watch };
        if !begun {
            records.add(&LogLine::Start(start_line(&run.description, plan, started_s)))?;
        }
        if run.resumed && run.progress.step > 0 {
            records.add(&LogLine::Resume { step: run.progress.step, unix_s: unix_s() })?;
        }
        Ok(records)
    }

    fn tell(&mut self, happening: &Happening<'_>) -> Control {
        self.stop |= matches!((self.watch)(happening), Control::Stop);
        if self.stop { Control::Stop } else { Control::Continue }
    }

    fn add(&mut self, line: &LogLine) -> Result<(), Error> {
        self.log.add(line)?;
        self.events.add(self.started_s, line)?;
        self.tell(&Happening::Line(line));
        Ok(())
    }
}

fn start_line(description: &RunDescription, plan: &RunPlan, unix_s: f64) -> StartLine {
    StartLine {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        base: description.base().to_string(),
        data: description.data.clone(),
        examples: description.examples,
        held_out: description.held_out,
        steps: plan.steps,
        config: serde_json::to_value(&description.config).unwrap_or_default(),
        unix_s,
    }
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A run under way.
struct Driven<'r> {
    folder: PathBuf,
    description: RunDescription,
    checkpoints: Checkpoints,
    progress: Progress,
    plan: &'r RunPlan,
    trainer: &'r mut dyn Trainer,
    order: BatchOrder,
    train: &'r dyn Examples,
    held_out: &'r dyn Examples,
    evaluate: Evaluate<'r>,
    exchange: Rc<dyn Exchange>,
    records: Records<'r>,
    since: Instant,
    /// Seconds before it went on.
    before_s: f64,
}

impl Driven<'_> {
    fn run(mut self) -> Result<Outcome, Error> {
        let mut reason = self.reason();
        while reason.is_none() && !self.records.stop {
            if !self.progress.owes_evaluation {
                self.step()?;
            }
            let step = self.progress.step;
            let due = step >= self.plan.steps || step.is_multiple_of(self.plan.eval_every);
            let due = self.held_out.count() > 0 && due;
            let best = (due || self.progress.owes_evaluation) && self.evaluate()?;
            reason = self.reason();
            let due = step.is_multiple_of(self.plan.save_every);
            let saves = best || due || reason.is_some() || self.records.stop;
            if saves || step.is_multiple_of(AGREE_EVERY) {
                self.tell(Command::Agree)?;
                self.trainer.settle()?;
                self.trainer.agree()?;
            }
            if saves {
                self.checkpoint(best)?;
            }
        }
        self.tell(Command::End)?;
        self.finish(reason)
    }

    /// Why it ends here, if it does.
    fn reason(&self) -> Option<EndReason> {
        let Progress { step, evals_since_best, diverging, owes_evaluation, .. } = self.progress;
        if owes_evaluation {
            None
        } else if step >= self.plan.steps {
            Some(EndReason::Done)
        } else if self.plan.patience.is_some_and(|patience| evals_since_best >= patience) {
            Some(EndReason::EarlyStop)
        } else {
            (diverging >= DIVERGED.1).then_some(EndReason::Diverged)
        }
    }

    fn elapsed_s(&self) -> f64 {
        self.before_s + self.since.elapsed().as_secs_f64()
    }

    /// Tells the other processes what comes next.
    fn tell(&self, command: Command) -> Result<(), Error> {
        Ok(command.tell(&*self.exchange)?)
    }

    fn step(&mut self) -> Result<(), Error> {
        let step = self.progress.step;
        let batch = ranks::batch(&mut self.order, self.train, step)?;
        let batch: Vec<&Example> = batch.iter().collect();
        let rate = self.plan.schedule.rate(self.plan.rate, u32::try_from(step).unwrap_or(u32::MAX));
        let began = Instant::now();
        self.tell(Command::Step(step, rate))?;
        let report = self.trainer.step(step, rate, &batch)?;
        let seconds = began.elapsed().as_secs_f64();
        self.progress.step += 1;
        self.progress.tokens += report.tokens as u64;
        self.progress.elapsed_s = self.elapsed_s();
        self.progress.not_finite = match report.loss.is_finite() {
            true => 0,
            false => self.progress.not_finite + 1,
        };
        let line = self.step_line(&report, rate, seconds);
        self.records.add(&LogLine::Step(line))?;
        match self.progress.not_finite {
            times @ NOT_FINITE_MAX.. => {
                Err(RunError::NotFinite { step: self.progress.step, times }.into())
            }
            _ => Ok(()),
        }
    }

    fn step_line(&self, report: &StepReport, rate: f64, seconds: f64) -> StepLine {
        let Progress { step, tokens, elapsed_s, .. } = self.progress;
        let seen = step as f64 * f64::from(self.plan.batch);
        // A trainer that found its rate says so.
        let found = report.numbers.iter().find(|(name, _)| *name == "rate");
        let rate = found.map_or(rate, |&(_, rate)| rate);
        let others = report.numbers.iter().filter(|(name, _)| *name != "rate");
        let numbers = others.map(|(name, x)| ((*name).to_owned(), finite(*x)));
        StepLine {
            step,
            epoch: seen / self.train.count().max(1) as f64,
            loss: finite(report.loss),
            rate,
            tokens: report.tokens,
            tokens_total: tokens,
            tokens_per_s: finite(report.tokens as f64 / seconds),
            seconds,
            elapsed_s,
            peak_rss_bytes: peak_rss_bytes(),
            numbers: numbers.collect(),
        }
    }

    /// Scores the held-out examples; gives whether they never fared better. If a stop is asked for, it
    /// is left, and owed.
    fn evaluate(&mut self) -> Result<bool, Error> {
        let began = Instant::now();
        self.progress.owes_evaluation = true;
        if self.records.stop {
            return Ok(false);
        }
        let metrics = match self.measure() {
            Err(Error::Stopped) if self.records.stop => return Ok(false),
            measured => measured?,
        };
        self.progress.owes_evaluation = false;
        let best = self.judge(&metrics)?;
        self.progress.elapsed_s = self.elapsed_s();
        let metrics = metrics.into_iter().map(|(name, x)| (name, finite(x))).collect();
        let line = EvalLine {
            step: self.progress.step,
            metrics,
            best,
            seconds: began.elapsed().as_secs_f64(),
            elapsed_s: self.progress.elapsed_s,
        };
        self.records.add(&LogLine::Eval(line))?;
        Ok(best)
    }

    /// What there is to say of the held-out examples, unless a stop is asked for meanwhile.
    fn measure(&mut self) -> Result<BTreeMap<String, f64>, Error> {
        let Self { description, trainer, held_out, evaluate, exchange, records, .. } = self;
        let mut told = |done| records.tell(&Happening::Evaluating { done });
        let mut metrics = match description.config.has_local_steps() {
            // Each has examples of its own.
            true => evaluate(&mut **trainer, *held_out, &mut told)?,
            false => {
                Command::Evaluate.tell(&**exchange)?;
                let mut shared = SharedScorer { inner: &mut **trainer, exchange: &**exchange };
                let mut told = |done| ranks::agreed(&**exchange, told(done));
                evaluate(&mut shared, *held_out, &mut told)?
            }
        };
        let count = held_out.count();
        let mut all = (0..count).map(|index| match told(count as u64) {
            Control::Stop => Err(Error::Stopped),
            Control::Continue => held_out.example(index),
        });
        metrics.extend(trainer.measure(&mut all)?);
        Ok(metrics)
    }

    fn judge(&mut self, metrics: &BTreeMap<String, f64>) -> Result<bool, Error> {
        let metric = self.plan.metric;
        let value = metrics.get(metric.name()).copied().ok_or_else(|| {
            let names = metrics.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let name = metric.name();
            let what = format!("metric {name}: the held-out examples have none; they have {names}");
            RunError::Config { place: String::new(), what }
        })?;
        let progress = &mut self.progress;
        let later = self.plan.later;
        let better = progress
            .best
            .is_none_or(|best| metric.better(value, best.value) || (later && value == best.value));
        let best = better && value.is_finite();
        if best {
            progress.best = Some(Best { step: progress.step, value });
        }
        progress.evals_since_best = if best { 0 } else { progress.evals_since_best + 1 };
        let loss = metrics.get("loss").copied().unwrap_or(f64::NAN);
        let least = progress.least_loss.unwrap_or(f64::INFINITY);
        // A loss that is no number is beyond all bounds. One that is small in itself is not, nor one
        // of what fares best by what it is judged by.
        let bounded = best || loss <= DIVERGED.0 * least.max(SMALL_LOSS);
        progress.diverging = if bounded { 0 } else { progress.diverging + 1 };
        if loss < least {
            progress.least_loss = Some(loss);
        }
        Ok(best)
    }

    fn checkpoint(&mut self, best: bool) -> Result<(), Error> {
        self.progress.log_bytes = self.records.log.sync()?;
        self.checkpoints.write(&self.progress, |folder| {
            let trainer = folder.join(TRAINER);
            std::fs::create_dir(&trainer).map_err(output(&trainer))?;
            self.trainer.save(&trainer)?;
            if best {
                self.write_variant(&folder.join(variant::FOLDER))?;
            }
            Ok(())
        })?;
        let best_step = self.progress.best.map(|best| best.step);
        if best {
            let made = self.checkpoints.path(self.progress.step).join(variant::FOLDER);
            variant::copy(&made, &self.variant_folder())?;
        }
        self.checkpoints.prune(self.plan.keep, best_step)?;
        self.records.tell(&Happening::Checkpoint { step: self.progress.step });
        Ok(())
    }

    fn variant_folder(&self) -> PathBuf {
        self.folder.join(variant::FOLDER)
    }

    /// Writes what is learned by now, and whose it is.
    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(output(folder))?;
        self.trainer.write_variant(folder)?;
        self.description.variant.write(folder)?;
        let card = card::card(&self.description, &self.progress, peak_rss_bytes());
        write_whole(&folder.join("README.md"), card.as_bytes())
    }

    fn finish(mut self, reason: Option<EndReason>) -> Result<Outcome, Error> {
        let place = self.variant_folder();
        // Made with the checkpoint of that step; the copy may have been cut short.
        let whole = self.progress.best.map(|best| (best.step, self.checkpoints.check(best.step)));
        match whole {
            Some((step, Ok(_))) => {
                variant::copy(&self.checkpoints.path(step).join(variant::FOLDER), &place)?;
            }
            other => {
                if let Some((_, Err(error))) = other {
                    let why = format!("{error}; the variant is of the last step instead");
                    self.records.tell(&Happening::PassedOver { why: &why });
                }
                super::files::write_folder(&place, |folder| self.write_variant(folder))?;
            }
        }
        if let Some(reason) = reason {
            let step = self.progress.step;
            self.records.add(&LogLine::End { step, reason, unix_s: unix_s() })?;
        }
        Ok(Outcome {
            reason,
            step: self.progress.step,
            best: self.progress.best.map(|best| (best.step, best.value)),
            elapsed_s: self.progress.elapsed_s,
            variant: place,
        })
    }
}
