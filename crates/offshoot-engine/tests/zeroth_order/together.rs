//! Processes that tune together, as threads: what they make is what one makes.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use offshoot_engine::Error;
use offshoot_engine::tune::run::{
    EndReason, Examples, LogLine, Outcome, Part, Run, RunConfig, Share, follow, read_log,
};
use offshoot_engine::tune::zeroth_order::{
    Classification, CrossEntropy, LoraOptions, LoraSpace, Objective, TRAJECTORY_FILE,
    ZerothOrderOptions, ZerothOrderTrainer, carry_out, space_of,
};
use offshoot_engine::tune::{
    Alone, Example, Exchange, FirstOrder, FirstOrderOptions, Threads, Traffic, Trainer,
};
use offshoot_methods::tune::{RateOptions, Trajectory};
use serde_json::{Value, json};

use crate::runs::{described, mean_loss, stop_at};
use crate::setting::{checkpoint, choices, cpu, model, texts, values};

const NAME: &str = "qwen2_tied";

/// What a run was and what it left: its trajectory, its weights, and the tokens that it ran.
pub(crate) type Made = (Vec<u8>, Vec<Vec<u32>>, usize);

pub(crate) struct Setup {
    seed: u64,
    method: &'static str,
    options: Value,
    pub(crate) share: Share,
    auto_rate: bool,
    choices: bool,
}

/// The batch of a step.
pub(crate) fn batch(all: &[Example], step: u64) -> Vec<&Example> {
    let size = all.len() * 3 / 4;
    let first = step as usize % (all.len() - size);
    all[first..first + size].iter().collect()
}

impl Setup {
    pub(crate) fn of(method: &'static str, share: Share) -> Self {
        let options = json!({"probe": {"eps": 1e-3, "directions": 2}});
        Self { seed: 11, method, options, share, auto_rate: false, choices: false }
    }

    pub(crate) fn trainer(&self, exchange: Rc<dyn Exchange>, examples: u64) -> ZerothOrderTrainer {
        let cpu = cpu(1);
        let targets = ["q_proj", "down_proj"].map(str::to_owned).to_vec();
        let lora = LoraOptions { rank: 3, targets, seed: self.seed, ..LoraOptions::default() };
        let space = Box::new(LoraSpace::new(&cpu, model(NAME, &cpu), &lora).unwrap());
        let rates = RateOptions { interval: 3, ..RateOptions::default() };
        let options = ZerothOrderOptions {
            method: self.method.to_owned(),
            options: self.options.clone(),
            decay: 0.01,
            auto_rate: self.auto_rate.then_some(rates),
            ..ZerothOrderOptions::default()
        };
        let objective: Box<dyn Objective> = match self.choices {
            true => Box::new(Classification),
            false => Box::new(CrossEntropy),
        };
        let trainer = ZerothOrderTrainer::new(&cpu, space, objective, &options).unwrap();
        trainer.among(exchange, self.share, examples).unwrap()
    }

    /// What each of `size` processes makes in a few steps.
    pub(crate) fn run(&self, size: usize) -> Vec<Made> {
        let all = if self.choices { choices() } else { texts(8) };
        Threads::run(size, |own| {
            let mut trainer = self.trainer(Rc::new(own), 1);
            for step in 0..6 {
                trainer.step(step, 1e-3, &batch(&all, step)).unwrap();
            }
            trainer.agree().unwrap();
            (trainer.trajectory(), values(trainer.space()), trainer.rows())
        })
    }
}

#[test]
fn how_many_make_a_run_and_how_they_share_it_changes_no_bit() {
    for method in ["mezo", "fzoo", "cons", "adam", "lozo-m"] {
        let alone = Setup::of(method, Share::Examples).run(1).remove(0);
        for share in [Share::Examples, Share::Points] {
            for size in [2, 4] {
                let made = Setup::of(method, share).run(size);
                assert!(made.iter().all(|made| *made == alone), "{method} {share:?} {size}");
            }
        }
    }
}

#[test]
fn rates_that_are_found_and_choices_are_shared_too() {
    let setup =
        |share, auto_rate, choices| Setup { auto_rate, choices, ..Setup::of("mezo", share) };
    for (auto_rate, choices) in [(true, false), (false, true)] {
        let alone = setup(Share::Examples, auto_rate, choices).run(1).remove(0);
        for share in [Share::Examples, Share::Points] {
            let made = setup(share, auto_rate, choices).run(3);
            assert!(made.iter().all(|made| *made == alone), "{share:?} {auto_rate}");
        }
    }
}

