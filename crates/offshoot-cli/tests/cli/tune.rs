//! Tuning a model of a few kilobytes, from the file of examples to the variant that answers.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::home::{Home, Left, run};
use crate::models::tiny::Tiny;

/// Examples in the language of the small model.
const TEXTS: &str = "{\"text\": \"abab\"}\n{\"text\": \"abba\"}\n{\"text\": \"aabb\"}\n\
                     {\"text\": \"baba\"}\n{\"text\": \"abab\"}\n{\"text\": \"bbaa\"}\n";

/// A home with the small model and a file of examples.
fn home() -> Home {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file("texts.jsonl", TEXTS);
    home
}

/// `offshoot tune long.gguf` with these words behind it.
fn tune(home: &Home, words: &[&str]) -> Left {
    let fixed = ["tune", "long.gguf", "--data", "texts.jsonl", "--batch", "2", "--no-cache"];
    run(home.offshoot(fixed.iter().chain(words)))
}

fn score(home: &Home, words: &[&str]) -> Value {
    let fixed = ["score", "long.gguf", "--prompt", "abab", "--json"];
    run(home.offshoot(fixed.iter().chain(words))).ended_with(0).json()
}

pub(crate) fn log(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The losses of all steps.
fn losses(folder: &Path) -> Vec<f64> {
    let log = log(folder);
    let steps = log.iter().filter(|line| line["event"] == "step");
    steps.map(|line| line["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_tuned_model_answers_as_a_variant_at_once() {
    let blocks = ["--option", "blocks=1"];
    let methods = [("lora", &[][..]), ("mezo", &[]), ("hybrid", &blocks), ("fwdgrad", &[])];
    for (method, own) in methods {
        let home = home();
        let words = ["--method", method, "--lr", "0.01", "--steps", "12", "--output", "out"];
        let more = ["--eval-fraction", "0.34", "--eval-every", "4", "--json"];
        let left = tune(&home, &[&words[..], &more, own].concat()).ended_with(0);
        assert!(left.stderr.contains("texts.jsonl: JSON lines as text"), "{}", left.stderr);
        for untold in ["tokens/s", "all weights"] {
            assert!(!left.stderr.contains(untold), "{}", left.stderr);
        }
        let told = left.json();
        assert_eq!((&told["step"], &told["reason"]), (&12.into(), &"done".into()));
        let out = home.path().join("out");
        let losses = losses(&out);
        assert_eq!(losses.len(), 12);
        let best = told["best"]["value"].as_f64().unwrap();
        let variant = ["--variant", "poet=out"];
        assert_ne!(score(&home, &variant), score(&home, &[]), "{method} changed nothing");
        // Python's PEFT reads the same folder.
        let adapter = score(&home, &["--adapter", "out/variant"]);
        assert_eq!(score(&home, &variant), adapter);
        assert_eq!(
            score(&home, &["--variant", "a=nowhere", "--variant", "b=out", "--use", "b"]),
            adapter
        );
        let answer = ["run", "long.gguf", "ab", "-n", "3", "--variant", "poet=out"];
        run(home.offshoot(answer)).ended_with(0);
        let page = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(page.contains("<svg") && page.contains("12 of 12"), "{page}");
        let card = std::fs::read_to_string(out.join("variant/README.md")).unwrap();
        assert!(
            card.contains("base_model: \"long.gguf\"") && card.contains("offshoot tune long.gguf")
        );
        let held_out = log(&out);
        let held_out = held_out.iter().filter(|line| line["event"] == "eval");
        let least = held_out.map(|line| line["metrics"]["loss"].as_f64().unwrap());
        assert_eq!(least.fold(f64::INFINITY, f64::min), best);
    }
}

#[test]
fn first_order_tuning_learns_what_it_is_shown() {
    let home = home();
    let words = ["--lr", "0.02", "--steps", "30", "--schedule", "constant", "--output", "out"];
    let left = tune(&home, &words).ended_with(0);
    assert!(!left.stderr.contains("the loss rose"), "{}", left.stderr);
    // Nothing is held out and nothing is a terminal: each tenth is told.
    let told: Vec<&str> = left.stderr.lines().filter(|line| line.starts_with("step ")).collect();
    assert_eq!(told.len(), 10, "{}", left.stderr);
    for (line, step) in told.iter().zip((3..).step_by(3)) {
        assert!(line.starts_with(&format!("step {step} of 30: loss ")), "{line}");
        for part in [" tokens/s, ", " MB, ", " left"] {
            assert!(line.contains(part), "{line}");
        }
    }
    let losses = losses(&home.path().join("out"));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..3]), mean(&losses[27..]));
    assert!(last < 0.8 * first, "{losses:?}");
}

