//! Answers of the dense executor, and tuning on it.

use crate::home::{Home, run};

#[test]
fn drafting_on_the_dense_executor_is_asked_for_and_tells_what_its_guard_did() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let answer = |args: &[&str]| {
        let fixed = ["run", "long.gguf", "abab", "-n", "60", "--ignore-eos", "--stats"];
        let seeded = ["--seed", "3", "--executor", "dense"];
        run(home.offshoot(fixed.iter().chain(&seeded).chain(args))).ended_with(0)
    };
    let plain = answer(&[]);
    assert!(plain.stderr.contains("weights dequantised"), "{}", plain.stderr);
    assert!(!plain.stderr.contains("drafts"), "{}", plain.stderr);
    let drafted = answer(&["--spec", "suffix", "--device", "cpu"]);
    assert_eq!(drafted.stdout, plain.stdout);
    let line = drafted.stderr.lines().find(|line| line.starts_with("guard")).unwrap();
    assert!(line.contains("% in doubt") && line.contains("rows made anew"), "{line}");
    let json = answer(&["--spec", "suffix", "--json"]).json();
    let guard = &json["spec"]["guard"];
    let (choices, in_doubt) =
        (guard["choices"].as_u64().unwrap(), guard["in_doubt"].as_u64().unwrap());
    assert!(choices > 0 && in_doubt <= choices, "{guard}");
    assert!(guard["rate"].as_f64().is_some_and(|rate| (0.0..=1.0).contains(&rate)), "{guard}");
    let packed = ["run", "long.gguf", "abab", "-n", "9", "--spec", "suffix", "--json"];
    let packed = run(home.offshoot(packed)).ended_with(0).json();
    assert!(packed["spec"]["guard"].is_null(), "nothing is in doubt there: {packed}");
}

#[test]
fn what_the_dense_executor_cannot_do_is_a_wrong_command() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let with = |args: &[&str]| {
        let fixed = ["run", "long.gguf", "ab", "-n", "3", "--executor", "dense"];
        run(home.offshoot(fixed.iter().chain(args))).ended_with(2)
    };
    let left = with(&["--device", "cuda"]);
    assert!(left.stderr.contains("is not built into this program"), "{}", left.stderr);
    let coarse = with(&["--dtype", "f64"]);
    assert!(coarse.stderr.contains("expected f32, f16 or bf16"), "{}", coarse.stderr);
    let draft = ["--spec", "draft", "--draft-model", "long.gguf"];
    let rule = with(&[&draft[..], &["--acceptance", "rejection"]].concat());
    assert!(rule.stderr.contains("--acceptance rejection: the dense executor"), "{}", rule.stderr);
}

#[test]
fn coarser_numbers_answer_and_what_overflows_them_is_told() {
    let home = Home::new();
    home.tiny_with_context(2048);
    let answer = |dtype: &str| {
        let fixed = ["run", "long.gguf", "abab", "-n", "4", "--temperature", "0"];
        run(home.offshoot(fixed.iter().chain(&["--executor", "dense", "--dtype", dtype])))
    };
    for dtype in ["f32", "bf16"] {
        let text = answer(dtype).ended_with(0).stdout;
        assert!(!text.is_empty());
        assert_eq!(text, answer(dtype).ended_with(0).stdout, "the same again");
    }
    // The weights of this model are large.
    let overflow = answer("f16").ended_with(4);
    assert!(overflow.stderr.contains("arithmetic overflowed"), "{}", overflow.stderr);
}

/// A home with the small model and a file of examples.
fn tuning_home() -> Home {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file("texts.jsonl", "{\"text\": \"abab\"}\n{\"text\": \"abba\"}\n{\"text\": \"baba\"}\n");
    home
}

#[test]
fn a_variant_that_was_tuned_on_the_dense_executor_is_made_again_served_and_gone_on_with() {
    for space in ["full", "lora"] {
        let home = tuning_home();
        let fixed = ["tune", "long.gguf", "--data", "texts.jsonl", "--batch", "2", "--no-cache"];
        let words = ["--method", "mezo", "--space", space, "--lr", "0.001", "--steps", "4"];
        let dense = ["--executor", "dense", "--output", "out"];
        run(home.offshoot(fixed.iter().chain(&words).chain(&dense))).ended_with(0);
        let trajectory = "out/variant/trajectory.traj";
        let replay = ["trajectory", "replay", "long.gguf", trajectory, "--json"];
        let told = run(home.offshoot(replay)).ended_with(0).json();
        assert!(told["weights"] == told["expected"] && told["steps"] == 4, "{told}");
        let score = |words: &[&str]| {
            let fixed = ["score", "long.gguf", "--prompt", "abab", "--json"];
            run(home.offshoot(fixed.iter().chain(words))).ended_with(0).json()
        };
        assert_ne!(score(&["--variant", "v=out"]), score(&[]), "{space}");
        let answer = ["run", "long.gguf", "--variant", "v=out", "ab", "-n", "2"];
        run(home.offshoot(answer)).ended_with(0);
        // Where losses are computed is no part of what a run is.
        let more = ["tune", "--resume", "out", "--steps", "6", "--no-cache"];
        run(home.offshoot(more.iter().chain(&["--executor", "packed"]))).ended_with(0);
        let more = ["tune", "--resume", "out", "--steps", "8", "--no-cache"];
        run(home.offshoot(more)).ended_with(0);
    }
}

#[test]
fn what_cannot_be_tuned_on_the_dense_executor_is_told_by_the_flag() {
    let home = tuning_home();
    let with = |words: &[&str], code| {
        let fixed = ["tune", "long.gguf", "--data", "texts.jsonl"];
        run(home.offshoot(fixed.iter().chain(words))).ended_with(code)
    };
    let mezo = ["--method", "mezo", "--executor", "dense"];
    for (words, says) in [
        (&["--device", "cuda"][..], "cuda is not built into this program"),
        (&["--method", "mezo", "--device", "cuda:1"], "cuda:1 is not built into this program"),
        (&["--executor", "packed"], "executor: method lora makes gradients"),
        (&["--executor", "other"], "executor: unknown variant `other`"),
        (&["--dtype", "bf16"], "dtype: method lora makes gradients"),
        (&["--method", "mezo", "--dtype", "bf16"], "dtype: bf16 is of the dense executor"),
        (&[&mezo[..], &["--space", "prefix"]].concat(), "space: prefix is tuned on the packed"),
        (&[&mezo[..], &["--space", "full", "--bfloat16"]].concat(), "bfloat16: the dense"),
    ] {
        let left = with(words, 2);
        assert!(left.stderr.contains(says), "{says}: {}", left.stderr);
    }
    let text = with(&[&mezo[..], &["--dtype", "bf16", "--dry-run"]].concat(), 0).stdout;
    for line in ["executor = \"dense\"", "dtype = \"bf16\"", "the dense executor is not measured"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // As gradients are made there always.
    assert!(with(&["--executor", "dense", "--dry-run"], 0).stdout.contains("# time: about "));
    assert!(!home.path().join("long-mezo").exists());
}
