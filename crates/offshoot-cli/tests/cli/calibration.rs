//! What is learned for drafting, and kept.

use std::path::PathBuf;

use serde_json::Value;

use crate::home::{Home, run};
use crate::interrupts::{PATIENCE, Terminal};

/// The files of what was learned.
fn kept(home: &Home) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(home.path().join("cache/offshoot/drafting"));
    folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// What the one file says.
fn learned(home: &Home) -> Value {
    let files = kept(home);
    assert_eq!(files.len(), 1, "{files:?}");
    serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap()
}

const ANSWER: [&str; 8] = ["run", "long.gguf", "abab", "-n", "30", "--seed", "7", "--ignore-eos"];

#[test]
fn answers_leave_what_they_learned_and_none_is_harmed_by_what_is_there() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let with = |more: &[&str]| run(home.offshoot(ANSWER.iter().chain(more))).ended_with(0).stdout;
    let text = with(&["--no-cache"]);
    assert!(kept(&home).is_empty(), "nothing is kept with --no-cache");
    with(&["--spec", "off"]);
    assert!(kept(&home).is_empty(), "nothing was learned");
    assert_eq!(with(&[]), text);
    let first = learned(&home);
    assert_eq!(first["step_times"].as_array().unwrap().len(), 64);
    assert!(first["drafters"]["warm"]["suffix"].is_array());
    assert!(first["drafters"]["greedy"].is_null(), "nothing was learned of greedy texts");
    assert_eq!(with(&[]), text, "the same text whatever was learned");
    assert_ne!(learned(&home), first, "the second run goes on from the first");

    let warm = learned(&home)["drafters"]["warm"].clone();
    with(&["--temperature", "0"]);
    run(home.offshoot(ANSWER.iter().chain(&["--acceptance", "typical"]))).ended_with(0);
    assert_eq!(learned(&home)["drafters"]["warm"], warm, "each class has its own");
    assert!(learned(&home)["drafters"]["greedy"]["suffix"].is_array());

    let file = kept(&home).remove(0);
    for damage in ["", "{", "\0\u{1}", r#"{"key":{},"step_times":[-1],"drafters":{}}"#] {
        std::fs::write(&file, damage).unwrap();
        let left = run(home.offshoot(ANSWER)).ended_with(0);
        assert_eq!((left.stdout.as_str(), left.stderr.as_str()), (text.as_str(), ""));
        assert_eq!(learned(&home)["key"], first["key"], "rewritten after {damage:?}");
    }
    run(home.offshoot(ANSWER.iter().chain(&["--threads", "1"]))).ended_with(0);
    run(home.offshoot(ANSWER.iter().chain(&["--threads", "3"]))).ended_with(0);
    assert!(kept(&home).len() >= 2, "each number of threads has its own");
}

#[test]
fn accepted_guesses_are_green_on_a_terminal_and_nowhere_else() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let args = ["run", "long.gguf", "abab", "-n", "90", "--temperature", "0", "--ignore-eos"];
    let args = [&args[..], &["--spec", "suffix", "--show-drafts"]].concat();
    let piped = run(home.offshoot(&args)).ended_with(0);
    assert!(!piped.stdout.is_empty() && !piped.stdout.contains('\x1b'), "{:?}", piped.stdout);
    let mut shown = Terminal::open(&home, &args);
    shown.wait_for("\x1b[32m");
    shown.wait_for("\x1b[0m");
    assert_eq!(shown.end(), Some(0));
    let plain = [&args[..8], &["--spec", "off", "--show-drafts"]].concat();
    let left = run(home.offshoot(&plain)).ended_with(0);
    assert_eq!(left.stdout, piped.stdout);
}

/// Widths that a file knows of 2, 3, ... rows.
fn known(file: &Value) -> Vec<usize> {
    let counts = file["step_counts"].as_array().unwrap().iter().zip(1..);
    counts.filter(|(n, rows)| *rows > 1 && n.as_u64() >= Some(40)).map(|(_, rows)| rows).collect()
}

#[test]
fn an_idle_chat_measures_what_drafting_does_not_know() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let mut chat = Terminal::open(&home, &["run", "long.gguf"]);
    chat.wait_for(">>> ");
    // Nobody writes anything.
    let begun = std::time::Instant::now();
    while kept(&home).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "nothing was measured");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let first = learned(&home);
    let widths = known(&first);
    assert!(widths.starts_with(&[2, 3, 4, 5, 6, 8, 12, 16]), "{widths:?}");
    assert_eq!(first["drafters"], serde_json::json!({}), "no answer yet");
    chat.press("/set max-tokens 3\r");
    chat.wait_for("max-tokens is 3");
    chat.press("ab\r");
    chat.wait_for(">>> ");
    chat.press("/exit\r");
    assert_eq!(chat.end(), Some(0));
    assert!(known(&learned(&home)).starts_with(&widths), "and answers forget none of it");

    // What is known is not measured again: a chat without an answer leaves the file as it is.
    let before = std::fs::read(&kept(&home)[0]).unwrap();
    let mut chat = Terminal::open(&home, &["run", "long.gguf"]);
    chat.wait_for(">>> ");
    chat.press("/exit\r");
    assert_eq!(chat.end(), Some(0));
    assert_eq!(std::fs::read(&kept(&home)[0]).unwrap(), before);
}

#[test]
fn what_cannot_be_kept_is_no_failure() {
    let home = Home::new();
    home.tiny_with_context(2048);
    std::fs::create_dir_all(home.path().join("cache/offshoot")).unwrap();
    home.file("cache/offshoot/drafting", "not a folder");
    let left = run(home.offshoot(ANSWER)).ended_with(0);
    assert_eq!(left.stderr, "");
}

