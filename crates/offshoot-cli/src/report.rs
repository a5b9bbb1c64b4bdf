//! `report`: a page with the curves of a run, made from its log.

use std::fmt::Write;
use std::path::Path;

use offshoot_engine::tune::run::{EndReason, EvalLine, LogLine, StartLine, read_log};

use crate::answer::write_file;
use crate::args::ReportArgs;
use crate::failure::{Failure, note};
use crate::plot::{Curve, Floor, Panel, Stroke, svg};

/// Losses of so many steps make a median: one batch says little.
const MEDIAN_STEPS: usize = 100;
/// Most points of a curve: a picture has no more columns.
const POINTS_MAX: usize = 1500;

pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let log = if args.run.is_dir() { args.run.join("log.jsonl") } else { args.run.clone() };
    let page = match &args.output {
        Some(page) => page.clone(),
        None => log.with_file_name("report.html"),
    };
    write(&read_log(&log)?, &page)?;
    note(format_args!("the report is in {}", page.display()));
    Ok(())
}

/// Writes the page of a log to `page`.
pub(crate) fn write(lines: &[LogLine], page: &Path) -> Result<(), Failure> {
    write_file(page, &html(lines))
}

/// The page of a log: whole in itself, without anything to fetch.
fn html(lines: &[LogLine]) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>offshoot tune</title>\n<style>\n\
         body { font-family: sans-serif; margin: 2em; max-width: 62em; color: #222; }\n\
         table { border-collapse: collapse; } td { padding: 0.15em 1em 0.15em 0; }\n\
         pre { background: #f4f4f4; padding: 1em; overflow: auto; } svg { margin: 0.5em 0; }\n\
         </style>\n</head>\n<body>\n<h1>offshoot tune</h1>\n",
    );
    let start = lines.iter().find_map(LogLine::start);
    out.push_str("<table>\n");
    for (name, value) in facts(start, lines) {
        let _ = writeln!(out, "<tr><td>{name}</td><td>{}</td></tr>", escaped(&value));
    }
    out.push_str("</table>\n");
    for pair in panels(lines).chunks(2) {
        out.push_str(&svg(pair));
    }
    if let Some(start) = start {
        let config = serde_json::to_string_pretty(&start.config).unwrap_or_default();
        let _ = writeln!(out, "<h2>Settings</h2>\n<pre>{}</pre>", escaped(&config));
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn facts(start: Option<&StartLine>, lines: &[LogLine]) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(start) = start {
        facts.push(("offshoot", start.version.clone()));
        facts.push(("base", start.base.clone()));
        let sizes = format!("{} examples, {} held out", start.examples, start.held_out);
        facts.push(("data", format!("{}, {sizes}", start.data)));
    }
    let last = lines.iter().rev().find_map(LogLine::step);
    if let Some(last) = last {
        let of = start.map_or(String::new(), |start| format!(" of {}", start.steps));
        facts.push(("steps", format!("{}{of}, {:.2} epochs", last.step, last.epoch)));
        facts.push(("tokens", last.tokens_total.to_string()));
        facts.push(("time", format!("{:.1} s", last.elapsed_s)));
        if let Some(bytes) = last.peak_rss_bytes {
            facts.push(("peak memory", format!("{} MB", bytes / 1_000_000)));
        }
    }
    let best = lines.iter().rev().filter_map(LogLine::eval).find(|line| line.best);
    if let Some(best) = best {
        let told = best.metrics.iter().filter_map(|(name, x)| Some(format!("{name} {:.4}", (*x)?)));
        let told = told.collect::<Vec<_>>().join(", ");
        facts.push(("best", format!("after step {}: {told}", best.step)));
    }
    let end: Option<EndReason> = lines.iter().rev().find_map(|line| match line {
        LogLine::End { reason, .. } => Some(*reason),
        _ => None,
    });
    facts.push(("end", end.map_or("not over", EndReason::told).to_owned()));
    facts
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A panel over the steps, if any of its curves has points.
fn panel(title: &str, floor: Floor, curves: Vec<Curve>) -> Option<Panel> {
    let curves: Vec<Curve> = curves.into_iter().filter(|curve| !curve.points.is_empty()).collect();
    (!curves.is_empty()).then(|| Panel {
        title: title.to_owned(),
        x_label: "steps".to_owned(),
        y_label: String::new(),
        floor,
        curves,
    })
}

fn curve(name: &str, points: Vec<(f64, f64)>) -> Curve {
    Curve { name: name.to_owned(), stroke: Stroke::Plain, points: thinned(points) }
}

fn panels(lines: &[LogLine]) -> Vec<Panel> {
    let steps: Vec<_> = lines.iter().filter_map(LogLine::step).collect();
    let evals: Vec<_> = lines.iter().filter_map(LogLine::eval).collect();
    let losses: Vec<_> = steps.iter().filter_map(|s| Some((s.step as f64, s.loss?))).collect();
    let held_out = |name: &str| -> Vec<(f64, f64)> {
        let value = |line: &&EvalLine| Some((line.step as f64, (*line.metrics.get(name)?)?));
        evals.iter().filter_map(value).collect()
    };
    let raw = Curve { stroke: Stroke::Faint, ..curve("each", losses.clone()) };
    let shares = ["accuracy", "macro_f1", "exact_match", "token_accuracy"];
    let shares = shares.map(|name| curve(name, held_out(name))).into_iter().collect();
    let of_steps = |value: &dyn Fn(usize) -> Option<f64>| -> Vec<(f64, f64)> {
        (0..steps.len()).filter_map(|i| Some((steps[i].step as f64, value(i)?))).collect()
    };
    let rates = of_steps(&|i| Some(steps[i].rate));
    let memory = of_steps(&|i| Some(steps[i].peak_rss_bytes? as f64 / 1e6));
    let speed = of_steps(&|i| steps[i].tokens_per_s);
    [
        panel(
            "loss",
            Floor::Least,
            vec![raw, curve("median", medians(&losses)), curve("held out", held_out("loss"))],
        ),
        panel("held out", Floor::Zero, shares),
        panel("learning rate", Floor::Zero, vec![curve("", rates)]),
        panel("peak memory in MB", Floor::Zero, vec![curve("", memory)]),
        panel("tokens a second", Floor::Zero, vec![curve("", speed)]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The median of each point and those before it, [`MEDIAN_STEPS`] in all or as many as there are.
fn medians(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut window: Vec<f64> = Vec::new();
    let mut found = Vec::with_capacity(points.len());
    for (at, &(x, y)) in points.iter().enumerate() {
        if at >= MEDIAN_STEPS {
            let old = points[at - MEDIAN_STEPS].1;
            let place = window.partition_point(|&other| other < old);
            window.remove(place);
        }
        window.insert(window.partition_point(|&other| other < y), y);
        let middle = (window[(window.len() - 1) / 2] + window[window.len() / 2]) / 2.0;
        found.push((x, middle));
    }
    found
}

/// At most [`POINTS_MAX`] of the points, the last among them.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    let kept = points.into_iter().enumerate().filter(|(at, _)| (last - at).is_multiple_of(every));
    kept.map(|(_, point)| point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<LogLine> {
        let log = r#"{"event":"start","version":"1","base":"<b>","data":"d","examples":3,
            "held_out":1,"steps":2,"config":{"model":"a</pre><script>"},"unix_s":0}
            {"event":"step","step":1,"epoch":0.5,"loss":2.0,"rate":0.1,"tokens":5,"tokens_total":5,
            "tokens_per_s":9.0,"seconds":0.1,"elapsed_s":1.0,"peak_rss_bytes":2000000}
            {"event":"step","step":2,"epoch":1.0,"loss":null,"rate":0.1,"tokens":5,"tokens_total":10,
            "tokens_per_s":9.0,"seconds":0.1,"elapsed_s":2.0,"peak_rss_bytes":3000000}
            {"event":"eval","step":2,"metrics":{"loss":1.5,"accuracy":0.5},"best":true,"seconds":1,
            "elapsed_s":3.0}
            {"event":"end","step":2,"reason":"early_stop","unix_s":1}"#;
        serde_json::Deserializer::from_str(log).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn a_page_is_whole_in_itself_and_nothing_in_a_log_becomes_markup() {
        let page = html(&lines());
        for text in [
            "&lt;b&gt;",
            "2 of 2, 1.00 epochs",
            "after step 2: accuracy 0.5000, loss 1.5000",
            "the held-out metric got no better",
            ">learning rate<",
            ">peak memory in MB<",
            "3 MB",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("src="), "{page}");
        // The name of a namespace is all that looks like an address.
        assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn a_running_median_equals_sorting_each_window() {
        let values: Vec<(f64, f64)> =
            (0..350).map(|i| (f64::from(i), f64::from(i * 7919 % 101))).collect();
        for (at, &(_, median)) in medians(&values).iter().enumerate() {
            let first = (at + 1).saturating_sub(MEDIAN_STEPS);
            let mut window: Vec<f64> = values[first..=at].iter().map(|p| p.1).collect();
            window.sort_by(f64::total_cmp);
            let expected = (window[(window.len() - 1) / 2] + window[window.len() / 2]) / 2.0;
            assert_eq!(median, expected, "{at}");
        }
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_end() {
        let points: Vec<(f64, f64)> = (0..20_000).map(|i| (f64::from(i), 1.0)).collect();
        let thin = thinned(points);
        assert!(thin.len() <= POINTS_MAX && thin[thin.len() - 1].0 == 19_999.0);
        assert!(thinned(Vec::new()).is_empty());
    }
}
