//! What the commands print, and where.

use std::process::Stdio;

use offshoot_engine::MemoryNeed;
use offshoot_engine::store::Catalogue;
use offshoot_models::Checkpoint;

use crate::home::{Home, run};

#[test]
fn every_reading_command_gives_json_and_nothing_else_on_standard_output() {
    let home = Home::new();
    home.tiny_with_context(2048);
    home.file("text.txt", "abcd dcba ".repeat(9));
    let model = "long.gguf";
    for (args, field) in [
        (&["list"][..], "models"),
        (&["show", model], "family"),
        (&["pull", model], "path"),
        (&["doctor"], "chosen"),
        (&["doctor", model], "fits"),
        (&["tokenize", model, "--prompt", "abcd"], ""),
        (&["perplexity", model, "--file", "text.txt"], "perplexity"),
        (&["score", model, "--given", "ab", "--prompt", "cd", "--top", "2"], "perplexity"),
        (&["embed", model, "ab", "cd"], "embeddings"),
        (&["embed", model, "ab", "cd", "--cosines"], "cosines"),
        (&["run", model, "ab", "-n", "3", "--stats"], "text"),
        (&["generate", model, "-p", "ab", "-n", "3", "--logprobs", "2"], "logprobs"),
        (&["bench", model, "--rounds", "1"], "decode_tokens_per_s"),
    ] {
        let left = run(home.offshoot(args.iter().chain(&["--json"]))).ended_with(0);
        let value = left.json();
        assert!(field.is_empty() && value.is_array() || !value[field].is_null(), "{value}");
        assert!(!left.stderr.contains('\r'), "bars are for terminals: {:?}", left.stderr);
    }
}

#[test]
fn each_instruction_set_can_be_chosen_and_writes_the_same() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let told = |set: Option<&str>, args: &[&str]| {
        let mut command = home.offshoot(args);
        set.map(|set| command.env("OFFSHOOT_ISA", set));
        run(command).ended_with(0).json()
    };
    let doctor = told(None, &["doctor", "--json"]);
    let sets: Vec<&str> = doctor["instruction_sets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|set| set.as_str().unwrap())
        .collect();
    assert!(sets.contains(&"portable"), "{sets:?}");
    assert!(sets.contains(&doctor["chosen"].as_str().unwrap()), "{doctor}");
    let answer = ["generate", "long.gguf", "-p", "abcdabcd", "-n", "20", "--seed", "3", "--json"];
    let expected = told(None, &answer)["tokens"].clone();
    for set in sets {
        assert_eq!(told(Some(set), &["doctor", "--json"])["chosen"], set);
        let bench = ["bench", "long.gguf", "--rounds", "1", "--json"];
        assert_eq!(told(Some(set), &bench)["isa"], set);
        assert_eq!(told(Some(set), &answer)["tokens"], expected, "{set}");
    }
}