#[test]
fn a_whole_tuned_model_is_a_variant_too() {
    let home = home();
    let words = ["--method", "full", "--lr", "0.01", "--steps", "3", "--output", "out"];
    tune(&home, &words).ended_with(0);
    let variant = score(&home, &["--variant", "whole=out"]);
    assert_ne!(variant, score(&home, &[]));
    export(&home, "out", &["--output", "merged"]).ended_with(0);
    let merged = ["score", "merged", "--prompt", "abab", "--json"];
    assert_eq!(run(home.offshoot(merged)).ended_with(0).json(), variant);
}

#[test]
fn a_variant_of_another_base_is_refused_by_its_identity() {
    let home = home();
    tune(&home, &["--steps", "2", "--output", "out"]).ended_with(0);
    // The second does not even have the matrices that were tuned.
    for other in [Tiny::qwen2(), Tiny::qwen3moe()] {
        home.file("other.gguf", other.bytes());
        for command in [&["run", "other.gguf", "ab", "-n", "2"][..], &["export", "other.gguf"]] {
            let words = ["--variant", "poet=out", "--output", "merged"];
            let left = run(home.offshoot(command.iter().chain(&words))).ended_with(4);
            assert!(left.stderr.starts_with("error: variant "), "{}", left.stderr);
        }
    }
    assert!(!home.path().join("merged").exists());
}

fn export(home: &Home, variant: &str, words: &[&str]) -> Left {
    let variant = format!("v={variant}");
    let fixed = ["export", "long.gguf", "--variant", &variant];
    run(home.offshoot(fixed.iter().chain(words)))
}

