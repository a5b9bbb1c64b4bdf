//! A chat in the terminal.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use offshoot_engine::spec::{CalibrationFile, lacks_times, measure_missing};
use offshoot_engine::{Answer, FinishReason, GenerateOptions, Model, Session};
use offshoot_models::Message;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::answer::{load, print_stats, shown, stream};
use crate::args::AnswerArgs;
use crate::failure::{Failure, note, write_out};
use crate::wrap::Wrap;
use crate::{interrupt, models};

const HELP: &str = "\
/help              this list
/set               what is set; /set NAME VALUE sets it, as in /set temperature 0.2
/set system TEXT   what the system message says
/clear             forget the conversation
/save FILE         write the conversation as JSON
/exit              leave (also Ctrl-D)
\"\"\"                begins and ends a message of several lines
A line that ends in \\ goes on in the next. Up and Down recall what was written before.
Ctrl-C stops an answer.";

const COMMANDS: [&str; 5] = ["help", "set", "clear", "save", "exit"];
const SETTINGS: [&str; 8] = [
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "repetition-penalty",
    "seed",
    "max-tokens",
    "system",
];

/// What the user wrote.
#[derive(Debug, PartialEq)]
enum Input {
    Message(String),
    /// A line that begins with `/`, without it.
    Command(String),
}

/// A message that may take several lines.
#[derive(Debug, Default)]
struct Draft {
    text: String,
    /// Whether it began with three quotation marks, and so ends with them.
    quoted: bool,
}

pub(crate) fn run(args: &AnswerArgs, system: Option<&str>) -> Result<(), Failure> {
    let (model, mut session, mut calibration, mut options) = load(args)?;
    let _listener = interrupt::listen_in_chat();
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    // What ends answers unless the user says more of it.
    let files = model.checkpoint().generation().max_new_tokens;
    let recommended = files.filter(|_| args.max_tokens.is_none());
    let mut messages: Vec<Message> =
        system.iter().map(|text| Message::new("system", *text)).collect();
    if model.template().is_none() {
        note("this model has no chat template: the raw text of the messages is continued");
    }
    models::note_assumed(model.checkpoint());
    note("/help lists commands, Ctrl-D leaves.");
    while let Some(input) = idle_input(&mut editor, &model, &mut session, &mut calibration)? {
        match input {
            Input::Command(command) if matches!(command.as_str(), "exit" | "quit" | "bye") => break,
            Input::Command(command) => match obey(&command, &mut messages, &mut options) {
                Ok(said) => note(said),
                Err(wrong) => note(wrong),
            },
            Input::Message(text) if text.trim().is_empty() => {}
            Input::Message(text) => {
                messages.push(Message::new("user", text));
                // Asked each time, as windows change. Colours would be taken for words.
                let colour = args.spec.show_drafts;
                let columns = editor.dimensions().map(|(columns, _)| columns.into());
                let wrap = Wrap::new(columns.filter(|_| !colour));
                let show = (wrap, colour);
                let done = answer(&model, &mut session, &mut messages, &options, show);
                if let Ok(answer) = &done
                    && let Some(why) = ended(answer, &options, recommended, session.context())
                {
                    note(why);
                }
                models::keep_calibration(&mut calibration, &session);
                match done {
                    Ok(answer) if args.stats => print_stats(&model, &answer, &options),
                    Ok(_) => {}
                    Err(failure @ (Failure::Output(_) | Failure::BrokenPipe)) => {
                        return Err(failure);
                    }
                    Err(other) => {
                        messages.pop();
                        note(format_args!("error: {other} (/clear starts anew)"));
                    }
                }
            }
        }
    }
    models::keep_calibration(&mut calibration, &session);
    Ok(())
}

fn terminal(error: ReadlineError) -> Failure {
    let source = std::io::Error::other(error);
    Failure::File { path: "the terminal".into(), source }
}

fn answer(
    model: &Model,
    session: &mut Session,
    messages: &mut Vec<Message>,
    options: &GenerateOptions,
    (mut wrap, colour): (Wrap, bool),
) -> Result<Answer, Failure> {
    let tokens = model.encode_messages(messages)?;
    let answer = stream(model, session, &tokens, options, |piece| {
        write_out(wrap.push(&shown(piece, colour)).as_bytes())
    })?;
    write_out(format!("{}\n", wrap.finish()).as_bytes())?;
    messages.push(Message::new("assistant", answer.text.as_str()));
    Ok(answer)
}

/// What to say of how an answer ended, where that was not by itself or by a limit that the user set;
/// `recommended` is the one of the model's files.
fn ended(
    answer: &Answer,
    options: &GenerateOptions,
    recommended: Option<usize>,
    context: usize,
) -> Option<String> {
    match answer.finish {
        FinishReason::Stopped => Some("(stopped)".to_owned()),
        FinishReason::ContextFull => {
            Some(format!("the context of {context} tokens is full: /clear, or raise --ctx-size"))
        }
        FinishReason::MaxTokens if options.max_tokens == recommended => Some(format!(
            "ended at the {} tokens that the model's files recommend: /set max-tokens goes on",
            answer.tokens.len()
        )),
        _ => None,
    }
}

