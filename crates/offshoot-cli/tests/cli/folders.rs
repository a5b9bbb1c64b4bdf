//! Models in Hugging Face folders, named by a path or found in the hub's cache.

use offshoot_kernels::BlockType;
use offshoot_models::Checkpoint;

use crate::home::{Home, Left, run};
use crate::models::folder::Folder;
use crate::models::hostile_folders::{self, smallest};
use crate::models::tiny::Tiny;
use crate::models::tokenizer_files::{tokenizer_config, tokenizer_json};

/// The sound model of [`Home::tiny`] as a folder in several files.
fn save(home: &Home, folder: &str) {
    let gguf = Checkpoint::open(&home.tiny()).unwrap();
    let spec = gguf.tokenizer().unwrap();
    let mut files = Folder::of(&gguf);
    files.put("tokenizer.json", &tokenizer_json(spec));
    let mut config = tokenizer_config(spec);
    config["chat_template"] = gguf.chat_template().into();
    files.put("tokenizer_config.json", &config);
    let folder = home.path().join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    files.save_shards(&folder, 2);
}

#[test]
fn a_folder_is_the_same_model_as_the_gguf_file_of_its_weights() {
    let home = Home::new();
    save(&home, "mine");
    let show = |model: &str| run(home.offshoot(["show", model, "--json"])).ended_with(0).json();
    let (file, folder) = (show("tiny.gguf"), show("mine"));
    for field in ["base_id", "tokenizer_id", "template_id", "stop_tokens", "family", "context"] {
        assert!(!file[field].is_null() && file[field] == folder[field], "{field}: {folder}");
    }
    assert_eq!((&folder["name"], &folder["path"]), (&"mine".into(), &"mine".into()));
    for name in ["./mine", "mine/", "mine/../mine"] {
        assert_eq!(show(name)["name"], "mine");
    }
}

#[test]
fn a_folder_answers_packed_anew_and_from_the_cache() {
    let home = Home::new();
    save(&home, "mine");
    let answer = |model: &str| -> Left {
        let args = ["generate", model, "-p", "ab", "-n", "8", "--temperature", "0", "--json"];
        run(home.offshoot(args)).ended_with(0)
    };
    let (first, second) = (answer("mine").json(), answer("mine").json());
    assert!(first["text"].as_str().is_some_and(|text| !text.is_empty()), "{first}");
    assert_eq!(first["text"], second["text"]);
    run(home.offshoot(["run", "mine", "ab", "-n", "3"])).ended_with(0);
    run(home.offshoot(["doctor", "mine"])).ended_with(0);
    let packed = std::fs::read_dir(home.path().join("cache/offshoot/packed")).unwrap();
    assert_eq!(packed.count(), 1, "one file of packed weights for all of these");
}

#[test]
fn packed_weights_are_kept_within_a_limit_and_doctor_says_how_many_they_are() {
    let home = Home::new();
    home.tiny();
    home.tiny_with_context(128);
    let offshoot = |args: &[&str], limit: &str| {
        let mut command = home.offshoot(args);
        command.env("OFFSHOOT_CACHE_LIMIT", limit);
        run(command)
    };
    let answer = |model: &str, limit: &str| offshoot(&["run", model, "ab", "-n", "1"], limit);
    let kept = || std::fs::read_dir(home.path().join("cache/offshoot/packed")).unwrap().count();
    let doctor = || offshoot(&["doctor", "--json"], "1M").ended_with(0).json()["cache"].clone();
    for model in ["tiny.gguf", "long.gguf"] {
        answer(model, "1M").ended_with(0);
    }
    assert_eq!(kept(), 2);
    let both = doctor();
    assert_eq!(
        (&both["packed_limit_bytes"], &both["examples_bytes"]),
        (&(1 << 20).into(), &0.into())
    );
    // Read from there, and the only one that is in use.
    answer("tiny.gguf", "0").ended_with(0);
    assert_eq!(kept(), 1);
    let bytes = |cache: &serde_json::Value| cache["packed_bytes"].as_u64().unwrap();
    let one = doctor();
    assert!(0 < bytes(&one) && bytes(&one) < bytes(&both), "{one} of {both}");
    let text = run(home.offshoot(["doctor"])).ended_with(0).stdout;
    assert!(text.contains(" of packed weights, of ") && text.contains(" at most"), "{text}");
    answer("tiny.gguf", "much").ended_with(2).complained(&["OFFSHOOT_CACHE_LIMIT=much", "512M"]);
}

