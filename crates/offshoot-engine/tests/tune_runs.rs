//! Runs on a trainer that is small and whole: a softmax regression from a token to the next one,
//! with momentum, so that there is a state beside the weights.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use offshoot_engine::tune::run::{
    EndReason, Examples, Happening, LogLine, Outcome, Part, Run, RunConfig, event_file, read_log,
};
use offshoot_engine::tune::{Example, Scored, Scorer, Sequence, StepReport, Trainer};
use offshoot_engine::{Control, Error};
use runs::{described, mean_loss, stop_at};

/// Tokens of the language.
const TOKENS: usize = 8;

/// Logits of each token behind each, and what the last steps were.
#[derive(Clone, PartialEq, Debug)]
struct Bigrams {
    weights: Vec<f64>,
    momentum: Vec<f64>,
    /// Makes losses that are no numbers from this step on.
    poisoned_from: u64,
    /// Slept in each step, so that a signal finds it at work.
    pause: Duration,
}

impl Bigrams {
    fn new() -> Self {
        let zeros = vec![0.0; TOKENS * TOKENS];
        let (weights, momentum) = (zeros.clone(), zeros);
        Self { weights, momentum, poisoned_from: u64::MAX, pause: Duration::ZERO }
    }

    fn logprobs(&self, token: u32) -> Vec<f64> {
        let row = &self.weights[token as usize * TOKENS..][..TOKENS];
        let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - greatest).exp()).sum();
        row.iter().map(|x| x - greatest - sum.ln()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.weights.iter().chain(&self.momentum).flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// Each counted token with the one before it.
fn pairs(sequence: &Sequence) -> impl Iterator<Item = (u32, u32)> + '_ {
    let behind = sequence.tokens.iter().zip(&sequence.tokens[1..]).zip(&sequence.trained[1..]);
    behind.filter(|(_, trained)| **trained).map(|((a, b), _)| (*a, *b))
}

impl Scorer for Bigrams {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        let one = |sequence: &&Sequence| {
            let mut scored = Scored { logprob: 0.0, tokens: 0, greedy: 0 };
            for (a, b) in pairs(sequence) {
                let logprobs = self.logprobs(a);
                scored.logprob += logprobs[b as usize];
                scored.tokens += 1;
                let best = logprobs.iter().all(|x| *x <= logprobs[b as usize]);
                scored.greedy += usize::from(best);
            }
            scored
        };
        Ok(sequences.iter().map(one).collect())
    }

    fn generate(&mut self, _: &[&[u32]], _: usize) -> Result<Vec<Vec<u32>>, Error> {
        Err(Error::Stopped)
    }
}

impl Trainer for Bigrams {
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error> {
        std::thread::sleep(self.pause);
        let mut gradient = vec![0.0; TOKENS * TOKENS];
        let (mut loss, mut count) = (0.0, 0);
        for example in batch {
            let Example::Text(sequence) = example else { panic!("texts alone") };
            for (a, b) in pairs(sequence) {
                let logprobs = self.logprobs(a);
                loss -= logprobs[b as usize];
                count += 1;
                for (next, logprob) in logprobs.iter().enumerate() {
                    let one = f64::from(u8::from(next == b as usize));
                    gradient[a as usize * TOKENS + next] += logprob.exp() - one;
                }
            }
        }
        if step >= self.poisoned_from {
            return Ok(StepReport { loss: f64::NAN, tokens: count, numbers: Vec::new() });
        }
        for ((w, m), g) in self.weights.iter_mut().zip(&mut self.momentum).zip(&gradient) {
            *m = 0.9 * *m + g / f64::from(count as u32);
            *w -= rate * *m;
        }
        let loss = loss / f64::from(count as u32);
        Ok(StepReport { loss, tokens: count, numbers: vec![("rate_seen", rate)] })
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        write(&folder.join("state.bin"), &self.bytes())
    }

    fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        let numbers = numbers(&folder.join("state.bin"));
        self.weights.copy_from_slice(&numbers[..TOKENS * TOKENS]);
        self.momentum.copy_from_slice(&numbers[TOKENS * TOKENS..]);
        Ok(())
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        write(&folder.join("weights.bin"), &self.bytes())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| Error::Output { path: path.to_owned(), source })
}

fn numbers(path: &Path) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Texts in which a token is mostly followed by the next one.
fn texts(count: u32) -> Vec<Example> {
    let text = |i: u32| {
        let token = |j: u32| (i + j + u32::from(i.is_multiple_of(5) && j == 3)) % TOKENS as u32;
        Example::Text(Sequence::of(&[token(0)], &[1, 2, 3, 4, 5].map(token)))
    };
    (0..count).map(text).collect()
}

