//! `data`: what files of training data hold, and what a model gets of them.

use std::fmt::Write as _;
use std::io::IsTerminal;

use indicatif::ProgressBar;
use offshoot_engine::Control;
use offshoot_engine::tune::data::{
    DataEvent, Fault, FileReport, Place, RenderedRow, Renderer, Report, SplitSizes, check, show,
    split_file,
};
use offshoot_engine::tune::{Example, Sequence};
use offshoot_models::{Checkpoint, Tokenizer};
use serde_json::{Value, json};

use crate::args::{DataCheckArgs, DataCommand, DataModelArgs, DataShowArgs, DataSplitArgs};
use crate::failure::{Failure, note, say, say_json, write_out};
use crate::{interrupt, models};

pub(crate) fn run(command: &DataCommand) -> Result<(), Failure> {
    match command {
        DataCommand::Check(args) => run_check(args),
        DataCommand::Show(args) => run_show(args),
        DataCommand::Split(args) => run_split(args),
    }
}

fn renderer(args: &DataModelArgs) -> Result<Renderer, Failure> {
    let resolved = models::resolve(&args.model_args())?;
    let checkpoint = Checkpoint::open(&resolved.path)?;
    models::note_assumed(&checkpoint);
    Ok(Renderer::new(&checkpoint)?)
}

/// What a file was taken for.
pub(crate) fn detected(file: &FileReport) -> String {
    let mut text = format!("{}: {}, {}", file.path, file.container, file.format);
    if !file.unused.is_empty() {
        let names: Vec<String> =
            file.unused.iter().map(|name| name.escape_debug().to_string()).collect();
        let _ = write!(text, "; not used: {}", names.join(", "));
    }
    text
}

fn run_check(args: &DataCheckArgs) -> Result<(), Failure> {
    let options = args.rows.options(args.length.max_length as usize)?;
    let renderer = renderer(&args.model)?;
    let json = args.model.output.json;
    let listener = interrupt::listen();
    let bar = ProgressBar::new_spinner();
    let max = args.length.max_length;
    let (mut faults, mut overlong, mut broken) = (Vec::new(), Vec::new(), Ok(()));
    let report = check(&args.files, &renderer, &options, &mut |event| {
        match event {
            DataEvent::Detected(file) if !json => bar.suspend(|| note(detected(file))),
            DataEvent::Fault(fault) if json => faults.push(fault_json(fault)),
            DataEvent::Fault(fault) => broken = bar.suspend(|| say(fault)),
            DataEvent::Overlong { place, dropped } if json => {
                let mut row = place_json(place);
                row["dropped"] = dropped.into();
                overlong.push(row);
            }
            DataEvent::Overlong { place, dropped } => {
                let what = if dropped { "left out" } else { "cut" };
                let told = format!("{place}: more than {max} tokens: {what}");
                broken = bar.suspend(|| say(told));
            }
            DataEvent::Rows(rows) => {
                bar.set_message(format!("{rows} rows"));
                bar.tick();
            }
            DataEvent::Detected(_) => {}
        }
        if interrupt::asked() || broken.is_err() { Control::Stop } else { Control::Continue }
    });
    bar.finish_and_clear();
    drop(listener);
    broken?;
    let report = report?;
    match json {
        true => say_json(&json!({ "report": report, "faults": faults, "overlong": overlong }))?,
        false => tell(&report, max)?,
    }
    match report.faults {
        0 => Ok(()),
        1 => Err(Failure::Data("1 row is wrong".to_owned())),
        n => Err(Failure::Data(format!("{n} rows are wrong"))),
    }
}

fn fault_json(fault: &Fault) -> Value {
    let mut told = place_json(&fault.place);
    told["field"] = json!(fault.field);
    told["what"] = json!(fault.what);
    told
}

fn place_json(place: &Place) -> Value {
    json!({
        "place": place.to_string(), "file": place.file.display().to_string(),
        "number": place.number,
    })
}

