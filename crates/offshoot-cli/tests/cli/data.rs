//! Training data as the command line checks and shows it.

use serde_json::json;

use crate::home::{Home, Left, run};
use crate::models::tiny::Tiny;

/// A chat, a pair with a fault between, and a text that the model's chat template takes.
fn rows(home: &Home) {
    home.file(
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \
         \"content\": \"Hello there.\"}], \"id\": 1}\n\
         {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n\
         {\"messages\": [{\"role\": \"robot\", \"content\": \"Hi\"}]}\n",
    );
    home.file("pairs.csv", "question,reply\nWhat?,That.\nWho?,Me.\n");
}

fn offshoot(home: &Home, args: &[&str]) -> Left {
    let mut command = home.offshoot(args);
    home.use_users_store(&mut command);
    run(command)
}

#[test]
fn a_check_tells_what_a_file_is_and_every_fault() {
    let home = Home::new();
    rows(&home);
    let check = ["data", "check", "chat.jsonl", "--model", "smollm2"];
    let left = offshoot(&home, &check).ended_with(3);
    assert!(
        left.stdout.starts_with(
            "chat.jsonl:2:messages: no trainable token: there is no turn of the assistant\n\
         chat.jsonl:3:messages[0].role: the role \"robot\": expected system, user or assistant\n\
         rows                   3\nexamples               1\n"
        ),
        "{}",
        left.stdout
    );
    assert!(
        left.stderr.contains("chat.jsonl: JSON lines, messages; not used: id"),
        "{}",
        left.stderr
    );
    assert!(left.stderr.ends_with("error: 2 rows are wrong\n"), "{}", left.stderr);
    let json = offshoot(&home, &[&check[..], &["--json"]].concat()).ended_with(3).json();
    assert_eq!(json["report"]["faults"], 2);
    assert_eq!(json["faults"][0]["place"], "chat.jsonl:2");
    assert_eq!(json["faults"][1]["field"], "messages[0].role");
}

#[test]
fn rows_over_the_length_are_told_by_their_lines() {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file(
        "texts.jsonl",
        "{\"text\": \"ab\"}\n{\"text\": \"abababababab\"}\n\n{\"text\": \"babababababa\"}\n",
    );
    let with = |max: &str, more: &[&str]| {
        let check = ["data", "check", "texts.jsonl", "--model", "long.gguf", "--max-length", max];
        run(home.offshoot(check.iter().chain(more))).ended_with(0)
    };
    for (overlong, what, count) in [
        ("cut", "cut", "cut to the length      2\n"),
        ("drop", "left out", "left out for length    2\n"),
    ] {
        let text = with("6", &["--overlong", overlong]).stdout;
        let told = format!(
            "texts.jsonl:2: more than 6 tokens: {what}\n\
             texts.jsonl:4: more than 6 tokens: {what}\nrows "
        );
        assert!(text.starts_with(&told) && text.contains(count), "{text}");
        let json = with("6", &["--overlong", overlong, "--json"]).json();
        let row = |number: u64| {
            json!({
                "place": format!("texts.jsonl:{number}"), "file": "texts.jsonl", "number": number,
                "dropped": overlong == "drop",
            })
        };
        assert_eq!((&json["overlong"], &json["faults"]), (&json!([row(2), row(4)]), &json!([])));
    }
    let text = with("64", &[]).stdout;
    assert!(text.starts_with("rows "), "{text}");
}

#[test]
fn fields_of_other_names_are_mapped_and_of_no_format_are_told() {
    let home = Home::new();
    rows(&home);
    let check = ["data", "check", "pairs.csv", "--model", "smollm2"];
    let told = offshoot(&home, &check).ended_with(3).complained(&["--map NAME=FIELD"]);
    assert!(told.stderr.contains("the fields \"question, reply\" are of no format"));
    let mapped = [&check[..], &["--map", "prompt=question,completion=reply", "--json"]].concat();
    let report = offshoot(&home, &mapped).ended_with(0).json()["report"].clone();
    assert_eq!(
        report["files"][0],
        json!({
            "path": "pairs.csv", "container": "CSV", "format": "completion", "unused": [], "rows": 2,
        })
    );
    // What + ? + That + . + end, and two tokens of Who and Me.
    assert_eq!((&report["examples"], &report["targets"]), (&json!(2), &json!(6)));
    let forced = [&check[..], &["--format", "text"]].concat();
    let left = offshoot(&home, &forced).ended_with(3);
    assert!(left.stdout.starts_with("pairs.csv:2:text: the field is missing"), "{}", left.stdout);
    for (args, part) in [
        (&["--task", "sst9"][..], "is not built in; there are sst2"),
        (&["--format", "chat"], "is no format: expected one of preference, messages"),
        (&["--map", "a"], "expected NAME=FIELD"),
    ] {
        let left = offshoot(&home, &[&check[..], args].concat()).ended_with(2);
        assert!(left.stderr.contains(part), "{}", left.stderr);
    }
    offshoot(&home, &["data", "check", "absent.jsonl", "--model", "smollm2"]).ended_with(1);
}