fn config() -> RunConfig {
    RunConfig {
        model: "bigrams".into(),
        data: vec!["texts".into()],
        eval_fraction: 0.25,
        steps: Some(60),
        batch: 4,
        learning_rate: Some(0.5),
        eval_every: Some(10),
        save_every: Some(7),
        ..RunConfig::default()
    }
}

/// Runs to the end, or until `watch` says stop.
fn go(
    folder: &Path,
    config: &RunConfig,
    trainer: &mut Bigrams,
    watch: &mut dyn FnMut(&Happening<'_>) -> Control,
) -> Result<Outcome, Error> {
    let all = texts(40);
    let (train, held_out) = Part::split(&all, config.eval_fraction, config.seed).unwrap();
    let plan = config.plan(train.count(), held_out.count())?;
    let description = described(config, &train, &held_out);
    let run = match folder.join("run.json").exists() {
        true => Run::resume(folder, description)?,
        false => Run::begin(folder, description)?,
    };
    run.drive(trainer, (&train, &held_out), &plan, &mut mean_loss, watch)
}

fn finish(folder: &Path, config: &RunConfig) -> (Outcome, Bigrams) {
    let mut trainer = Bigrams::new();
    let outcome = go(folder, config, &mut trainer, &mut |_| Control::Continue).unwrap();
    (outcome, trainer)
}

fn log(folder: &Path) -> Vec<LogLine> {
    read_log(&folder.join("log.jsonl")).unwrap()
}

/// What is told of each step, without times.
fn losses(folder: &Path) -> Vec<(u64, Option<f64>, f64)> {
    let log = log(folder);
    log.iter().filter_map(LogLine::step).map(|line| (line.step, line.loss, line.rate)).collect()
}

#[test]
fn a_run_learns_and_its_folder_holds_all_that_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, trainer) = finish(dir.path(), &config());
    assert_eq!((outcome.reason, outcome.step), (Some(EndReason::Done), 60));
    let losses = losses(dir.path());
    assert_eq!(losses.len(), 60);
    assert!((losses[0].1.unwrap() - (TOKENS as f64).ln()).abs() < 1e-9, "at first all are alike");
    let late: f64 = losses[50..].iter().map(|(_, loss, _)| loss.unwrap()).sum();
    assert!(late < 7.0, "{losses:?}");
    let (step, value) = outcome.best.unwrap();
    assert!(value < 0.7 && step.is_multiple_of(10), "{step} {value}");
    assert_eq!(numbers(&outcome.variant.join("weights.bin")).len(), trainer.weights.len() * 2);
    for file in ["variant/variant.json", "variant/README.md", "run.json", "log.jsonl"] {
        assert!(dir.path().join(file).exists(), "{file}");
    }
    assert!(matches!(log(dir.path()).last(), Some(LogLine::End { reason: EndReason::Done, .. })));
    let kept = fs::read_dir(dir.path().join("checkpoints")).unwrap().count();
    assert!((2..=3).contains(&kept), "two and the best: {kept}");
}

/// However a step's examples are split, it is the same step.
#[test]
fn batches_that_are_accumulated_are_one() {
    let after = |batch, accumulation| {
        let dir = tempfile::tempdir().unwrap();
        let (_, trainer) = finish(dir.path(), &RunConfig { batch, accumulation, ..config() });
        (trainer, losses(dir.path()))
    };
    let whole = after(12, 1);
    assert_eq!(after(3, 4), whole);
    assert_eq!(after(1, 12), whole);
}

#[test]
fn a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (outcome, trainer) = finish(whole.path(), &config());
    for stops in [vec![1], vec![10, 11], vec![7, 29, 59]] {
        let dir = tempfile::tempdir().unwrap();
        for stop in stops {
            let stopped = go(dir.path(), &config(), &mut Bigrams::new(), &mut stop_at(stop));
            let stopped = stopped.unwrap();
            assert_eq!((stopped.reason, stopped.step), (None, stop));
        }
        let (other, again) = finish(dir.path(), &config());
        assert_eq!(again, trainer);
        assert_eq!((other.best, other.step), (outcome.best, outcome.step));
        assert_eq!(losses(dir.path()), losses(whole.path()));
        let weights = |outcome: &Outcome| fs::read(outcome.variant.join("weights.bin")).unwrap();
        assert_eq!(weights(&other), weights(&outcome));
    }
}

