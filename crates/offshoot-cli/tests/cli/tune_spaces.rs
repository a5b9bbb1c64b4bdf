//! What methods without gradients tune and make less, from the command line.

use std::path::Path;

use serde_json::Value;

use crate::home::{Home, Left, run};
use crate::tune::log;

const TEXTS: &str = "{\"text\": \"abab\"}\n{\"text\": \"abba\"}\n{\"text\": \"aabb\"}\n\
                     {\"text\": \"baba\"}\n{\"text\": \"abab\"}\n{\"text\": \"bbaa\"}\n";
const ANSWERS: &str = "{\"prompt\": \"ab\", \"answers\": [\"a\"]}\n\
                       {\"prompt\": \"ba\", \"answers\": [\"b\", \"ab\"]}\n";

fn home() -> Home {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file("texts.jsonl", TEXTS);
    home.file("held_out.jsonl", "{\"text\": \"abaab\"}\n{\"text\": \"bab\"}\n");
    home.file("answers.jsonl", ANSWERS);
    home
}

fn tune(home: &Home, words: &[&str]) -> Left {
    let fixed = ["tune", "long.gguf", "--batch", "2", "--no-cache", "--method", "mezo"];
    run(home.offshoot(fixed.iter().chain(words)))
}

/// The loss of `held_out.jsonl`.
fn held_out(home: &Home, more: &[&str]) -> f64 {
    held_out_by(home, "long.gguf", more)
}

fn held_out_by(home: &Home, model: &str, more: &[&str]) -> f64 {
    let fixed = ["eval", model, "--data", "held_out.jsonl", "--json"];
    let told = run(home.offshoot(fixed.iter().chain(more))).ended_with(0).json();
    told["loss"].as_f64().unwrap()
}

#[test]
fn what_stands_before_texts_is_served_with_the_loss_that_it_was_tuned_to() {
    let home = home();
    for (space, kind) in [("prefix", "PREFIX_TUNING"), ("prompt", "PROMPT_TUNING")] {
        let data = ["--data", "texts.jsonl", "--eval-data", "held_out.jsonl"];
        let words = ["--space", space, "--steps", "6", "--eval-every", "2", "--output", space];
        let told = tune(&home, &[&data[..], &words, &["--json"]].concat()).ended_with(0).json();
        let best = told["best"]["value"].as_f64().unwrap();
        let variant = format!("{space}={space}");
        let variant = ["--variant", &variant];
        let served = held_out(&home, &variant);
        // The base is quantised, and serves with inputs of products rounded to eight bits.
        assert!((served - best).abs() < 3e-2 * best, "{space}: {served}, tuned to {best}");
        assert!((served - held_out(&home, &[])).abs() > 1e-4, "{space} changes nothing");
        let dense = held_out(&home, &[&variant[..], &["--executor", "dense"]].concat());
        // The dense executor rounds nothing.
        assert!((dense - best).abs() < 1e-3 * best, "{space}: {dense}, tuned to {best}");
        // Python's PEFT reads the same folder.
        let folder = format!("{space}/variant");
        assert_eq!(held_out(&home, &["--adapter", &folder]), served);
        let config = std::fs::read(home.path().join(&folder).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["peft_type"], kind);
        let words = ["export", "long.gguf", "--output", "merged"];
        let left = run(home.offshoot(words.iter().chain(&variant)));
        left.ended_with(4).complained(&["positions before every text are no weights"]);
        assert!(!home.path().join("merged").exists());
        // Drafted or not, on either executor, a variant says something, and the same.
        let answer = |more: &[&str]| {
            let fixed = ["run", "long.gguf", "ab", "-n", "12", "--temperature", "0", "--json"];
            let words = fixed.iter().chain(&variant).chain(more);
            run(home.offshoot(words)).ended_with(0).json()["tokens"].clone()
        };
        assert_eq!(answer(&["--spec", "off"]), answer(&["--spec", "suffix"]), "{space}");
        answer(&["--executor", "dense"]);
        // The whole context less what stands in it already.
        let whole = ["run", "long.gguf", "ab", "-n", "2", "--ctx-size", "64"];
        let left = run(home.offshoot(whole.iter().chain(&variant))).ended_with(2);
        let room = if space == "prefix" { "59" } else { "54" };
        assert!(left.stderr.contains(room), "{}", left.stderr);
    }
}

