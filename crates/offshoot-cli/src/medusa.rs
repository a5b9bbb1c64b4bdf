//! `medusa`: draft heads of a model.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use offshoot_engine::medusa::{
    DistillOptions, Distilled, Flavour, HeadsReport, RANKS, ReadyHeads, SeedPrompts, TrainOptions,
    calibrate, train,
};
use offshoot_engine::{Control, Model};
use offshoot_methods::draft::medusa::{DraftTree, search};
use offshoot_models::PackedExecutor;
use offshoot_models::medusa::{HeadsCard, HeadsFile, MedusaHeads, import_heads};
use offshoot_models::{BaseId, Checkpoint, TokenizerId};
use serde_json::json;

use crate::args::{
    JsonArgs, MedusaCommand, MedusaImportArgs, MedusaInspectArgs, MedusaTrainArgs, MedusaTreeArgs,
    ModelArgs, PromptFlavour,
};
use crate::failure::{Failure, note, say, say_json};
use crate::{interrupt, models};

pub(crate) fn run(command: &MedusaCommand) -> Result<(), Failure> {
    match command {
        MedusaCommand::Train(args) => train_heads(args),
        MedusaCommand::Import(args) => import(args),
        MedusaCommand::Inspect(args) => inspect(args),
        MedusaCommand::Tree(args) => tree(args),
    }
}

/// A bar on a terminal, and the interrupts that arrive meanwhile.
struct Watch {
    bar: Option<ProgressBar>,
    since: Instant,
}

impl Watch {
    fn new(what: &'static str, total: usize) -> Self {
        note(what);
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(total as u64));
        if let (Some(bar), Ok(style)) =
            (&bar, ProgressStyle::with_template("{bar:30} {pos} of {len} {msg} {eta} left"))
        {
            bar.set_style(style);
        }
        Self { bar, since: Instant::now() }
    }

    fn at(&self, done: usize, message: impl FnOnce() -> String) -> Control {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(message());
        }
        if interrupt::asked() { Control::Stop } else { Control::Continue }
    }

    fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.since.elapsed()
    }
}

fn train_heads(args: &MedusaTrainArgs) -> Result<(), Failure> {
    let options = TrainOptions {
        heads: usize::from(args.heads),
        layers: usize::from(args.layers),
        see_token: !args.state_only,
        vocabulary: args.vocabulary as usize,
        epochs: usize::from(args.epochs),
        batch: usize::from(args.batch),
        learning_rate: args.learning_rate,
        seed: args.seed.unwrap_or(1),
        ..TrainOptions::default()
    };
    options.validate()?;
    refuse_variant()?;
    let prompts = match &args.prompts {
        Some(path) => SeedPrompts::parse(&text(path)?)?,
        None => SeedPrompts::built_in(match args.flavour {
            PromptFlavour::Chat => Flavour::Chat,
            PromptFlavour::Code => Flavour::Code,
        }),
    };
    let distill = DistillOptions {
        tokens: args.tokens as usize,
        answer_tokens: args.answer_tokens as usize,
        own_prompts: args.own_prompts.unwrap_or(if args.prompts.is_some() { 0 } else { 50 }),
        seed: options.seed,
    };
    let _listener = interrupt::listen();
    let (model, mut executor) = load(args)?;
    let (base, tokenizer) = (model.base_id()?, model.tokenizer_id());
    let scratch = ScratchFolder::new(args)?;
    let watch = Watch::new("the model answers prompts", distill.tokens);
    let progress = |done| watch.at(done, String::new);
    let seeds = (base, &prompts);
    let data = Distilled::make(&model, &mut executor, seeds, &distill, &scratch.path, progress);
    let data = data?;
    let distill_s = watch.finish().as_secs_f64();

    if let Some(folder) = &args.store {
        let built_by = concat!("offshoot ", env!("CARGO_PKG_VERSION"));
        let going = || if interrupt::asked() { Control::Stop } else { Control::Continue };
        let built = data.store(&model, folder, built_by, going)?;
        note(format_args!("{} tokens of answers are in {}", built.tokens, folder.display()));
    }

    let mut log = args.log.as_deref().map(create).transpose()?;
    let watch = Watch::new("training", 0);
    let mut file = train(model.packed()?, &data, &options, |step| {
        if let Some((path, log)) = &mut log {
            let line = serde_json::to_string(step).unwrap_or_default();
            if writeln!(log, "{line}").is_err() {
                note(format_args!("{}: cannot be written", path.display()));
            }
        }
        if let Some(bar) = &watch.bar {
            bar.set_length(step.steps as u64);
        }
        let losses = || step.losses.iter().map(|loss| format!("{loss:.2} ")).collect();
        watch.at(step.step, losses)
    })?;
    let train_s = watch.finish().as_secs_f64();

    let watch = Watch::new("measuring on answers that were held out", data.answers().len() / 10);
    let cpu = executor.cpu();
    let progress = |done| watch.at(done, String::new);
    let calibration = calibrate(model.packed()?, cpu, &file, &data, progress)?;
    let calibrate_s = watch.finish().as_secs_f64();
    let report = HeadsReport::of(&calibration);
    let cost = evaluation_cost(&model, &mut executor, &file)?;
    let seconds = json!({ "distill": distill_s, "train": train_s, "calibrate": calibrate_s });
    let mut card = HeadsCard::new(base, tokenizer);
    card.calibration = serde_json::to_value(&calibration).ok();
    card.recipe = Some(json!({
        "train": options, "tokens": data.tokens(), "answers": data.answers().len(),
        "answer_tokens": distill.answer_tokens, "prompts": prompts.count(),
        "own_prompts": distill.own_prompts,
    }));
    file.card = Some(card);
    file.save(&args.output)?;
    drop(scratch);
    if args.model.output.json {
        return say_json(&json!({
            "heads": args.output, "base": base, "tokens": data.tokens(),
            "seconds": seconds, "report": report,
            "cost": {
                "evaluation_us": cost.evaluation_us, "step_ms": cost.step_ms,
                "share_of_step": cost.share_of_step, "bytes": cost.bytes,
            },
        }));
    }
    table(&report)?;
    say(format_args!(
        "an evaluation takes {:.0} us, {:.1} % of a step of {:.2} ms",
        cost.evaluation_us,
        100.0 * cost.share_of_step,
        cost.step_ms
    ))?;
    say(format_args!(
        "{} tokens answered in {distill_s:.0} s, trained in {train_s:.0} s, measured in \
         {calibrate_s:.0} s; the heads are in {}",
        data.tokens(),
        args.output.display()
    ))
}

