//! `tune`: makes a variant of a model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use offshoot_engine::tune::Scorer;
use offshoot_engine::tune::data::{DataEvent, Prepared, Renderer, prepare, trim_prepared};
use offshoot_engine::tune::run::{
    Advice, Base, Examples, Given, Happening, LogLine, Outcome, Part, Run, RunConfig,
    RunDescription, StepLine, TuneNeed, TuneTime, VariantFile, check_examples, digest,
    evaluate_held_out, follow, read_config, read_log,
};
use offshoot_engine::{Control, ExecutorKind, available_memory, peak_rss_bytes};
use offshoot_kernels::{Cpu, available_threads};
use offshoot_models::Checkpoint;
use offshoot_models::beside::Partial;
use serde_json::{Value, json};

use crate::args::{EngineArgs, ModelArgs, TuneArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::processes::Processes;
use crate::{advice, interrupt, models, report};

/// Most bytes of prepared examples that are kept for later runs, those of this run aside.
const EXAMPLES_BYTES_MAX: u64 = 4 << 30;
/// Losses of so many steps make a median, which one batch does not move.
const MEDIAN_STEPS: usize = 11;

pub(crate) fn run(args: &TuneArgs) -> Result<(), Failure> {
    let config = config(args)?;
    config.validate()?;
    let model =
        ModelArgs { model: config.model.clone(), offline: args.offline, output: args.output };
    if args.dry_run {
        return dry_run(args, &model, &config, &Signals::listen());
    }
    let folder = args.resume.clone().unwrap_or_else(|| config.folder());
    if args.resume.is_none() {
        Run::refuse_another(&folder)?;
    }
    if args.advise {
        return advise(args, &model, &config, &Signals::listen());
    }
    let processes = Processes::join()?;
    let signals = Signals::listen();
    let outcome = tune(args, &model, &config, &folder, (&processes, &signals));
    // Whatever ended it, what was learned by the last checkpoint is not lost.
    let leads = processes.exchange().rank() == 0;
    if leads && outcome.is_err() && folder.join("checkpoints").exists() {
        note(format_args!("the run can go on: {}", resume_command(&folder)));
    }
    match outcome {
        // The others would wait for this one.
        Err(failure) if processes.exchange().size() > 1 => processes.end_all(&failure),
        Err(failure) => Err(failure),
        Ok(Some(outcome)) => tell(args, &folder, &outcome),
        Ok(None) => Ok(()),
    }
}

/// The settings of the run that goes on, or of a file, with those of the flags over them.
fn config(args: &TuneArgs) -> Result<RunConfig, Failure> {
    let from = match (&args.resume, &args.config) {
        (Some(folder), _) => {
            let begun = RunDescription::read(folder)?.config;
            object(serde_json::to_value(begun).unwrap_or_default())
        }
        (None, Some(file)) => read_config(file)?,
        (None, None) => Given::new(),
    };
    let mut flags = object(serde_json::to_value(&args.settings).unwrap_or_default());
    if let Some(model) = &args.model {
        flags.insert("model".to_owned(), Value::from(model.clone()));
    }
    if let Some(recipe) = args.engine.quantize {
        flags.insert("quantize".to_owned(), Value::from(recipe.name()));
    }
    Ok(RunConfig::of(from, flags)?)
}

fn object(value: Value) -> Given {
    match value {
        Value::Object(map) => map,
        _ => Given::new(),
    }
}

/// The engine's flags, with what the settings say of the weights.
fn engine_args(args: &TuneArgs, config: &RunConfig) -> Result<EngineArgs, Failure> {
    let quantize = config.quantize.as_ref().map(|name| name.parse()).transpose()?;
    Ok(EngineArgs { quantize, ..args.engine.clone() })
}

fn opened(model: &ModelArgs, engine: &EngineArgs) -> Result<Checkpoint, Failure> {
    let checkpoint = Checkpoint::open(&models::resolve(model)?.path)?;
    Ok(match engine.quantize {
        Some(recipe) => checkpoint.quantized(recipe),
        None => checkpoint,
    })
}

fn dry_run(
    args: &TuneArgs,
    model: &ModelArgs,
    config: &RunConfig,
    signals: &Signals,
) -> Result<(), Failure> {
    let engine = engine_args(args, config)?;
    let checkpoint = opened(model, &engine)?;
    let config = &config.fitted(checkpoint.config())?;
    let need = TuneNeed::of(&checkpoint, config);
    let available = available_memory();
    let time = time(args, (&checkpoint, config), &cpu(&engine)?, signals)?;
    if args.output.json {
        say_json(&json!({
            "config": config, "output": config.folder(), "learning_rate": config.rate(),
            "memory": need, "available": available, "time": time,
        }))?;
    } else {
        say(config.to_toml().trim_end())?;
        let megabytes = |bytes: u64| bytes / 1_000_000;
        say(format_args!(
            "# output: {}\n# learning rate: {}\n# memory: about {} MB: weights {}, what is trained \
             {}, a batch {}{}{}",
            config.folder().display(),
            config
                .rate()
                .map_or("found from losses about the weights".to_owned(), |r| { format!("{r:e}") }),
            megabytes(need.total),
            megabytes(need.weights),
            megabytes(need.trained),
            megabytes(need.batch),
            available.map_or(String::new(), |free| format!("; {} MB are free", megabytes(free))),
            match need.disk {
                0 => String::new(),
                bytes => format!(
                    "\n# disk: {} MB of weights in the output's folder while the run goes on",
                    megabytes(bytes)
                ),
            }
        ))?;
        if need.device > 0 {
            let bytes = megabytes(need.device);
            say(format_args!("# on {}: about {bytes} MB beside that", config.device))?;
        }
        say(match time {
            None => {
                let why = match config.runs_on()? {
                    ExecutorKind::Dense { .. } => "the dense executor is not measured",
                    ExecutorKind::Packed => "answers are written",
                };
                format!("# time: not known before the first step: {why}")
            }
            Some(time) => format!(
                "# time: about {} a step, {} for {} steps: products with weights alone, {:.2} \
                 billion multiplications a step at {:.1} billion a second, measured now",
                seconds(time.step_s),
                seconds(time.run_s),
                time.steps,
                time.multiplications / 1e9,
                time.multiplications_per_s / 1e9
            ),
        })?;
    }
    match available {
        Some(available) => Ok(TuneNeed::check(&checkpoint, config, available)?),
        None => Ok(()),
    }
}

/// What the run takes of time, where that can be told.
fn time(
    args: &TuneArgs,
    (checkpoint, config): (&Checkpoint, &RunConfig),
    cpu: &Cpu,
    signals: &Signals,
) -> Result<Option<TuneTime>, Failure> {
    let renderer = Renderer::new(checkpoint)?;
    let (folder, _goes) = passing_folder(args)?;
    let read = |files: &[PathBuf]| {
        examples(config, (files, &folder), &renderer, signals, &|_: &dyn std::fmt::Display| {})
    };
    let all = read(&config.data)?;
    let file = match &config.eval_data[..] {
        [] => None,
        files => Some(read(files)?),
    };
    make_room(&folder, &all, &file);
    let (all, file) = (all.file, file.map(|prepared| prepared.file));
    let (train, held_out) = match &file {
        None => Part::split(&all, config.eval_fraction, config.seed)?,
        Some(file) => (Part::whole(&all), Part::whole(file)),
    };
    check_examples(config, &train, &held_out)?;
    let steps = config.plan(train.count(), held_out.count())?.steps;
    Ok(TuneTime::of(checkpoint, config, &train, steps, cpu)?)
}

/// A time as one says it.
fn seconds(s: f64) -> String {
    match s {
        s if s < 0.1 => format!("{:.1} ms", 1000.0 * s),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// What is advised for a run with these examples.
fn advise(
    args: &TuneArgs,
    model: &ModelArgs,
    config: &RunConfig,
    signals: &Signals,
) -> Result<(), Failure> {
    let checkpoint = opened(model, &engine_args(args, config)?)?;
    let config = &config.fitted(checkpoint.config())?;
    let renderer = Renderer::new(&checkpoint)?;
    let (folder, _goes) = passing_folder(args)?;
    let quiet = |_: &dyn std::fmt::Display| {};
    let all = examples(config, (&config.data, &folder), &renderer, signals, &quiet)?;
    make_room(&folder, &all, &None);
    let advice = Advice::of(&checkpoint, config, &Part::whole(&all.file), available_memory())?;
    if args.output.json {
        return say_json(&serde_json::to_value(&advice).unwrap_or_default());
    }
    advice::tell(&advice)
}

/// Makes a run, as one of the processes that do; process 0 tells how it ended.
fn tune(
    args: &TuneArgs,
    model: &ModelArgs,
    config: &RunConfig,
    folder: &Path,
    (processes, signals): (&Processes, &Signals),
) -> Result<Option<Outcome>, Failure> {
    let engine = engine_args(args, config)?;
    let checkpoint = opened(model, &engine)?;
    let config = &config.fitted(checkpoint.config())?;
    if let Some(available) = available_memory() {
        TuneNeed::check(&checkpoint, config, available)?;
    }
    // Faults of the data are told before the weights are read.
    let renderer = Renderer::new(&checkpoint)?;
    let examples_folder = examples_folder(args, folder);
    let leads = processes.exchange().rank() == 0;
    if leads {
        models::note_assumed(&checkpoint);
        note_dequantised(&checkpoint, config);
    }
    drop(checkpoint);
    let tell = |line: &dyn std::fmt::Display| {
        if leads {
            note(line)
        }
    };
    let read = |files: &[PathBuf]| {
        let places = (files, &*examples_folder);
        examples(config, places, &renderer, signals, &tell)
    };
    let all = processes.first(|| read(&config.data))?;
    let file = processes.first(|| match &config.eval_data[..] {
        [] => Ok(None),
        files => read(files).map(Some),
    })?;
    if leads && examples_folder != folder.join("examples") {
        make_room(&examples_folder, &all, &file);
    }
    let (all, file) = (all.file, file.map(|prepared| prepared.file));
    let (train, held_out) = match &file {
        None => Part::split(&all, config.eval_fraction, config.seed)?,
        Some(file) => (Part::whole(&all), Part::whole(file)),
    };
    check_examples(config, &train, &held_out)?;
    let (base, cpu) = processes.first(|| load(model, &engine, config))?;
    let plan = config.plan(train.count(), held_out.count())?;
    let description = RunDescription {
        id: String::new(),
        config: config.clone(),
        data: digest(&train)?,
        examples: train.count(),
        held_out_data: digest(&held_out)?,
        held_out: held_out.count(),
        command: command(),
        variant: VariantFile::of(base.checkpoint(), base.id()?, config.method.name())?,
    };
    let exchange = processes.exchange();
    let description = description.join(&**exchange)?;
    // Before the folder is the run's: an option that is wrong leaves nothing behind.
    let tools = (renderer.tokenizer(), &cpu);
    let mut trainer = base.trainer(&description, &train, tools, exchange, folder)?;
    let mut evaluate = |scorer: &mut dyn Scorer,
                        held_out: &dyn Examples,
                        progress: &mut dyn FnMut(u64) -> Control| {
        evaluate_held_out(config, renderer.tokenizer(), scorer, held_out, progress)
    };
    let examples = (&train as &dyn Examples, &held_out as &dyn Examples);
    if exchange.rank() > 0 {
        follow(folder, exchange, &mut *trainer, examples, &plan, &mut evaluate)?;
        return Ok(None);
    }
    let run = match &args.resume {
        Some(folder) => Run::resume(folder, description)?,
        None => Run::begin(folder, description)?,
    };
    let run = run.leading(Rc::clone(exchange));
    if args.resume.is_some() {
        note(format_args!("going on after step {} of {}", run.step(), plan.steps));
    }
    let mut shown = Shown::new(plan.steps, run.step(), args.output.json);
    let mut watch = |happening: &Happening<'_>| {
        shown.show(happening);
        signals.control()
    };
    let outcome = run.drive(&mut *trainer, examples, &plan, &mut evaluate, &mut watch);
    shown.finish();
    Ok(Some(outcome?))
}

/// Says what a quantised base becomes where all weights are tuned: the file's size does not tell it.
fn note_dequantised(checkpoint: &Checkpoint, config: &RunConfig) {
    let is_quantised = checkpoint.tensors().any(|tensor| tensor.block.block_len() > 1);
    if !config.tunes_all_without_gradients() || !is_quantised {
        return;
    }
    let need = TuneNeed::of(checkpoint, config);
    let (weights, place) = match need.disk {
        0 => (need.weights, ""),
        bytes => (bytes, " on the disk"),
    };
    note(format_args!(
        "all weights of a quantised base are tuned, as {}: {} MB of them{place}; the run takes \
         about {} MB of memory",
        config.store.name(),
        weights / 1_000_000,
        need.total / 1_000_000
    ));
}

/// The base in the form in which the method takes it.
fn load(
    model: &ModelArgs,
    engine: &EngineArgs,
    config: &RunConfig,
) -> Result<(Base, Cpu), Failure> {
    if config.takes_packed() {
        let (model, cpu) = models::load_base(model, engine)?;
        return Ok((Base::Packed(Box::new(model)), cpu));
    }
    Ok((Base::Stored(Arc::new(opened(model, engine)?)), cpu(engine)?))
}

fn cpu(engine: &EngineArgs) -> Result<Cpu, Failure> {
    let threads = engine.threads.map_or_else(available_threads, usize::from);
    Ok(Cpu::new(models::isa()?, threads))
}

/// Where examples are kept as tokens: with what is kept of models, or in the run's folder.
fn examples_folder(args: &TuneArgs, run: &Path) -> PathBuf {
    match models::cache_dir().filter(|_| !args.engine.no_cache) {
        Some(cache) => cache.join("examples"),
        None => run.join("examples"),
    }
}

/// Where examples are kept as tokens by who begins no run: with what is kept of models, where the
/// run finds them, or in a folder that goes when what is beside it is dropped.
fn passing_folder(args: &TuneArgs) -> Result<(PathBuf, Option<Partial>), Failure> {
    if let Some(cache) = models::cache_dir().filter(|_| !args.engine.no_cache) {
        return Ok((cache.join("examples"), None));
    }
    let place = std::env::temp_dir().join("offshoot-examples");
    let folder = Partial::folder(&place);
    let folder = folder.map_err(|source| Failure::File { path: place, source })?;
    Ok((folder.path().to_owned(), Some(folder)))
}

/// Keeps what is in `folder` beside the examples of this run within [`EXAMPLES_BYTES_MAX`].
fn make_room(folder: &Path, all: &Prepared, file: &Option<Prepared>) {
    let used: Vec<&Path> = std::iter::once(all).chain(file).map(|kept| &*kept.path).collect();
    trim_prepared(folder, &used, EXAMPLES_BYTES_MAX);
}

/// The examples of `files`, as tokens that are kept in `folder`.
fn examples(
    config: &RunConfig,
    (files, folder): (&[PathBuf], &Path),
    renderer: &Renderer,
    signals: &Signals,
    tell: &dyn Fn(&dyn std::fmt::Display),
) -> Result<Prepared, Failure> {
    let wrong = |source| Failure::File { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(wrong)?;
    let options = config.data_options()?;
    let prepared = prepare(files, renderer, &options, folder, &mut |event| {
        if let DataEvent::Detected(file) = event {
            tell(&format_args!("{}: {} as {}", file.path, file.container, file.format));
        }
        signals.control()
    })?;
    let report = prepared.file.report();
    if report.cut + report.dropped > 0 {
        tell(&format_args!(
            "of {} rows {} were cut and {} left out, longer than {} tokens",
            report.rows,
            report.cut,
            report.dropped,
            config.length()
        ));
    }
    Ok(prepared)
}

/// The words of this command, as a shell reads them.
fn command() -> String {
    let words = std::env::args_os().skip(1).map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("offshoot".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn resume_command(folder: &Path) -> String {
    format!("offshoot tune --resume {}", quoted(&folder.to_string_lossy()))
}

/// Says how a run ended, and what is to be done with it.
fn tell(args: &TuneArgs, folder: &Path, outcome: &Outcome) -> Result<(), Failure> {
    let page: PathBuf = folder.join("report.html");
    let lines = read_log(&folder.join("log.jsonl"))?;
    report::write(&lines, &page)?;
    let losses: Vec<f64> = lines.iter().filter_map(|line| line.step()?.loss).collect();
    if let (true, Some((first, last))) = (outcome.best.is_none(), rise(&losses)) {
        note(format_args!(
            "the loss rose from {first:.4} to {last:.4}, medians of {MEDIAN_STEPS} steps: take a lower \
             --learning-rate; with --eval-fraction the variant is the best, not the last"
        ));
    }
    if args.output.json {
        let best = outcome.best.map(|(step, value)| json!({ "step": step, "value": value }));
        say_json(&json!({
            "run": folder, "variant": outcome.variant, "report": page, "step": outcome.step,
            "reason": outcome.reason, "best": best, "seconds": outcome.elapsed_s,
            "peak_rss_bytes": peak_rss_bytes(),
        }))?;
    }
    let Some(reason) = outcome.reason else {
        note(format_args!(
            "stopped after step {}; go on with: {}",
            outcome.step,
            resume_command(folder)
        ));
        return Err(Failure::Interrupted);
    };
    if args.output.json {
        return Ok(());
    }
    let best = outcome.best.map_or(String::new(), |(step, value)| {
        format!(", the best after step {step} with {value:.4}")
    });
    let steps = if outcome.step == 1 { "step" } else { "steps" };
    note(format_args!(
        "{}: {} {steps} in {:.0} s{best}",
        reason.told(),
        outcome.step,
        outcome.elapsed_s
    ));
    note(format_args!("the curves are in {}", page.display()));
    let model = RunDescription::read(folder)?.config.model;
    say(format_args!(
        "offshoot run {} --variant tuned={}",
        quoted(&model),
        quoted(&folder.to_string_lossy())
    ))
}

/// Medians of the first and the last losses of a run, where that of the last is more than twice the other
/// and above 1: what is small may double.
fn rise(losses: &[f64]) -> Option<(f64, f64)> {
    if losses.len() < 2 * MEDIAN_STEPS {
        return None;
    }
    let median = |losses: &[f64]| {
        let mut sorted = losses.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[MEDIAN_STEPS / 2]
    };
    let first = median(&losses[..MEDIAN_STEPS]);
    let last = median(&losses[losses.len() - MEDIAN_STEPS..]);
    (last > 2.0 * first.max(0.5)).then_some((first, last))
}

/// SIGINT and SIGTERM: the first is left to the run, which ends after its step or leaves its
/// evaluation; the second ends the program.
struct Signals {
    terminated: Arc<AtomicBool>,
    _listener: interrupt::Listener,
}

impl Signals {
    fn listen() -> Self {
        let terminated = Arc::new(AtomicBool::new(false));
        #[cfg(unix)]
        {
            use signal_hook::{consts::SIGTERM, flag};
            // Where no handler can be set, the signal ends the program as usual.
            let code = i32::from(interrupt::CODE);
            let _ = flag::register_conditional_shutdown(SIGTERM, code, Arc::clone(&terminated));
            let _ = flag::register(SIGTERM, Arc::clone(&terminated));
        }
        Self { terminated, _listener: interrupt::listen() }
    }

    fn control(&self) -> Control {
        match interrupt::asked() || self.terminated.load(Ordering::SeqCst) {
            true => Control::Stop,
            false => Control::Continue,
        }
    }
}

/// Lines that tell of steps where no terminal shows a bar, at most.
const LINES: u64 = 10;

/// A bar on a terminal; elsewhere a line for each evaluation, and now and then for a step.
struct Shown {
    bar: Option<ProgressBar>,
    steps: u64,
    /// Steps that had been made when this began, and when that was.
    done: u64,
    since: Instant,
    json: bool,
}

impl Shown {
    fn new(steps: u64, done: u64, json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(steps));
        if let (Some(bar), Ok(style)) =
            (&bar, ProgressStyle::with_template("{bar:30} {pos} of {len} {msg} {eta} left"))
        {
            bar.set_style(style);
            bar.set_position(done);
            bar.reset_eta();
        }
        Self { bar, steps, done, since: Instant::now(), json }
    }

    fn step(&self, line: &StepLine) {
        let loss = line.loss.map_or("none".to_owned(), |loss| format!("{loss:.4}"));
        let speed = line.tokens_per_s.unwrap_or(0.0);
        let memory = line.peak_rss_bytes.unwrap_or(0) / 1_000_000;
        let told = format!("loss {loss}, {speed:.0} tokens/s, {memory} MB");
        let tenth = |step: u64| step.saturating_mul(LINES) / self.steps.max(1);
        match &self.bar {
            Some(bar) => {
                bar.set_message(told);
                bar.set_position(line.step);
            }
            None if !self.json && tenth(line.step) > tenth(line.step - 1) => {
                let made = line.step.saturating_sub(self.done).max(1);
                let left = self.steps.saturating_sub(line.step) as f64 / made as f64;
                let left = seconds(left * self.since.elapsed().as_secs_f64());
                note(format_args!("step {} of {}: {told}, {left} left", line.step, self.steps));
            }
            None => {}
        }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => note(line),
        }
    }

    fn show(&mut self, happening: &Happening<'_>) {
        match happening {
            Happening::Line(LogLine::Step(line)) => self.step(line),
            Happening::Line(LogLine::Eval(line)) => {
                let told = line.metrics.iter();
                let told = told.filter_map(|(name, x)| Some(format!("{name} {:.4}", (*x)?)));
                let told = told.collect::<Vec<_>>().join(", ");
                let best = if line.best { ", the best so far" } else { "" };
                self.line(&format!("step {}: held out: {told}{best}", line.step));
            }
            Happening::PassedOver { why } => {
                self.line(&format!("a checkpoint is passed over: {why}"));
            }
            _ => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_units_that_suit_them() {
        for (s, said) in [(0.0123, "12.3 ms"), (1.25, "1.2 s"), (150.0, "2 min"), (9000.0, "2.5 h")]
        {
            assert_eq!(seconds(s), said);
        }
    }

    #[test]
    fn losses_that_doubled_and_are_not_small_are_told() {
        let course = |first: f64, last: f64| [[first; 20], [last; 20]].concat();
        assert_eq!(rise(&course(1.0, 2.1)), Some((1.0, 2.1)));
        for (first, last) in [(1.0, 2.0), (0.01, 0.9), (-3.0, -1.0), (2.0, 1.0)] {
            assert_eq!(rise(&course(first, last)), None);
        }
        // A few batches are not the run, and a short run has no two medians.
        let mut outliers = course(1.0, 1.0);
        outliers[35..].fill(90.0);
        assert_eq!(rise(&outliers), None);
        assert_eq!(rise(&course(1.0, 9.0)[10..31]), None);
    }

    #[test]
    fn words_are_quoted_as_a_shell_reads_them() {
        for (word, shown) in [
            ("--lr", "--lr"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
        assert_eq!(resume_command(Path::new("x y")), "offshoot tune --resume 'x y'");
    }
}
