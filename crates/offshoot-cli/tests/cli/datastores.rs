//! Stores of text, from building to drafting, and what is refused.

use serde_json::Value;

use crate::home::{Home, run};
use crate::models::tiny::Tiny;

/// A home with a model, a folder of text and a store of it.
fn home_with_store() -> Home {
    let home = Home::new();
    home.tiny();
    std::fs::create_dir_all(home.path().join("code/deep")).unwrap();
    home.file("code/a.py", "abcdabcd cd ab ab ab");
    home.file("code/deep/b.py", "cdcd abab");
    home.file("code/latin1.py", b"caf\xe9");
    home.file("code/c.bin", "dddddd");
    let build = ["datastore", "build", "tiny.gguf", "code", "-o", "s", "--licence", "MIT"];
    let left = run(home.offshoot(build)).ended_with(0);
    assert_eq!(left.stdout, "");
    assert!(left.stderr.contains("latin1.py: byte 3 is not UTF-8"), "{}", left.stderr);
    assert!(left.stderr.contains(" of 2 documents are in s"), "{}", left.stderr);
    home
}

fn json(home: &Home, args: &[&str]) -> Value {
    run(home.offshoot(args.iter().chain(&["--json"]))).ended_with(0).json()
}

#[test]
fn a_built_store_is_shown_verified_and_drafts_what_followed() {
    let home = home_with_store();
    let shown = json(&home, &["datastore", "inspect", "s"]);
    assert_eq!(shown["files"][0]["documents"], 2);
    assert_eq!(shown["files"][0]["token_bits"], 16);
    assert_eq!(shown["files"][0]["notes"]["sources"][0]["licence"], "MIT");
    let verified = json(&home, &["datastore", "verify", "s"]);
    assert_eq!(verified["tokens"], shown["tokens"]);
    let draft = ["datastore", "query", "tiny.gguf", "s", "--prompt", "dabcdabcd"];
    let drafted = json(&home, &draft);
    assert_eq!((&drafted["matched"], &drafted["count"]), (&2.into(), &1.into()));
    assert_eq!(drafted["nodes"][0]["text"], " ");
    let text = run(home.offshoot(draft)).ended_with(0).stdout;
    assert!(text.starts_with("matched 2 tokens, 1 times: \"abcdabcd\"\n"), "{text}");
    let few = json(&home, &[&draft[..], &["--max-nodes", "1"]].concat());
    assert_eq!(few["nodes"].as_array().unwrap().len(), 1);
    let text = run(home.offshoot(["datastore", "query", "tiny.gguf", "s", "-p", "d"]));
    assert_eq!(text.ended_with(0).stdout, "nothing matches\n");
}

