//! Draft heads from training to tree, with a model of a few kilobytes.

use offshoot_models::medusa::HeadsFile;

use crate::home::{Home, run};
use crate::models::tiny::{HIDDEN, Tiny};

#[test]
fn heads_are_trained_inspected_and_give_a_tree() {
    let home = Home::new();
    home.tiny_with_context(64);
    home.file("prompts.txt", "ab\ncd\nabcd\nba\ndcba\n");
    let train = |output: &str| {
        let args = ["medusa", "train", "long.gguf", "--prompts", "prompts.txt", "--json"];
        let sizes = ["--tokens", "600", "--answer-tokens", "20", "--vocabulary", "8"];
        let store = format!("{output}.answers");
        let more = ["--own-prompts", "50", "--store", &store];
        let short = ["--epochs", "2", "--batch", "64", "--log", "log.jsonl", "--output", output];
        run(home.offshoot([&args[..], &sizes, &more, &short].concat())).ended_with(0).json()
    };
    let told = train("heads.safetensors");
    assert!(told["tokens"].as_u64().unwrap() >= 600, "{told}");
    assert_eq!(told["report"]["accuracy"].as_array().unwrap().len(), 3);
    let log = std::fs::read_to_string(home.path().join("log.jsonl")).unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    let inspected = run(home.offshoot(["medusa", "inspect", "heads.safetensors", "--json"]));
    let inspected = inspected.ended_with(0).json();
    assert_eq!((&inspected["heads"], &inspected["vocabulary"]), (&3.into(), &8.into()));
    assert_eq!(inspected["base"], told["base"]);
    // The same seed gives the same heads and answers, and nothing is left beside them.
    train("again.safetensors");
    let stores = ["heads.safetensors.answers", "again.safetensors.answers"].map(|folder| {
        run(home.offshoot(["datastore", "verify", folder])).ended_with(0);
        let names = std::fs::read_dir(home.path().join(folder)).unwrap().flatten();
        names.map(|entry| entry.file_name()).collect::<Vec<_>>()
    });
    assert_eq!(stores[0].len(), 1);
    assert_eq!(stores[0], stores[1]);
    let bytes = |name: &str| std::fs::read(home.path().join(name)).unwrap();
    assert!(bytes("heads.safetensors") == bytes("again.safetensors"));
    let left = std::fs::read_dir(home.path()).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("work")));
    let tree = run(home.offshoot(["medusa", "tree", "heads.safetensors", "--nodes", "3"]));
    let tree = tree.ended_with(0);
    home.file("tree.json", &tree.stdout);
    let check = ["medusa", "tree", "heads.safetensors", "--check"];
    run(home.offshoot(check.iter().chain(&["tree.json"]))).ended_with(0);
    home.file("wrong.json", "[[0, 0, 0, 0]]");
    let wrong = run(home.offshoot(check.iter().chain(&["wrong.json"]))).ended_with(2);
    wrong.complained(&["1 to 3 ranks"]);
    belong_to_their_model(&home);
}

/// `heads.safetensors` is of `long.gguf`: a model of the same shape and other weights refuses it, and takes
/// heads that do not say whose they are, unless their import was told.
fn belong_to_their_model(home: &Home) {
    let mut other = Tiny::llama();
    other.floats("blk.0.attn_norm.weight", &[HIDDEN], &[0.75; HIDDEN]);
    home.file("other.gguf", other.bytes());
    let answer = |model: &str, heads: &str| {
        let args = ["run", model, "abab", "-n", "8", "--ignore-eos", "--spec", "medusa"];
        run(home.offshoot(args.iter().chain(&["--medusa", heads])))
    };
    answer("long.gguf", "heads.safetensors").ended_with(0);
    answer("other.gguf", "heads.safetensors").ended_with(4).complained(&["belong to the model"]);
    let mut nobodys = HeadsFile::open(&home.path().join("heads.safetensors")).unwrap();
    nobodys.card = None;
    nobodys.save(&home.path().join("nobodys.safetensors")).unwrap();
    answer("other.gguf", "nobodys.safetensors").ended_with(0);
    let import = |from: &str, model: &str| {
        let args = ["medusa", "import", from, "--model", model, "-o", "told.safetensors"];
        run(home.offshoot(args))
    };
    import("nobodys.safetensors", "long.gguf").ended_with(0);
    answer("long.gguf", "told.safetensors").ended_with(0);
    answer("other.gguf", "told.safetensors").ended_with(4).complained(&["belong to the model"]);
    import("told.safetensors", "other.gguf").ended_with(4).complained(&["belong to the model"]);
}

#[test]
fn torch_heads_are_imported_and_programs_refused() {
    let home = Home::new();
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../offshoot-models/tests/data/medusa");
    for name in ["heads.pt", "command.pt"] {
        home.file(name, std::fs::read(data.join(name)).unwrap());
    }
    let import = |name| run(home.offshoot(["medusa", "import", name, "-o", "out.safetensors"]));
    import("command.pt").ended_with(4).complained(&["system", "nothing was run"]);
    assert!(!home.path().join("out.safetensors").exists());
    import("heads.pt").ended_with(0);
    home.tiny();
    let args = ["medusa", "import", "heads.pt", "--model", "tiny.gguf", "-o", "other.safetensors"];
    run(home.offshoot(args)).ended_with(4).complained(&["the width is 4 in the heads"]);
    assert!(!home.path().join("other.safetensors").exists());
    let inspect = |name| run(home.offshoot(["medusa", "inspect", name]));
    let told = inspect("out.safetensors").ended_with(0);
    assert!(told.stdout.contains("output matrices of their own"), "{}", told.stdout);
    inspect("heads.pt").ended_with(4).complained(&["offshoot medusa import"]);
    home.file("cut.safetensors", b"\x10\0\0\0\0\0\0\0{");
    inspect("cut.safetensors").ended_with(4).complained(&["cut.safetensors"]);
}
