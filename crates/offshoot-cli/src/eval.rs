//! `eval`: a model on examples.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use offshoot_engine::tune::Example;
use offshoot_engine::tune::data::{DataEvent, Metric, OnData, Renderer, Report, Task, examples};
use offshoot_engine::tune::eval::{ChoiceScore, EvalOptions, Metrics, evaluate, scorer};
use offshoot_engine::{Control, Model};
use serde_json::json;

use crate::args::{ChoiceScoreArg, EvalArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::{data, interrupt, models};

pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    let listener = interrupt::listen();
    let (model, session) =
        models::load_for(args.executor.kind()?, &args.adapter, &args.model, &args.engine)?;
    let context = session.context();
    let cpu = session.cpu().clone();
    drop(session);
    let max = args.max_length.map_or(context, |n| (n as usize).min(context));
    let options = args.rows.options(max)?;
    let task = options.task.clone();
    models::note_assumed(model.checkpoint());
    let renderer = Renderer::new(model.checkpoint())?;
    let mut tell = |event: DataEvent<'_>| {
        if let DataEvent::Detected(file) = event {
            note(data::detected(file));
        }
        if interrupt::asked() { Control::Stop } else { Control::Continue }
    };
    let (mut all, report) = examples(&args.data, &renderer, &options, &mut tell as OnData<'_>)?;
    if let Some(limit) = args.limit {
        all.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    if report.cut + report.dropped > 0 {
        note(format_args!(
            "of {} rows {} are cut and {} left out, to {max} tokens",
            report.rows, report.cut, report.dropped
        ));
    }
    let mut scorer = scorer(&model, &cpu, context)?;
    let bar = ProgressBar::new(all.len() as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = |done: u64| {
        bar.set_position(done);
        if interrupt::asked() { Control::Stop } else { Control::Continue }
    };
    let mut source = all.iter().cloned().map(Ok);
    let options = eval_options(args, task.as_ref());
    let begun = Instant::now();
    let measured = evaluate(&mut *scorer, &mut source, model.tokenizer(), &options, &mut progress);
    let seconds = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();
    drop(listener);
    tell_metrics(args, &model, task.as_ref(), (&all, &report), (&measured?, seconds))
}

fn eval_options(args: &EvalArgs, task: Option<&Task>) -> EvalOptions {
    let usual = EvalOptions::default();
    let choice = match args.choice_score {
        ChoiceScoreArg::Mean => ChoiceScore::Mean,
        ChoiceScoreArg::Sum => ChoiceScore::Sum,
    };
    let tokens = task.map_or(usual.max_new_tokens, Task::max_new_tokens);
    EvalOptions {
        batch: usize::from(args.batch),
        choice,
        max_new_tokens: args.max_tokens.unwrap_or(tokens),
        end: args.stop.clone().or_else(|| task.and_then(Task::end).map(str::to_owned)),
        write: true,
    }
}

fn tell_metrics(
    args: &EvalArgs,
    model: &Model,
    task: Option<&Task>,
    (examples, report): (&[Example], &Report),
    (metrics, seconds): (&Metrics, f64),
) -> Result<(), Failure> {
    let majority = majority(examples);
    let main = task.map(|task| task.metric().name());
    if args.model.output.json {
        let mut value = serde_json::to_value(metrics).map_err(|e| Failure::Data(e.to_string()))?;
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
            fields.insert("metric".to_owned(), json!(main));
            fields.insert("majority_accuracy".to_owned(), json!(majority));
            fields.insert("files".to_owned(), json!(report.files));
            fields.insert("cut".to_owned(), json!(report.cut));
            fields.insert("dropped".to_owned(), json!(report.dropped));
            fields.insert("adapter".to_owned(), json!(args.adapter.adapter));
            fields.insert("executor".to_owned(), json!(model.executor().name()));
            fields.insert("seconds".to_owned(), json!(seconds));
        }
        return say_json(&value);
    }
    say(format_args!("{:<20} {}", "examples", metrics.examples))?;
    for (name, value) in metrics.named() {
        let mark = if main == Some(name) { "  (the task's)" } else { "" };
        say(format_args!("{:<20} {value:.4}{mark}", name.replace('_', " ")))?;
    }
    let classes: Vec<&str> = task.map(Task::classes).unwrap_or_default();
    for (i, class) in metrics.classes.iter().flatten().enumerate() {
        let name = classes.get(i).map_or_else(|| i.to_string(), |name| (*name).to_owned());
        say(format_args!(
            "  {name:<18} {:>6} rows, precision {:.3}, recall {:.3}, F1 {:.3}",
            class.rows, class.precision, class.recall, class.f1
        ))?;
    }
    match majority {
        Some(share) if task.is_some_and(|task| task.metric() == Metric::Accuracy) => {
            say(format_args!("{:<20} {share:.4}", "majority class"))
        }
        _ => Ok(()),
    }
}

/// The accuracy of always saying the most frequent answer.
fn majority(examples: &[Example]) -> Option<f64> {
    let mut counts = std::collections::BTreeMap::new();
    let mut all = 0u64;
    for example in examples {
        if let Example::Choice { answers, .. } = example {
            all += 1;
            *counts.entry(answers[0]).or_insert(0u64) += 1;
        }
    }
    let most = counts.into_values().max()?;
    Some(most as f64 / all as f64)
}