/// As [`read_input`]. While the user thinks, the step times that drafting does not know on this
/// machine are measured and kept: a second or two once, and a line waits for one step at most.
fn idle_input(
    editor: &mut DefaultEditor,
    model: &Model,
    session: &mut Session,
    calibration: &mut Option<CalibrationFile>,
) -> Result<Option<Input>, Failure> {
    // Without a file they would be measured anew in each chat.
    if calibration.is_none() || !lacks_times(session) {
        return read_input(editor);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // What cannot be measured is learned from answers, and what is not complete is kept
            // behind the next.
            let done = measure_missing(model, session, || stop.load(Ordering::Relaxed));
            if done.is_ok() && !stop.load(Ordering::Relaxed) {
                models::keep_calibration(calibration, session);
            }
        });
        let input = read_input(editor);
        stop.store(true, Ordering::Relaxed);
        input
    })
}

/// What the user writes next; `None` at the end of input.
fn read_input(editor: &mut DefaultEditor) -> Result<Option<Input>, Failure> {
    let mut draft = Draft::default();
    loop {
        let prompt = if draft.is_begun() { "... " } else { ">>> " };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                draft = Draft::default();
                note("Ctrl-D or /exit leaves.");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(terminal(error)),
        };
        if !line.trim().is_empty() {
            // What cannot be entered into history is only missing from it.
            let _ = editor.add_history_entry(line.as_str());
        }
        if let Some(input) = draft.add(&line) {
            // What was pressed before is not meant for the answer, what is pressed from now on is.
            interrupt::take();
            return Ok(Some(input));
        }
    }
}

impl Draft {
    fn is_begun(&self) -> bool {
        self.quoted || !self.text.is_empty()
    }

    /// Takes a line; gives what was written once it is whole.
    fn add(&mut self, line: &str) -> Option<Input> {
        let mut line = line;
        if !self.is_begun() {
            // A pasted text of several lines is one message, whatever it begins with.
            if let (Some(command), false) = (line.trim().strip_prefix('/'), line.contains('\n')) {
                return Some(Input::Command(command.to_owned()));
            }
            if let Some(rest) = line.trim_start().strip_prefix("\"\"\"") {
                self.quoted = true;
                if rest.trim().is_empty() {
                    return None;
                }
                line = rest;
            }
        }
        let (part, whole) = if self.quoted {
            let end = line.trim_end().strip_suffix("\"\"\"");
            (end.unwrap_or(line), end.is_some())
        } else {
            let goes_on = line.strip_suffix('\\');
            (goes_on.unwrap_or(line), goes_on.is_none())
        };
        self.text.push_str(part);
        if whole {
            return Some(Input::Message(self.text.trim().to_owned()));
        }
        self.text.push('\n');
        None
    }
}

/// Does what a command asks; gives what to say.
fn obey(
    command: &str,
    messages: &mut Vec<Message>,
    options: &mut GenerateOptions,
) -> Result<String, String> {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match (name, rest) {
        ("help" | "?", _) => Ok(HELP.to_owned()),
        ("clear", _) => {
            messages.retain(|message| message.role == "system");
            Ok("forgotten".to_owned())
        }
        ("set", "") => Ok(settings(messages, options)),
        ("set", _) => match rest.split_once(char::is_whitespace) {
            None => Err(format!("/set {rest} what? as in /set temperature 0.2")),
            Some(("system", text)) => {
                messages.retain(|message| message.role != "system");
                messages.insert(0, Message::new("system", text.trim()));
                Ok("set".to_owned())
            }
            Some((name, value)) => set(name, value.trim(), options),
        },
        ("save", "") => Err("/save where? as in /save talk.json".to_owned()),
        ("save", path) => save(path, messages),
        _ => Err(format!("/{name}: unknown; {}/help lists commands", nearest(name, &COMMANDS))),
    }
}

/// What an unknown word was probably meant to be, as a question.
fn nearest(word: &str, known: &[&str]) -> String {
    let score = |known: &&&str| strsim::jaro_winkler(word, known);
    let nearest = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    let nearest = nearest.filter(|known| score(known) > 0.7);
    nearest.map_or(String::new(), |known| format!("did you mean {known}? "))
}

