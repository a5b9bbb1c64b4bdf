//! A chat in the terminal.

use std::io::Write;

use offshoot_engine::{FinishReason, GenerateOptions, Model, Session};
use offshoot_models::Message;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::answer::{chat_tokens, print_stats, stream};
use crate::args::AnswerArgs;
use crate::failure::{Failure, write_out};
use crate::interrupt;

const HELP: &str = "\
/help                 this list
/set NAME VALUE       temperature, top-k, top-p, min-p, seed, max-tokens, or system
/clear                forget the conversation
/save FILE            write the conversation as JSON
/exit                 leave (also Ctrl-D)
\"\"\"                   begin and end a message of several lines
A line that ends in \\ goes on in the next. Ctrl-C stops an answer.";

pub(crate) fn run(
    model: &Model,
    session: &mut Session,
    args: &AnswerArgs,
    mut options: GenerateOptions,
) -> Result<(), Failure> {
    let mut editor = DefaultEditor::new().map_err(|e| Failure::Usage(e.to_string()))?;
    let mut messages: Vec<Message> =
        args.system.iter().map(|text| Message::new("system", text)).collect();
    eprintln!("/help lists commands, Ctrl-D leaves.");
    while let Some(line) = read_message(&mut editor)? {
        let line = line.trim();
        if let Some(command) = line.strip_prefix('/') {
            if command == "exit" || command == "bye" {
                break;
            }
            match obey(command, &mut messages, &mut options) {
                Ok(said) => eprintln!("{said}"),
                Err(wrong) => eprintln!("{wrong}"),
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        // What cannot be entered into history is only missing from it.
        let _ = editor.add_history_entry(line);
        messages.push(Message::new("user", line));
        if let Err(failure) = answer(model, session, &mut messages, &options, args.stats) {
            messages.pop();
            match failure {
                Failure::Output(_) | Failure::BrokenPipe => return Err(failure),
                other => eprintln!("error: {other} (/clear starts anew)"),
            }
        }
    }
    Ok(())
}

fn answer(
    model: &Model,
    session: &mut Session,
    messages: &mut Vec<Message>,
    options: &GenerateOptions,
    stats: bool,
) -> Result<(), Failure> {
    let tokens = chat_tokens(model, messages)?;
    interrupt::take();
    let answer =
        stream(model, session, &tokens, options, |piece| write_out(piece.text.as_bytes()))?;
    write_out(b"\n")?;
    if interrupt::take() {
        eprintln!("(stopped)");
    }
    if answer.finish == FinishReason::ContextFull {
        eprintln!(
            "the context of {} tokens is full: /clear, or raise --ctx-size",
            session.context()
        );
    }
    if stats {
        print_stats(model, &answer);
    }
    messages.push(Message::new("assistant", answer.text));
    Ok(())
}

/// The next message; `None` at the end of input.
fn read_message(editor: &mut DefaultEditor) -> Result<Option<String>, Failure> {
    let mut text = String::new();
    let mut quoted = false;
    loop {
        let prompt = if text.is_empty() && !quoted { ">>> " } else { "... " };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                (text, quoted) = (String::new(), false);
                eprintln!("Ctrl-D or /exit leaves.");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(Failure::Data(format!("the terminal: {error}"))),
        };
        if line.trim() == "\"\"\"" {
            if quoted {
                return Ok(Some(text));
            }
            quoted = true;
            continue;
        }
        if !quoted && !line.ends_with('\\') {
            text.push_str(&line);
            return Ok(Some(text));
        }
        text.push_str(line.strip_suffix('\\').filter(|_| !quoted).unwrap_or(&line));
        text.push('\n');
    }
}

/// Does what a command asks; gives what to say.
fn obey(
    command: &str,
    messages: &mut Vec<Message>,
    options: &mut GenerateOptions,
) -> Result<String, String> {
    let mut words = command.splitn(3, ' ');
    let (name, first, rest) = (words.next().unwrap_or(""), words.next(), words.next());
    match (name, first, rest) {
        ("help" | "?", ..) => Ok(HELP.to_owned()),
        ("clear", ..) => {
            messages.retain(|message| message.role == "system");
            Ok("forgotten".to_owned())
        }
        ("set", Some("system"), Some(text)) => {
            messages.retain(|message| message.role != "system");
            messages.insert(0, Message::new("system", text));
            Ok("set".to_owned())
        }
        ("set", Some(name), Some(value)) => set(name, value.trim(), options),
        ("save", Some(path), _) => save(path, messages),
        _ => Err(format!("/{command}: unknown; /help lists commands")),
    }
}

fn set(name: &str, value: &str, options: &mut GenerateOptions) -> Result<String, String> {
    fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("{value} is no value for {name}"))
    }
    let mut next = options.clone();
    match name {
        "temperature" => next.sampling.temperature = parse(name, value)?,
        "top-k" => next.sampling.top_k = parse(name, value)?,
        "top-p" => next.sampling.top_p = parse(name, value)?,
        "min-p" => next.sampling.min_p = parse(name, value)?,
        "seed" => next.sampling.seed = Some(parse(name, value)?),
        "max-tokens" => next.max_tokens = Some(parse(name, value)?),
        _ => return Err(format!("{name}: unknown; /help lists what can be set")),
    }
    next.sampling.validate().map_err(|e| e.to_string())?;
    *options = next;
    Ok(format!("{name} is {value}"))
}

fn save(path: &str, messages: &[Message]) -> Result<String, String> {
    let json = serde_json::to_string_pretty(messages).map_err(|e| e.to_string())?;
    // A conversation may be private, and an earlier one is not to be lost: never overwrite.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| writeln!(file, "{json}")).map_err(|e| format!("{path}: {e}"))?;
    Ok(format!("saved to {path}"))
}
