//! Processes that are lost while they tune together, and what goes on.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};

use offshoot_engine::Error;
use offshoot_engine::tune::run::{EndReason, Share};
use offshoot_engine::tune::zeroth_order::{TRAJECTORY_FILE, ZerothOrderTrainer};
use offshoot_engine::tune::{
    Example, Exchange, Scored, Scorer, Sequence, StepReport, Threads, Trainer,
};

use crate::setting::{texts, values};
use crate::together::{Made, Setup, batch, course, drive, ended};

/// One of two makes steps until the other is lost in the middle of one, sends what the next needs who
/// comes in its place, and goes on with that one.
fn stays(setup: &Setup, [old, new]: [Threads; 2], trajectory: Sender<Vec<u8>>) -> Made {
    let all = texts(8);
    let mut trainer = setup.trainer(Rc::new(old), 1);
    let mut step = 0;
    let told = loop {
        match trainer.step(step, 1e-3, &batch(&all, step)) {
            Ok(_) => step += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(step == 3 && told.starts_with("process 1 is gone"), "{step} {told}");
    trajectory.send(trainer.trajectory()).unwrap();
    let mut trainer = trainer.among(Rc::new(new), setup.share, 1).unwrap();
    (3..6).for_each(|step| drop(trainer.step(step, 1e-3, &batch(&all, step)).unwrap()));
    trainer.agree().unwrap();
    (trainer.trajectory(), values(trainer.space()), 0)
}

/// Comes late: has the base and a trajectory.
fn joins(setup: &Setup, new: Threads, trajectory: Receiver<Vec<u8>>) -> Made {
    let all = texts(8);
    let mut trainer = setup.trainer(Rc::new(new), 1);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(TRAJECTORY_FILE), trajectory.recv().unwrap()).unwrap();
    trainer.restore(folder.path()).unwrap();
    (3..6).for_each(|step| drop(trainer.step(step, 1e-3, &batch(&all, step)).unwrap()));
    trainer.agree().unwrap();
    (trainer.trajectory(), values(trainer.space()), 0)
}

/// Methods without a state, with one of numbers, of past directions, and of directions of an epoch.
#[test]
fn who_comes_in_place_of_one_that_was_lost_catches_up_by_the_trajectory() {
    for method in ["mezo", "meazo", "adam", "lozo-m"] {
        for share in [Share::Examples, Share::Points] {
            let setup = Setup::of(method, share);
            let (trajectory, weights, _) = setup.run(2).remove(0);
            let (mut old, mut new) = (Threads::new(2), Threads::new(2));
            let (lost, late) = (old.remove(1), new.remove(1));
            let both = [old.remove(0), new.remove(0)];
            let (tell, hear) = channel();
            let made = std::thread::scope(|scope| {
                let setup = &setup;
                let first = scope.spawn(move || stays(setup, both, tell));
                let second = scope.spawn(move || joins(setup, late, hear));
                let lost = scope.spawn(move || {
                    let all = texts(8);
                    let mut trainer = setup.trainer(Rc::new(lost), 1);
                    (0..3).for_each(|s| drop(trainer.step(s, 1e-3, &batch(&all, s)).unwrap()));
                });
                lost.join().unwrap();
                [first.join().unwrap(), second.join().unwrap()]
            });
            for made in made {
                assert!(made.0 == trajectory && made.1 == weights, "{method} {share:?}");
            }
        }
    }
}

/// A trainer that is lost in a step.
struct Mortal {
    inner: ZerothOrderTrainer,
    last: u64,
}

impl Scorer for Mortal {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        self.inner.score(sequences)
    }

    fn generate(&mut self, prompts: &[&[u32]], most: usize) -> Result<Vec<Vec<u32>>, Error> {
        self.inner.generate(prompts, most)
    }
}

impl Trainer for Mortal {
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error> {
        match step == self.last {
            true => Err(Error::Training("lost".to_owned())),
            false => self.inner.step(step, rate, batch),
        }
    }

    fn agree(&self) -> Result<(), Error> {
        self.inner.agree()
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        self.inner.save(folder)
    }

    fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        self.inner.restore(folder)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.inner.write_variant(folder)
    }
}

/// Everything beneath `folder` that is not a whole file: what is being written has such a name.
fn half_written(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.contains("partial") {
            found.push(name);
        }
        if path.is_dir() {
            found.extend(half_written(&path));
        }
    }
    found
}

/// Whoever is lost, the one that drives the run or one that follows: the others end and name it, and the
/// run goes on from its last checkpoint to the bits of one that nobody was lost in.
#[test]
fn a_run_that_lost_a_process_goes_on_to_the_same_bits() {
    let setup = Setup::of("mezo", Share::Examples);
    let sound = |exchange| Box::new(setup.trainer(exchange, 1)) as Box<dyn Trainer>;
    let whole = tempfile::tempdir().unwrap();
    drive(whole.path(), 3, 0, &sound).unwrap();
    let left = |folder: &Path| std::fs::read(folder.join("variant").join(TRAJECTORY_FILE)).unwrap();
    for lost in 0..3 {
        let mortal = |exchange: Rc<dyn Exchange>| -> Box<dyn Trainer> {
            let last = if exchange.rank() == lost { 5 } else { u64::MAX };
            Box::new(Mortal { inner: setup.trainer(exchange, 1), last })
        };
        let folder = tempfile::tempdir().unwrap();
        for (rank, ended) in ended(folder.path(), 3, 0, &mortal).into_iter().enumerate() {
            let told = ended.unwrap_err().to_string();
            // Who hears of it from the next to end names that one.
            let named = told.starts_with("process ") && told.contains(" is gone: ");
            assert!(if rank == lost { told.contains("lost") } else { named }, "{rank}: {told}");
        }
        assert_eq!(half_written(folder.path()), [""; 0]);
        let outcome = drive(folder.path(), 3, 0, &sound).unwrap();
        assert_eq!((outcome.reason, outcome.step), (Some(EndReason::Done), 8));
        assert_eq!(course(folder.path()), course(whole.path()), "{lost}");
        assert!(left(folder.path()) == left(whole.path()), "{lost}");
    }
}