fn settings(messages: &[Message], options: &GenerateOptions) -> String {
    let sampling = &options.sampling;
    let most = options.max_tokens.map_or("what the context holds".to_owned(), |n| n.to_string());
    let seed = sampling.seed.map_or("none".to_owned(), |seed| seed.to_string());
    let system = messages.iter().find(|m| m.role == "system");
    let system = system.and_then(|m| m.content.as_deref()).unwrap_or("the model's own");
    format!(
        "temperature         {}\ntop-k               {}\ntop-p               {}\n\
         min-p               {}\nrepetition-penalty  {}\nseed                {seed}\n\
         max-tokens          {most}\nsystem              {system}",
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty
    )
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
        "repetition-penalty" => next.sampling.repetition_penalty = parse(name, value)?,
        "seed" => next.sampling.seed = Some(parse(name, value)?),
        "max-tokens" => next.max_tokens = Some(parse(name, value)?),
        _ => {
            let nearest = nearest(name, &SETTINGS);
            return Err(format!("{name}: unknown; {nearest}/set lists what can be set"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Option<Input> {
        let mut draft = Draft::default();
        let (last, before) = lines.split_last().unwrap();
        for line in before {
            assert_eq!(draft.add(line), None, "{line}");
        }
        draft.add(last)
    }

    fn message(text: &str) -> Option<Input> {
        Some(Input::Message(text.to_owned()))
    }

    #[test]
    fn lines_make_messages() {
        assert_eq!(read(&["Hello."]), message("Hello."));
        assert_eq!(read(&["one \\", "two"]), message("one \ntwo"));
        assert_eq!(read(&["\"\"\"", "one", "", "two", "\"\"\""]), message("one\n\ntwo"));
        assert_eq!(read(&["\"\"\"one", "/two", "three\"\"\""]), message("one\n/two\nthree"));
        assert_eq!(read(&["\"\"\"one\"\"\""]), message("one"));
        assert_eq!(read(&["\"\"\"", "ends in \\", "\"\"\""]), message("ends in \\"));
        assert_eq!(read(&["\"\"\"", "open"]), None);
    }

    #[test]
    fn a_slash_commands_only_at_the_beginning_of_a_line_alone() {
        assert_eq!(read(&["/help"]), Some(Input::Command("help".to_owned())));
        assert_eq!(read(&["/bin/sh\nis a shell"]), message("/bin/sh\nis a shell"));
        assert_eq!(read(&["one\\", "/help"]), message("one\n/help"));
    }

    #[test]
    fn commands_do_what_they_say_or_say_what_is_wrong() {
        let (mut messages, mut options) = (Vec::new(), GenerateOptions::default());
        let mut say = |command: &str| obey(command, &mut messages, &mut options);
        assert!(say("help").unwrap().contains("/save FILE"));
        assert_eq!(say("set temperature 0.2").unwrap(), "temperature is 0.2");
        assert!(say("set").unwrap().contains("temperature         0.2\n"));
        assert_eq!(say("set repetition-penalty 1.1").unwrap(), "repetition-penalty is 1.1");
        assert!(say("set").unwrap().contains("repetition-penalty  1.1\n"));
        assert!(say("set temperature -1").unwrap_err().contains("temperature is -1"));
        assert!(say("set temperature warm").unwrap_err().contains("warm is no value"));
        assert!(say("set colour blue").unwrap_err().contains("colour: unknown"));
        assert!(say("set temprature 1").unwrap_err().contains("did you mean temperature?"));
        assert!(say("halp").unwrap_err().contains("did you mean help?"));
        assert!(say("set seed").unwrap_err().contains("as in /set"));
        assert!(say("set system Be brief.").is_ok());
        assert!(say("set").unwrap().contains("system              Be brief."));
        assert!(say("save").unwrap_err().contains("/save where?"));
        assert!(say("nonsense").unwrap_err().contains("/help lists"));
        assert!(say("clear").is_ok());
        assert_eq!(messages.len(), 1, "the system message stays");
    }

    #[test]
    fn an_answer_that_the_files_cut_short_says_so_and_one_that_the_user_did_does_not() {
        let cut = Answer {
            text: "a b".to_owned(),
            tokens: vec![1, 2],
            finish: FinishReason::MaxTokens,
            prompt_tokens: 1,
            reused_tokens: 0,
            timings: Default::default(),
            spec: None,
        };
        let files = GenerateOptions { max_tokens: Some(2), ..GenerateOptions::default() };
        let said = ended(&cut, &files, Some(2), 64).unwrap();
        assert!(said.contains("the 2 tokens that the model's files recommend"), "{said}");
        assert_eq!(ended(&cut, &files, None, 64), None, "as --max-tokens says");
        assert_eq!(ended(&cut, &files, Some(5), 64), None, "as /set max-tokens says");
        let stopped = Answer { finish: FinishReason::Stopped, ..cut };
        assert_eq!(ended(&stopped, &files, Some(2), 64).unwrap(), "(stopped)");
    }

    #[test]
    fn a_conversation_is_saved_once_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        let path = path.to_str().unwrap();
        let messages = [Message::new("user", "Hi"), Message::new("assistant", "Hello")];
        save(path, &messages).unwrap();
        let saved: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(saved[1]["content"], "Hello");
        assert!(save(path, &messages).unwrap_err().contains(path));
    }
}