#[test]
fn a_run_in_front_of_texts_is_made_again_from_its_trajectory_and_goes_on() {
    let home = home();
    let words = ["--data", "texts.jsonl", "--space", "prompt", "--prompt-tokens", "3"];
    let steps = |n, out| [&words[..], &["--steps", n, "--output", out]].concat();
    tune(&home, &steps("4", "out")).ended_with(0);
    let file = "out/variant/trajectory.traj";
    let replay = ["trajectory", "replay", "long.gguf", file, "--json"];
    let told = run(home.offshoot(replay)).ended_with(0).json();
    assert!(told["weights"] == told["expected"] && told["steps"] == 4, "{told}");
    let more = ["tune", "--resume", "out", "--steps", "7", "--no-cache"];
    run(home.offshoot(more)).ended_with(0);
    tune(&home, &steps("7", "whole")).ended_with(0);
    let tensors = |run: &str| {
        std::fs::read(home.path().join(run).join("variant/adapter_model.safetensors")).unwrap()
    };
    assert!(tensors("out") == tensors("whole"));
}

/// The first step that the log of a run tells.
fn first_step(folder: &Path) -> Value {
    log(folder).into_iter().find(|line| line["event"] == "step").unwrap()
}

#[cfg(unix)]
#[test]
fn a_command_says_what_is_made_less() {
    let home = home();
    let data = ["--data", "answers.jsonl", "--steps", "1"];
    let objective = "command:tee seen.jsonl | wc -l";
    let words = ["--objective", objective, "--output", "out"];
    tune(&home, &[&data[..], &words].concat()).ended_with(0);
    let out = home.path().join("out");
    // Two answers are two lines, at every point.
    assert_eq!(first_step(&out)["loss"], -2.0);
    let seen = std::fs::read_to_string(home.path().join("seen.jsonl")).unwrap();
    let seen: Vec<Value> = seen.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut prompts: Vec<&str> = seen.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
    prompts.sort_unstable();
    assert!(prompts[0].contains("ab") && prompts[1].contains("ba"), "{prompts:?}");
    assert!(seen.iter().all(|line| line["generated"].is_string()));
    // It is a setting like any other, and a run goes on with it.
    let run_file = std::fs::read_to_string(out.join("run.json")).unwrap();
    assert!(run_file.contains(objective), "{run_file}");
    let again = ["tune", "--resume", "out", "--steps", "2", "--no-cache"];
    run(home.offshoot(again)).ended_with(0);
    for (objective, says) in [
        ("command:exit 3", "metric command \"exit 3\": ended with"),
        ("command:echo many", "printed \"many\", expected one number"),
        ("command:", "is followed by no command"),
        ("rouge", "no objective \"rouge\": there are loss, "),
    ] {
        let words = ["--objective", objective, "--output", "other"];
        let left = tune(&home, &[&data[..], &words].concat());
        assert!(left.code != Some(0) && left.stderr.contains(says), "{}", left.stderr);
        std::fs::remove_dir_all(home.path().join("other")).unwrap_or_default();
    }
}

#[cfg(unix)]
#[test]
fn a_run_whose_loss_rises_says_so_unless_held_out_examples_judge_it() {
    let home = home();
    // At every point it is one more: 1.5 after the first step, 43.5 after the last.
    let counts = "command:cat > rows; echo >> calls; echo -$(wc -l < calls)";
    let words = ["--data", "answers.jsonl", "--objective", counts, "--lr", "1e-6", "--steps", "22"];
    let left = tune(&home, &[&words[..], &["--output", "out"]].concat()).ended_with(0);
    let says = "the loss rose from 11.5000 to 33.5000, medians of 11 steps";
    assert!(left.stderr.contains(says), "{}", left.stderr);
    std::fs::remove_file(home.path().join("calls")).unwrap();
    let held_out = ["--eval-fraction", "0.5", "--output", "judged"];
    let left = tune(&home, &[&words[..], &held_out].concat()).ended_with(0);
    assert!(!left.stderr.contains("the loss rose"), "{}", left.stderr);
}

