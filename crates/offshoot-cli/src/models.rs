//! `pull`, `list`, `show`, `rm`, and loading a model for the other commands.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use offshoot_engine::spec::CalibrationFile;
use offshoot_engine::store::{
    EntryState, Event, ModelRef, Progress, PullPolicy, ResolvedModel, Store, StoreErrorKind,
};
use offshoot_engine::{ExecutorKind, LoadOptions, Model, Session};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::{BaseId, Checkpoint, GenerationDefaults, TemplateId, TokenizerId};
use serde_json::json;

use crate::args::{AdapterArgs, EngineArgs, ListArgs, ModelArgs, RmArgs, bytes};
use crate::failure::{Failure, note, say, say_json};
use crate::interrupt;
use crate::quantize::Share;

/// Context when none is asked for.
pub(crate) const DEFAULT_CONTEXT: usize = 4096;

/// A bar on standard error if that is a terminal, else a line for each event worth one.
struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    terminal: bool,
}

impl Bar {
    fn new() -> Self {
        Self { bar: Mutex::new(None), terminal: std::io::stderr().is_terminal() }
    }

    fn line(&self, line: &str) {
        let bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*bar {
            Some(bar) => bar.println(line),
            None => note(line),
        }
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        if !self.terminal {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total.unwrap_or(0));
            let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    }

    fn finish(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Waiting { name } => self.line(&format!("waiting for another pull of {name}")),
            Event::Source { source } => self.line(&format!("fetching from {source}")),
            // Worth knowing, whoever else gives the right bytes.
            Event::SourceFailed { source, error }
                if error.kind() == StoreErrorKind::Verification =>
            {
                self.line(&format!("{source}: {error}"));
            }
            // Other reasons are told at the end, if no source succeeds.
            Event::SourceFailed { source, .. } => self.line(&format!("{source} failed")),
            Event::Bytes { done, total } => self.bytes(*done, *total),
            Event::PackageBytes { done, .. } => self.bytes(*done, None),
            Event::Retry { error, pause } => {
                self.line(&format!("{error}; trying again in {} s", pause.as_secs()));
            }
            Event::StartingOver { bytes } => self.line(&format!(
                "the {} MB of an earlier pull are not known to be of this file: starting over",
                bytes.div_ceil(1_000_000)
            )),
            Event::Verifying { .. } => self.line("checking"),
            Event::Ready { .. } => self.finish(),
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::asked()
    }
}

/// The model's file, fetched if need be.
pub(crate) fn resolve(args: &ModelArgs) -> Result<ResolvedModel, Failure> {
    let policy = if args.offline { PullPolicy::Offline } else { PullPolicy::Allow };
    let reference: ModelRef = args.model.parse()?;
    let listener = interrupt::listen();
    let bar = Bar::new();
    let resolved = Store::from_env()?.resolve(&reference, policy, &bar);
    bar.finish();
    drop(listener);
    let resolved = resolved?;
    // Asked for when there was nothing left to stop.
    if interrupt::asked() { Err(Failure::Interrupted) } else { Ok(resolved) }
}

/// Says so if the model's chat template is not its file's.
pub(crate) fn note_assumed(checkpoint: &Checkpoint) {
    if checkpoint.assumes_template() {
        note(
            "this model's file has no chat template: ChatML is assumed, whose marks its vocabulary \
             has; `offshoot generate` goes on from raw text",
        );
    }
}

/// Where packed weights are kept.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("offshoot"))
}

/// The instruction set that the environment asks for, else the best.
pub(crate) fn isa() -> Result<Isa, Failure> {
    match std::env::var("OFFSHOOT_ISA") {
        Err(_) => Ok(Isa::best()),
        Ok(name) => Isa::named(&name).ok_or_else(|| {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            Failure::Usage(format!("OFFSHOOT_ISA={name}: this processor has {}", names.join(", ")))
        }),
    }
}

/// The bytes that the environment lets packed weights take, if it says how many.
pub(crate) fn cache_limit() -> Result<Option<u64>, Failure> {
    const NAME: &str = "OFFSHOOT_CACHE_LIMIT";
    let Ok(text) = std::env::var(NAME) else { return Ok(None) };
    let limit = bytes(&text).map_err(|what| Failure::Usage(format!("{NAME}={text}: {what}")))?;
    Ok(Some(limit))
}

/// Loads a variant of a model for the packed executor and opens a session of it.
pub(crate) fn load(
    variant: &AdapterArgs,
    args: &ModelArgs,
    engine: &EngineArgs,
) -> Result<(Model, Session), Failure> {
    load_for(ExecutorKind::Packed, variant, args, engine)
}