/// The evaluation after the tenth step, after one that is a checkpoint too, and after the last.
#[test]
fn a_run_that_is_stopped_within_an_evaluation_leaves_it_and_makes_it_when_it_goes_on() {
    for (eval_every, at) in [(10, 10), (7, 14), (10, 60)] {
        let config = RunConfig { eval_every: Some(eval_every), ..config() };
        let whole = tempfile::tempdir().unwrap();
        let (outcome, trainer) = finish(whole.path(), &config);
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let (mut step, mut seen) = (0, 0);
            let mut watch = |happening: &Happening<'_>| {
                match happening {
                    Happening::Line(LogLine::Step(line)) => step = line.step,
                    Happening::Line(LogLine::Resume { step: begun, .. }) => step = *begun,
                    Happening::Evaluating { done } if step == at => seen = *done,
                    _ => {}
                }
                if step == at && seen >= 3 { Control::Stop } else { Control::Continue }
            };
            let stopped = go(dir.path(), &config, &mut Bigrams::new(), &mut watch).unwrap();
            assert_eq!((stopped.reason, stopped.step), (None, at));
            assert_eq!(seen, 3, "it was left at once");
            assert!(log(dir.path()).iter().all(|line| !is_evaluation(line, at)));
        }
        let (other, again) = finish(dir.path(), &config);
        assert_eq!(again, trainer);
        assert_eq!((other.best, other.reason), (outcome.best, outcome.reason));
        assert_eq!(losses(dir.path()), losses(whole.path()));
        let evaluated = |folder: &Path| {
            log(folder).iter().filter(|line| matches!(line, LogLine::Eval(_))).count()
        };
        assert_eq!(evaluated(dir.path()), evaluated(whole.path()));
        let weights = |outcome: &Outcome| fs::read(outcome.variant.join("weights.bin")).unwrap();
        assert_eq!(weights(&other), weights(&outcome));
    }
}

fn is_evaluation(line: &LogLine, after: u64) -> bool {
    matches!(line, LogLine::Eval(line) if line.step == after)
}

#[test]
fn a_finished_run_that_goes_on_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = finish(dir.path(), &config());
    fs::remove_dir_all(dir.path().join("variant")).unwrap();
    let (again, _) = finish(dir.path(), &config());
    assert_eq!(again.best, first.best);
    assert!(again.variant.join("weights.bin").exists(), "made again from the best checkpoint");
    assert_eq!(losses(dir.path()).len(), 60);
}

#[test]
fn patience_ends_a_run_and_the_best_is_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    // A rate so great that it soon gets worse.
    let config = RunConfig { learning_rate: Some(40.0), patience: Some(2), ..config() };
    let (outcome, _) = finish(dir.path(), &config);
    assert_eq!(outcome.reason, Some(EndReason::EarlyStop));
    assert!(outcome.step < 60);
    let (best, value) = outcome.best.unwrap();
    let served = numbers(&outcome.variant.join("weights.bin"));
    let mut trainer = Bigrams::new();
    trainer.weights.copy_from_slice(&served[..TOKENS * TOKENS]);
    let all = texts(40);
    let (_, held_out) = Part::split(&all, config.eval_fraction, config.seed).unwrap();
    assert_eq!(
        mean_loss(&mut trainer, &held_out, &mut |_| Control::Continue).unwrap()["loss"],
        value,
        "of step {best}"
    );
}

#[test]
fn a_loss_that_grows_to_twice_the_least_and_stays_there_ends_a_run() {
    let all = texts(40);
    let (train, held_out) = Part::split(&all, 0.25, 42).unwrap();
    let plan = config().plan(train.count(), held_out.count()).unwrap();
    let ends = |losses: [f64; 6]| {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::begin(dir.path(), described(&config(), &train, &held_out)).unwrap();
        let mut told = losses.iter();
        let mut evaluate =
            |_: &mut dyn Scorer, _: &dyn Examples, _: &mut dyn FnMut(u64) -> Control| {
                Ok(BTreeMap::from([("loss".to_owned(), *told.next().unwrap())]))
            };
        let (mut trainer, mut watch) = (Bigrams::new(), |_: &Happening<'_>| Control::Continue);
        let parts = (&train as &dyn Examples, &held_out as &dyn Examples);
        let outcome = run.drive(&mut trainer, parts, &plan, &mut evaluate, &mut watch).unwrap();
        (outcome.step, outcome.reason)
    };
    assert_eq!(ends([1.0, 0.8, 1.7, 1.7, 1.7, 0.1]), (50, Some(EndReason::Diverged)));
    assert_eq!(ends([1.0, 0.8, 1.7, 1.5, 1.7, 1.7]), (60, Some(EndReason::Done)));
    // What is small may double.
    assert_eq!(ends([0.9, 0.01, 0.9, 0.9, 0.9, 0.9]), (60, Some(EndReason::Done)));
}

#[test]
fn a_new_run_writes_over_nothing_that_is_not_a_runs() {
    for name in ["log.jsonl", "variant", "checkpoints", "tensorboard", "report.html"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), "mine").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "mine too").unwrap();
        let told = go(dir.path(), &config(), &mut Bigrams::new(), &mut |_| Control::Continue);
        let told = told.unwrap_err().to_string();
        assert!(told.contains(&format!("{name:?} is there, of no run")), "{told}");
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"mine");
        assert!(!dir.path().join("run.json").exists());
    }
}

