//! Several tokens a step: drafters guess, one step checks, right guesses are kept.
//!
//! The text is that of plain decoding, token for token, for every drafter, tree and thread count:
//! guesses are compared with what [`crate::Session::generate`] would have chosen there, and a row's
//! logits do not depend on the rows beside it; where they do, a guard leaves what is in doubt to plain
//! steps. Speed alone depends on the guesses. That is the rule [`Acceptance::Exact`]; there are others
//! for who asks for them.

mod acceptance;
mod bench;
mod calibrate;
mod calibration_file;
mod chain;
mod draft_model;
mod drafter;
mod filtering;
mod medusa;
mod options;
mod prior;
mod rest;
mod sampling_class;
mod stats;
mod suffix;
#[cfg(test)]
mod sweep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use offshoot_methods::draft::{
    Beliefs, Calibration, Gate, Guess, Limits, Looks, Pace, Planner, StepTimes, TokenTree,
};

pub use acceptance::Acceptance;
pub use bench::{
    ArmResult, Learned, SpecArm, SpecBenchOptions, WorkloadResult, learned, measure_spec,
};
pub use calibrate::{
    CalibrateOptions, MeasuredWidth, StepCurve, calibrate, chain_tokens, lacks_times,
    measure_missing,
};
pub use calibration_file::{Calibrated, CalibrationFile};
pub(crate) use chain::Chain;
pub use chain::Draws;
pub use draft_model::ModelDrafter;
pub(crate) use drafter::Behind;
pub use drafter::{Drafter, View};
pub(crate) use filtering::Filtering;
pub use medusa::MedusaDrafter;
pub use options::{Arm, SpecMode};
pub use rest::RestDrafter;
pub use sampling_class::SamplingClass;
pub use stats::{DrafterStats, GuardStats, SpecStats};
pub use suffix::SuffixDrafter;

use offshoot_models::Adapter;
use offshoot_models::medusa::MedusaHeads;

use crate::datastore::Datastore;
use crate::medusa::{self as medusa_heads, ReadyHeads};
use crate::{Error, Model, Session};

/// The most guesses of a step. Two cores never find more to be worth it; see the step times.
const MOST_GUESSES: usize = 31;
/// What asking a drafter may cost, in plain steps, without having to pay for itself: a text that
/// repeats nothing for a while may begin to.
const FREE: f64 = 0.003;

#[derive(Debug)]
struct Seat {
    drafter: Box<dyn Drafter>,
    gate: Gate,
    /// Seconds of this step, and whether it was asked.
    seconds: f64,
    asked: bool,
}

/// What a speculator believed of its drafters at some time.
#[derive(Debug)]
pub(crate) struct Believed {
    class: SamplingClass,
    current: Beliefs,
    others: [Beliefs; 3],
    used: [bool; 3],
}

/// The drafters of a session, and what it learned of them and of the machine.
#[derive(Debug)]
pub struct Speculator {
    seats: Vec<Seat>,
    planner: Planner,
    /// The class of texts that the planner's beliefs hold for; those of the others lie in
    /// `classes`, at their numbers.
    class: SamplingClass,
    classes: [Beliefs; 3],
    /// The classes that something may have been learned of.
    used: [bool; 3],
    times: StepTimes,
    /// What trees are grown by where the text depends on them, so that neither an earlier answer nor
    /// a clock does: `None` under [`Acceptance::Exact`].
    fresh: Option<(Planner, StepTimes)>,
    chain: Chain,
    /// The drafter of whose draws the chain is made.
    drawer: Option<usize>,
    /// Closes when drafting as a whole makes steps that do not pay.
    gate: Gate,
    /// When to check a guess although it does not seem to pay.
    looks: Looks,
    /// What the text makes, for trees to be sized by.
    pace: Pace,
    tree: TokenTree,
    promised: f64,
    draft_time: Duration,
    stats: SpecStats,
    n_vocab: usize,
}

impl Speculator {
    /// A speculator with these drafters; `times` is what is known of the machine.
    pub fn new(drafters: Vec<Box<dyn Drafter>>, times: StepTimes) -> Self {
        Self::calibrated_by(drafters, &Calibrated { times: Some(times), ..Calibrated::default() })
    }

