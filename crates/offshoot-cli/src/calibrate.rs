//! `calibrate`: what steps of several tokens take on this machine, kept for drafting.

use offshoot_engine::spec::{CalibrateOptions, StepCurve, calibrate};
use serde_json::json;

use crate::args::CalibrateArgs;
use crate::failure::{Failure, note, say, say_json};
use crate::plot::{Curve, Floor, Panel, Stroke, svg};
use crate::{answer, models};

/// Chances of a guess to come true that speeds are predicted for.
const CHANCES: [f64; 4] = [0.3, 0.5, 0.7, 0.9];

pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let (model, mut session) = models::load(&args.adapter, &args.model, &args.engine)?;
    let options = CalibrateOptions { rounds: usize::from(args.rounds) };
    let curve = calibrate(&model, &mut session, &options, |part| {
        note(format_args!("measuring {part}"));
    })?;
    let mut file = models::calibration(&args.engine, &model, &session);
    match (curve.times(), &mut file) {
        (Some(times), Some(file)) => {
            file.save_times(&times)?;
            note(format_args!("kept in {}", file.path().display()));
        }
        (None, _) => note("the times vary too much to be kept: try again on a quieter machine"),
        (_, None) => {}
    }
    if let Some(path) = &args.plot {
        answer::write_file(path, &svg(&panels(&curve)))?;
        note(format_args!("drawn in {}", path.display()));
    }
    let (isa, threads) = (session.cpu().isa(), session.cpu().team().threads());
    if args.model.output.json {
        let widths: Vec<_> = curve
            .widths
            .iter()
            .map(|width| {
                let speed = |a: &f64| curve.predicted_tokens_per_s(width, *a);
                let speeds: Vec<f64> = CHANCES.iter().map(speed).collect();
                json!({
                    "rows": width.rows,
                    "chain_ms": width.chain_ms,
                    "bushy_ms": width.bushy_ms,
                    "over_one": width.over_one,
                    "predicted_tokens_per_s": speeds,
                })
            })
            .collect();
        return say_json(&json!({
            "isa": isa.to_string(),
            "threads": threads,
            "processor": file.as_ref().map(|file| file.processor()),
            "file": file.as_ref().map(|file| file.path()),
            "depths": curve.depths,
            "chances": CHANCES,
            "widths": widths,
            "best_rows": CHANCES.map(|chance| curve.best_rows(chance)),
            "largest_tree": largest(&curve),
        }));
    }
    say(format_args!("{isa} with {threads} threads"))?;
    print(&curve)
}

/// The rows of the largest tree that is worth it, where nine guesses of ten come true.
fn largest(curve: &StepCurve) -> usize {
    curve.best_rows(CHANCES[CHANCES.len() - 1])
}

fn print(curve: &StepCurve) -> Result<(), Failure> {
    let depths: Vec<String> =
        curve.depths.iter().map(|depth| format!("{:>9}", format!("at {depth}"))).collect();
    let chances: Vec<String> = CHANCES.iter().map(|chance| format!("{chance:>9}")).collect();
    say(format_args!(
        "{:>4}  {:<width$}  {:>8}  tokens/s where each guess comes true with",
        "",
        "ms of a chain",
        "",
        width = 9 * depths.len()
    ))?;
    say(format_args!(
        "{:>4}  {}  {:>8}  {}",
        "rows",
        depths.concat(),
        "over one",
        chances.concat()
    ))?;
    for width in &curve.widths {
        let ms: Vec<String> = width.chain_ms.iter().map(|ms| format!("{ms:>9.2}")).collect();
        let speeds: Vec<String> = CHANCES
            .iter()
            .map(|&chance| {
                let best = curve.best_rows(chance) == width.rows;
                let speed = curve.predicted_tokens_per_s(width, chance);
                format!("{speed:>8.1}{}", if best { '*' } else { ' ' })
            })
            .collect();
        say(format_args!(
            "{:>4}  {}  {:>8.2}  {}",
            width.rows,
            ms.concat(),
            width.over_one,
            speeds.concat().trim_end()
        ))?;
    }
    say(format_args!("* the fastest; largest tree worth it: {} rows", largest(curve)))
}

fn panels(curve: &StepCurve) -> [Panel; 2] {
    let over_rows = |y: &dyn Fn(usize) -> f64| {
        let rows = curve.widths.iter().enumerate();
        rows.map(|(i, width)| (width.rows as f64, y(i))).collect()
    };
    let stroke = Stroke::Plain;
    let mut times = Vec::new();
    for (at, depth) in curve.depths.iter().enumerate() {
        let chain = over_rows(&|i| curve.widths[i].chain_ms[at]);
        let bushy = over_rows(&|i| curve.widths[i].bushy_ms[at]);
        times.push(Curve { name: format!("chain at {depth}"), stroke, points: chain });
        times.push(Curve { name: format!("bushy at {depth}"), stroke, points: bushy });
    }
    let speed = |&chance: &f64| Curve {
        name: format!("chance {chance}"),
        stroke,
        points: over_rows(&|i| curve.predicted_tokens_per_s(&curve.widths[i], chance)),
    };
    let panel = |title: &str, y_label: &str, curves| Panel {
        title: title.to_owned(),
        x_label: "rows of the step".to_owned(),
        y_label: y_label.to_owned(),
        floor: Floor::Zero,
        curves,
    };
    [
        panel("time of a step", "ms", times),
        panel("predicted speed", "tokens/s", CHANCES.iter().map(speed).collect()),
    ]
}