fn tell(report: &Report, max: u32) -> Result<(), Failure> {
    let line = |name: &str, value: &str| say(format_args!("{name:<22} {value}"));
    line("rows", &report.rows.to_string())?;
    line("examples", &report.examples.to_string())?;
    let trained = 100.0 * report.targets as f64 / report.tokens.max(1) as f64;
    line("tokens", &format!("{}, {trained:.1} % of them trained on", report.tokens))?;
    line("longest", &format!("{} tokens of at most {max}", report.longest))?;
    for (name, count) in [
        ("cut to the length", report.cut),
        ("left out for length", report.dropped),
        ("duplicates", report.duplicates),
        ("learned by answers", report.split),
        ("wrong", report.faults),
    ] {
        if count > 0 {
            line(name, &count.to_string())?;
        }
    }
    if !report.answers.is_empty() {
        let counts: Vec<String> = report.answers.iter().map(u64::to_string).collect();
        line("rows of each answer", &counts.join(", "))?;
    }
    if report.split > 0 {
        note(format_args!(
            "the model's template writes earlier turns otherwise once there are later ones, so \
             {} conversations are learned answer by answer",
            report.split
        ));
    }
    histogram(report)
}

/// Bars of how many examples have so many tokens.
fn histogram(report: &Report) -> Result<(), Failure> {
    const WIDTH: u64 = 40;
    let most = report.lengths.iter().copied().max().unwrap_or(0);
    let first = report.lengths.iter().position(|&n| n > 0).unwrap_or(0);
    for (power, &count) in report.lengths.iter().enumerate().skip(first) {
        let (from, to) = (1u64 << power, (2u64 << power) - 1);
        let bar = "#".repeat((count * WIDTH).div_ceil(most.max(1)) as usize);
        say(format_args!("{:>13} tokens {count:>9} {bar}", format!("{from}-{to}"))
            .to_string()
            .trim_end())?;
    }
    Ok(())
}

fn run_split(args: &DataSplitArgs) -> Result<(), Failure> {
    let sizes = SplitSizes {
        held_out: args.held_out as usize,
        train: args.shots.map(|shots| shots as usize),
    };
    let places = (args.train.as_path(), args.test.as_path());
    let report = split_file(&args.file, args.by.as_deref(), sizes, args.seed, places);
    let report = report.map_err(offshoot_engine::Error::from)?;
    if args.output.json {
        return say_json(&json!({
            "classes": report.classes, "train": report.train, "held_out": report.held_out,
            "seed": args.seed,
        }));
    }
    note(format_args!(
        "{} rows to train on are in {}, {} to measure on in {}",
        report.train,
        args.train.display(),
        report.held_out,
        args.test.display()
    ));
    Ok(())
}

fn run_show(args: &DataShowArgs) -> Result<(), Failure> {
    let options = args.rows.options(args.length.max_length as usize)?;
    let renderer = renderer(&args.model)?;
    let (file, row) = show(&args.file, args.row, &renderer, &options)?;
    let tokenizer = renderer.tokenizer();
    if args.model.output.json {
        let examples: Vec<Value> =
            row.rendered.examples.iter().map(|example| example_json(tokenizer, example)).collect();
        return say_json(&json!({
            "file": file.path, "container": file.container, "format": file.format,
            "place": row.row.place.to_string(), "fields": row.row.fields,
            "cut": row.rendered.cut, "examples": examples,
        }));
    }
    note(format_args!("{}; this is {}", detected(&file), row.row.place));
    tell_row(tokenizer, &row, args.tokens)
}

fn tell_row(tokenizer: &Tokenizer, row: &RenderedRow, tokens: bool) -> Result<(), Failure> {
    match (&row.rendered.examples[..], row.rendered.cut) {
        ([], _) => note("the row is too long and is left out: see --max-length and --overlong"),
        (_, true) => note("the row is too long and was cut: see --max-length and --overlong"),
        ([_, _, ..], _) => {
            note(
                "the template writes earlier turns otherwise later on: an example for each answer",
            );
        }
        _ => {}
    }
    let (begin, end) = marks();
    let mut out = String::new();
    for example in &row.rendered.examples {
        for (title, sequence) in parts(example) {
            if !title.is_empty() {
                let _ = writeln!(out, "--- {title}");
            }
            match tokens {
                true => token_lines(&mut out, tokenizer, &sequence),
                false => text(&mut out, tokenizer, &sequence, (begin, end)),
            }
        }
        if let Example::Answer { answers, .. } = example {
            let shown: Vec<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
            let _ = writeln!(out, "--- right answers: {}", shown.join(", "));
        }
    }
    write_out(out.as_bytes())
}