#[test]
fn what_a_models_files_recommend_holds_unless_a_flag_says_otherwise() {
    let home = Home::new();
    home.tiny();
    let stats = |args: &[&str]| {
        let base = ["generate", "tiny.gguf", "-p", "ab", "--seed", "1", "--stats"];
        let left = run(home.offshoot(base.iter().chain(args))).ended_with(0);
        let line = left.stderr.lines().find(|line| line.starts_with("chosen")).unwrap().to_owned();
        (left.stdout, line)
    };
    let (_, line) = stats(&["-n", "2"]);
    let own = "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, at most 2 tokens";
    assert_eq!(line, format!("chosen  {own}"));
    home.file(
        "generation_config.json",
        r#"{"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.1, "max_new_tokens": 5}"#,
    );
    let (told, line) = stats(&[]);
    for part in ["temperature 0.7 (the model's)", "top-k 3 (the model's)", "top-p 0.95,"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(line.ends_with("at most 5 (the model's) tokens"), "{line}");
    // They are what the same flags are.
    std::fs::remove_file(home.path().join("generation_config.json")).unwrap();
    let flags = ["--temperature", "0.7", "--top-k", "3", "--repetition-penalty", "1.1", "-n", "5"];
    assert_eq!(stats(&flags).0, told);
    home.file("generation_config.json", r#"{"do_sample": false, "top_p": 0.5}"#);
    assert!(stats(&["-n", "2"]).1.starts_with("chosen  temperature 0 (the model's)"));
    let (_, line) = stats(&["-n", "2", "--temperature", "0.3", "--top-p", "0.9"]);
    assert!(line.contains("temperature 0.3,") && line.contains("top-p 0.9,"), "{line}");
    let shown = run(home.offshoot(["show", "tiny.gguf", "--json"])).ended_with(0).json();
    assert_eq!(shown["sampling"], serde_json::json!({ "temperature": 0.0, "top_p": 0.5 }));
    home.file("generation_config.json", r#"{"temperature": "hot"}"#);
    let left = run(home.offshoot(["run", "tiny.gguf", "ab"])).ended_with(4);
    left.complained(&["generation_config.json: temperature: \"\\\"hot\\\"\", expected a number"]);
}

#[test]
fn texts_are_scored_and_made_vectors_of() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let score = |args: &[&str]| run(home.offshoot(["score", "long.gguf"].iter().chain(args)));
    let value = score(&["--prompt", "abcd dcba", "--top", "3", "--json"]).ended_with(0).json();
    let tokens = value["tokens"].as_array().unwrap();
    assert!(tokens[0]["logprob"].is_null() && tokens.len() > 1, "{value}");
    let sum: f64 = tokens[1..].iter().map(|t| t["logprob"].as_f64().unwrap()).sum();
    assert!((sum - value["sum"].as_f64().unwrap()).abs() < 1e-9);
    assert!(tokens[1..].iter().all(|t| t["top"].as_array().unwrap().len() == 3));
    let text: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(text, "abcd dcba");
    let given = score(&["--given", "ab", "--prompt", "cd", "--json"]).ended_with(0).json();
    assert!(given["tokens"].as_array().unwrap().iter().all(|t| t["logprob"].is_f64()), "{given}");
    let left = score(&["--prompt", ""]).ended_with(3);
    assert!(left.stderr.contains("no token behind another"), "{}", left.stderr);

    let embed = |args: &[&str]| run(home.offshoot(["embed", "long.gguf"].iter().chain(args)));
    home.file("lines.txt", "ab\ncd\nab\n");
    for pooling in ["mean", "last"] {
        let left = embed(&["--file", "lines.txt", "--pooling", pooling]).ended_with(0);
        let lines: Vec<Vec<f64>> =
            left.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]), (3, &lines[2]));
        assert!((lines[1].iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
        assert_ne!(lines[0], lines[1]);
    }
    let value = embed(&["ab", "cd", "--cosines", "--json"]).ended_with(0).json();
    assert!((value["cosines"][1][1].as_f64().unwrap() - 1.0).abs() < 1e-5, "{value}");
    assert_eq!(value["cosines"][0][1], value["cosines"][1][0]);
    let left = embed(&["ab", ""]).ended_with(3);
    assert!(left.stderr.contains("text 2 is empty"), "{}", left.stderr);
}

#[test]
fn bench_reports_what_its_readers_count_on() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let value = run(home.offshoot(["bench", "long.gguf", "--rounds", "1", "--json"])).json();
    for field in [
        "prompt_tokens_per_s",
        "decode_tokens_per_s",
        "read_bandwidth_gb_s",
        "dot_gop_s",
        "share_of_bandwidth",
        "share_of_dot_rate",
        "peak_rss_bytes",
    ] {
        assert!(value[field].as_f64().is_some_and(|n| n > 0.0), "{field}: {value}");
    }
    let widths: Vec<u64> =
        value["steps"].as_array().unwrap().iter().map(|s| s["tokens"].as_u64().unwrap()).collect();
    assert_eq!((widths.first(), widths.last()), (Some(&1), Some(&64)));
}

#[test]
fn an_answer_is_the_only_text_on_standard_output() {
    let home = Home::new();
    home.tiny();
    let args = ["ab", "-n", "5", "--seed", "7", "--stats"];
    let with = |before: &[&str], last: &[&str]| {
        run(home.offshoot(before.iter().chain(&args).chain(last))).ended_with(0)
    };
    let plain = with(&["run", "tiny.gguf"], &[]);
    let json = with(&["run", "tiny.gguf"], &["--json"]).json();
    assert_eq!(plain.stdout, format!("{}\n", json["text"].as_str().unwrap()));
    assert!(plain.stderr.contains("tokens/s"), "{}", plain.stderr);
    with(&["run", "tiny.gguf"], &["-o", "answer.txt"]);
    let written = std::fs::read_to_string(home.path().join("answer.txt")).unwrap();
    assert_eq!(written, plain.stdout);
}

#[test]
fn the_rule_of_acceptance_is_told_and_changes_no_greedy_text() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let answer = |args: &[&str]| {
        let fixed = ["run", "long.gguf", "abab", "-n", "80", "--ignore-eos", "--stats"];
        run(home.offshoot(fixed.iter().chain(args))).ended_with(0)
    };
    let greedy = answer(&["--temperature", "0"]);
    let stats = ["tokens a step", "promised", "guesses right, acceptance exact", "right: suffix"];
    for part in [&stats[..], &["ms drafting", "ms checking", "ms keeping rows"]].concat() {
        assert!(greedy.stderr.contains(part), "no {part}: {}", greedy.stderr);
    }
    for rule in ["rejection", "typical"] {
        let drafted = ["--acceptance", rule, "--draft-model", "long.gguf", "--seed", "3"];
        let cold = answer(&[&drafted[..], &["--temperature", "0"]].concat());
        assert_eq!(cold.stdout, greedy.stdout);
        let warm = answer(&drafted);
        assert!(warm.stderr.contains(&format!("acceptance {rule}")), "{}", warm.stderr);
        let warned = warm.stderr.contains("do not have the model's distribution");
        assert_eq!(warned, rule == "typical", "{}", warm.stderr);
        let threads = answer(&[&drafted[..], &["--threads", "1"]].concat());
        assert_eq!(threads.stdout, warm.stdout);
        let json = answer(&[&drafted[..], &["--json"]].concat()).json();
        assert_eq!(json["spec"]["acceptance"], rule);
        for part in ["draft_s", "check_s", "commit_s"] {
            assert!(json["spec"][part].as_f64() > Some(0.0), "no {part}: {json}");
        }
        assert!(json["spec"]["drafters"]["draft"]["proposed"].as_u64() > Some(20), "{json}");
        assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), warm.stdout);
    }
}

