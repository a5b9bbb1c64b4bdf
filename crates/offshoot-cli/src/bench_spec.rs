//! `bench --spec`: what drafting is worth on prompts of a file.

use std::path::Path;

use offshoot_engine::spec::{
    Calibrated, CalibrationFile, SpecArm, SpecBenchOptions, SpecMode, SpecOptions, WorkloadResult,
    learned, measure_spec,
};
use offshoot_engine::{Error, Model, Session};
use offshoot_methods::SamplingOptions;
use offshoot_models::Message;
use serde_json::{Value, json};

use crate::answer::{spec_options, write_file};
use crate::args::{BenchArgs, EngineArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::models;
use crate::plot::{Group, bars};

/// Prompts for those who bring none: `bench/workloads` has more.
const BUILT_IN: &str = include_str!("../data/workload.jsonl");

/// Prompts of one kind.
struct Workload {
    kind: String,
    prompts: Vec<Vec<u32>>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let engine = args.engine.clone();
    let (model, mut session) = models::load(&args.adapter, &args.model, &engine)?;
    let workloads = workloads(args, &model, &session)?;
    let mut calibration = models::calibration(&engine, &model, &session);
    let mut arms = arms(args, (&engine, calibration.as_ref()), &model, &session)?;
    let sampling = SamplingOptions {
        temperature: args.temperature,
        repetition_penalty: args.repetition_penalty,
        seed: Some(args.seed),
        ..SamplingOptions::default()
    };
    let options =
        SpecBenchOptions { max_tokens: args.max_tokens, rounds: args.rounds.into(), sampling };
    let mut results = Vec::new();
    for workload in &workloads {
        note(format_args!("{}: {} prompts", workload.kind, workload.prompts.len()));
        let prompts = (workload.kind.as_str(), &workload.prompts[..]);
        let result = measure_spec(&model, &mut session, prompts, &mut arms, &options, |_| {})?;
        if !args.model.output.json {
            print(&result)?;
        }
        results.push(result);
    }
    let last = arms.iter().rev().find_map(|arm| arm.speculator.as_ref());
    if let (Some(file), Some(speculator)) = (&mut calibration, last) {
        // Drafters learned these prompts, some of them several times: that helps no other text.
        let times = Some(speculator.times().clone());
        let _ = file.save(&Calibrated { times, ..Calibrated::default() });
    }
    if let Some(path) = &args.plot {
        write_file(path, &picture(&args.model.model, &results))?;
        note(format_args!("drawn in {}", path.display()));
    }
    if args.model.output.json {
        let times: Vec<Value> = last
            .map(|s| s.times())
            .into_iter()
            .flat_map(|t| (1..=16).map(|k| json!({ "rows": k, "ms": 1e3 * t.seconds(k) })))
            .collect();
        return say_json(&json!({
            "model": args.model.model,
            "threads": session.cpu().team().threads(),
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "repetition_penalty": args.repetition_penalty,
            "seed": args.seed,
            "workloads": results,
            "step_times": times,
            "learned": learned(&arms),
        }));
    }
    Ok(())
}

fn arms(
    args: &BenchArgs,
    (engine, calibration): (&EngineArgs, Option<&CalibrationFile>),
    model: &Model,
    session: &Session,
) -> Result<Vec<SpecArm>, Failure> {
    let mut all = spec_options(&SpecMode::Auto, &args.materials, (&args.model, engine), session)?;
    // What drafters learned of these very prompts in an earlier run would flatter this one.
    all.calibrated.times = calibration.and_then(|file| file.calibrated().times.clone());
    let mut arms = vec![SpecArm { name: "off".to_owned(), speculator: None }];
    let mut missing = Vec::new();
    for name in args.arms.iter().filter(|name| *name != "off") {
        // Several drafters of one arm are joined by +, as commas part the arms.
        let mode: SpecMode = name.replace('+', ",").parse().map_err(Failure::Usage)?;
        match (SpecOptions { mode, ..all.clone() }).speculator(model, session) {
            Ok(speculator) => arms.push(SpecArm { name: name.clone(), speculator }),
            Err(error @ Error::DrafterMissing { .. }) => missing.push((name, error)),
            Err(error) => return Err(error.into()),
        }
    }
    if arms.len() == 1
        && let Some((_, error)) = missing.pop()
    {
        return Err(error.into());
    }
    for (name, error) in missing {
        note(format_args!("{name} is left out: {error}"));
    }
    Ok(arms)
}

/// The prompts of the files given, by kind.
fn workloads(args: &BenchArgs, model: &Model, session: &Session) -> Result<Vec<Workload>, Failure> {
    let mut workloads: Vec<Workload> = Vec::new();
    let mut read = |text: &str, place: &str| {
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let wrong = |what: String| Failure::Data(format!("{place}:{}: {what}", number + 1));
            let (kind, tokens) = prompt(line, model).map_err(wrong)?;
            let room = session.context().saturating_sub(tokens.len());
            if room < args.max_tokens {
                return Err(wrong(format!(
                    "a prompt of {} tokens leaves no room for {}: raise --ctx-size",
                    tokens.len(),
                    args.max_tokens
                )));
            }
            match workloads.iter_mut().find(|w| w.kind == kind) {
                Some(w) if w.prompts.len() < args.prompts => w.prompts.push(tokens),
                Some(_) => {}
                None => workloads.push(Workload { kind, prompts: vec![tokens] }),
            }
        }
        Ok(())
    };
    if args.workload.is_empty() {
        read(BUILT_IN, "the built-in prompts")?;
    }
    for path in &args.workload {
        let source = |source| Failure::File { path: path.clone(), source };
        read(&std::fs::read_to_string(path).map_err(source)?, &name(path))?;
    }
    if workloads.is_empty() {
        return Err(Failure::Data("the workload files have no prompts".to_owned()));
    }
    Ok(workloads)
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

/// A line's kind and tokens: `messages` go through the chat template, `prompt` is raw text.
fn prompt(line: &str, model: &Model) -> Result<(String, Vec<u32>), String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let kind = value["kind"].as_str().unwrap_or("prompts").escape_debug().to_string();
    let tokens = match (&value["messages"], &value["prompt"]) {
        (Value::Array(_), _) => {
            let messages: Vec<Message> =
                serde_json::from_value(value["messages"].clone()).map_err(|e| e.to_string())?;
            model.encode_messages(&messages).map_err(|e| e.to_string())?
        }
        (_, Value::String(text)) => model.encode_text(text).map_err(|e| e.to_string())?,
        _ => return Err("expected an object with messages or prompt".to_owned()),
    };
    if tokens.is_empty() {
        return Err("an empty prompt".to_owned());
    }
    Ok((kind, tokens))
}

