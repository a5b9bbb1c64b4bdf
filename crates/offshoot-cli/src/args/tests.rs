//! Rules that hold for all arguments.

use super::*;
use clap::CommandFactory;
use offshoot_methods::SamplingOptions;

/// Every command, the program itself first.
fn commands() -> Vec<clap::Command> {
    fn walk(command: &clap::Command, all: &mut Vec<clap::Command>) {
        all.push(command.clone());
        let own = command.get_subcommands().filter(|c| c.get_name() != "help");
        own.for_each(|c| walk(c, all));
    }
    let mut all = Vec::new();
    let mut cli = Cli::command();
    cli.build();
    walk(&cli, &mut all);
    all
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    assert!(commands().len() > 11);
}

#[test]
fn every_flag_has_the_variable_of_its_name() {
    for command in commands() {
        for arg in command.get_arguments().filter(|a| !a.is_positional()) {
            let flag = arg.get_long().expect("no flag is short alone");
            if matches!(flag, "help" | "version") {
                continue;
            }
            // These commands mean another thing by them than others do.
            let begin = match (command.get_name(), flag) {
                ("bench", "spec") => "OFFSHOOT_BENCH",
                ("show", "tokens") => "OFFSHOOT_SHOW",
                ("import", "model") => "OFFSHOOT_IMPORT",
                ("tune", "store") => "OFFSHOOT_TUNE",
                _ => "OFFSHOOT",
            };
            let expected = format!("{begin}_{}", flag.to_uppercase().replace('-', "_"));
            let got = arg.get_env().and_then(|v| v.to_str());
            assert_eq!(got, Some(expected.as_str()), "{} --{flag}", command.get_name());
        }
    }
}

/// One variable cannot be a switch of a command and a value of another.
#[test]
fn a_variable_is_of_one_kind_in_all_commands() {
    let mut kinds = std::collections::BTreeMap::new();
    for command in commands() {
        for arg in command.get_arguments() {
            let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
            let kind = arg.get_action().takes_values();
            let known = *kinds.entry(name.to_owned()).or_insert(kind);
            assert_eq!(kind, known, "{name} of {}", command.get_name());
        }
    }
}

#[test]
fn switches_are_set_by_their_variables_as_shells_write_them() {
    for command in commands() {
        for arg in command.get_arguments() {
            let is_switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
            if arg.get_env().is_none() || !is_switch {
                continue;
            }
            let mut values = arg.get_value_parser().possible_values().into_iter().flatten();
            let takes_one = values.any(|value| value.matches("1", false));
            assert!(takes_one, "{} --{}=1", command.get_name(), arg.get_id());
        }
    }
}

#[test]
fn every_help_has_an_example_that_parses() {
    for mut command in commands() {
        let help = command.render_long_help().to_string();
        let begin = command.get_bin_name().unwrap_or("offshoot ").to_owned();
        let behind = help.split("Example").nth(1).unwrap_or("");
        let shown: Vec<&str> = behind
            .lines()
            .map(str::trim)
            .filter_map(|line| Some(&line[line.find("offshoot ")?..]))
            .collect();
        assert!(shown.iter().any(|line| line.starts_with(&begin)), "{help}");
        for line in shown {
            let words = words(line);
            let parsed = Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}

/// A shell's words, for the quoting and redirection that the examples have.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" > ").next().unwrap().split("    ").next().unwrap();
    let quoted = line.split('"').enumerate();
    quoted
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn the_defaults_that_the_help_names_are_those_of_the_methods() {
    let options = SamplingOptions::default();
    let named = [
        ("temperature", options.temperature.to_string()),
        ("top-k", options.top_k.to_string()),
        ("top-p", options.top_p.to_string()),
        ("min-p", options.min_p.to_string()),
        ("repetition-penalty", options.repetition_penalty.to_string()),
        ("presence-penalty", options.presence_penalty.to_string()),
        ("frequency-penalty", options.frequency_penalty.to_string()),
    ];
    let run = commands().into_iter().find(|c| c.get_name() == "run").unwrap();
    for (flag, default) in named {
        let arg = run.get_arguments().find(|a| a.get_long() == Some(flag)).unwrap();
        let help = arg.get_help().unwrap().to_string();
        let own = ["presence-penalty", "frequency-penalty"].contains(&flag);
        let or = if own { "" } else { "the model's, or " };
        assert!(help.ends_with(&format!("[default: {or}{default}]")), "--{flag}: {help}");
    }
}

#[test]
fn sizes_and_shares_are_read_as_they_are_written() {
    assert_eq!(bytes("4000"), Ok(4000));
    assert_eq!(bytes("512M"), Ok(512 << 20));
    assert_eq!(bytes("2G"), Ok(2 << 30));
    assert!(["", "G", "-1", "1.5G", "99999999999G"].iter().all(|text| bytes(text).is_err()));
    assert_eq!(share("2/4"), Ok(Share { which: 1, of: 4 }));
    assert!(["", "0/4", "5/4", "1", "a/b", "0/0"].iter().all(|text| share(text).is_err()));
}
