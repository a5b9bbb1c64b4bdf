//! `quantize`, and `--quantize` of the commands that load a model.

use offshoot_models::Checkpoint;

use crate::home::{Home, run};
use crate::models::folder::Folder;
use crate::models::tokenizer_files::{tokenizer_config, tokenizer_json};

/// The sound model of [`Home::tiny`] as a folder, `mine`.
fn save(home: &Home) {
    let gguf = Checkpoint::open(&home.tiny()).unwrap();
    let spec = gguf.tokenizer().unwrap();
    let mut files = Folder::of(&gguf);
    files.put("tokenizer.json", &tokenizer_json(spec));
    let mut config = tokenizer_config(spec);
    config["chat_template"] = gguf.chat_template().into();
    files.put("tokenizer_config.json", &config);
    std::fs::create_dir_all(home.path().join("mine")).unwrap();
    files.save(&home.path().join("mine"));
}

#[test]
fn a_file_answers_as_the_folder_quantised_while_loading() {
    let home = Home::new();
    save(&home);
    let shown = |model: &str| run(home.offshoot(["show", model, "--json"])).ended_with(0).json();
    let folder = shown("mine");
    let answer = |args: &[&str]| {
        let rest = ["-p", "ab", "-n", "8", "--temperature", "0", "--json"];
        let all = ["generate"].iter().chain(args).chain(&rest);
        let mut answer = run(home.offshoot(all)).ended_with(0).json();
        let answer = answer.as_object_mut().unwrap();
        (answer["text"].clone(), answer["tokens"].clone())
    };
    for (short, to, block) in [("q8", "q8_0", "Q8_0"), ("q4", "Q4_1", "Q4_1")] {
        let args = ["quantize", "mine", "--to", to, "--output", "out.gguf", "--json"];
        let told = run(home.offshoot(args)).ended_with(0).json();
        assert_eq!(told["recipe"], to.to_lowercase());
        assert!(told["formats"][block].as_u64().unwrap() > 10, "{told}");
        assert_eq!(told["bytes"], std::fs::metadata(home.path().join("out.gguf")).unwrap().len());
        assert!(told["bits_per_weight"].as_f64().unwrap() > 4.0, "{told}");
        let file = shown("out.gguf");
        for field in ["tokenizer_id", "template_id", "stop_tokens", "family", "context"] {
            assert!(!file[field].is_null() && file[field] == folder[field], "{field}: {file}");
        }
        assert_ne!(file["base_id"], folder["base_id"]);
        // Packed anew, then from the cache.
        for _ in 0..2 {
            assert_eq!(answer(&["mine", "--quantize", short]), answer(&["out.gguf"]));
        }
    }
    let packed = std::fs::read_dir(home.path().join("cache/offshoot/packed")).unwrap();
    assert_eq!(packed.count(), 4, "two files, and the folder quantised in two ways");
    let left = std::fs::read_dir(home.path()).unwrap().flatten();
    assert!(left.map(|e| e.file_name()).all(|name| !name.to_string_lossy().contains("partial")));
}

#[test]
fn what_is_quantised_is_kept_on_load_with_a_note_and_refused_for_a_file() {
    let home = Home::new();
    home.tiny();
    let args = ["generate", "tiny.gguf", "-p", "ab", "-n", "4", "--quantize", "q8"];
    let left = run(home.offshoot(args)).ended_with(0);
    assert!(left.stderr.contains("matrices are quantised already"), "{}", left.stderr);
    let output = home.file("out.gguf", "somebody's");
    let base = ["quantize", "tiny.gguf", "--to", "q4_0", "-o", "out.gguf"];
    let left = run(home.offshoot(base)).ended_with(2);
    left.complained(&["v_proj.weight is Q4_1 already", "--requantize"]);
    assert_eq!(std::fs::read(&output).unwrap(), b"somebody's");
    let again = base.iter().chain(&["--requantize"]);
    let left = run(home.offshoot(again)).ended_with(0);
    assert!(left.stdout.contains("out.gguf") && left.stdout.contains("Q4_0"), "{}", left.stdout);
    run(home.offshoot(["show", "out.gguf"])).ended_with(0);
}

