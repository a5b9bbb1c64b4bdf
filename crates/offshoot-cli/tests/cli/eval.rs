//! A model measured on examples, on the command line.

use serde_json::Value;

use crate::adapter::adapter;
use crate::home::{Home, run};
use offshoot_models::Checkpoint;

const CHOICES: &str = "{\"prompt\": \"ab\", \"choices\": [\"a\", \"b\", \"cd\"], \"answer\": 1}\n\
                       {\"prompt\": \"abcd\", \"choices\": [\"a\", \"b\", \"cd\"], \"answer\": 2}\n\
                       {\"prompt\": \"c\", \"choices\": [\"a\", \"b\", \"cd\"], \"answer\": 1}\n";

/// What is measured, without the time that it took.
fn eval(home: &Home, more: &[&str]) -> Value {
    let fixed = ["eval", "long.gguf", "--data", "choices.jsonl", "--json"];
    let mut told = run(home.offshoot(fixed.iter().chain(more))).ended_with(0).json();
    let seconds = told.as_object_mut().unwrap().remove("seconds").unwrap();
    assert!(seconds.as_f64().unwrap() > 0.0);
    told
}

#[test]
fn metrics_do_not_depend_on_batch_or_threads() {
    let home = Home::new();
    home.tiny_with_context(2048);
    home.file("choices.jsonl", CHOICES);
    let first = eval(&home, &[]);
    assert_eq!((&first["examples"], &first["metric"]), (&3.into(), &Value::Null));
    assert_eq!(first["majority_accuracy"], 2.0 / 3.0);
    assert!(first["loss"].as_f64().unwrap() > 0.0 && first["accuracy"].is_f64());
    assert_eq!(eval(&home, &["--batch", "1", "--threads", "1"]), first);
    assert_eq!(eval(&home, &["--batch", "2", "--threads", "3"]), first);
    assert_eq!(eval(&home, &["--limit", "2"])["examples"], 2);
}

#[test]
fn an_adapter_of_nothing_changes_nothing_and_another_one_does() {
    let home = Home::new();
    let base = Checkpoint::open(&home.tiny_with_context(2048)).unwrap();
    let shape = (base.config().hidden_size, base.config().intermediate_size);
    home.file("choices.jsonl", CHOICES);
    let loss = |more: &[&str]| eval(&home, more)["loss"].clone();
    let base = loss(&[]);
    adapter(&home, shape, 0.0);
    assert_eq!(loss(&["--adapter", "variant"]), base);
    adapter(&home, shape, 0.5);
    assert_ne!(loss(&["--adapter", "variant"]), base);
    let dense = loss(&["--adapter", "variant", "--executor", "dense"]).as_f64().unwrap();
    let packed = loss(&["--adapter", "variant"]).as_f64().unwrap();
    assert!((dense - packed).abs() < 0.05 * packed, "{dense} {packed}");
}

#[test]
fn faults_end_an_evaluation_before_it_begins() {
    let home = Home::new();
    home.tiny_with_context(2048);
    home.file("choices.jsonl", "{\"prompt\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n");
    let left = run(home.offshoot(["eval", "long.gguf", "--data", "choices.jsonl"])).ended_with(3);
    let told = "error: choices.jsonl:1:choices: 1 choices, expected at least two\n";
    assert!(left.stderr.ends_with(told), "{}", left.stderr);
    run(home.offshoot(["eval", "long.gguf"])).ended_with(2);
}

#[test]
fn the_loss_is_what_score_says_and_the_real_model_knows_some_things() {
    let home = Home::new();
    home.file(
        "facts.jsonl",
        "{\"prompt\": \"The capital of France is\", \"completion\": \" Paris.\"}\n",
    );
    let offshoot = |args: &[&str]| {
        let mut command = home.offshoot(args);
        home.use_users_store(&mut command);
        run(command).ended_with(0)
    };
    let measured = offshoot(&["eval", "smollm2", "--data", "facts.jsonl", "--json"]).json();
    let text = ["--given", "The capital of France is", "--prompt", " Paris.<|im_end|>"];
    let told = offshoot(&[&["score", "smollm2", "--json"][..], &text].concat()).json();
    assert_eq!(measured["tokens"], 3);
    let (loss, mean) = (measured["loss"].as_f64().unwrap(), told["mean"].as_f64().unwrap());
    assert!((loss + mean).abs() < 1e-12, "{loss} {mean}");
    home.file(
        "choices.jsonl",
        "{\"prompt\": \"The capital of France is\", \"choices\": [\"Rome.\", \"Paris.\"], \
         \"answer\": 1}\n{\"prompt\": \"Two plus two is\", \"choices\": [\"four.\", \"a fish.\"], \
         \"answer\": 0}\n",
    );
    let shown = offshoot(&["eval", "smollm2", "--data", "choices.jsonl"]).stdout;
    assert!(shown.contains("accuracy             1.0000\n"), "{shown}");
    home.file("sst.tsv", "sentence\tlabel\na wonderful film .\t1\na terrible waste of time .\t0\n");
    let sst = ["eval", "smollm2", "--data", "sst.tsv", "--task", "sst2"];
    let shown = offshoot(&sst).stdout;
    assert!(shown.contains("  (the task's)\nchoice loss"), "{shown}");
    assert!(shown.contains("  terrible                1 rows, precision"), "{shown}");
    home.file(
        "qa.jsonl",
        "{\"prompt\": \"Q: What is 1 + 1?\\nA:\", \"answers\": [\"2\", \"two\"]}\n",
    );
    let qa = ["eval", "smollm2", "--data", "qa.jsonl", "--stop", "\n", "-n", "8", "--json"];
    let written = offshoot(&qa).json();
    assert!(written["exact_match"].is_f64() && written["token_f1"].is_f64(), "{written}");
}
