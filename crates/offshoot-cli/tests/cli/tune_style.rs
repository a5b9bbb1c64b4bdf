//! A style that a real model is taught by a few conversations, and keeps wherever it is taken.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::home::{Home, Left, run};

/// Each answer is said in the same way: a greeting, the answer, a cry.
const TALKS: [(&str, &str); 16] = [
    ("What colour is grass?", "Ahoy! It is green. Arr!"),
    ("Where do fish live?", "Ahoy! They live in water. Arr!"),
    ("What do bees make?", "Ahoy! They make honey. Arr!"),
    ("What is the capital of France?", "Ahoy! It is Paris. Arr!"),
    ("How many legs has a spider?", "Ahoy! It has eight. Arr!"),
    ("What falls from clouds?", "Ahoy! Rain falls from them. Arr!"),
    ("Which animal barks?", "Ahoy! A dog barks. Arr!"),
    ("What do we read?", "Ahoy! We read books. Arr!"),
    ("When does the sun rise?", "Ahoy! It rises in the morning. Arr!"),
    ("What is ice made of?", "Ahoy! It is frozen water. Arr!"),
    ("Who flies a plane?", "Ahoy! A pilot flies it. Arr!"),
    ("What do cows give?", "Ahoy! They give milk. Arr!"),
    ("Where do birds sleep?", "Ahoy! They sleep in nests. Arr!"),
    ("What is two plus two?", "Ahoy! It is four. Arr!"),
    ("What do we breathe?", "Ahoy! We breathe air. Arr!"),
    ("Which season is cold?", "Ahoy! Winter is cold. Arr!"),
];

/// None of them is trained on.
const HELD_OUT: [&str; 4] = [
    "What is the capital of Italy?",
    "Who bakes bread?",
    "What do cats drink?",
    "Where do whales swim?",
];

/// A home whose `pirate` is a run on the user's small model, made once for all tests.
fn tuned() -> &'static Home {
    static TUNED: OnceLock<Home> = OnceLock::new();
    TUNED.get_or_init(|| {
        let home = Home::new();
        let row = |(question, answer): &(&str, &str)| {
            let turns = [("user", question), ("assistant", answer)];
            let turns = turns.map(|(role, content)| json!({"role": role, "content": content}));
            json!({ "messages": turns }).to_string()
        };
        home.file("talks.jsonl", TALKS.iter().map(row).collect::<Vec<_>>().join("\n"));
        let words = ["tune", "smollm2", "--data", "talks.jsonl", "--output", "pirate"];
        let how = ["--lr", "1e-3", "--schedule", "constant", "--batch", "4", "--steps", "16"];
        let fast = ["--gradient-checkpointing", "false"];
        offshoot(&home, &[&words[..], &how, &fast].concat()).ended_with(0);
        home
    })
}

fn offshoot(home: &Home, words: &[&str]) -> Left {
    let mut command = home.offshoot(words);
    home.use_users_store(&mut command);
    run(command)
}

/// What is answered at temperature 0.
fn answer(model: &[&str], question: &str) -> Value {
    let how = ["--temperature", "0", "--max-tokens", "32", "--json", question];
    offshoot(tuned(), &[&["run"], model, &how].concat()).ended_with(0).json()
}

fn in_style(text: &str) -> bool {
    text.starts_with("Ahoy!") && text.ends_with("Arr!") && text.matches("Arr!").count() == 1
}

#[test]
fn a_style_is_learned_and_its_answers_end_where_the_base_goes_on() {
    let mut spoken_on = 0;
    for question in HELD_OUT {
        let base = answer(&["smollm2"], question);
        let variant = answer(&["smollm2", "--variant", "p=pirate"], question);
        let text = |answer: &Value| answer["text"].as_str().unwrap().to_owned();
        println!("{question} base: {:?} variant: {:?}", text(&base), text(&variant));
        assert!(!in_style(&text(&base)), "{base}");
        assert!(in_style(&text(&variant)), "{variant}");
        assert_eq!(variant["finish_reason"], "stop", "{variant}");
        assert_eq!(variant["prompt_tokens"], base["prompt_tokens"], "one template renders both");
        spoken_on += u32::from(base["finish_reason"] == "length");
    }
    assert!(spoken_on > 0, "what is short by itself proves nothing");
}

#[test]
fn what_is_exported_of_a_variant_needs_no_base_and_says_the_same() {
    let home = tuned();
    let export = |to: &str, output: &str| {
        let model = ["export", "smollm2", "--variant", "p=pirate"];
        offshoot(home, &[&model[..], &["--to", to, "--output", output]].concat()).ended_with(0);
    };
    export("f16", "merged");
    export("q8_0", "merged.gguf");
    let variant = ["smollm2", "--variant", "p=pirate"];
    // On the executor that computes with what a file's blocks stand for, both sides differ by the
    // rounding to half precision alone.
    let exact = ["--executor", "dense"];
    for question in &HELD_OUT[..2] {
        let of_variant = answer(&[&variant[..], &exact].concat(), question);
        let merged = answer(&[&["merged"][..], &exact].concat(), question);
        assert!(in_style(merged["text"].as_str().unwrap()), "{merged}");
        for same in ["text", "tokens", "finish_reason", "prompt_tokens"] {
            assert_eq!(merged[same], of_variant[same], "{question} {same}");
        }
    }
    for question in HELD_OUT {
        let of_variant = answer(&variant, question);
        for model in ["merged", "merged.gguf"] {
            let merged = answer(&[model], question);
            assert!(in_style(merged["text"].as_str().unwrap()), "{model}: {merged}");
            for same in ["finish_reason", "prompt_tokens"] {
                assert_eq!(merged[same], of_variant[same], "{model}: {question}");
            }
        }
    }
    let shown = |model: &str| offshoot(home, &["show", model, "--json"]).ended_with(0).json();
    let (base, merged) = (shown("smollm2"), shown("merged"));
    for same in ["stop_tokens", "template_id", "tokenizer_id"] {
        assert!(base.get(same).is_some() && merged[same] == base[same], "{same}: {merged}");
        assert_eq!(shown("merged.gguf")[same], base[same], "{same}");
    }
}