/// The speed-up of each arm on each workload.
fn picture(model: &str, results: &[WorkloadResult]) -> String {
    let group = |result: &WorkloadResult| Group {
        title: result.kind.clone(),
        bars: result.arms.iter().map(|arm| (arm.arm.clone(), arm.speedup)).collect(),
    };
    let groups: Vec<Group> = results.iter().map(group).collect();
    bars(&format!("{model}: speed, times plain decoding"), &groups)
}

fn print(result: &WorkloadResult) -> Result<(), Failure> {
    say(format_args!(
        "{:<12} {:>9} {:>8} {:>9} {:>9} {:>8} {:>8} {:>9}  right guesses",
        result.kind,
        "tokens/s",
        "speed-up",
        "per step",
        "promised",
        "ms/step",
        "drafting",
        "differ"
    ))?;
    for arm in &result.arms {
        let accepted: Vec<String> =
            arm.accepted.iter().map(|(name, n)| format!("{name} {n}")).collect();
        say(format_args!(
            "  {:<10} {:>9.1} {:>8.2} {:>9.2} {:>9.2} {:>8.2} {:>8.3} {:>9}  {}",
            arm.arm,
            arm.tokens_per_s,
            arm.speedup,
            arm.tokens_per_step,
            arm.predicted_tokens_per_step,
            arm.ms_per_step,
            arm.draft_ms_per_step,
            arm.differences,
            accepted.join(", ")
        ))?;
    }
    Ok(())
}