#[test]
fn rounded_activations_are_measured_first_and_refused_where_noise_drowns_the_slope() {
    let home = home();
    let words = ["--data", "texts.jsonl", "--activations", "stored"];
    let with = |eps: &str, out: &str| {
        let option = format!("probe={{\"eps\": {eps}}}");
        let more = ["--option", &option, "--steps", "2", "--output", out];
        tune(&home, &[&words[..], &more].concat())
    };
    with("3.0", "out").ended_with(0);
    let floor = first_step(&home.path().join("out"))["numbers"]["noise_floor"].clone();
    let floor = floor.as_f64().unwrap();
    assert!(floor > 0.0 && floor <= 0.05, "{floor}");
    let left = with("1e-6", "small").ended_with(2);
    assert!(left.stderr.contains("is noise, more than 5 %"), "{}", left.stderr);
    // In single precision nothing is rounded and nothing measured.
    let float =
        ["--data", "texts.jsonl", "--quantize", "q8_0", "--steps", "1", "--output", "float"];
    tune(&home, &float).ended_with(0);
    assert!(first_step(&home.path().join("float"))["numbers"]["noise_floor"].is_null());
    let prefix = ["--space", "prefix", "--output", "prefix"];
    let left = tune(&home, &[&words[..], &prefix].concat()).ended_with(2);
    assert!(left.stderr.contains("activations: only a method without"), "{}", left.stderr);
}

#[test]
fn scales_of_a_quantised_base_are_tuned_and_served() {
    let home = home();
    let data = ["--data", "texts.jsonl", "--eval-data", "held_out.jsonl"];
    let fixed = ["tune", "long.gguf", "--no-cache", "--method", "qzo"];
    let words = ["--space", "scales", "--steps", "6", "--eval-every", "2", "--lr", "0.1"];
    let more = ["--batch", "2", "--output", "out", "--json"];
    let told = run(home.offshoot(fixed.iter().chain(&data).chain(&words).chain(&more)));
    let best = told.ended_with(0).json()["best"]["value"].as_f64().unwrap();
    let variant = ["--variant", "s=out"];
    let served = held_out(&home, &variant);
    // Where the model serves, the output head rounds its inputs and the cache keys and values.
    assert!((served - best).abs() < 3e-2 * best, "{served}, tuned to {best}");
    assert_ne!(served, held_out(&home, &[]));
    let answer = ["run", "long.gguf", "ab", "-n", "4"];
    run(home.offshoot(answer.iter().chain(&variant))).ended_with(0);
    let left = run(home.offshoot(answer.iter().chain(&variant).chain(&["--executor", "dense"])));
    assert!(left.stderr.contains("leave out --executor dense"), "{}", left.stderr);
    let lora = ["tune", "long.gguf", "--data", "texts.jsonl", "--method", "qzo"];
    let left = run(home.offshoot(lora)).ended_with(2);
    assert!(left.stderr.contains("give --space scales"), "{}", left.stderr);
    // By itself it needs no base, and no factors where products form their weights.
    for (to, output, error) in [("f32", "merged", 1e-5), ("f16", "half.gguf", 1e-3)] {
        let words = ["export", "long.gguf", "--to", to, "--output", output];
        run(home.offshoot(words.iter().chain(&variant))).ended_with(0);
        let merged = held_out_by(&home, output, &[]);
        assert!((merged - best).abs() < error * best, "{to}: {merged}, tuned to {best}");
    }
}

#[test]
fn a_variant_of_what_was_quantised_while_loading_is_exported_from_the_quantised_file() {
    let home = home();
    let export = |model: &str, words: &[&str]| {
        run(home.offshoot(["export", model, "--output"].iter().chain(words)))
    };
    export("long.gguf", &["floats", "--to", "f32"]).ended_with(0);
    let data = ["tune", "floats", "--quantize", "q8_0", "--data", "texts.jsonl", "--no-cache"];
    let words = ["--method", "mezo", "--steps", "1", "--batch", "2", "--output", "out"];
    run(home.offshoot(data.iter().chain(&words))).ended_with(0);
    let merged = ["merged", "--variant", "v=out"];
    let says = "offshoot quantize floats --to q8_0 --output";
    export("floats", &merged).ended_with(2).complained(&["it was made of the model", says]);
    let words = ["quantize", "floats", "--to", "q8_0", "--output", "q8.gguf"];
    run(home.offshoot(words)).ended_with(0);
    export("q8.gguf", &merged).ended_with(0);
}
