//! `run` and `generate`: one answer, streamed.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use offshoot_engine::datastore::Datastore;
use offshoot_engine::medusa::ReadyHeads;
use offshoot_engine::spec::{Acceptance, Arm, CalibrationFile, SpecMode, SpecOptions, SpecStats};
use offshoot_engine::{Answer, Control, FinishReason, GenerateOptions, Model, Piece, Session};
use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::Typical;
use offshoot_models::beside::write_to;
use offshoot_models::medusa::HeadsFile;
use offshoot_models::{GenerationDefaults, Message};
use serde_json::json;

use crate::args::{
    AcceptanceRule, AnswerArgs, EngineArgs, MaterialArgs, ModelArgs, RunArgs, SamplingArgs,
    SpecArgs,
};
use crate::failure::{Failure, note, say_json, write_out};
use crate::{chat, interrupt, models};

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let RunArgs { answer: args, system } = args;
    let Some(prompt) = prompt_text(args)? else {
        if args.model.output.json || args.output.is_some() {
            return Err(Failure::Usage("--json and --output need a prompt".to_owned()));
        }
        return chat::run(args, system.as_deref());
    };
    let (model, mut session, mut calibration, mut options) = load(args)?;
    let tokens = match model.template() {
        None => {
            options.goes_on = true;
            note("this model has no chat template: its raw text goes on from the prompt");
            model.encode_text(&prompt)?
        }
        Some(_) => {
            models::note_assumed(model.checkpoint());
            let mut messages: Vec<Message> =
                system.iter().map(|text| Message::new("system", text)).collect();
            messages.push(Message::new("user", prompt));
            model.encode_messages(&messages)?
        }
    };
    let done = one(&model, &mut session, &tokens, args, &options);
    models::keep_calibration(&mut calibration, &session);
    done
}

pub(crate) fn generate(args: &AnswerArgs) -> Result<(), Failure> {
    let prompt = prompt_text(args)?.ok_or_else(no_prompt)?;
    let (model, mut session, mut calibration, options) = load(args)?;
    let options = GenerateOptions { goes_on: true, ..options };
    let tokens = model.encode_text(&prompt)?;
    let done = one(&model, &mut session, &tokens, args, &options);
    models::keep_calibration(&mut calibration, &session);
    done
}

/// Loads the model and the drafters of an answer, and what earlier ones learned of these; gives the
/// answer's options as well, which the model has a say in.
pub(crate) fn load(
    args: &AnswerArgs,
) -> Result<(Model, Session, Option<CalibrationFile>, GenerateOptions), Failure> {
    // What is wrong with the flags is told before anything is loaded.
    generate_options(args, &GenerationDefaults::default())?;
    let executor = args.executor.kind()?;
    let (model, mut session) =
        models::load_for(executor, &args.adapter, &args.model, &args.engine)?;
    let SpecArgs { spec, materials, .. } = &args.spec;
    let mut mode = spec;
    if session.noise().is_some() && *mode == SpecMode::Auto {
        if materials.are_given() {
            note("--executor dense: drafts are made only where --spec names who drafts");
        }
        mode = &SpecMode::Off;
    }
    if let AcceptanceRule::Typical = args.spec.acceptance {
        note(
            "--acceptance typical: above temperature 0, texts do not have the model's distribution",
        );
    }
    let mut options = spec_options(mode, materials, (&args.model, &args.engine), &session)?;
    let calibration = models::calibration(&args.engine, &model, &session);
    if let Some(file) = &calibration {
        options.calibrated = file.calibrated().clone();
    }
    let speculator = options.speculator(&model, &session)?;
    session.set_speculator(speculator);
    let answers = generate_options(args, &model.checkpoint().generation())?;
    Ok((model, session, calibration, answers))
}