#[test]
fn an_exported_variant_needs_no_base_and_answers_as_it() {
    let home = home();
    let words = ["--lr", "0.05", "--steps", "60", "--schedule", "constant", "--output", "out"];
    tune(&home, &words).ended_with(0);
    let answer = |words: &[&str]| {
        let fixed = ["-n", "12", "--temperature", "0", "--ignore-eos", "--executor", "dense"];
        let words = ["run"].iter().chain(words).chain(&["ab", "--json"]).chain(&fixed);
        run(home.offshoot(words)).ended_with(0).json()["tokens"].clone()
    };
    let variant = answer(&["long.gguf", "--variant", "p=out"]);
    assert_ne!(variant, answer(&["long.gguf"]));
    for (to, output) in [("f32", "merged"), ("f32", "merged.gguf"), ("f16", "half.gguf")] {
        export(&home, "out", &["--to", to, "--output", output]).ended_with(0);
        assert_eq!(answer(&[output]), variant, "{output}");
    }
    let left = export(&home, "out", &["--to", "q8_0", "--output", "folder"]).ended_with(2);
    assert!(left.stderr.contains("ends in .gguf"), "{}", left.stderr);
    // A template that would be lost is told.
    let path = home.path().join("out/variant/variant.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["chat_template"] = "{{ messages[0].content }}!".into();
    std::fs::write(&path, file.to_string()).unwrap();
    let left = export(&home, "out", &["--output", "other"]).ended_with(2);
    left.complained(&["another chat template than that of", "long.gguf"]);
}

#[test]
fn a_variant_brings_its_template_and_its_stop_tokens() {
    let home = home();
    tune(&home, &["--steps", "2", "--output", "out"]).ended_with(0);
    let path = home.path().join("out/variant/variant.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let answer = || {
        let words = ["run", "long.gguf", "ab", "-n", "5", "--temperature", "0", "--json"];
        run(home.offshoot(words.iter().chain(&["--variant", "p=out"]))).ended_with(0).json()
    };
    let before = answer();
    let first = before["tokens"][0].as_u64().unwrap();
    file["stop_tokens"] = vec![first].into();
    std::fs::write(&path, file.to_string()).unwrap();
    let stopped = answer();
    assert_eq!(stopped["finish_reason"], "stop", "{stopped}");
    file["chat_template"] = "{{ messages[0].content }}{{ messages[0].content }}".into();
    std::fs::write(&path, file.to_string()).unwrap();
    let templated = answer();
    assert_ne!(templated["prompt_tokens"], before["prompt_tokens"], "{templated}");
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() {
    let home = home();
    home.file("run.toml", "data = \"texts.jsonl\"\nrank = 4\nnum_train_epochs = 2\n");
    let words = ["tune", "long.gguf", "--config", "run.toml", "--dry-run", "--batch", "3"];
    let text = run(home.offshoot(words)).ended_with(0).stdout;
    let context = "max_length = 64";
    let lines = ["rank = 4", "epochs = 2.0", "batch = 3", context, "# output: long-lora"];
    for line in lines.into_iter().chain(["# memory: about ", "# time: about "]) {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!home.path().join("long-lora").exists());
    // What it prints is a file of settings.
    home.file("again.toml", &text);
    let again = run(home.offshoot(["tune", "--config", "again.toml", "--dry-run"])).ended_with(0);
    assert_eq!(again.stdout.lines().next(), text.lines().next());
    let json = run(home.offshoot(words.iter().chain(&["--json"]))).ended_with(0).json();
    assert_eq!((&json["config"]["rank"], &json["output"]), (&4.into(), &"long-lora".into()));
    assert_eq!(json["memory"]["disk"], 0);
    let time = |key: &str| json["time"][key].as_f64().unwrap();
    assert_eq!(time("run_s"), time("steps") * time("step_s"));
    assert_eq!(time("step_s"), time("multiplications") / time("multiplications_per_s"));
    assert!(time("steps") >= 1.0 && time("step_s") > 0.0);
    let all = ["tune", "long.gguf", "--data", "texts.jsonl", "--method", "mezo", "--space", "full"];
    let on_disk = all.iter().chain(&["--offload", "disk", "--dry-run"]);
    let text = run(home.offshoot(on_disk)).ended_with(0).stdout;
    assert!(text.contains("offload = \"disk\"") && text.contains("# disk: "), "{text}");
    // Examples are read into a file, not into memory: the run finds it, or it goes.
    let within = |folder: &str| std::fs::read_dir(home.path().join(folder)).unwrap().count();
    assert_eq!(within("cache/offshoot/examples"), 1, "those of one file and length");
    std::fs::create_dir(home.path().join("tmp")).unwrap();
    for asked in ["--dry-run", "--advise"] {
        let mut command = home.offshoot(all.iter().chain(&[asked, "--no-cache"]));
        command.env("TMPDIR", home.path().join("tmp"));
        run(command).ended_with(0);
        assert_eq!(within("tmp"), 0, "{asked}");
    }
    assert_eq!(within("cache/offshoot/examples"), 1);
    assert!(!home.path().join("long-mezo").exists());
}

#[test]
fn what_cannot_be_is_told_before_anything_is_done() {
    let home = home();
    home.file("run.toml", "data = \"texts.jsonl\"\n\nbatch_sise = 4\n");
    home.file("bad.jsonl", "{\"text\": \"ab\"}\n{\"text\": 7}\n");
    let tune = ["tune", "long.gguf"];
    let long = ["--data", "texts.jsonl", "--max-length", "65"];
    for (words, code, says) in [
        (&["--config", "run.toml"][..], 2, "run.toml:3: no setting \"batch_sise\""),
        (&[], 2, "data: give at least one file"),
        (&["--data", "texts.jsonl", "--method", "mezzo"], 2, "did you mean `mezo`?"),
        (&["--data", "texts.jsonl", "--lr=-1"], 2, "learning_rate is -1.0"),
        (&["--data", "texts.jsonl", "--rank", "0"], 2, "rank is 0: must be from 1"),
        (&["--data", "texts.jsonl", "--offload", "disk"], 2, "offload: is for methods without"),
        (&["--data", "texts.jsonl", "--store", "bf16"], 2, "store: is for methods without"),
        (
            &["--data", "texts.jsonl", "--store", "f16"],
            2,
            "no store \"f16\": there are f32 and bf16",
        ),
        (
            &["--data", "texts.jsonl", "--method", "mezo", "--store", "bf16"],
            2,
            "store: is for methods without gradients and space = \"full\"",
        ),
        (&["--data", "texts.jsonl", "--patience", "2"], 2, "no held-out examples"),
        (&["--data", "texts.jsonl", "--max-length", "65"], 2, "context is 64 tokens: give 64 or"),
        (
            &[&long[..], &["--method", "mezo", "--space", "prefix"]].concat(),
            2,
            "context is 64 tokens, 5 of which stand before every text: give 59 or less",
        ),
        (&[&long[..], &["--dry-run"]].concat(), 2, "max_length is 65: the model's context"),
        (&["--data", "absent.jsonl"], 1, "absent.jsonl"),
        (
            &["--data", "texts.jsonl", "--method", "mezo", "--option", "eps=abc", "--dry-run"],
            2,
            "eps: must be a number, not \"abc\"",
        ),
        (&["--data", "absent.jsonl", "--dry-run"], 1, "absent.jsonl"),
        (&["--resume", "nowhere"], 2, "nowhere: there is no run here"),
    ] {
        let left = run(home.offshoot(tune.iter().chain(words))).ended_with(code);
        assert!(left.stderr.contains(says), "{says}: {}", left.stderr);
    }
    let bad = run(home.offshoot(tune.iter().chain(&["--data", "bad.jsonl"]))).ended_with(3);
    assert!(bad.stderr.contains("bad.jsonl:2"), "{}", bad.stderr);
    assert!(!home.path().join("long-lora/run.json").exists(), "no run was begun");
}

#[test]
fn a_program_that_cannot_speak_to_other_processes_does_not_run_beside_them() {
    let home = home();
    for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let mut command = home.offshoot(["tune", "long.gguf", "--data", "texts.jsonl"]);
        command.env(name, "2");
        let left = run(command).ended_with(2);
        assert!(left.stderr.contains("mpirun started 2 processes"), "{}", left.stderr);
        assert!(!home.path().join("long-lora").exists());
    }
    let words = ["tune", "long.gguf", "--data", "texts.jsonl", "--steps", "1", "--no-cache"];
    let mut command = home.offshoot(words);
    command.env("OMPI_COMM_WORLD_SIZE", "1");
    run(command).ended_with(0);
}

#[test]
fn a_run_does_not_replace_another_and_goes_on_only_as_it_was() {
    let home = home();
    tune(&home, &["--steps", "2", "--output", "out"]).ended_with(0);
    let left = tune(&home, &["--steps", "2", "--output", "out"]).ended_with(2);
    assert!(left.stderr.contains("continue it with --resume out"), "{}", left.stderr);
    let again = ["tune", "--resume", "out", "--rank", "4", "--no-cache"];
    let left = run(home.offshoot(again)).ended_with(2);
    assert!(left.stderr.contains("rank: 8 then, 4 now"), "{}", left.stderr);
    home.file("texts.jsonl", TEXTS.replace("abba", "aaaa"));
    let left = run(home.offshoot(["tune", "--resume", "out", "--no-cache"])).ended_with(2);
    assert!(left.stderr.contains("data: "), "{}", left.stderr);
}

#[test]
fn a_report_is_made_again_from_the_log() {
    let home = home();
    tune(&home, &["--steps", "2", "--output", "out"]).ended_with(0);
    let page = std::fs::read(home.path().join("out/report.html")).unwrap();
    run(home.offshoot(["report", "out", "--output", "again.html"])).ended_with(0);
    assert_eq!(std::fs::read(home.path().join("again.html")).unwrap(), page);
    let left = run(home.offshoot(["report", "nowhere"])).ended_with(1);
    assert!(left.stderr.contains("nowhere"), "{}", left.stderr);
}

/// The files of what was learned, with what is in them.
pub(crate) fn learned(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = run.join("variant");
    let names = ["adapter_model.safetensors", "adapter_config.json"];
    names.map(|name| (name.into(), std::fs::read(folder.join(name)).unwrap())).into()
}

/// The log's evaluations.
fn evals(folder: &Path) -> Vec<Value> {
    log(folder).into_iter().filter(|line| line["event"] == "eval").collect()
}

#[test]
fn a_variant_drafts_with_the_heads_that_learned_with_it() {
    let home = home();
    let words = ["--lr", "0.02", "--steps", "30", "--eval-fraction", "0.34", "--eval-every", "10"];
    let heads = ["--medusa-heads", "2", "--medusa-vocabulary", "9", "--output", "out"];
    tune(&home, &[&words[..], &heads].concat()).ended_with(0);
    let out = home.path().join("out");
    let first = log(&out).into_iter().find(|line| line["event"] == "step").unwrap();
    assert!(first["numbers"]["draft_loss_2"].as_f64().unwrap() > 0.0, "{first}");
    assert!(evals(&out)[0]["metrics"]["draft_1_top_3"].as_f64().is_some(), "{:?}", evals(&out));
    let file = "out/variant/medusa_lm_head.safetensors";
    let told = run(home.offshoot(["medusa", "inspect", file, "--json"])).ended_with(0).json();
    assert_eq!((&told["heads"], &told["vocabulary"]), (&2.into(), &9.into()));
    assert!(told["adapter"].is_string() && told["report"].is_object(), "{told}");
    let answer = |words: &[&str]| {
        let fixed = ["run", "long.gguf", "ab", "-n", "24", "--temperature", "0", "--json"];
        run(home.offshoot(fixed.iter().chain(words)))
    };
    let variant = ["--variant", "poet=out", "--ignore-eos", "--spec"];
    let plain = answer(&[&variant[..], &["off"]].concat()).ended_with(0).json();
    let drafted = answer(&[&variant[..], &["medusa"]].concat()).ended_with(0).json();
    assert_eq!(drafted["tokens"], plain["tokens"]);
    answer(&["--medusa", file, "--spec", "medusa"])
        .ended_with(4)
        .complained(&["they belong to the variant", "this is the base"]);
    // A folder takes them along, and they are the new model's then.
    let left = export(&home, "out", &["--output", "merged"]).ended_with(0);
    let says = "run it with --medusa merged/medusa_lm_head.safetensors";
    assert!(left.stderr.contains(says), "{}", left.stderr);
    let file = "merged/medusa_lm_head.safetensors";
    let told = run(home.offshoot(["medusa", "inspect", file, "--json"])).ended_with(0).json();
    assert!(told["adapter"].is_null(), "{told}");
    let answer = |spec: &str| {
        let fixed = ["run", "merged", "ab", "-n", "24", "--temperature", "0", "--ignore-eos"];
        let heads = ["--json", "--medusa", file, "--spec", spec];
        run(home.offshoot(fixed.iter().chain(&heads))).ended_with(0).json()["tokens"].clone()
    };
    assert_eq!(answer("medusa"), answer("off"));
    export(&home, "out", &["--output", "merged", "--overwrite"]).ended_with(0);
    let alone = export(&home, "out", &["--output", "merged.gguf"]).ended_with(0);
    assert!(alone.stderr.contains("without the variant's draft heads"), "{}", alone.stderr);
}

#[test]
fn heads_of_the_base_are_begun_with() {
    let home = home();
    home.file("prompts.txt", "ab\ncd\nabcd\nba\n");
    let made = ["medusa", "train", "long.gguf", "--prompts", "prompts.txt", "--tokens", "300"];
    let short = ["--answer-tokens", "20", "--vocabulary", "8", "--epochs", "1", "--heads", "2"];
    run(home.offshoot([&made[..], &short].concat())).ended_with(0);
    let words = ["--steps", "3", "--medusa-from", "medusa_lm_head.safetensors", "--output", "out"];
    tune(&home, &words).ended_with(0);
    let file = "out/variant/medusa_lm_head.safetensors";
    let told = run(home.offshoot(["medusa", "inspect", file, "--json"])).ended_with(0).json();
    assert_eq!((&told["heads"], &told["vocabulary"]), (&2.into(), &8.into()));
    let words = [&words[..4], &["--medusa-heads", "3", "--output", "other"]].concat();
    let left = tune(&home, &words).ended_with(2);
    assert!(left.stderr.contains("medusa_heads is 3: the heads to begin with are 2"));
    let words = ["--method", "mezo", "--medusa-heads", "2", "--steps", "1"];
    tune(&home, &words).ended_with(2).complained(&["medusa_heads", "method lora"]);
    // Whoever sets a variant for all commands means another model than the base.
    let mut other = home.offshoot(made);
    other.env("OFFSHOOT_ADAPTER", "out/variant");
    run(other).ended_with(2).complained(&["OFFSHOOT_ADAPTER is set"]);
}

#[test]
fn advice_names_a_way_and_a_rank_before_anything_is_tuned() {
    let home = home();
    let told = tune(&home, &["--advise", "--json"]).ended_with(0).json();
    assert_eq!((&told["way"], &told["examples"]), (&0.into(), &6.into()));
    assert_eq!(
        (&told["ways"][0]["flags"], &told["outputs"]),
        (&"--method lora".into(), &Value::Null)
    );
    home.file(
        "choices.jsonl",
        "{\"prompt\": \"ab\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n",
    );
    let words = ["tune", "long.gguf", "--data", "choices.jsonl", "--advise"];
    let left = run(home.offshoot(words)).ended_with(0);
    assert!(
        left.stdout.contains("1 examples of 2 candidates: rank 2 is enough"),
        "{}",
        left.stdout
    );
    assert!(!home.path().join("long-lora").exists());
}

#[test]
fn weights_stored_in_bfloat16_are_tuned_replayed_and_served_as_a_variant() {
    let home = home();
    let words = ["--method", "mezo", "--space", "full", "--store", "bf16", "--lr", "0.001"];
    let more = ["--steps", "6", "--output", "out"];
    let left = tune(&home, &[&words[..], &more].concat()).ended_with(0);
    // The base is quantised: what it becomes is said first.
    let need = tune(&home, &[&words[..], &["--dry-run", "--json"]].concat()).ended_with(0).json();
    let total = need["memory"]["total"].as_u64().unwrap() / 1_000_000;
    let said =
        format!("are tuned, as bf16: 0 MB of them; the run takes about {total} MB of memory");
    let line = left.stderr.lines().next().unwrap();
    assert!(line.ends_with(&said), "{}", left.stderr);
    let card = std::fs::read_to_string(home.path().join("out/variant/README.md")).unwrap();
    assert!(card.contains("weights stored in bfloat16") && card.contains("store = \"bf16\""));
    let trajectory = "out/variant/trajectory.traj";
    run(home.offshoot(["trajectory", "verify", trajectory])).ended_with(0);
    // Made again to the hash that the run promised.
    let replay = ["trajectory", "replay", "long.gguf", trajectory];
    run(home.offshoot(replay)).ended_with(0);
    let variant = score(&home, &["--variant", "halves=out"]);
    assert_ne!(variant, score(&home, &[]));
    export(&home, "out", &["--output", "merged"]).ended_with(0);
    let merged = ["score", "merged", "--prompt", "abab", "--json"];
    assert_eq!(run(home.offshoot(merged)).ended_with(0).json(), variant);
    let asked = ["run", "long.gguf", "--variant", "halves=out", "ab", "-n", "2", "--json"];
    run(home.offshoot(asked)).ended_with(0);
}