/// As [`load`], for any executor.
pub(crate) fn load_for(
    executor: ExecutorKind,
    variant: &AdapterArgs,
    args: &ModelArgs,
    engine: &EngineArgs,
) -> Result<(Model, Session), Failure> {
    let (adapter, variant) = (variant.adapter.clone(), variant.chosen()?);
    let resolved = resolve(args)?;
    let options = LoadOptions { executor, adapter, variant, ..load_options(engine)? };
    let cpu = Cpu::new(options.isa, options.threads);
    let model = load_shown(&cpu, &resolved.path, &options)?;
    let limit = model.trained_context();
    let context = engine.ctx_size.map_or(DEFAULT_CONTEXT.min(limit), |n| n as usize);
    let session = Session::new(&model, cpu, context)?;
    Ok((model, session))
}

/// What earlier sessions of `model` learned for drafting; `None` with `--no-cache`.
pub(crate) fn calibration(
    engine: &EngineArgs,
    model: &Model,
    session: &Session,
) -> Option<CalibrationFile> {
    let cache = cache_dir().filter(|_| !engine.no_cache)?;
    CalibrationFile::open(&cache, model, session.cpu())
}

/// Keeps what `session` learned for drafting. Called when the answer was shown, so that no token
/// waits for it; that it cannot be kept is no failure.
pub(crate) fn keep_calibration(file: &mut Option<CalibrationFile>, session: &Session) {
    if let (Some(file), Some(speculator)) = (file, session.speculator()) {
        let _ = file.save(&speculator.calibrated());
    }
}

pub(crate) fn load_model(args: &ModelArgs, engine: &EngineArgs) -> Result<(Model, Cpu), Failure> {
    let resolved = resolve(args)?;
    let options = load_options(engine)?;
    let cpu = Cpu::new(options.isa, options.threads);
    Ok((load_shown(&cpu, &resolved.path, &options)?, cpu))
}

/// Loads a model to be tuned: what it takes was weighed already.
pub(crate) fn load_base(args: &ModelArgs, engine: &EngineArgs) -> Result<(Model, Cpu), Failure> {
    let resolved = resolve(args)?;
    let options = LoadOptions { context: None, ..load_options(engine)? };
    let cpu = Cpu::new(options.isa, options.threads);
    Ok((load_shown(&cpu, &resolved.path, &options)?, cpu))
}

/// Loads a second model, beside the one that `cpu` runs.
pub(crate) fn load_on(cpu: &Cpu, args: &ModelArgs, engine: &EngineArgs) -> Result<Model, Failure> {
    let resolved = resolve(args)?;
    load_shown(cpu, &resolved.path, &load_options(engine)?)
}

/// Loads a model, with a bar where it is quantised on the way, which takes a while.
fn load_shown(cpu: &Cpu, path: &Path, options: &LoadOptions) -> Result<Model, Failure> {
    let bar = options.quantize.map(|_| Share::new("quantising"));
    let show = |done, total| bar.iter().for_each(|bar| bar.show(done, total));
    let model = Model::load_watched(cpu, path, options, &mut { show })?;
    drop(bar);
    match model.checkpoint().kept_quantised() {
        0 => {}
        kept => note(format_args!(
            "--quantize: {kept} matrices are quantised already and stay as they are"
        )),
    }
    Ok(model)
}

fn load_options(engine: &EngineArgs) -> Result<LoadOptions, Failure> {
    let context = engine.ctx_size.map_or(DEFAULT_CONTEXT, |n| n as usize);
    let mut options = LoadOptions {
        isa: isa()?,
        context: Some(context),
        quantize: engine.quantize,
        ..LoadOptions::default()
    };
    if let Some(threads) = engine.threads {
        options.threads = usize::from(threads);
    }
    if !engine.no_cache {
        (options.cache, options.cache_limit) = (cache_dir(), cache_limit()?);
    }
    Ok(options)
}

pub(crate) fn pull(args: &ModelArgs) -> Result<(), Failure> {
    let resolved = resolve(args)?;
    if args.output.json {
        return say_json(&json!({
            "name": resolved.name, "path": resolved.path, "licence": resolved.licence,
        }));
    }
    note(format_args!("{} is at {}", resolved.name, resolved.path.display()));
    Ok(())
}