    /// A speculator with these drafters that goes on from what earlier ones learned; what they did
    /// not learn begins as shipped.
    pub fn calibrated_by(drafters: Vec<Box<dyn Drafter>>, earlier: &Calibrated) -> Self {
        let times = earlier.times.clone().unwrap_or_default();
        let calibration = |class: SamplingClass, d: &dyn Drafter| {
            let known = earlier.drafters.get(&class).and_then(|of| of.get(d.name()));
            Calibration::new(&known.copied().unwrap_or_else(|| d.prior()))
        };
        let mut classes = SamplingClass::ALL.map(|class| {
            let each = drafters.iter().map(|d| calibration(class, d.as_ref()));
            Beliefs { calibrations: each.collect(), ..Beliefs::default() }
        });
        let class = SamplingClass::default();
        let calibrations = std::mem::take(&mut classes[class as usize].calibrations);
        let stats = SpecStats::new(drafters.iter().map(|d| d.name()));
        let seat = |drafter: Box<dyn Drafter>| {
            let gate = if drafter.reads() { Gate::of_reader() } else { Gate::default() };
            Seat { drafter, gate, seconds: 0.0, asked: false }
        };
        Self {
            seats: drafters.into_iter().map(seat).collect(),
            planner: Planner::new(calibrations),
            class,
            classes,
            used: [false; 3],
            times,
            fresh: None,
            chain: Chain::default(),
            drawer: None,
            gate: Gate::default(),
            looks: Looks::default(),
            pace: Pace::default(),
            tree: TokenTree::default(),
            promised: 1.0,
            draft_time: Duration::ZERO,
            stats,
            n_vocab: 0,
        }
    }

    /// What is known of step times.
    pub fn times(&self) -> &StepTimes {
        &self.times
    }

    /// Takes in what steps of `rows` rows were measured to take, over one of one row.
    pub(crate) fn set_time(&mut self, rows: usize, over_one: f64) {
        self.times.set(rows, over_one);
    }

    /// What each drafter's scores are worth in texts like the last, in the drafters' order.
    pub fn calibrations(&self) -> &[Calibration] {
        self.planner.calibrations()
    }

    /// What was learned so far, for a later speculator.
    pub fn calibrated(&self) -> Calibrated {
        let used = SamplingClass::ALL.into_iter().filter(|&class| self.used[class as usize]);
        let table = |class: SamplingClass| {
            let names = self.seats.iter().map(|seat| seat.drafter.name().to_owned());
            let calibrations = match class == self.class {
                true => self.calibrations(),
                false => &self.classes[class as usize].calibrations,
            };
            (class, names.zip(calibrations.iter().map(Calibration::counts)).collect())
        };
        Calibrated { times: Some(self.times.clone()), drafters: used.map(table).collect() }
    }

    /// What is believed of the drafters so far.
    pub(crate) fn beliefs(&self) -> Believed {
        let (current, others) = (self.planner.beliefs().clone(), self.classes.clone());
        Believed { class: self.class, current, others, used: self.used }
    }

    /// Forgets what was learned of the drafters since `then`. What steps take stays known.
    pub(crate) fn go_back(&mut self, then: &Believed) {
        self.planner.exchange(then.current.clone());
        self.classes.clone_from(&then.others);
        (self.class, self.used) = (then.class, then.used);
    }

    /// Goes on with what was learned of texts of `class`.
    fn turn_to(&mut self, class: SamplingClass) {
        if class != self.class {
            let beliefs = std::mem::take(&mut self.classes[class as usize]);
            let other = self.planner.exchange(beliefs);
            self.classes[self.class as usize] = other;
            self.class = class;
        }
        self.used[class as usize] = true;
    }

    /// Whether a drafter reads the state that the pending token was chosen from.
    pub(crate) fn wants_hidden(&self) -> bool {
        self.seats.iter().any(|seat| seat.drafter.wants_hidden())
    }

    /// Whether a drafter has a distribution of its own to draw from.
    pub(crate) fn draws(&self) -> bool {
        self.seats.iter().any(|seat| seat.drafter.draws())
    }

    /// Takes in the text of a new answer: all that is decided, the pending token last. Tokens are
    /// below `n_vocab`.
    pub(crate) fn begin(
        &mut self,
        text: &[u32],
        n_vocab: usize,
        (acceptance, class): (Acceptance, SamplingClass),
    ) {
        self.n_vocab = n_vocab;
        if acceptance == Acceptance::Exact {
            self.turn_to(class);
        }
        self.stats.reset(acceptance);
        self.chain = Chain::default();
        let prior = |seat: &Seat| Calibration::new(&seat.drafter.prior());
        self.fresh = (acceptance != Acceptance::Exact)
            .then(|| (Planner::new(self.seats.iter().map(prior).collect()), StepTimes::default()));
        self.drawer = match acceptance {
            Acceptance::Rejection => self.seats.iter().position(|seat| seat.drafter.draws()),
            Acceptance::Exact | Acceptance::Typical(_) => None,
        };
        self.pace = Pace::default();
        self.looks.begin();
        self.gate.reset();
        for seat in &mut self.seats {
            seat.gate.reset();
            seat.drafter.begin(text);
        }
    }

    /// What the current answer's drafts came to.
    pub(crate) fn stats(&self) -> &SpecStats {
        &self.stats
    }