#[test]
fn a_sample_tells_times_and_what_was_right() {
    let home = home_with_store();
    let sample = ["datastore", "query", "tiny.gguf", "s", "--file", "code/a.py", "--sample", "9"];
    let report = json(&home, &sample);
    assert!(report["accepted"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["p95_ms"].as_f64().unwrap() > 0.0, "{report}");
    let text = run(home.offshoot(sample)).ended_with(0).stdout;
    assert!(text.contains("time of a draft: median "), "{text}");
}

#[test]
fn a_store_grows_only_if_asked_and_shares_make_it_together() {
    let home = home_with_store();
    let again = ["datastore", "build", "tiny.gguf", "code", "-o", "s"];
    run(home.offshoot(again)).ended_with(2);
    home.file("chat.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"dcba\"}]}\n");
    let more = ["datastore", "build", "tiny.gguf", "chat.jsonl", "-o", "s", "--append"];
    run(home.offshoot(more)).ended_with(0);
    let both = json(&home, &["datastore", "inspect", "s"]);
    assert_eq!(both["files"].as_array().unwrap().len(), 2);
    for shard in ["1/2", "2/2"] {
        let part = ["datastore", "build", "tiny.gguf", "code", "-o", "t", "--append", "--shard"];
        run(home.offshoot(part.iter().chain(&[shard]))).ended_with(0);
    }
    let parts = json(&home, &["datastore", "inspect", "t"]);
    assert_eq!(parts["files"].as_array().unwrap().len(), 2, "{parts}");
}

#[test]
fn files_of_tokens_become_documents_where_the_separator_stands() {
    let home = Home::new();
    home.tiny();
    let tokens = [3u32, 4, 5, 2, 4, 5, 3, 2, 6];
    let narrow = tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect::<Vec<_>>();
    home.file("a.u16", narrow);
    home.file("a.u32", tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>());
    for name in ["a.u16", "a.u32"] {
        let store = &name[2..];
        let build = ["datastore", "build", "tiny.gguf", name, "--separator", "2", "-o", store];
        let built = json(&home, &build);
        // Each document ends with a separator of the store's own.
        assert_eq!((&built["documents"], &built["tokens"]), (&3.into(), &10.into()), "{built}");
    }
    home.file("odd.u32", [1; 6]);
    run(home.offshoot(["datastore", "build", "tiny.gguf", "odd.u32", "-o", "odd"]))
        .ended_with(3)
        .complained(&["odd.u32", "no multiple of 4"]);
}

#[test]
fn texts_of_a_benchmark_stay_out() {
    let home = Home::new();
    home.tiny();
    home.file("a.txt", "a".repeat(40));
    home.file("b.txt", "b".repeat(40));
    home.file("held.jsonl", format!("{{\"prompt\":\"{}\"}}", "a".repeat(20)));
    let build = ["datastore", "build", "tiny.gguf", "a.txt", "b.txt", "-o", "s"];
    let built = json(&home, &[&build[..], &["--exclude", "held.jsonl"]].concat());
    assert_eq!((&built["excluded"], &built["documents"]), (&1.into(), &1.into()));
}

#[test]
fn a_reference_datastore_is_imported() {
    let home = Home::new();
    home.tiny();
    let tokens = [3u16, 4, 5, 3, 4];
    let mut bytes = 10u32.to_le_bytes().to_vec();
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes.extend(20u32.to_le_bytes());
    bytes.extend([3u32, 0, 4, 1, 2].iter().flat_map(|at| at.to_le_bytes()));
    home.file("old.idx", &bytes);
    let import = ["datastore", "import", "tiny.gguf", "old.idx", "-o", "s", "--token-bits"];
    assert_eq!(json(&home, &[&import[..], &["16"]].concat())["tokens"], 6);
    run(home.offshoot(import.iter().chain(&["32", "--append"])))
        .ended_with(3)
        .complained(&["old.idx", "width"]);
    run(home.offshoot(["datastore", "verify", "s"])).ended_with(0);
}

#[test]
fn stores_that_cannot_be_used_are_refused_in_one_line() {
    let home = home_with_store();
    let query = |model: &str| ["datastore", "query", model, "s", "-p", "ab"].map(str::to_owned);
    let mut other = Tiny::llama();
    other.set("tokenizer.ggml.eos_token_id", 1u32);
    home.file("other.gguf", other.bytes());
    run(home.offshoot(query("other.gguf"))).ended_with(4).complained(&["its tokenizer is"]);
    let absent = ["datastore", "inspect", "absent.store"];
    run(home.offshoot(absent)).ended_with(1).complained(&["absent.store"]);
    run(home.offshoot(["datastore", "inspect", "code"])).ended_with(1).complained(&["no .store"]);
    let empty = ["datastore", "build", "tiny.gguf", "code/deep", "--extension", "rs", "-o", "e"];
    run(home.offshoot(empty)).ended_with(3).complained(&["--extension"]);
    let shown = json(&home, &["datastore", "inspect", "s"]);
    let path = home.path().join(shown["files"][0]["path"].as_str().unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    run(home.offshoot(["datastore", "verify", "s"])).ended_with(4).complained(&["suffixes"]);
    std::fs::write(&path, &bytes[..5000]).unwrap();
    run(home.offshoot(query("tiny.gguf"))).ended_with(4).complained(&["its header says"]);
}