#[test]
fn a_prompt_may_come_through_a_pipe() {
    let home = Home::new();
    home.tiny();
    let prompt = home.file("prompt.txt", "ab");
    for verb in ["run", "generate"] {
        let options = ["-n", "4", "--seed", "7"];
        let given = run(home.offshoot([&[verb, "tiny.gguf", "ab"][..], &options].concat()));
        let mut piped = home.offshoot([&[verb, "tiny.gguf"][..], &options].concat());
        piped.stdin(std::fs::File::open(&prompt).unwrap());
        assert_eq!(run(piped).ended_with(0).stdout, given.ended_with(0).stdout);
    }
    let nothing = run(home.offshoot(["run", "tiny.gguf"])).ended_with(2);
    nothing.complained(&["no prompt"]);
}

#[test]
fn the_environment_stands_in_for_flags_and_a_flag_wins() {
    let home = Home::new();
    home.tiny();
    let count = |args: &[&str]| {
        let mut command = home.offshoot(args);
        command.env("OFFSHOOT_MODEL", "tiny.gguf").env("OFFSHOOT_PROMPT", "ab");
        command.env("OFFSHOOT_MAX_TOKENS", "2").env("OFFSHOOT_JSON", "1");
        command.env("OFFSHOOT_LOGIT_BIAS", "2=-100,1=-100");
        run(command).ended_with(0).json()["tokens"].as_array().unwrap().len()
    };
    assert_eq!(count(&["generate"]), 2);
    assert_eq!(count(&["generate", "--max-tokens", "3"]), 3);
    let mut wrong = home.offshoot(["generate"]);
    wrong.env("OFFSHOOT_MODEL", "tiny.gguf").env("OFFSHOOT_THREADS", "many");
    let left = run(wrong).ended_with(2);
    assert!(left.stderr.contains("--threads"), "{}", left.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    home.tiny_with_context(1 << 20);
    for args in [
        &["list"][..],
        &["completions", "bash"],
        &["run", "long.gguf", "ab", "--ctx-size", "100000", "--logit-bias", "2=-100"],
    ] {
        let mut command = home.offshoot(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let left = crate::home::Left::of(child.wait_with_output().unwrap()).ended_with(0);
        assert_eq!(left.stderr, "", "{args:?}");
        // Notes and errors may lose their reader as well.
        let mut command = home.offshoot([&["pull"][..], &["absent.gguf"]].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(Home::new().offshoot(["completions", shell])).ended_with(0).stdout;
        for verb in ["pull", "perplexity", "doctor", "--ctx-size"] {
            assert!(script.contains(verb.trim_start_matches('-')), "{shell}: {verb}");
        }
    }
}

/// The model that a newcomer meets, as the README runs it.
#[test]
fn smollm2_answers_and_the_catalogue_tells_its_memory_truly() {
    let home = Home::new();
    let mut command = home.offshoot(["run", "smollm2", "Name three rivers.", "--max-tokens", "8"]);
    command.args(["--temperature", "0", "--offline", "--json"]);
    let path = home.use_users_store(&mut command);
    let value = run(command).ended_with(0).json();
    assert!(value["text"].as_str().unwrap().contains("River"), "{value}");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let promised = Catalogue::built_in().unwrap().get("smollm2").unwrap().clone();
    let need = MemoryNeed::of(&checkpoint);
    let context = promised.context.unwrap();
    assert_eq!(need.per_token, context.bytes_per_token);
    assert_eq!(checkpoint.config().max_position_embeddings as u64, context.tokens);
    let ratio = need.weights as f64 / promised.size as f64;
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
}

/// What is refused before loading rests on this estimate.
#[cfg(target_os = "linux")]
#[test]
fn smollm2_takes_the_memory_that_was_estimated_and_not_more() {
    let home = Home::new();
    let options = ["--ctx-size", "1024", "-n", "2", "--no-cache", "--stats"];
    let mut command = home.offshoot(["run", "smollm2", &"word ".repeat(900)]);
    command.args(options);
    let path = home.use_users_store(&mut command);
    let left = run(command).ended_with(0);
    let line = left.stderr.lines().find(|line| line.starts_with("memory")).unwrap();
    let peak_mb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let estimate_mb = MemoryNeed::of(&Checkpoint::open(&path).unwrap()).total(1024) / 1_000_000;
    assert!((estimate_mb / 2..=estimate_mb).contains(&peak_mb), "{peak_mb} of {estimate_mb}");
}
