//! What the sources may not contain.
//!
//! The words looked for are written in pieces here, so that this file does not break its own rules.

use crate::TextFile;

/// The one room that may hold unsafe code.
const UNSAFE_ROOM: &str = "crates/offshoot-kernels/";
/// The room of pure functions.
const METHODS: &str = "crates/offshoot-methods/src/";
const FILE_LINES_MAX: usize = 800;
const CATCH_ALL_NAMES: [&str; 5] = ["utils", "util", "helpers", "common", "misc"];

/// Modules of the standard library through which the outer world comes in.
const WORLD_MODULES: [&str; 7] = ["env", "fs", "io", "net", "process", "thread", "time"];

/// Folders that exist on somebody's machine only.
const MACHINE_FOLDERS: [&str; 5] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/t", "mp/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
];

/// Hosts of package registries: a registry is reached through its client's own configuration.
const REGISTRY_HOSTS: [&str; 7] = [
    concat!("crates", ".io/api"),
    concat!("deb.debian", ".org"),
    concat!("files.python", "hosted"),
    concat!("index.crates", ".io"),
    concat!("py", "pi.org"),
    concat!("registry.npm", "js.org"),
    concat!("static.crates", ".io"),
];

/// Lists the manifests outside the kernels that do not take the workspace's lints, which deny
/// unsafe code, and the sources that lift that lint.
pub fn unsafe_rooms(files: &[TextFile]) -> Vec<String> {
    let mut breaches = Vec::new();
    for TextFile { path, text } in files.iter().filter(|f| !f.path.starts_with(UNSAFE_ROOM)) {
        let in_room = path.starts_with("crates/") || path.starts_with("xtask/");
        let takes_lints = text.contains("[lints]\nworkspace = true\n");
        if in_room && path.ends_with("/Cargo.toml") && !takes_lints {
            breaches.push(format!("{path} does not take the workspace's lints"));
        }
        if in_room && is_rust(path) && text.contains(concat!("(unsafe", "_code")) {
            breaches.push(format!("{path} sets the lint against unsafe code"));
        }
    }
    breaches
}

/// Lists the source files of the rooms that are too long to be read at one sitting.
pub fn long_files(files: &[TextFile]) -> Vec<String> {
    files
        .iter()
        .filter(|f| f.path.starts_with("crates/") && f.path.contains("/src/") && is_rust(&f.path))
        .map(|f| (&f.path, f.text.lines().count()))
        .filter(|(_, n_lines)| *n_lines > FILE_LINES_MAX)
        .map(|(path, n_lines)| format!("{path} has {n_lines} lines, over {FILE_LINES_MAX}"))
        .collect()
}

/// Lists the tests and the documentation examples that are compiled or shown but never run.
pub fn skipped_checks(files: &[TextFile]) -> Vec<String> {
    lines(files, |path, line| {
        let skip = concat!("ig", "nore");
        let line = line.trim_start();
        let shown = line.trim_start_matches(['/', '!']).trim_start();
        let example = shown.strip_prefix("```").is_some_and(|info| info.contains(skip));
        let attribute = line.starts_with("#[") && line.contains(skip);
        let test = attribute && (line.contains(&format!("[{skip}")) || line.contains("cfg_attr"));
        is_rust(path) && (example || test)
    })
}

/// Lists the lines that name a folder of one machine or the host of a package registry.
pub fn outside_world(files: &[TextFile]) -> Vec<String> {
    lines(files, |_, line| {
        REGISTRY_HOSTS.iter().any(|host| line.contains(host))
            || MACHINE_FOLDERS.iter().any(|folder| has_path(line, folder))
    })
}

/// Whether `folder` stands in `line` as the beginning of a path.
fn has_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"._-}~/*".contains(c))
    })
}

/// Lists the lines of the methods that reach for files, clocks, sockets, threads or the terminal.
pub fn impure_methods(files: &[TextFile]) -> Vec<String> {
    lines(files, |path, line| {
        let reaches = |module: &&str| line.contains(&format!("std::{module}"));
        let prints = line.contains("print!(") || line.contains("println!(");
        path.starts_with(METHODS) && (prints || WORLD_MODULES.iter().any(reaches))
    })
}