#[test]
fn losses_that_are_no_numbers_end_a_run_and_leave_its_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = Bigrams { poisoned_from: 15, ..Bigrams::new() };
    let told = go(dir.path(), &config(), &mut trainer, &mut |_| Control::Continue).unwrap_err();
    assert!(told.to_string().starts_with("step 35: the loss was no finite number 20 times"));
    assert_eq!(losses(dir.path())[20].1, None);
    let (outcome, _) = finish(dir.path(), &config());
    assert_eq!(outcome.step, 60);
}

#[test]
fn what_is_asked_otherwise_is_told_field_by_field() {
    let dir = tempfile::tempdir().unwrap();
    go(dir.path(), &config(), &mut Bigrams::new(), &mut stop_at(3)).unwrap();
    let other = RunConfig { batch: 8, seed: 1, ..config() };
    let told = go(dir.path(), &other, &mut Bigrams::new(), &mut |_| Control::Continue);
    let told = told.unwrap_err().to_string();
    for says in ["batch: 4 then, 8 now", "seed: 42 then, 1 now", "data: "] {
        assert!(told.contains(says), "{told}");
    }
}

#[test]
fn a_folder_has_one_run_at_a_time_and_a_new_one_does_not_replace_it() {
    let dir = tempfile::tempdir().unwrap();
    let all = texts(40);
    let (train, held_out) = Part::split(&all, 0.25, 42).unwrap();
    let described = || described(&config(), &train, &held_out);
    let held = Run::begin(dir.path(), described()).unwrap();
    let told = Run::resume(dir.path(), described()).unwrap_err().to_string();
    assert!(told.contains("another run works here (process "), "{told}");
    drop(held);
    let told = Run::begin(dir.path(), described()).unwrap_err().to_string();
    assert!(told.contains("continue it with --resume"), "{told}");
    let empty = tempfile::tempdir().unwrap();
    let told = Run::resume(empty.path(), described()).unwrap_err().to_string();
    assert!(told.contains("there is no run here"), "{told}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_bits_are_the_same() {
    let whole = tempfile::tempdir().unwrap();
    let (_, trainer) = finish(whole.path(), &config());
    let dir = tempfile::tempdir().unwrap();
    go(dir.path(), &config(), &mut Bigrams::new(), &mut stop_at(21)).unwrap();
    fs::write(dir.path().join("checkpoints/step-00000021/trainer/state.bin"), "torn").unwrap();
    let (mut again, mut passed_over) = (Bigrams::new(), Vec::new());
    go(dir.path(), &config(), &mut again, &mut |happening| {
        if let Happening::PassedOver { why } = happening {
            passed_over.push((*why).to_owned());
        }
        Control::Continue
    })
    .unwrap();
    assert!(passed_over.len() == 1 && passed_over[0].contains("4 bytes, expected 1024"));
    assert_eq!(again, trainer);
}

/// Where the child of a test works; without it the same test is a run in a folder of its own.
const FOLDER: &str = "OFFSHOOT_TEST_RUN_FOLDER";

/// Also what the tests below run as a child, to be killed.
#[test]
fn a_slow_run_finishes() {
    let own = tempfile::tempdir().unwrap();
    let folder = std::env::var_os(FOLDER).map_or(own.path().to_owned(), PathBuf::from);
    let mut trainer = Bigrams { pause: Duration::from_millis(5), ..Bigrams::new() };
    let outcome = go(&folder, &slow(), &mut trainer, &mut |_| Control::Continue).unwrap();
    assert_eq!(outcome.reason, Some(EndReason::Done));
}

/// A run most of whose time goes to checkpoints.
fn slow() -> RunConfig {
    RunConfig { save_every: Some(2), eval_every: Some(5), ..config() }
}

/// The slow run in `folder`, by a process of its own.
fn child(folder: &Path, through: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let test = [program, "--exact", "a_slow_run_finishes"];
    let words: Vec<&str> = through.iter().chain(&test).copied().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(FOLDER, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (outcome, _) = finish(whole.path(), &slow());
    let dir = tempfile::tempdir().unwrap();
    let mut killed = 0;
    // Moments that follow no beat of the run.
    for round in 0..40u64 {
        let mut run = child(dir.path(), &[]);
        let patience = Duration::from_millis(40 + round * 7919 % 160);
        let begun = Instant::now();
        let ended = loop {
            if let Some(status) = run.try_wait().unwrap() {
                assert!(status.success(), "round {round}");
                break true;
            }
            if begun.elapsed() > patience {
                break false;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if ended {
            break;
        }
        run.kill().unwrap();
        run.wait().unwrap();
        killed += 1;
    }
    assert!(killed >= 3, "killed {killed} times");
    let (again, _) = finish(dir.path(), &slow());
    assert_eq!((again.best, again.step), (outcome.best, outcome.step));
    assert_eq!(losses(dir.path()), losses(whole.path()));
    let state = |folder: &Path| {
        fs::read(folder.join("checkpoints/step-00000060/trainer/state.bin")).unwrap()
    };
    assert_eq!(state(dir.path()), state(whole.path()));
    assert_eq!(
        fs::read(dir.path().join("variant/weights.bin")).unwrap(),
        fs::read(whole.path().join("variant/weights.bin")).unwrap()
    );
}

/// A limit of the size of files stands for a full disk: writing fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_a_run_and_leaves_what_was_whole() {
    let dir = tempfile::tempdir().unwrap();
    go(dir.path(), &slow(), &mut Bigrams::new(), &mut stop_at(4)).unwrap();
    let logged = fs::metadata(dir.path().join("log.jsonl")).unwrap().len();
    // In blocks of 512 bytes: the log may grow by a few lines.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", logged / 512 + 2);
    let run = child(dir.path(), &["sh", "-c", &limit, "sh"]);
    let output = run.wait_with_output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("File too large"), "{told}");
    let whole = tempfile::tempdir().unwrap();
    let (_, expected) = finish(whole.path(), &slow());
    let (_, trainer) = finish(dir.path(), &slow());
    assert_eq!(trainer, expected);
}

/// `scripts/oracles/tensorboard_events.py` had TensorBoard itself read the events of a real run.
#[test]
fn tensorboard_reads_every_number_of_the_log_once() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/run");
    let lines = read_log(&data.join("log.jsonl")).unwrap();
    assert!(event_file(&lines) == fs::read(data.join("events.tfevents")).unwrap());
    let read = fs::read(data.join("events.json")).unwrap();
    let read: BTreeMap<String, Vec<(u64, f64, f64)>> = serde_json::from_slice(&read).unwrap();
    let began = lines.iter().find_map(LogLine::start).unwrap().unix_s;
    let mut logged: BTreeMap<String, Vec<(u64, f64, f64)>> = BTreeMap::new();
    let mut add = |tag: &str, step, elapsed_s: f64, value: f64| {
        let point = (step, began + elapsed_s, f64::from(value as f32));
        logged.entry(tag.to_owned()).or_default().push(point);
    };
    for line in &lines {
        match line {
            LogLine::Step(line) => {
                let mut step = |name: &str, value: f64| {
                    add(&format!("train/{name}"), line.step, line.elapsed_s, value);
                };
                step("loss", line.loss.unwrap());
                step("learning_rate", line.rate);
                step("epoch", line.epoch);
                step("tokens_per_s", line.tokens_per_s.unwrap());
                step("peak_rss_bytes", line.peak_rss_bytes.unwrap() as f64);
                line.numbers.iter().for_each(|(name, value)| step(name, value.unwrap()));
            }
            LogLine::Eval(line) => {
                for (name, value) in &line.metrics {
                    add(&format!("eval/{name}"), line.step, line.elapsed_s, value.unwrap());
                }
            }
            _ => {}
        }
    }
    assert!(logged["train/loss"].len() == 6 && logged["eval/loss"].len() == 2, "{logged:?}");
    assert_eq!(read, logged);
}