    /// The tree of the next step.
    pub(crate) fn tree(&self) -> &TokenTree {
        &self.tree
    }

    /// The drawn guesses of the next step.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Drafts the tree of the next step, up to `depth` tokens deep, of tokens that may come.
    pub(crate) fn draft(
        &mut self,
        mut behind: Behind<'_, '_, '_>,
        depth: usize,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let view = behind.view;
        let root = *view.text.last().ok_or(Error::EmptyPrompt)?;
        self.promised = 1.0;
        self.tree.reset(root);
        let gated = self.fresh.is_none();
        let any = depth > 0 && (!gated || self.gate.is_open());
        for (at, seat) in self.seats.iter_mut().enumerate() {
            seat.asked = any && (!gated || seat.gate.is_open()) && self.drawer != Some(at);
            seat.seconds = 0.0;
            if seat.asked {
                let start = Instant::now();
                seat.drafter.prepare(view)?;
                seat.seconds = start.elapsed().as_secs_f64();
            }
        }
        if any {
            let limits = Limits { guesses: MOST_GUESSES, depth };
            let (seats, n_vocab) = (&mut self.seats, self.n_vocab);
            let filtering = &mut behind.filtering;
            if let Some(filtering) = filtering {
                filtering.begin_tree();
            }
            let ask = |drafter: usize, tree: &TokenTree, node, out: &mut Vec<Guess>| {
                if seats[drafter].asked {
                    seats[drafter].drafter.guess(tree, node, out);
                    // Files may name tokens that the model does not have.
                    out.retain(|guess| (guess.token as usize) < n_vocab);
                }
                if let Some(filtering) = filtering {
                    filtering.retain(tree, node, out);
                }
            };
            let (planner, times, looks) = match &mut self.fresh {
                Some((planner, times)) => (planner, &*times, None),
                None => (&mut self.planner, &self.times, Some(&mut self.looks)),
            };
            planner.grow(root, limits, ask);
            self.promised = planner.cut((times, &self.pace), looks, &mut self.tree);
        }
        if let (Some(drawer), Some((_, times))) = (self.drawer, &self.fresh) {
            let grown = (self.promised, self.tree.len());
            let (len, promised) = self.chain.length(grown, times, depth);
            self.promised = promised;
            let drawn = self.chain.begin(&self.tree);
            if len > 0 {
                let (mut draws, view) = Draws::new(behind, self.n_vocab);
                self.seats[drawer].drafter.draw(view, &mut draws, len, drawn)?;
            }
            self.chain.join(&mut self.tree);
        }
        self.draft_time = start.elapsed();
        Ok(())
    }

    /// Takes in what a step made of the tree: the tokens it decided, and what checking them and
    /// keeping their rows took.
    pub(crate) fn note(&mut self, text: &[u32], check: Duration, commit: Duration) {
        let start = Instant::now();
        let plain = self.times.seconds(1);
        let (rows, seconds) = (self.tree.len(), check.as_secs_f64());
        if self.looks.note(seconds / self.times.seconds(rows)) {
            self.times.doubt(rows);
        }
        self.times.observe(rows, seconds);
        let asked = self.seats.iter().any(|seat| seat.asked);
        let reading = self.seats.iter().filter(|seat| seat.asked && seat.gate.is_to_read());
        let reading: f64 = reading.map(|seat| seat.seconds).sum();
        if let Some((planner, _)) = &mut self.fresh {
            if asked {
                self.stats.credit(planner.learn(text));
            }
            if let Some(drawer) = self.drawer {
                self.stats.credit_draws(drawer, self.chain.learn(text));
            }
        } else if asked {
            let contributions = self.planner.learn(text);
            self.stats.credit(contributions);
            let proposed: f64 = contributions.iter().map(|c| f64::from(c.proposed)).sum();
            let more = self.times.ratio(rows) - 1.0;
            for (seat, contribution) in self.seats.iter_mut().zip(contributions) {
                let asking = seat.seconds / plain;
                let share = f64::from(contribution.proposed) / proposed.max(1.0);
                let cost = if asking > FREE { asking + share * more } else { 0.0 };
                match seat.asked {
                    true => seat.gate.note(f64::from(contribution.credit), cost),
                    false => seat.gate.pass(),
                }
            }
        } else {
            self.seats.iter_mut().for_each(|seat| seat.gate.pass());
        }
        let beside = (commit + self.draft_time).as_secs_f64() - reading;
        let time = match &self.fresh {
            // No clock may have a say.
            Some((_, times)) => times.ratio(rows),
            None => self.times.ratio(rows) + beside.max(0.0) / plain,
        };
        self.pace.note(text.len() as f64, time);
        match self.gate.is_open() {
            // Only steps with guesses say whether guesses pay.
            true if self.tree.guesses() > 0 => {
                self.gate.note(text.len() as f64, (check.as_secs_f64() + beside) / plain);
            }
            true => {}
            false => self.gate.pass(),
        }
        for seat in &mut self.seats {
            seat.drafter.extend(text);
        }
        self.stats.steps += 1;
        self.stats.tokens += text.len();
        self.stats.guesses += self.tree.guesses();
        self.stats.promised += self.promised;
        self.stats.check += check;
        self.stats.commit += commit;
        self.stats.draft += self.draft_time + start.elapsed();
    }
}