pub(crate) fn list(args: &ListArgs) -> Result<(), Failure> {
    let store = Store::from_env()?;
    let entries = store.list()?;
    let pullable: Vec<_> = store
        .catalogue()
        .models()
        .iter()
        .filter(|m| !entries.iter().any(|e| e.name == m.name))
        .collect();
    if args.output.json {
        let models: Vec<_> = entries
            .iter()
            .map(|e| match &e.state {
                EntryState::Ready { path, manifest } => json!({
                    "name": e.name, "state": "ready", "path": path, "size": manifest.total_size(),
                }),
                EntryState::Partial { bytes } => {
                    json!({ "name": e.name, "state": "partial", "size": bytes })
                }
                EntryState::Damaged { why } => {
                    json!({ "name": e.name, "state": "damaged", "why": why })
                }
            })
            .collect();
        let catalogue: Vec<_> = pullable
            .iter()
            .map(|m| json!({ "name": m.name, "title": m.title, "size": m.size }))
            .collect();
        return say_json(&json!({ "models": models, "catalogue": catalogue }));
    }
    for e in &entries {
        let state = match &e.state {
            EntryState::Ready { manifest, .. } => {
                format!("{:>6} MB", manifest.total_size() / 1_000_000)
            }
            EntryState::Partial { bytes } => {
                format!("{:>6} MB so far: offshoot pull {} goes on", bytes / 1_000_000, e.name)
            }
            EntryState::Damaged { why } => {
                format!("damaged ({why}): offshoot pull {} mends it", e.name)
            }
        };
        say(format_args!("{:<24} {state}", e.name))?;
    }
    for m in pullable {
        let size = m.size / 1_000_000;
        say(format_args!("{:<24} {size:>6} MB, not here: offshoot pull {}", m.name, m.name))?;
    }
    Ok(())
}

pub(crate) fn show(args: &ModelArgs) -> Result<(), Failure> {
    let resolved = resolve(args)?;
    let checkpoint = Checkpoint::open(&resolved.path)?;
    let c = checkpoint.config();
    let weights: usize = checkpoint.tensors().map(|t| t.len()).sum();
    let mut blocks: Vec<String> =
        checkpoint.tensors().map(|t| t.info.block.name().to_owned()).collect();
    blocks.sort();
    blocks.dedup();
    let tokenizer = checkpoint.tokenizer().map(TokenizerId::of);
    let template = checkpoint.chat_template().map(TemplateId::of);
    let base = BaseId::of(&checkpoint)?;
    let value = json!({
        "name": resolved.name,
        "path": resolved.path,
        "licence": resolved.licence,
        "model": checkpoint.name(),
        "family": c.family.name(),
        "weights": weights,
        "formats": blocks,
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "experts": c.experts.as_ref().map(|experts| experts.num_experts),
        "experts_per_token": c.experts.as_ref().map(|experts| experts.num_experts_per_tok),
        "heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rotary_dim": c.rotary_dim,
        "vocab_size": c.vocab_size,
        "context": c.max_position_embeddings,
        "tied_head": c.tie_word_embeddings,
        "stop_tokens": checkpoint.stop_tokens(),
        "sampling": sampling_json(&checkpoint.generation()),
        "base_id": base.to_string(),
        "tokenizer_id": tokenizer.ok().map(|id| id.to_string()),
        "template_id": template.map(|id| id.to_string()),
    });
    if args.output.json {
        return say_json(&value);
    }
    let lines = value.as_object().into_iter().flatten();
    for (name, value) in lines.filter(|(_, value)| !value.is_null()) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        say(format_args!("{name:<18} {text}"))?;
    }
    Ok(())
}

/// What a model's files recommend for answers, `null` if that is nothing.
fn sampling_json(told: &GenerationDefaults) -> serde_json::Value {
    // The shortest text of a number in single precision is the one that the file has.
    let number = |x: Option<f32>| json!(x.and_then(|x| x.to_string().parse::<f64>().ok()));
    let all = [
        ("temperature", number(told.temperature)),
        ("top_k", json!(told.top_k)),
        ("top_p", number(told.top_p)),
        ("min_p", number(told.min_p)),
        ("repetition_penalty", number(told.repetition_penalty)),
        ("penalty_window", json!(told.penalty_window)),
        ("max_new_tokens", json!(told.max_new_tokens)),
    ];
    let given = all.into_iter().filter(|(_, value)| !value.is_null());
    let map: serde_json::Map<_, _> = given.map(|(name, v)| (name.to_owned(), v)).collect();
    if map.is_empty() { serde_json::Value::Null } else { map.into() }
}

pub(crate) fn remove(args: &RmArgs) -> Result<(), Failure> {
    let removed = Store::from_env()?.remove(&args.model)?;
    match &removed.state {
        EntryState::Ready { manifest, .. } if !manifest.more.is_empty() => {
            note(format_args!("removed {}, all {} parts", removed.name, manifest.files().count()));
        }
        _ => note(format_args!("removed {}", removed.name)),
    }
    Ok(())
}
