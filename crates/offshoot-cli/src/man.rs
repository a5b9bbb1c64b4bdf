//! `man`: a manual page for each command.

use std::fs;

use clap::CommandFactory;

use crate::answer::write_file;
use crate::args::{Cli, ManArgs};
use crate::failure::{Failure, say};

/// The pages by their files' names: `offshoot.1`, `offshoot-run.1`, `offshoot-medusa-train.1`.
fn pages() -> std::io::Result<Vec<(String, String)>> {
    fn walk(command: &clap::Command, pages: &mut Vec<(String, String)>) -> std::io::Result<()> {
        // With hyphens, as manuals call commands of commands.
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let mut bytes = Vec::new();
        let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase());
        man.source(concat!("offshoot ", env!("CARGO_PKG_VERSION"))).render(&mut bytes)?;
        pages.push((format!("{name}.1"), String::from_utf8_lossy(&bytes).into_owned()));
        let mut own = command.get_subcommands().filter(|c| c.get_name() != "help");
        own.try_for_each(|command| walk(command, pages))
    }
    let mut cli = Cli::command();
    cli.build();
    let mut pages = Vec::new();
    walk(&cli, &mut pages)?;
    Ok(pages)
}

pub(crate) fn run(args: &ManArgs) -> Result<(), Failure> {
    let wrong = |source| Failure::File { path: args.folder.clone(), source };
    fs::create_dir_all(&args.folder).map_err(wrong)?;
    let pages = pages().map_err(wrong)?;
    for (name, page) in &pages {
        write_file(&args.folder.join(name), page)?;
    }
    say(format_args!("{} pages in {}", pages.len(), args.folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_it_its_flags_and_variables() {
        let pages = pages().unwrap();
        for name in ["offshoot.1", "offshoot-run.1", "offshoot-datastore-build.1", "offshoot-man.1"]
        {
            assert!(pages.iter().any(|(page, _)| page == name), "{name}");
        }
        for (name, page) in &pages {
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
            assert!(page.contains("Example"), "{name}: {page}");
        }
        let (_, run) = pages.iter().find(|(name, _)| name == "offshoot-run.1").unwrap();
        for part in ["\\-\\-temperature", "OFFSHOOT_TEMPERATURE", "offshoot-run"] {
            assert!(run.replace("offshoot\\-run", "offshoot-run").contains(part), "{part}: {run}");
        }
    }
}