#[test]
fn a_turned_bit_is_found_with_the_process_and_the_tensor() {
    let told = Threads::run(3, |own| {
        let rank = own.rank();
        let all = texts(3);
        let batch: Vec<&Example> = all.iter().collect();
        let mut trainer = Setup::of("mezo", Share::Examples).trainer(Rc::new(own), 1);
        trainer.step(0, 1e-3, &batch).unwrap();
        trainer.agree().unwrap();
        let folder = tempfile::tempdir().unwrap();
        trainer.save(folder.path()).unwrap();
        if rank == 1 {
            let path = folder.path().join("tuned.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        trainer.restore(folder.path()).unwrap();
        let last = trainer.space().layout().tensors.last().unwrap().name.clone();
        (trainer.agree().unwrap_err().to_string(), last)
    });
    for (told, last) in told {
        assert!(
            told.starts_with("process 1 holds other weights") && told.contains(&last),
            "{told}"
        );
    }
}

#[test]
fn a_step_takes_a_few_bytes() {
    let traffic = Threads::run(2, |own| {
        let (own, all) = (Rc::new(own), texts(4));
        let batch: Vec<&Example> = all.iter().collect();
        let mut trainer = Setup::of("mezo", Share::Points).trainer(own.clone(), 1);
        trainer.step(0, 1e-3, &batch).unwrap();
        let before = own.traffic();
        trainer.step(1, 1e-3, &batch).unwrap();
        own.traffic().sent - before.sent
    });
    // A count of rows and two losses; of process 0 also two slopes.
    assert_eq!(traffic, [56 + 25, 56]);
}

/// The examples of one of some processes.
fn own_texts(rank: usize) -> Vec<Example> {
    texts(24).into_iter().skip(rank * 7).take(6 + rank).collect()
}

/// What each of `size` processes makes in `rounds` rounds of `local_steps` steps, and what it exchanged.
fn rounds(size: usize, rounds: u64, local_steps: u32) -> Vec<(Made, Traffic)> {
    let options = json!({"probe": {"eps": 1e-3}, "seeds": 4096, "local_steps": local_steps});
    let setup = Setup { options, ..Setup::of("fedkseed", Share::Examples) };
    Threads::run(size, |own| {
        let own = Rc::new(own);
        let all = own_texts(own.rank());
        let mut trainer = setup.trainer(own.clone(), all.len() as u64);
        let batch: Vec<&Example> = all.iter().cycle().take(local_steps as usize).collect();
        (0..rounds).for_each(|round| drop(trainer.step(round, 1e-3, &batch).unwrap()));
        let traffic = own.traffic();
        trainer.agree().unwrap();
        ((trainer.trajectory(), values(trainer.space()), trainer.rows()), traffic)
    })
}

#[test]
fn processes_with_examples_of_their_own_end_with_the_same_weights_which_the_trajectory_makes() {
    let made = rounds(3, 4, 5);
    let (trajectory, weights, _) = &made[0].0;
    assert!(made.iter().all(|((t, w, _), _)| t == trajectory && w == weights));
    let read = Trajectory::from_bytes(trajectory).unwrap();
    assert_eq!(read.parts[0].header.processes, 3);
    let base = Arc::new(checkpoint(NAME));
    let mut space = space_of(&cpu(2), base, &read.parts[0].header).unwrap();
    carry_out(&read, &mut *space).unwrap();
    assert!(values(&*space) == *weights);
    // Each has drawn apart: 3 of 5 steps, but for what was drawn twice.
    let numbers = &read.parts[0].steps[0].record.numbers;
    let filled = numbers.iter().filter(|number| **number != 0.0).count();
    assert!(numbers.len() == 4096 && (13..=15).contains(&filled), "{filled}");
    assert!(rounds(1, 4, 5)[0].0.1 != *weights);
}

/// The count of the title of Qin et al. 2023: 4096 seeds, and 200 local steps as in their program.
#[test]
fn a_round_takes_less_than_18_kilobytes() {
    for (_, Traffic { sent, received }) in rounds(2, 1, 200) {
        assert!(sent > 6 * 150 && sent + received < 18_000, "{sent} {received}");
    }
}

fn config() -> RunConfig {
    RunConfig {
        model: "m".into(),
        data: vec!["texts".into()],
        eval_fraction: 0.3,
        steps: Some(8),
        batch: 3,
        accumulation: 4,
        learning_rate: Some(1e-3),
        eval_every: Some(4),
        save_every: Some(3),
        ..RunConfig::default()
    }
}

pub(crate) type Make<'m> = &'m (dyn Fn(Rc<dyn Exchange>) -> Box<dyn Trainer> + Sync);

/// How the run in `folder`, begun or gone on with by `size` processes until step `stop`, ended in each:
/// in process 0 with an outcome.
pub(crate) fn ended(
    folder: &Path,
    size: usize,
    stop: u64,
    make: Make<'_>,
) -> Vec<Result<Option<Outcome>, Error>> {
    let config = config();
    Threads::run(size, |own| {
        let exchange: Rc<dyn Exchange> = Rc::new(own);
        let all = texts(30);
        let (train, held_out) = Part::split(&all, config.eval_fraction, config.seed).unwrap();
        let plan = config.plan(train.count(), held_out.count())?;
        let description = described(&config, &train, &held_out).join(&*exchange)?;
        let mut trainer = make(Rc::clone(&exchange));
        let examples = (&train as &dyn Examples, &held_out as &dyn Examples);
        if exchange.rank() > 0 {
            follow(folder, &exchange, &mut *trainer, examples, &plan, &mut mean_loss)?;
            return Ok(None);
        }
        let run = match folder.join("run.json").exists() {
            true => Run::resume(folder, description)?,
            false => Run::begin(folder, description)?,
        };
        let run = run.leading(exchange);
        run.drive(&mut *trainer, examples, &plan, &mut mean_loss, &mut stop_at(stop)).map(Some)
    })
}

pub(crate) fn drive(folder: &Path, size: usize, stop: u64, make: Make<'_>) -> Option<Outcome> {
    let all: Vec<_> = ended(folder, size, stop, make).into_iter().map(Result::unwrap).collect();
    all.into_iter().flatten().next()
}

/// What is told of each step and evaluation, without times.
pub(crate) fn course(folder: &Path) -> Vec<String> {
    let lines = read_log(&folder.join("log.jsonl")).unwrap();
    let told = lines.iter().filter_map(|line| match line {
        LogLine::Step(step) => Some(format!("{} {:?} {}", step.step, step.loss, step.tokens)),
        LogLine::Eval(eval) => Some(format!("{} {:?} {}", eval.step, eval.metrics, eval.best)),
        _ => None,
    });
    told.collect()
}

/// A run by one, and by several that are stopped and gone on with by another number, leave the same.
fn is_one_run(make: Make<'_>, file: &str) {
    let whole = tempfile::tempdir().unwrap();
    let outcome = drive(whole.path(), 1, 0, make).unwrap();
    let left = |folder: &Path| std::fs::read(folder.join("variant").join(file)).unwrap();
    for sizes in [[2, 4], [4, 1]] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = drive(folder.path(), sizes[0], 5, make).unwrap();
        assert_eq!((stopped.reason, stopped.step), (None, 5));
        let ended = drive(folder.path(), sizes[1], 0, make).unwrap();
        assert_eq!((ended.reason, ended.best), (Some(EndReason::Done), outcome.best));
        assert_eq!(course(folder.path()), course(whole.path()), "{sizes:?}");
        assert!(left(folder.path()) == left(whole.path()), "{sizes:?}");
    }
}

#[test]
fn a_run_without_gradients_goes_on_with_any_number_of_processes_to_the_same_bits() {
    let setup = Setup::of("mezo", Share::Examples);
    is_one_run(&|exchange| Box::new(setup.trainer(exchange, 1)), TRAJECTORY_FILE);
}

#[test]
fn a_run_with_gradients_goes_on_with_any_number_of_processes_to_the_same_bits() {
    let make = |exchange| {
        let options = FirstOrderOptions { micro_batch: 3, ..FirstOrderOptions::default() };
        let trainer = FirstOrder::new(Arc::new(checkpoint(NAME)), options).unwrap();
        Box::new(trainer.among(exchange)) as Box<dyn Trainer>
    };
    is_one_run(&make, "adapter_model.safetensors");
}

/// One whose directions are others steps astray, and is found before the first checkpoint is written.
#[test]
fn weights_that_went_astray_are_never_saved() {
    let make = |exchange: Rc<dyn Exchange>| {
        let seed = if exchange.rank() == 2 { 12 } else { 11 };
        let setup = Setup { seed, ..Setup::of("mezo", Share::Examples) };
        Box::new(setup.trainer(exchange, 1)) as Box<dyn Trainer>
    };
    let folder = tempfile::tempdir().unwrap();
    for ended in ended(folder.path(), 3, 0, &make) {
        let told = ended.unwrap_err().to_string();
        assert!(told.starts_with("process 2 holds other weights"), "{told}");
    }
    assert!(!folder.path().join("checkpoints").exists());
    assert_eq!(course(folder.path()).len(), 3);
}

#[test]
fn one_that_is_gone_ends_the_others() {
    let ended = Threads::run(2, |own| {
        if own.rank() == 1 {
            return String::new();
        }
        let all = texts(2);
        let batch: Vec<&Example> = all.iter().collect();
        let mut trainer = Setup::of("mezo", Share::Examples).trainer(Rc::new(own), 1);
        trainer.step(0, 1e-3, &batch).unwrap_err().to_string()
    });
    assert!(ended[0].starts_with("process 1 is gone"), "{}", ended[0]);
    // One alone has nobody to lose.
    let alone: Rc<dyn Exchange> = Rc::new(Alone);
    Setup::of("mezo", Share::Examples).trainer(alone, 1).agree().unwrap();
}