/// Who set a variant for all commands does not mean the base, which is what heads are trained of here.
fn refuse_variant() -> Result<(), Failure> {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match ["OFFSHOOT_ADAPTER", "OFFSHOOT_VARIANT"].into_iter().find(set) {
        None => Ok(()),
        Some(name) => Err(Failure::Usage(format!(
            "{name} is set, and these heads are trained of the base: unset it, or train heads beside \
             an adapter with `offshoot tune --medusa-heads`"
        ))),
    }
}

fn load(args: &MedusaTrainArgs) -> Result<(Model, PackedExecutor), Failure> {
    let (model, cpu) = models::load_model(&args.model, &args.engine)?;
    let executor = PackedExecutor::new(cpu, model.config());
    Ok((model, executor))
}

/// The folder for answers and states: the one asked for, which stays, or one beside the output that
/// goes when this does.
struct ScratchFolder {
    path: PathBuf,
    remove: bool,
}

impl ScratchFolder {
    fn new(args: &MedusaTrainArgs) -> Result<Self, Failure> {
        let (path, remove) = match &args.work {
            Some(path) => (path.clone(), false),
            None => (args.output.with_extension(format!("{}.work", std::process::id())), true),
        };
        // What cannot be written is told before an hour of work, not after it.
        fs::create_dir_all(&path).map_err(|source| Failure::File { path: path.clone(), source })?;
        Ok(Self { path, remove })
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if self.remove {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What an evaluation of the heads costs beside a step.
struct Cost {
    evaluation_us: f64,
    step_ms: f64,
    share_of_step: f64,
    bytes: usize,
}

/// Measures evaluations in turn with steps, which leave the heads' weights out of the cache as
/// decoding does.
fn evaluation_cost(
    model: &Model,
    executor: &mut PackedExecutor,
    file: &HeadsFile,
) -> Result<Cost, Failure> {
    use offshoot_models::{LogitRows, NoHooks, RopeId, Segment, VariantId};
    const ROUNDS: usize = 41;
    let mut heads = MedusaHeads::new(executor.cpu(), model.packed()?, file, RANKS)?;
    let mut cache = model.packed()?.new_cache(ROUNDS);
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for position in 0..ROUNDS as u32 {
        let segment = Segment {
            cache: &mut cache,
            tokens: &[0],
            parents: &[None],
            positions: &[position],
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits: LogitRows::Last,
        };
        let since = Instant::now();
        executor.step_greatest(model.packed()?, &mut [segment], &mut NoHooks)?;
        cache.commit_chain(1);
        steps.push(since.elapsed().as_secs_f64());
        let since = Instant::now();
        heads.evaluate(executor.cpu(), executor.head_input_row(0), 0)?;
        evaluations.push(since.elapsed().as_secs_f64());
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (step, evaluation) = (median(&mut steps), median(&mut evaluations));
    Ok(Cost {
        evaluation_us: 1e6 * evaluation,
        step_ms: 1e3 * step,
        share_of_step: evaluation / step,
        bytes: heads.bytes(),
    })
}

fn table(report: &HeadsReport) -> Result<(), Failure> {
    say("held-out accuracy     top-1  top-2  top-3  top-5 top-10")?;
    for (k, accuracy) in report.accuracy.iter().enumerate() {
        let top = |n: usize| 100.0 * accuracy[n.min(accuracy.len()) - 1];
        say(format_args!(
            "head {} ({:>6} places) {:6.1} {:6.1} {:6.1} {:6.1} {:6.1} %",
            k + 1,
            report.places[k],
            top(1),
            top(2),
            top(3),
            top(5),
            top(10)
        ))?;
    }
    say("tokens a step by a tree of n nodes, heads taken as independent and as counted")?;
    for tree in &report.trees {
        say(format_args!("  n = {:<3} {:6.3} {:6.3}", tree.nodes, tree.independent, tree.counted))?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<String, Failure> {
    let wrong = |source| Failure::File { path: path.to_owned(), source };
    fs::read_to_string(path).map_err(wrong)
}

fn create(path: &Path) -> Result<(PathBuf, BufWriter<File>), Failure> {
    let file = File::create(path);
    let file = file.map_err(|source| Failure::File { path: path.to_owned(), source })?;
    Ok((path.to_owned(), BufWriter::new(file)))
}

fn open(path: &Path) -> Result<ReadyHeads, Failure> {
    Ok(ReadyHeads::new(HeadsFile::open(path)?)?)
}

fn import(args: &MedusaImportArgs) -> Result<(), Failure> {
    let mut file = import_heads(&args.file)?;
    if let Some(model) = &args.model {
        let output = JsonArgs { json: false };
        let args = ModelArgs { model: model.clone(), offline: args.offline, output };
        let checkpoint = Checkpoint::open(&models::resolve(&args)?.path)?;
        file.check(checkpoint.config())?;
        let base = BaseId::of(&checkpoint)?;
        file.check_base(base)?;
        let tokenizer = TokenizerId::of(checkpoint.tokenizer()?);
        file.card.get_or_insert_with(|| HeadsCard::new(base, tokenizer));
    }
    file.save(&args.output)?;
    note(format_args!("{} heads are in {}", file.heads.len(), args.output.display()));
    Ok(())
}

fn inspect(args: &MedusaInspectArgs) -> Result<(), Failure> {
    let heads = open(&args.heads)?;
    let file = &heads.file;
    let config = match args.heads.is_dir() {
        true => args.heads.join("config.json"),
        false => args.heads.with_file_name("config.json"),
    };
    let config = fs::read(config).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let disagreements = config.map_or(Vec::new(), |config| file.disagreements(&config));
    disagreements.iter().for_each(|told| note(format_args!("warning: {told}")));
    let report = heads.calibration.as_ref().map(HeadsReport::of);
    let scored = file.vocabulary.as_ref().map(Vec::len);
    if args.output.json {
        return say_json(&json!({
            "heads": file.heads.len(), "layers": file.layers(), "hidden_size": file.hidden_size,
            "layout": format!("{:?}", file.layout()).to_lowercase(), "vocabulary": scored,
            "sees_token": file.sees_token(),
            "base": file.card.as_ref().map(|card| card.base),
            "adapter": file.card.as_ref().map(|card| &card.adapter),
            "recipe": file.card.as_ref().map(|card| &card.recipe),
            "report": report, "warnings": disagreements,
        }));
    }
    say(format_args!(
        "{} heads of {} residual block{}, width {}, {}{}",
        file.heads.len(),
        file.layers(),
        if file.layers() == 1 { "" } else { "s" },
        file.hidden_size,
        match file.heads[0].output {
            Some(_) => "output matrices of their own",
            None => "the base's output head",
        },
        if file.sees_token() { "; they see the chosen token" } else { "" }
    ))?;
    match scored {
        Some(n) => say(format_args!("they score {n} tokens"))?,
        None => say("they score the whole vocabulary")?,
    }
    match &file.card {
        Some(card) => {
            say(format_args!("trained on the model {}", card.base.short()))?;
            if let Some(adapter) = &card.adapter {
                say(format_args!("beside the adapter {adapter:?}"))?;
            }
        }
        None => say("the file does not say which model they belong to")?,
    }
    report.as_ref().map_or(Ok(()), table)
}

fn tree(args: &MedusaTreeArgs) -> Result<(), Failure> {
    let heads = open(&args.heads)?;
    let Some(calibration) = &heads.calibration else {
        let what = "the heads have no calibration: train them with `offshoot medusa train`";
        return Err(Failure::Data(what.to_owned()));
    };
    if let Some(path) = &args.check {
        let ranks = calibration.hits[0].len();
        let tree = DraftTree::parse(&text(path)?, heads.file.heads.len(), ranks);
        let tree = tree.map_err(offshoot_engine::Error::from)?;
        return say(format_args!("{}: a tree of {} nodes", path.display(), tree.paths().len()));
    }
    let nodes = usize::from(args.nodes);
    let tree = match args.independent {
        true => search(&calibration.shares(), nodes),
        false => calibration.counted_tree(nodes),
    };
    let paths: Vec<&Vec<u16>> = tree.iter().map(|node| &node.path).collect();
    say(serde_json::to_string(&paths).unwrap_or_default())?;
    let gain = 1.0 + tree.iter().map(|node| node.probability).sum::<f64>();
    note(format_args!("{} nodes, {gain:.3} tokens a step", tree.len()));
    Ok(())
}
