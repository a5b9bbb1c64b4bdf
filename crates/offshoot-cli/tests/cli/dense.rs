//! Answers of the dense executor.

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