/// Lists the source files whose name says nothing of what they hold.
pub fn catch_all_names(files: &[TextFile]) -> Vec<String> {
    let mut breaches = Vec::new();
    for path in files.iter().map(|f| f.path.as_str()).filter(|path| is_rust(path)) {
        let mut parts = path.trim_end_matches(".rs").split('/');
        if parts.any(|part| CATCH_ALL_NAMES.contains(&part)) {
            breaches.push(format!("{path}: name it for what it does"));
        }
    }
    breaches
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// All lines for which `is_breach(path, line)` holds, as `path:number: line`.
fn lines(files: &[TextFile], is_breach: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    for TextFile { path, text } in files {
        for (index, line) in text.lines().enumerate() {
            if is_breach(path, line) {
                breaches.push(format!("{path}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.into(), text: text.into() }
    }

    /// How many breaches `rule` finds in one file.
    fn count(rule: fn(&[TextFile]) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&[file(path, text)]).len()
    }

    #[test]
    fn only_the_kernels_have_lints_of_their_own() {
        let (engine, kernels) = ("crates/offshoot-engine/", "crates/offshoot-kernels/");
        let manifest = |room: &str| format!("{room}Cargo.toml");
        assert_eq!(count(unsafe_rooms, &manifest(engine), "[lints]\nworkspace = true\n"), 0);
        assert_eq!(count(unsafe_rooms, &manifest(engine), "[package]\n"), 1);
        assert_eq!(count(unsafe_rooms, &manifest(kernels), "[package]\n"), 0);
        let lifted = concat!("#![allow(unsafe", "_code)]");
        assert_eq!(count(unsafe_rooms, "crates/offshoot-engine/src/lib.rs", lifted), 1);
        assert_eq!(count(unsafe_rooms, "crates/offshoot-kernels/src/lib.rs", lifted), 0);
    }

    #[test]
    fn a_file_of_801_lines_is_long() {
        let path = "crates/a/src/b.rs";
        assert_eq!(count(long_files, path, &"x\n".repeat(800)), 0);
        assert_eq!(count(long_files, path, &"x\n".repeat(801)), 1);
        assert_eq!(count(long_files, "crates/a/golden/b.json", &"x\n".repeat(801)), 0);
    }

    #[test]
    fn a_check_that_never_runs_is_found() {
        let found = |text: &str| count(skipped_checks, "crates/a/src/b.rs", text);
        assert_eq!(found(concat!("    #[ig", "nore]")), 1);
        assert_eq!(found(concat!("#[ig", "nore = \"slow\"]")), 1);
        assert_eq!(found(concat!("#[cfg_attr(debug_assertions, ig", "nore)]")), 1);
        assert_eq!(found(concat!("//! ```ig", "nore")), 1);
        assert_eq!(found(concat!("    /// ```rust,ig", "nore")), 1);
        assert_eq!(found(concat!("// We ig", "nore this.\n/// ```no_run\n#[test]")), 0);
    }

    #[test]
    fn machine_folders_and_registry_hosts_are_found() {
        let found = |text: &str| count(outside_world, "README.md", text);
        assert_eq!(found(concat!("see /t", "mp/x")), 1);
        assert_eq!(found(concat!("\"/ho", "me/me/model.gguf\"")), 1);
        assert_eq!(found(concat!("https://py", "pi.org/simple")), 1);
        assert_eq!(found(concat!("https://example.org/ho", "me/ target/t", "mp/x")), 0);
        assert_eq!(found("https://huggingface.co and crates.io"), 0);
    }

    #[test]
    fn a_method_that_reaches_out_is_found() {
        let path = "crates/offshoot-methods/src/a.rs";
        for text in ["use std::time::Instant;", "std::fs::read(p)", "    eprintln!(\"x\");"] {
            assert_eq!(count(impure_methods, path, text), 1, "{text}");
            assert_eq!(count(impure_methods, "crates/offshoot-engine/src/a.rs", text), 0);
        }
        assert_eq!(count(impure_methods, path, "use std::ops::Range; // no files"), 0);
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        assert_eq!(count(catch_all_names, "crates/a/src/utils.rs", ""), 1);
        assert_eq!(count(catch_all_names, "crates/a/src/common/mod.rs", ""), 1);
        assert_eq!(count(catch_all_names, "crates/a/src/utilities_of_lambda.rs", ""), 0);
    }
}
