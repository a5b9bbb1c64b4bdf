//! What the documents say, against what there is.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::{Package, TextFile};

/// The line before the fenced block that holds the test command.
const MARKER: &str = "<!-- test command -->";

/// Fewer words than this do not tell what a room is for.
const README_WORDS_MIN: usize = 20;

/// Lists the differences between the rooms `architecture` names as `crates/NAME` and those there.
pub fn code_map_gaps(architecture: &str, packages: &[Package]) -> Vec<String> {
    let there: BTreeSet<&str> =
        packages.iter().filter_map(|p| p.folder.strip_prefix("crates/")).collect();
    let named: BTreeSet<&str> = architecture
        .split("crates/")
        .skip(1)
        .map(|rest| &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())])
        .filter(|name| !name.is_empty())
        .collect();
    let missing = there.difference(&named).map(|name| format!("the code map lacks crates/{name}"));
    let gone = named.difference(&there).map(|name| format!("there is no crates/{name}"));
    missing.chain(gone).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Lists the rooms whose `README.md` is missing, does not begin with their name, or says too little.
pub fn missing_readmes(packages: &[Package], files: &[TextFile]) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in packages.iter().filter(|p| p.folder.starts_with("crates/")) {
        let path = format!("{}/README.md", package.folder);
        let Some(readme) = files.iter().find(|file| file.path == path) else {
            breaches.push(format!("there is no {path}"));
            continue;
        };
        let Some(body) = readme.text.strip_prefix(&format!("# {}\n", package.name)) else {
            breaches.push(format!("{path} does not begin with `# {}`", package.name));
            continue;
        };
        if body.split_whitespace().count() < README_WORDS_MIN {
            breaches.push(format!("{path} says too little of what the room is for"));
        }
    }
    breaches
}

/// The command in the fenced block after the marker line of `readme`.
///
/// # Errors
/// If there is not exactly one marker, or no block of one line right after it.
pub fn test_command(readme: &str) -> Result<&str> {
    let n_markers = readme.lines().filter(|line| *line == MARKER).count();
    ensure!(n_markers == 1, "README.md has {n_markers} lines `{MARKER}`, not 1");
    let mut lines = readme.lines().skip_while(|line| *line != MARKER).skip(1);
    let fence = lines.next().context("README.md ends at its test command's marker")?;
    ensure!(fence.starts_with("```"), "`{fence}` follows the marker, not a fenced block");
    let command = lines.next().unwrap_or_default();
    let end = lines.next().unwrap_or_default();
    ensure!(end == "```" && !command.is_empty(), "the test command is not one line");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Package {
        Package { name: name.into(), folder: format!("crates/{name}"), dependencies: vec![] }
    }

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_code_map_names_every_room_and_no_other() {
        let rooms = [package("a-b"), package("c")];
        assert_eq!(code_map_gaps("`crates/a-b`: x\ncrates/c/src\ncrates/*", &rooms).len(), 0);
        assert_eq!(code_map_gaps("`crates/a-b`", &rooms), ["the code map lacks crates/c"]);
        let gaps = code_map_gaps("crates/a-b crates/c crates/d", &rooms);
        assert_eq!(gaps, ["there is no crates/d"]);
    }

    #[test]
    fn a_readme_is_there_has_a_title_and_says_something() {
        let rooms = [package("a")];
        let check = |text: &str| missing_readmes(&rooms, &[file("crates/a/README.md", text)]);
        assert_eq!(missing_readmes(&rooms, &[]), ["there is no crates/a/README.md"]);
        assert_eq!(check("# b\n"), ["crates/a/README.md does not begin with `# a`"]);
        assert_eq!(check("# a\nThe room.\n").len(), 1);
        assert_eq!(check(&format!("# a\n\n{}", "word ".repeat(20))), Vec::<String>::new());
    }

    #[test]
    fn the_test_command_is_the_one_line_after_its_marker() {
        let readme = |body: &str| format!("Test:\n\n{MARKER}\n{body}");
        assert_eq!(test_command(&readme("```sh\ncargo test\n```\n")).unwrap(), "cargo test");
        for body in ["", "cargo test\n", "```\n```\n", "```\ncargo\ntest\n```\n"] {
            assert!(test_command(&readme(body)).is_err(), "{body:?}");
        }
        assert!(test_command("no marker").is_err());
    }
}