#[test]
fn a_row_is_shown_as_the_model_gets_it_with_what_is_trained_on() {
    let home = Home::new();
    rows(&home);
    let show = ["data", "show", "chat.jsonl", "--model", "smollm2"];
    let left = offshoot(&home, &show).ended_with(0);
    assert_eq!(
        left.stdout,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\
         \u{27e6}Hello there.<|im_end|>\u{27e7}\n"
    );
    let tokens = offshoot(&home, &[&show[..], &["--tokens"]].concat()).ended_with(0).stdout;
    assert!(tokens.ends_with("      2 trained  \"<|im_end|>\" (control)\n"), "{tokens}");
    let json = offshoot(&home, &[&show[..], &["--json"]].concat()).ended_with(0).json();
    let shown = json["examples"][0]["sequences"][0]["tokens"].as_array().unwrap();
    let trained: Vec<&str> = shown
        .iter()
        .filter(|token| token["trained"] == true)
        .map(|token| token["text"].as_str().unwrap())
        .collect();
    assert_eq!(trained, ["Hello", " there", ".", "<|im_end|>"]);
    // Its prompt is what `run` reads.
    let wrong = offshoot(&home, &[&show[..], &["--row", "3"]].concat()).ended_with(3);
    wrong.complained(&["chat.jsonl:3:messages[0].role:"]);
    let beyond = offshoot(&home, &[&show[..], &["--row", "9"]].concat()).ended_with(3);
    beyond.complained(&["there is no row 9"]);
}

#[test]
fn a_task_of_ones_own_shows_its_candidates() {
    let home = Home::new();
    home.file("sms.tsv", "text\tkind\nWin now!\tspam\nSee you.\tham\n");
    home.file(
        "spam.toml",
        "name = \"spam\"\ntemplate = \"{text}\\nSpam?\"\nlabel = \"kind\"\nverbalizers = [\n  \
         { labels = [\"ham\"], text = \"no\" },\n  { labels = [\"spam\"], text = \"yes\" },\n]\n",
    );
    let task = ["--model", "smollm2", "--task", "spam.toml"];
    let show = offshoot(&home, &[&["data", "show", "sms.tsv"][..], &task].concat()).ended_with(0);
    assert_eq!(
        show.stdout,
        "--- prompt\nWin now!\nSpam?\n--- candidate 0\n\u{27e6} no\u{27e7}\n\
         --- candidate 1, right\n\u{27e6} yes\u{27e7}\n"
    );
    let check = offshoot(&home, &[&["data", "check", "sms.tsv"][..], &task].concat()).ended_with(0);
    assert!(check.stderr.contains("sms.tsv: TSV, task spam"), "{}", check.stderr);
    assert!(check.stdout.contains("rows of each answer    1, 1\n"), "{}", check.stdout);
}

#[test]
fn a_file_is_split_by_classes_and_seed() {
    let home = Home::new();
    let rows: Vec<String> = (0..30).map(|i| format!("text {i},{}", i % 3)).collect();
    home.file("x.csv", format!("text,label\n{}\n", rows.join("\n")));
    let split = |seed: &str| {
        let fixed = ["data", "split", "x.csv", "--by", "label", "--held-out", "2", "--shots", "5"];
        let more = ["--train", "a.jsonl", "--test", "b.jsonl", "--json", "--seed", seed];
        let told = run(home.offshoot(fixed.iter().chain(&more))).ended_with(0).json();
        assert_eq!((&told["train"], &told["held_out"]), (&json!(15), &json!(6)));
        std::fs::read_to_string(home.path().join("b.jsonl")).unwrap()
    };
    let first = split("1");
    assert_eq!(first.lines().count(), 6);
    assert_eq!((split("1") == first, split("2") == first), (true, false));
    let fixed = ["data", "split", "x.csv", "--by", "label", "--held-out", "10"];
    let left =
        run(home.offshoot(fixed.iter().chain(&["--train", "c", "--test", "d"]))).ended_with(3);
    left.complained(&["x.csv: class 0 has 10 examples, and the split takes 11 of each"]);
}

#[test]
fn whoever_renders_by_an_assumed_template_says_so() {
    let home = Home::new();
    let mut bare = Tiny::smallest("llama");
    bare.keys.remove("tokenizer.chat_template").unwrap();
    bare.set("llama.context_length", 64u32);
    home.file("bare.gguf", bare.bytes());
    home.file("texts.jsonl", "{\"text\": \"abab\"}\n{\"text\": \"abba\"}\n");
    for words in [
        &["data", "check", "texts.jsonl", "--model", "bare.gguf"][..],
        &["data", "show", "texts.jsonl", "--model", "bare.gguf"],
        &["eval", "bare.gguf", "--data", "texts.jsonl", "--no-cache"],
        &[
            "tune",
            "bare.gguf",
            "--data",
            "texts.jsonl",
            "--steps",
            "1",
            "--batch",
            "1",
            "--no-cache",
        ],
    ] {
        let left = run(home.offshoot(words)).ended_with(0);
        assert_eq!(
            left.stderr.matches("ChatML is assumed").count(),
            1,
            "{words:?}: {}",
            left.stderr
        );
    }
}