#[test]
fn calibrate_measures_keeps_draws_and_tells() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let calibrate = |more: &[&str]| {
        let args = ["calibrate", "long.gguf", "--rounds", "1"];
        run(home.offshoot(args.iter().chain(more))).ended_with(0)
    };
    let left = calibrate(&["--no-cache"]);
    assert!(kept(&home).is_empty());
    for part in ["rows", "at 0", "at 512", "over one", "tokens/s", "largest tree worth it: "] {
        assert!(left.stdout.contains(part), "no {part:?} in {}", left.stdout);
    }
    assert!(left.stderr.contains("measuring steps behind 512 tokens"), "{}", left.stderr);

    let left = calibrate(&["--json", "--plot", "steps.svg"]);
    let value = left.json();
    assert_eq!(value["depths"], serde_json::json!([0, 512]), "2048 leave no room");
    let widths = value["widths"].as_array().unwrap();
    let rows: Vec<u64> = widths.iter().map(|width| width["rows"].as_u64().unwrap()).collect();
    assert!(rows.starts_with(&[1, 2, 3, 4, 5, 6, 8, 12, 16]), "{rows:?}");
    for width in widths {
        for field in ["chain_ms", "bushy_ms", "predicted_tokens_per_s"] {
            let numbers = width[field].as_array().unwrap();
            assert!(numbers.iter().all(|n| n.as_f64().unwrap() > 0.0), "{width}");
        }
    }
    assert!(rows.contains(&value["largest_tree"].as_u64().unwrap()));
    let picture = std::fs::read_to_string(home.path().join("steps.svg")).unwrap();
    // A chain and a bushy tree at each of two depths; four chances.
    assert_eq!(picture.matches("<polyline").count(), 8, "{picture}");
    if left.stderr.contains("kept in ") {
        let times = learned(&home)["step_times"].clone();
        let kept: Vec<f64> = serde_json::from_value(times).unwrap();
        let raised = |at: usize| {
            let upto = widths.iter().filter(|w| w["rows"].as_u64().unwrap() <= at as u64);
            upto.map(|w| w["over_one"].as_f64().unwrap()).fold(1.0, f64::max)
        };
        for at in [2, 8, 16] {
            assert!((kept[at - 1] / raised(at) - 1.0).abs() < 1e-9);
        }
        assert_eq!(learned(&home)["drafters"], serde_json::json!({}));
    }
}

#[test]
fn a_context_too_short_for_wide_steps_leaves_them_out() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let args = ["calibrate", "long.gguf", "--rounds", "1", "--ctx-size", "5", "--json"];
    let value = run(home.offshoot(args)).ended_with(0).json();
    assert_eq!(value["depths"], serde_json::json!([0]));
    assert_eq!(value["widths"].as_array().unwrap().len(), 5, "{value}");
}

#[test]
fn benchmarks_keep_step_times_and_nothing_of_the_prompts() {
    let home = Home::new();
    home.tiny_with_context(2048);
    run(home.offshoot(ANSWER)).ended_with(0);
    let before = learned(&home);
    let workload = r#"{"kind":"a","prompt":"abcdabcdabcd"}"#;
    home.file("prompts.jsonl", workload);
    let args = ["bench", "long.gguf", "--spec", "--workload", "prompts.jsonl", "--rounds", "2"];
    let more = ["-n", "40", "--ctx-size", "2048", "--json", "--plot", "speed.svg"];
    let drawn = ["--temperature", "0.9", "--repetition-penalty", "1.1", "--seed", "5"];
    let all = [&args[..], &more, &drawn].concat();
    let left = run(home.offshoot(&all)).ended_with(0);
    for (arm, flag) in [("rest", "datastore"), ("medusa", "medusa"), ("draft", "draft-model")] {
        let missing = left.stderr.lines().find(|l| l.contains(&format!("{arm} is left out")));
        assert!(missing.is_some_and(|l| l.contains(&format!("--{flag}"))), "{}", left.stderr);
    }
    let told = left.json();
    assert_eq!(
        (&told["seed"], &told["temperature"].as_f64().map(|t| t > 0.8)),
        (&5.into(), &Some(true))
    );
    for arm in told["workloads"][0]["arms"].as_array().unwrap() {
        assert_eq!(arm["differences"], 0, "of all rounds: {arm}");
    }
    let picture = std::fs::read_to_string(home.path().join("speed.svg")).unwrap();
    for text in ["a", "off", "suffix", "auto"] {
        assert!(picture.contains(&format!(">{text}</text>")), "no {text} in {picture}");
    }
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("<rect x=").count(), 3, "a bar for each arm");
    let after = learned(&home);
    assert_eq!(after["drafters"], before["drafters"]);
    assert_ne!(after["step_times"], before["step_times"]);
    let brought = [&all[..], &["--arms", "draft,rest", "--draft-model", "long.gguf"]].concat();
    let told = run(home.offshoot(&brought)).ended_with(0).json();
    let arms = told["workloads"][0]["arms"].as_array().unwrap();
    let names: Vec<&str> = arms.iter().map(|arm| arm["arm"].as_str().unwrap()).collect();
    assert_eq!(names, ["off", "draft"]);
    let none = run(home.offshoot([&all[..], &["--arms", "rest"]].concat())).ended_with(2);
    none.complained(&["rest", "--datastore"]);
}