/// What the drafters of `session` are made of.
pub(crate) fn spec_options(
    mode: &SpecMode,
    materials: &MaterialArgs,
    (model, engine): (&ModelArgs, &EngineArgs),
    session: &Session,
) -> Result<SpecOptions, Failure> {
    let mut options = SpecOptions { mode: mode.clone(), ..SpecOptions::default() };
    if let (Some(name), true) = (&materials.draft_model, mode.allows(Arm::Draft)) {
        let own = ModelArgs { model: name.clone(), ..model.clone() };
        options.draft_model = Some(Arc::new(models::load_on(session.cpu(), &own, engine)?));
    }
    if let (Some(path), true) = (&materials.datastore, mode.allows(Arm::Rest)) {
        let store = Datastore::open(path).map_err(offshoot_engine::Error::from)?;
        options.datastore = Some(Arc::new(store));
    }
    if let (Some(path), true) = (&materials.medusa, mode.allows(Arm::Medusa)) {
        let file = HeadsFile::open(path).map_err(offshoot_engine::Error::from)?;
        options.heads = Some(Arc::new(ReadyHeads::new(file)?));
    }
    Ok(options)
}

fn no_prompt() -> Failure {
    Failure::Usage(
        "no prompt: give one behind the model, with --prompt, or through a pipe".to_owned(),
    )
}

/// The prompt given or piped in; `None` on a terminal.
fn prompt_text(args: &AnswerArgs) -> Result<Option<String>, Failure> {
    match args.text.as_deref().or(args.prompt.as_deref()) {
        Some("-") => read_stdin().map(Some),
        Some(text) => Ok(Some(text.to_owned())),
        None if std::io::stdin().is_terminal() => Ok(None),
        None => match read_stdin()? {
            empty if empty.is_empty() => Err(no_prompt()),
            text => Ok(Some(text)),
        },
    }
}

/// All of standard input, which must be text.
pub(crate) fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| match e.kind() {
        ErrorKind::InvalidData => Failure::Data("standard input is not UTF-8 text".to_owned()),
        _ => Failure::File { path: "standard input".into(), source: e },
    })?;
    Ok(text)
}

/// What the flags say, and of the rest what the model's files recommend.
fn generate_options(
    args: &AnswerArgs,
    model: &GenerationDefaults,
) -> Result<GenerateOptions, Failure> {
    let options = GenerateOptions {
        sampling: sampling_options(&args.sampling, model),
        acceptance: acceptance(&args.spec)?,
        choice: 0,
        max_tokens: args.max_tokens.or(model.max_new_tokens),
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        goes_on: false,
        logprobs: args.logprobs.map(usize::from),
    };
    options.sampling.validate().map_err(offshoot_engine::Error::from)?;
    Ok(options)
}

fn acceptance(args: &SpecArgs) -> Result<Acceptance, Failure> {
    let typical = Typical { epsilon: args.typical_epsilon, delta: args.typical_delta };
    typical.validate().map_err(offshoot_engine::Error::from)?;
    Ok(match args.acceptance {
        AcceptanceRule::Exact => Acceptance::Exact,
        AcceptanceRule::Rejection => Acceptance::Rejection,
        AcceptanceRule::Typical => Acceptance::Typical(typical),
    })
}

fn sampling_options(args: &SamplingArgs, model: &GenerationDefaults) -> SamplingOptions {
    let mut options = SamplingOptions::default();
    fn set<T: Copy>(to: &mut T, from: Option<T>) {
        *to = from.unwrap_or(*to);
    }
    set(&mut options.temperature, args.temperature.or(model.temperature));
    set(&mut options.top_k, args.top_k.or(model.top_k));
    set(&mut options.top_p, args.top_p.or(model.top_p));
    set(&mut options.min_p, args.min_p.or(model.min_p));
    set(&mut options.repetition_penalty, args.repetition_penalty.or(model.repetition_penalty));
    options.penalty_window = model.penalty_window.or(options.penalty_window);
    set(&mut options.presence_penalty, args.presence_penalty);
    set(&mut options.frequency_penalty, args.frequency_penalty);
    options.logit_bias = args.logit_bias.iter().copied().collect();
    options.seed = Some(args.seed.unwrap_or_else(fresh_seed));
    options
}

/// A seed that differs from run to run.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    now ^ u64::from(std::process::id()).rotate_left(40)
}