/// What stands around what is trained on.
fn marks() -> (&'static str, &'static str) {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colours { ("\u{1b}[32m", "\u{1b}[0m") } else { ("\u{27e6}", "\u{27e7}") }
}

/// The sequences of an example, each with a title. What is said of a prompt once is the candidates'.
fn parts(example: &Example) -> Vec<(String, Sequence)> {
    match example {
        Example::Text(sequence) | Example::Answer { gold: sequence, .. } => {
            vec![(String::new(), sequence.clone())]
        }
        Example::Choice { prompt, candidates, answers } => {
            let untrained = Sequence { tokens: prompt.clone(), trained: vec![false; prompt.len()] };
            let candidate = |(i, tokens): (usize, &Vec<u32>)| {
                let right = if answers.contains(&i) { ", right" } else { "" };
                let trained = vec![true; tokens.len()];
                (format!("candidate {i}{right}"), Sequence { tokens: tokens.clone(), trained })
            };
            let prompt = ("prompt".to_owned(), untrained);
            std::iter::once(prompt).chain(candidates.iter().enumerate().map(candidate)).collect()
        }
        Example::Preference { chosen, rejected, .. } => {
            vec![("chosen".to_owned(), chosen.clone()), ("rejected".to_owned(), rejected.clone())]
        }
    }
}

/// The sequence as text, a mark around each run of trained tokens.
fn text(out: &mut String, tokenizer: &Tokenizer, sequence: &Sequence, marks: (&str, &str)) {
    let pairs: Vec<(u32, bool)> =
        sequence.tokens.iter().copied().zip(sequence.trained.iter().copied()).collect();
    for run in pairs.chunk_by(|a, b| a.1 == b.1) {
        let bytes: Vec<u8> = run
            .iter()
            .flat_map(|(id, _)| tokenizer.token_bytes(*id).unwrap_or(&[]).iter().copied())
            .collect();
        let shown = printable(&String::from_utf8_lossy(&bytes));
        match run[0].1 {
            true => out.extend([marks.0, shown.as_str(), marks.1]),
            false => out.push_str(&shown),
        }
    }
    out.push('\n');
}

/// Text with its lines, but nothing else that a terminal would obey.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_debug()),
            c => out.push(c),
        }
    }
    out
}

fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or(&[])).into_owned()
}

fn token_lines(out: &mut String, tokenizer: &Tokenizer, sequence: &Sequence) {
    for (&id, &trained) in sequence.tokens.iter().zip(&sequence.trained) {
        let mark = if trained { "trained" } else { "" };
        let control = if tokenizer.is_control(id) { " (control)" } else { "" };
        let _ = writeln!(out, "{id:>7} {mark:<8} {:?}{control}", piece(tokenizer, id));
    }
}

fn example_json(tokenizer: &Tokenizer, example: &Example) -> Value {
    let sequences: Vec<Value> = parts(example)
        .into_iter()
        .map(|(title, sequence)| {
            let tokens = sequence.tokens.iter().zip(&sequence.trained);
            let tokens: Vec<Value> = tokens
                .map(|(&id, trained)| {
                    json!({ "id": id, "text": piece(tokenizer, id), "trained": trained })
                })
                .collect();
            json!({ "title": title, "tokens": tokens })
        })
        .collect();
    let (kind, answers) = match example {
        Example::Text(_) => ("text", Value::Null),
        Example::Choice { answers, .. } => ("choice", json!(answers)),
        Example::Answer { answers, .. } => ("answer", json!(answers)),
        Example::Preference { .. } => ("preference", Value::Null),
    };
    let mut shown = json!({ "kind": kind, "answers": answers, "sequences": sequences });
    if let Example::Preference { rewards: Some(rewards), .. } = example {
        shown["rewards"] = json!(rewards);
    }
    shown
}