#[test]
fn a_repository_that_the_hub_cache_has_whole_is_found_without_a_network() {
    let home = Home::new();
    let repo = "cache/hub/models--org--repo";
    save(&home, &format!("{repo}/snapshots/c0ffee"));
    std::fs::create_dir_all(home.path().join(repo).join("refs")).unwrap();
    std::fs::write(home.path().join(repo).join("refs/main"), "c0ffee").unwrap();
    let mut command = home.offshoot(["show", "hf:org/repo", "--offline", "--json"]);
    command.env("HF_HUB_CACHE", home.path().join("cache/hub"));
    let shown = run(command).ended_with(0).json();
    assert_eq!(shown["name"], "hf:org/repo");
}

#[test]
fn what_is_wrong_with_a_folder_is_one_line() {
    let home = Home::new();
    save(&home, "mine");
    let config = home.path().join("mine/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("LlamaForCausalLM", "GemmaForCausalLM")).unwrap();
    let left = run(home.offshoot(["run", "mine", "ab"]));
    left.complained(&["mine/config.json: architectures: \"GemmaForCausalLM\" is not supported"]);
    std::fs::remove_file(&config).unwrap();
    run(home.offshoot(["run", "./mine", "ab"])).complained(&["neither a file nor a folder with"]);
}

#[test]
fn weights_that_are_no_numbers_end_every_command_that_uses_them() {
    let home = Home::new();
    save(&home, "sound");
    home.file("text.txt", "abcd dcba ".repeat(9));
    home.file("rows.jsonl", "{\"prompt\":\"ab\",\"completion\":\"cd\"}\n".repeat(3));
    for (tensor, name) in [
        ("model.norm", "output_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.layers.0.mlp.up_proj", "blk.0.ffn_up"),
    ] {
        let gguf = Checkpoint::open(&home.tiny()).unwrap();
        let mut folder = Folder::of(&gguf);
        let stored = folder.tensors.get_mut(&format!("{tensor}.weight")).unwrap();
        let nan = |single: bool| match single {
            true => f32::NAN.to_le_bytes().to_vec(),
            false => vec![0xff, 0x7f],
        };
        let bytes = nan(stored.dtype == "F32");
        stored.bytes[..bytes.len()].copy_from_slice(&bytes);
        let path = home.path().join("broken");
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        folder.save(&path);
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(home.path().join("sound").join(file), path.join(file)).unwrap();
        }
        let mut tiny = Tiny::llama();
        // Of quantised weights it is the scale of a block.
        let stored = tiny.tensors.get_mut(&format!("{name}.weight")).unwrap();
        let bytes = nan(stored.block == BlockType::F32);
        stored.bytes[..bytes.len()].copy_from_slice(&bytes);
        home.file("broken.gguf", tiny.bytes());
        for model in ["broken", "broken.gguf"] {
            for args in [
                &["run", model, "ab", "-n", "4"][..],
                &["run", model, "ab", "-n", "4", "--spec", "off"],
                &["run", model, "ab", "-n", "4", "--temperature", "0.8"],
                &["run", model, "ab", "-n", "4", "--executor", "dense"],
                &["generate", model, "-p", "ab", "-n", "4"],
                &["perplexity", model, "--file", "text.txt"],
                &["score", model, "--prompt", "abab"],
                &["embed", model, "abcd", "--json"],
                &["embed", model, "abcd", "--pooling", "last"],
                &["eval", model, "--data", "rows.jsonl"],
            ] {
                if args[0] == "embed" && name == "token_embd" {
                    // The text's own rows are sound, and the head is not asked.
                    continue;
                }
                let left = run(home.offshoot(args));
                assert_eq!((left.code, &*left.stdout), (Some(4), ""), "{tensor}: {args:?}");
                let errors = left.stderr.lines().filter(|line| line.starts_with("error: "));
                assert_eq!(errors.count(), 1, "{tensor}: {args:?}: {}", left.stderr);
                assert!(left.stderr.contains("not all numbers"), "{args:?}: {}", left.stderr);
            }
        }
    }
}

#[test]
fn every_hostile_folder_ends_with_4_and_one_line() {
    let home = Home::new();
    for case in hostile_folders::all(1000) {
        if case.name == "shard-twice" {
            // On a disk nobody reads the file that the index does not name.
            continue;
        }
        let folder = home.path().join("hostile");
        std::fs::create_dir(&folder).unwrap();
        // What would be read if a path led out of the folder.
        smallest(false).save(home.path());
        case.sections.save(&folder);
        let left = run(home.offshoot(["show", "hostile", "--json"]));
        assert_eq!(left.code, Some(4), "{}: {}", case.name, left.stderr);
        left.complained(&["hostile/"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