/// Makes one answer and prints it as the options say.
fn one(
    model: &Model,
    session: &mut Session,
    tokens: &[u32],
    args: &AnswerArgs,
    options: &GenerateOptions,
) -> Result<(), Failure> {
    let quiet = args.model.output.json || args.output.is_some();
    let colour = args.spec.show_drafts && std::io::stdout().is_terminal();
    let mut logprobs = Vec::new();
    let answer = stream(model, session, tokens, options, |piece| {
        if let (Some(token), Some(logprob)) = (piece.token, piece.logprob) {
            let top: Vec<_> =
                piece.top.iter().map(|t| json!({ "id": t.token, "logprob": t.logprob })).collect();
            logprobs.push(json!({ "id": token, "logprob": logprob, "top": top }));
        }
        if quiet { Ok(()) } else { write_out(shown(piece, colour).as_bytes()) }
    })?;
    let text = if args.model.output.json {
        let value = answer_json(&answer, options, &logprobs);
        match &args.output {
            None => {
                say_json(&value)?;
                None
            }
            Some(_) => Some(format!("{value:#}\n")),
        }
    } else {
        Some(format!("{}\n", answer.text))
    };
    match (&args.output, text) {
        (Some(path), Some(text)) => write_file(path, &text)?,
        (None, Some(_)) => write_out(b"\n")?,
        _ => {}
    }
    if args.stats {
        print_stats(model, &answer, options);
    }
    match answer.finish {
        FinishReason::Stopped => Err(Failure::Interrupted),
        FinishReason::ContextFull => {
            note(format_args!(
                "the context of {} tokens is full: raise --ctx-size to go on",
                session.context()
            ));
            Ok(())
        }
        FinishReason::MaxTokens if args.max_tokens.is_none() => {
            note(format_args!(
                "ended at the {} tokens that the model's files recommend: --max-tokens goes on",
                answer.tokens.len()
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A piece's text, green if it was drafted and `colour` is asked for.
pub(crate) fn shown<'a>(piece: &Piece<'a>, colour: bool) -> Cow<'a, str> {
    if colour && piece.drafted && !piece.text.is_empty() {
        format!("\x1b[32m{}\x1b[0m", piece.text).into()
    } else {
        piece.text.into()
    }
}

/// Runs an answer, giving each piece to `show`; Ctrl-C stops it.
pub(crate) fn stream(
    model: &Model,
    session: &mut Session,
    tokens: &[u32],
    options: &GenerateOptions,
    mut show: impl FnMut(&Piece<'_>) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let _listener = interrupt::listen();
    let mut failed = None;
    let answer = session.generate(model, tokens, options, |piece| {
        failed = show(&piece).err();
        if failed.is_some() || interrupt::asked() { Control::Stop } else { Control::Continue }
    })?;
    failed.map_or(Ok(answer), Err)
}

/// Writes `text` beside what `path` means and moves it there when it is complete; to what is no
/// file, as a device, and to what this process has open, as `/dev/stdout`, it is written as it is.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    let wrong = |source| Failure::File { path: path.to_owned(), source };
    write_to(path, text.as_bytes()).map_err(wrong)
}

fn answer_json(
    answer: &Answer,
    options: &GenerateOptions,
    logprobs: &[serde_json::Value],
) -> serde_json::Value {
    let finish = match answer.finish {
        FinishReason::EndToken(_) | FinishReason::StopText(_) => "stop",
        FinishReason::MaxTokens | FinishReason::ContextFull => "length",
        FinishReason::Stopped => "interrupted",
    };
    let mut value = json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": finish,
        "seed": options.sampling.seed,
        "prompt_tokens": answer.prompt_tokens,
        "prompt_s": answer.timings.prompt.as_secs_f64(),
        "decode_s": answer.timings.decode.as_secs_f64(),
    });
    if let Some(spec) = &answer.spec {
        value["spec"] = spec_json(spec);
    }
    if options.logprobs.is_some() {
        value["logprobs"] = logprobs.into();
    }
    value
}

/// Prints speeds and how tokens were chosen on standard error.
pub(crate) fn print_stats(model: &Model, answer: &Answer, options: &GenerateOptions) {
    let load = model.timings();
    let read = answer.prompt_tokens - answer.reused_tokens;
    let made = answer.tokens.len();
    let (prompt, decode) =
        (answer.timings.prompt.as_secs_f64(), answer.timings.decode.as_secs_f64());
    note(format_args!(
        "\nload    {:7.0} ms ({})",
        (load.open + load.weights + load.text).as_secs_f64() * 1e3,
        match model.packed() {
            Ok(weights) if weights.from_cache() => "packed weights from the cache",
            Ok(_) => "weights packed",
            Err(_) => "weights dequantised",
        }
    ));
    note(format_args!(
        "prompt  {:7.0} ms, {read} tokens, {:.1} tokens/s{}",
        prompt * 1e3,
        read as f64 / prompt,
        match answer.reused_tokens {
            0 => String::new(),
            n => format!(", {n} more from the cache"),
        }
    ));
    if made > 1 {
        let rate = (made - 1) as f64 / decode;
        note(format_args!("answer  {:7.0} ms, {made} tokens, {rate:.1} tokens/s", decode * 1e3));
    }
    if let Some(spec) = &answer.spec {
        print_spec(spec);
    }
    note(format_args!("chosen  {}", sampling_line(options, &model.checkpoint().generation())));
    if let Some(peak) = offshoot_engine::peak_rss_bytes() {
        note(format_args!("memory  {:7} MB at most", peak / 1_000_000));
    }
}

/// How tokens are chosen; what is as the model's files recommend is marked.
fn sampling_line(options: &GenerateOptions, model: &GenerationDefaults) -> String {
    let sampling = &options.sampling;
    let as_told = |name: &str, value: f64, told: Option<f64>| {
        let mark = if told == Some(value) { " (the model's)" } else { "" };
        format!("{name} {value}{mark}")
    };
    let number = |name, value: f32, told: Option<f32>| {
        let short = |x: f32| x.to_string().parse().unwrap_or(f64::NAN);
        as_told(name, short(value), told.map(short))
    };
    let mut parts = vec![number("temperature", sampling.temperature, model.temperature)];
    if sampling.temperature != 0.0 {
        let top_k = model.top_k.map(f64::from);
        parts.push(as_told("top-k", sampling.top_k.into(), top_k));
        parts.push(number("top-p", sampling.top_p, model.top_p));
        parts.push(number("min-p", sampling.min_p, model.min_p));
    }
    if sampling.repetition_penalty != 1.0 {
        let told = model.repetition_penalty;
        parts.push(number("repetition-penalty", sampling.repetition_penalty, told));
    }
    if let Some(most) = options.max_tokens {
        let told = model.max_new_tokens.map(|n| n as f64);
        parts.push(as_told("at most", most as f64, told) + " tokens");
    }
    parts.join(", ")
}

/// What drafting came to, as data.
pub(crate) fn spec_json(spec: &SpecStats) -> serde_json::Value {
    let drafters: serde_json::Map<String, serde_json::Value> = spec
        .drafters
        .iter()
        .map(|d| (d.name.to_owned(), json!({ "proposed": d.proposed, "accepted": d.accepted })))
        .collect();
    let guard = spec.guard.map(|guard| {
        json!({
            "choices": guard.asked, "in_doubt": guard.acted, "rate": guard.rate(),
            "rows_made_anew": guard.remade,
        })
    });
    json!({
        "acceptance": spec.acceptance.name(),
        "steps": spec.steps,
        "tokens_per_step": spec.tokens_per_step(),
        "promised_tokens_per_step": spec.promised_per_step(),
        "guesses": spec.guesses,
        "drafters": drafters,
        "draft_s": spec.draft.as_secs_f64(),
        "check_s": spec.check.as_secs_f64(),
        "commit_s": spec.commit.as_secs_f64(),
        "guard": guard,
    })
}

fn print_spec(spec: &SpecStats) {
    note(format_args!(
        "drafts  {:7.2} tokens a step ({:.2} promised), {} of {} guesses right, acceptance {}",
        spec.tokens_per_step(),
        spec.promised_per_step(),
        spec.tokens.saturating_sub(spec.steps),
        spec.guesses,
        spec.acceptance,
    ));
    for drafter in &spec.drafters {
        note(format_args!(
            "        {:>7} of {} right: {}",
            drafter.accepted, drafter.proposed, drafter.name
        ));
    }
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    note(format_args!(
        "        {:7.1} ms drafting, {:.0} ms checking, {:.1} ms keeping rows",
        ms(spec.draft),
        ms(spec.check),
        ms(spec.commit)
    ));
    if let Some(guard) = spec.guard {
        note(format_args!(
            "guard   {:7.2} % in doubt, {} of {} choices; {} rows made anew",
            100.0 * guard.rate(),
            guard.acted,
            guard.asked,
            guard.remade
        ));
    }
}