/// What drafters may be made of.
#[derive(Debug, Clone, Default)]
pub struct SpecOptions {
    /// Which drafters are wanted.
    pub mode: SpecMode,
    /// A smaller model of the same vocabulary.
    pub draft_model: Option<Arc<Model>>,
    /// Stored text; without, the model's own answers that come with offshoot, if it has some.
    pub datastore: Option<Arc<Datastore>>,
    /// Medusa heads of the model; without, those that were trained beside its adapter, or else those
    /// that come with offshoot, if it has some.
    pub heads: Option<Arc<ReadyHeads>>,
    /// What earlier sessions learned.
    pub calibrated: Calibrated,
}

impl SpecOptions {
    /// The drafters for `session` of `model` that are wanted and at hand; `None` if there are none,
    /// which is plain decoding.
    ///
    /// # Errors
    /// If one that was asked for by name cannot be had.
    pub fn speculator(
        &self,
        model: &Model,
        session: &Session,
    ) -> Result<Option<Speculator>, Error> {
        let mut drafters: Vec<Box<dyn Drafter>> = Vec::new();
        if self.mode == SpecMode::Auto && session.noise().is_some() {
            return Ok(None);
        }
        for arm in Arm::ALL.into_iter().filter(|&arm| self.mode.allows(arm)) {
            match self.drafter(arm, model, session)? {
                Some(drafter) => drafters.push(drafter),
                None if self.mode == SpecMode::Auto => {}
                None => {
                    let (drafter, needs) = (arm.name(), arm.needs());
                    return Err(Error::DrafterMissing { drafter, needs });
                }
            }
        }
        Ok((!drafters.is_empty()).then(|| Speculator::calibrated_by(drafters, &self.calibrated)))
    }

    fn drafter(
        &self,
        arm: Arm,
        model: &Model,
        session: &Session,
    ) -> Result<Option<Box<dyn Drafter>>, Error> {
        Ok(match arm {
            Arm::Suffix => Some(Box::new(SuffixDrafter::new())),
            Arm::Rest => {
                let own = match &self.datastore {
                    Some(store) => Some(Arc::clone(store)),
                    None => shipped(model, medusa_heads::shipped_answers)?,
                };
                match own {
                    None => None,
                    Some(store) => {
                        store.require_tokenizer(model.tokenizer_id())?;
                        Some(Box::new(RestDrafter::new(store)?))
                    }
                }
            }
            Arm::Medusa => {
                let own = match self.heads.as_ref().or(model.heads()) {
                    Some(heads) => {
                        if heads.file.card.is_some() {
                            let adapter = model.adapter().map(Adapter::digest);
                            heads.file.check_adapter(adapter.as_deref())?;
                            heads.file.check_base(model.base_id()?)?;
                        }
                        Some(Arc::clone(heads))
                    }
                    None => shipped(model, medusa_heads::shipped)?,
                };
                match own {
                    None => None,
                    Some(heads) => Some(Box::new(medusa_drafter(model, session, &heads)?)),
                }
            }
            Arm::Draft => match &self.draft_model {
                None => None,
                Some(own) => {
                    let context = session.context().min(own.trained_context());
                    let mine = Session::new(own, session.cpu().clone(), context)?;
                    Some(Box::new(ModelDrafter::new(model, Arc::clone(own), mine)?))
                }
            },
        })
    }
}

/// What comes with offshoot for `model`, as `find` finds it by the file's digest.
fn shipped<T>(model: &Model, find: fn([u8; 32]) -> Option<T>) -> Result<Option<Arc<T>>, Error> {
    let digest = match model.digest() {
        Some(digest) => *digest,
        None if medusa_heads::may_ship(model.file_len()) => model.file_digest()?,
        None => return Ok(None),
    };
    Ok(find(digest).map(Arc::new))
}

fn medusa_drafter(
    model: &Model,
    session: &Session,
    ready: &ReadyHeads,
) -> Result<MedusaDrafter, Error> {
    let heads = MedusaHeads::new(session.cpu(), model.packed()?, &ready.file, medusa_heads::RANKS)?;
    Ok(MedusaDrafter::new(heads, ready.calibration.clone(), session.cpu().clone()))
}