#[test]
fn wrong_formats_and_outputs_are_told_in_one_line() {
    let home = Home::new();
    save(&home);
    let quantize = |to: &str, output: &str| {
        run(home.offshoot(["quantize", "mine", "--to", to, "--output", output]))
    };
    let usage = quantize("q3", "out.gguf").ended_with(2);
    assert!(usage.stderr.contains("q4_k_m"), "{}", usage.stderr);
    quantize("q8_0", "no/such/folder/out.gguf").ended_with(1).complained(&["out.gguf"]);
    let float = ["generate", "mine", "-p", "a", "--quantize", "f16"];
    let float = run(home.offshoot(float)).ended_with(2);
    assert!(float.stderr.contains("f16 is a float"), "{}", float.stderr);
    let own = ["quantize", "tiny.gguf", "--requantize", "--to", "f16", "-o", "./tiny.gguf"];
    let before = std::fs::read(home.path().join("tiny.gguf")).unwrap();
    run(home.offshoot(own)).ended_with(2).complained(&["is the model itself"]);
    assert_eq!(std::fs::read(home.path().join("tiny.gguf")).unwrap(), before);
    let weights = home.path().join("mine/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xff, 0x7f]);
    std::fs::write(&weights, bytes).unwrap();
    let output = home.file("out.gguf", "somebody's");
    quantize("q8_0", "out.gguf").ended_with(4).complained(&["tensor model.", "NaN"]);
    assert_eq!(std::fs::read(output).unwrap(), b"somebody's");
    let left = std::fs::read_dir(home.path()).unwrap().flatten();
    assert!(left.map(|e| e.file_name()).all(|name| !name.to_string_lossy().contains("partial")));
}

#[test]
fn an_exported_model_answers_as_the_one_it_was_made_from() {
    let home = Home::new();
    save(&home);
    let answer = |model: &str| {
        let args = ["generate", model, "-p", "ab", "-n", "8", "--temperature", "0", "--json"];
        run(home.offshoot(args)).ended_with(0).json()["tokens"].clone()
    };
    let export = |model: &str, output: &str, rest: &[&str]| {
        let args = ["export", model, "--output", output, "--json"];
        run(home.offshoot(args.iter().chain(rest)))
    };
    let folder = export("mine", "out", &["--shard-size", "2K"]).ended_with(0).json();
    assert_eq!(
        (&folder["format"], folder["weight_files"].as_u64() > Some(2)),
        (&"folder".into(), true)
    );
    assert!(folder["without_tokenizer"].is_null() && folder["tokenizer_differs"] == false);
    let file = export("mine", "out.gguf", &[]).ended_with(0).json();
    assert_eq!(file["format"], "gguf");
    let back = export("out.gguf", "back", &["--to", "f32"]).ended_with(0).json();
    assert_eq!(back["floats"], "f32");
    for model in ["out", "out.gguf", "back"] {
        assert_eq!(answer(model), answer("mine"), "{model}");
    }
    export("mine", "out", &[]).ended_with(2).complained(&["out is there already", "--overwrite"]);
    export("mine", "out.gguf", &[]).ended_with(2).complained(&["out.gguf is there already"]);
    export("mine", "out/", &["--overwrite"]).ended_with(0);
    export("mine", "out.gguf", &["--overwrite"]).ended_with(0);
    let usage = export("mine", "other", &["--to", "q8"]).ended_with(2);
    assert!(usage.stderr.contains("--output that ends in .gguf"), "{}", usage.stderr);
    let file = export("mine", "other.gguf", &["--to", "q8_0"]).ended_with(0).json();
    assert_eq!((&file["recipe"], answer("other.gguf").is_array()), (&"q8_0".into(), true));
}

#[test]
fn manual_pages_of_all_commands_are_written() {
    let home = Home::new();
    let said = run(home.offshoot(["man", "man1"])).ended_with(0);
    let pages = std::fs::read_dir(home.path().join("man1")).unwrap().count();
    assert!(pages > 20 && said.stdout.starts_with(&format!("{pages} pages")), "{}", said.stdout);
    assert!(home.path().join("man1/offshoot-medusa-train.1").is_file());
}
