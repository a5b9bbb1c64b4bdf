//! What of a conversation is trained on, for the templates of every family: the tokens before a
//! trained answer are those that `run` encodes, and the answer ends where `run` stops.
#![allow(clippy::unwrap_used, dead_code)] // test code; of the support only some parts are used

#[path = "support/talkers.rs"]
mod talkers;
#[path = "../../offshoot-models/tests/support/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::tune::data::{DataOptions, Overlong, Renderer, Report, check, examples, show};
use offshoot_engine::tune::{Example, Sequence};
use offshoot_engine::{Control, Error, LoadOptions, Model};
use offshoot_models::{Controls, Message};
use serde_json::{Value, json};
use talkers::templates;

struct Talker {
    dir: tempfile::TempDir,
    model: Model,
    renderer: Renderer,
}

impl Talker {
    fn new(template: Option<&talkers::Template>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = talkers::write(dir.path(), template);
        let options = LoadOptions { threads: 1, ..LoadOptions::default() };
        let (model, _) = Model::load(&path, &options).unwrap();
        let renderer = Renderer::new(model.checkpoint()).unwrap();
        Self { dir, model, renderer }
    }

    fn named(name: &str) -> Self {
        Self::new(Some(&templates()[name]))
    }

    fn file(&self, rows: &[Value]) -> PathBuf {
        let path = self.dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        path
    }

    fn read(&self, rows: &[Value], options: &DataOptions) -> Result<(Vec<Example>, Report), Error> {
        examples(&[self.file(rows)], &self.renderer, options, &mut |_| Control::Continue)
    }

    fn sequences(&self, messages: &[Message]) -> Result<Vec<Sequence>, Error> {
        let (examples, _) = self.read(&[json!({"messages": messages})], &long())?;
        let text = |example| match example {
            Example::Text(sequence) => sequence,
            other => panic!("{other:?}"),
        };
        Ok(examples.into_iter().map(text).collect())
    }

    fn text(&self, tokens: &[u32]) -> String {
        self.model.tokenizer().decode(tokens, Controls::Keep)
    }

    /// What each run of trained tokens says, checked to stand behind the prompt of its turn and to
    /// end where an answer ends.
    fn answers(&self, messages: &[Message]) -> Vec<String> {
        let mut turns = (0..messages.len()).filter(|&i| messages[i].role == "assistant");
        let mut said = Vec::new();
        for sequence in self.sequences(messages).unwrap() {
            let (tokens, trained) = (&sequence.tokens, &sequence.trained);
            for (start, end) in runs(trained) {
                let turn = turns.next().unwrap();
                let prompt = self.model.encode_messages(&messages[..turn]).unwrap();
                assert_eq!(self.text(&tokens[..start]), self.text(&prompt), "turn {turn}");
                assert_eq!(tokens[..start], prompt, "turn {turn}");
                let (last, words) = tokens[start..end].split_last().unwrap();
                assert!(self.model.stop_tokens().contains(last), "{}", self.text(&[*last]));
                assert!(!words.iter().any(|t| self.model.stop_tokens().contains(t)));
                said.push(self.text(words));
            }
        }
        assert_eq!(turns.next(), None, "every turn is trained on");
        said
    }
}

fn long() -> DataOptions {
    let mut options = DataOptions::default();
    options.length.max = 4096;
    options
}

/// Beginnings and ends of trained runs.
fn runs(trained: &[bool]) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let mut at = 0;
    for run in trained.chunk_by(|a, b| a == b) {
        if run[0] {
            runs.push((at, at + run.len()));
        }
        at += run.len();
    }
    runs
}

fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, text)| Message::new(*role, *text)).collect()
}

const TALK: [(&str, &str); 4] = [
    ("user", "Who?"),
    ("assistant", "Me, myself."),
    ("user", "Why?"),
    ("assistant", "So\n\nbe it."),
];

/// All of them are of families that can be run; the first two are real models'.
const FAMILIES: [&str; 12] = [
    "smollm2",
    "qwen2_5_coder",
    "chatml",
    "headers",
    "inst",
    "zephyr",
    "llama2",
    "mistral1",
    "tekken",
    "gemma2",
    "gemma3",
    "phi3",
];

#[test]
fn every_template_is_trained_behind_the_prompt_of_run_and_up_to_its_end() {
    for name in FAMILIES {
        let talker = Talker::named(name);
        let said = talker.answers(&turns(&TALK));
        let said: Vec<&str> = said.iter().map(|text| text.trim()).collect();
        assert_eq!(said, ["Me, myself.", "So\n\nbe it."], "{name}");
    }
}

#[test]
fn a_system_message_is_part_of_the_prompt_wherever_a_template_puts_it() {
    let system = [&[("system", "Be brief.")], &TALK[..]].concat();
    let mut several = Vec::new();
    for name in FAMILIES {
        let talker = Talker::named(name);
        match talker.sequences(&turns(&system)) {
            Ok(sequences) => {
                talker.answers(&turns(&system));
                if sequences.len() > 1 {
                    several.push(name);
                }
            }
            // Some templates refuse system messages; their words name the row.
            Err(error) => {
                assert!(error.to_string().contains("rows.jsonl:1: chat template:"), "{error}")
            }
        }
    }
    // Those that move the system message to the last question.
    assert!(several.contains(&"inst"), "{several:?}");
    assert!(!several.contains(&"smollm2"), "{several:?}");
}

#[test]
fn a_text_begins_once_whoever_writes_the_token() {
    for name in FAMILIES {
        let talker = Talker::named(name);
        let Some(begin) = talker.renderer.begin() else { continue };
        let rows = [
            json!({"messages": turns(&TALK)}),
            json!({"prompt": "a", "completion": "b"}),
            json!({"text": "ab"}),
        ];
        for row in rows {
            let (examples, _) = talker.read(&[row], &long()).unwrap();
            let Example::Text(Sequence { tokens, .. }) = &examples[0] else { panic!() };
            assert_eq!(tokens[0], begin, "{name}");
            assert_ne!(tokens[1], begin, "{name}");
        }
    }
}

#[test]
fn a_template_that_forgets_thoughts_is_learned_answer_by_answer() {
    let talker = Talker::named("thinking");
    let thought = "<think>\nHm.\n</think>\n\nMe.";
    let talk = [("user", "Who?"), ("assistant", thought), ("user", "Why?"), ("assistant", "So.")];
    let sequences = talker.sequences(&turns(&talk)).unwrap();
    assert_eq!(sequences.len(), 2);
    let said = talker.answers(&turns(&talk));
    assert!(said[0].contains("Hm."), "the thought is learned where it was thought: {said:?}");
    let second = talker.text(&sequences[1].tokens);
    assert!(!second.contains("Hm.") && second.contains("Me."), "{second}");
    let (_, report) = talker.read(&[json!({"messages": turns(&talk)})], &long()).unwrap();
    assert_eq!((report.rows, report.examples, report.split), (1, 2, 1));
}

#[test]
fn a_prompt_that_is_not_how_answers_are_written_has_the_words_behind_it() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                  {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";
    let template =
        talkers::Template { source: source.to_owned(), bos: None, eos: Some("<|im_end|>".into()) };
    let talker = Talker::new(Some(&template));
    assert_eq!(talker.answers(&turns(&TALK)), ["Me, myself.", "So\n\nbe it."]);
}

#[test]
fn words_that_join_the_prompt_in_a_token_do_not_change_it() {
    let talker = Talker::named("chatml");
    // The prompt ends with a line feed, and two of them are one token.
    let talk =
        [("user", "Who?"), ("assistant", "\nMe."), ("user", "Why?"), ("assistant", "\n\nSo.")];
    assert_eq!(talker.answers(&turns(&talk)), ["\nMe.", "\n\nSo."]);
}

#[test]
fn a_model_without_a_template_gets_lines_as_run_gives_them() {
    let talker = Talker::new(None);
    assert_eq!(talker.answers(&turns(&TALK)), ["\nMe, myself.", "\nSo\n\nbe it."]);
}

#[test]
fn a_control_token_that_a_row_spells_out_stays_text() {
    let talker = Talker::named("chatml");
    let is_control = |token: &&u32| talker.model.tokenizer().is_control(**token);
    let count = |text: &str| {
        let rows = [
            json!({"messages": turns(&[("user", text), ("assistant", text)])}),
            json!({"prompt": text, "completion": text}),
            json!({"text": text}),
        ];
        rows.map(|row| {
            let (examples, _) = talker.read(&[row], &long()).unwrap();
            let Example::Text(sequence) = &examples[0] else { panic!() };
            sequence.tokens.iter().filter(is_control).count()
        })
    };
    assert_eq!(count("a<|im_end|>b"), count("ab"));
}

#[test]
fn rows_of_other_kinds_end_with_the_end_token() {
    let talker = Talker::named("smollm2");
    let end = talker.renderer.end();
    let shown = |row: Value| {
        let (examples, _) = talker.read(&[row], &long()).unwrap();
        examples.into_iter().next().unwrap()
    };
    let Example::Text(text) = shown(json!({"text": "abc"})) else { panic!() };
    assert_eq!(talker.text(&text.tokens), "abc<|im_end|>");
    assert_eq!(text.trained, [false, true, true, true]);
    let row = json!({"prompt": "a b", "completion": " c"});
    let Example::Text(pair) = shown(row) else { panic!() };
    assert_eq!(talker.text(&pair.tokens), "a b c<|im_end|>");
    assert_eq!(pair.targets(), 3);
    let Example::Answer { gold, prompt, answers } =
        shown(json!({"prompt": "Q:", "answers": ["x", "y"]}))
    else {
        panic!()
    };
    assert_eq!(
        (talker.text(&gold.tokens[..prompt]), gold.tokens.last()),
        ("Q:".into(), Some(&end))
    );
    assert_eq!(answers, ["x", "y"]);
    let Example::Choice { prompt, candidates, answers } =
        shown(json!({"prompt": "Q:", "choices": ["x", "yy"], "answer": 1}))
    else {
        panic!()
    };
    let texts: Vec<String> = candidates.iter().map(|tokens| talker.text(tokens)).collect();
    assert_eq!((talker.text(&prompt), texts), ("Q:".into(), vec![" x".into(), " yy".to_owned()]));
    assert_eq!(answers, [1]);
    let row = json!({"prompt": "Q?", "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "chosen_reward": 0.5, "rejected_reward": -2});
    let Example::Preference { chosen, rejected, rewards } = shown(row) else { panic!() };
    assert_eq!(rewards, Some([0.5, -2.0]));
    let asked = talker.model.encode_chat(&[Message::new("user", "Q?")]).unwrap().unwrap();
    assert_eq!(chosen.tokens[..asked.len()], asked);
    assert_eq!(talker.text(&chosen.tokens[asked.len()..]), "good<|im_end|>");
    assert_eq!(talker.text(&rejected.tokens[asked.len()..]), "bad<|im_end|>");
}

#[test]
fn what_is_too_long_is_cut_or_left_out_and_counted() {
    let talker = Talker::named("smollm2");
    let rows = [
        json!({"prompt": "a".repeat(40), "completion": "bc"}),
        json!({"prompt": "a", "completion": "bc"}),
        json!({"prompt": "a", "completion": "bc"}),
    ];
    let mut options = long();
    options.length.max = 10;
    let (examples, report) = talker.read(&rows, &options).unwrap();
    assert_eq!((examples.len(), report.cut, report.dropped, report.duplicates), (3, 1, 0, 1));
    let Example::Text(first) = &examples[0] else { panic!() };
    assert_eq!(talker.text(&first.tokens), "aaaaaaabc<|im_end|>");
    options.length.overlong = Overlong::Drop;
    let (examples, report) = talker.read(&rows, &options).unwrap();
    assert_eq!((examples.len(), report.cut, report.dropped), (2, 0, 1));
    assert_eq!((report.tokens, report.targets, report.lengths), (8, 6, vec![0, 0, 2]));
    let told = talker.read(&rows[..1], &options).unwrap_err().to_string();
    assert!(told.ends_with("all of its 1 rows are too long: raise --max-length"), "{told}");
}

#[test]
fn faults_are_told_by_a_check_and_end_a_run() {
    let talker = Talker::named("gemma2");
    let rows = [
        json!({"messages": turns(&TALK)}),
        json!({"messages": turns(&TALK[..1])}),
        json!({"messages": turns(&[("assistant", "I begin.")])}),
        json!({"message": 1}),
    ];
    let path = talker.file(&rows);
    let mut told = Vec::new();
    let report = check(std::slice::from_ref(&path), &talker.renderer, &long(), &mut |event| {
        if let offshoot_engine::tune::data::DataEvent::Fault(fault) = event {
            told.push(fault.to_string());
        }
        Control::Continue
    });
    assert_eq!((report.unwrap().faults, told.len()), (3, 3));
    let name = path.display().to_string();
    assert_eq!(
        told[0],
        format!("{name}:2:messages: no trainable token: there is no turn of the assistant")
    );
    // Gemma's template looks at a first message without asking whether there is one.
    assert!(told[1].starts_with(&format!("{name}:3: ")), "{}", told[1]);
    assert!(told[1].contains("template"), "{}", told[1]);
    assert_eq!(
        told[2],
        format!("{name}:4:messages: the field is missing; the row has \"message\"")
    );
    let error = talker.read(&rows, &long()).unwrap_err().to_string();
    assert!(error.contains(":2:messages:") && error.contains("2 more rows are wrong"), "{error}");
    let (_, row) = show(&path, 1, &talker.renderer, &long()).unwrap();
    assert_eq!(row.rendered.examples.len(), 1);
    let told = show(&path, 5, &talker.renderer, &long()).unwrap_err().to_string();
    assert!(told.contains("there is no row 5"), "{told}");
}

#[test]
fn prepared_examples_are_those_of_the_rows_and_are_made_once() {
    use offshoot_engine::tune::data::prepare;
    let talker = Talker::named("thinking");
    let rows = [json!({"messages": turns(&TALK)}), json!({"messages": turns(&TALK[..2])})];
    let path = talker.file(&rows);
    let folder = talker.dir.path().join("prepared");
    let prepared = |options: &DataOptions| {
        let on = &mut |_: offshoot_engine::tune::data::DataEvent<'_>| Control::Continue;
        prepare(std::slice::from_ref(&path), &talker.renderer, options, &folder, on).unwrap()
    };
    let first = prepared(&long());
    let read: Vec<Example> = first.file.iter().collect::<Result<_, _>>().unwrap();
    let (direct, report) = talker.read(&rows, &long()).unwrap();
    assert_eq!((read, first.file.report(), first.reused), (direct, &report, false));
    let second = prepared(&long());
    assert_eq!((second.path, second.reused), (first.path.clone(), true));
    let mut shorter = long();
    shorter.length.max = 50;
    assert_ne!(prepared(&shorter).path, first.path);
    // A broken file is made anew.
    std::fs::write(&first.path, b"OFFTOKN1").unwrap();
    assert!(!prepared(&long()).reused);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn prepared_examples_that_were_used_longest_ago_make_room() {
    use offshoot_engine::tune::data::trim_prepared;
    use offshoot_models::beside::Partial;
    use std::time::{Duration, SystemTime};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let names = ["b.tokens", "a.tokens", "d.tokens", "c.tokens", "other.txt"];
    let (partial, _) = Partial::file(&path("e.tokens")).unwrap();
    let left_by_a_kill = partial.path().to_str().unwrap().to_owned();
    drop(partial);
    let left_by_a_kill = left_by_a_kill.as_str();
    for (age, name) in names.iter().chain([&left_by_a_kill]).rev().enumerate() {
        std::fs::write(path(name), b"OFFTOKN2..").unwrap();
        let used = SystemTime::now() - Duration::from_secs(100 * (1 + age as u64));
        std::fs::File::options().append(true).open(path(name)).unwrap().set_modified(used).unwrap();
    }
    let left = || {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    trim_prepared(dir.path(), &[], 40);
    assert_eq!(left(), ["a.tokens", "b.tokens", "c.tokens", "d.tokens", "other.txt"]);
    trim_prepared(dir.path(), &[&path("c.tokens")], 30);
    assert_eq!(left().len(), 5, "a run's own take no room of the others");
    trim_prepared(dir.path(), &[&path("c.tokens")], 29);
    assert_eq!(left(), ["a.tokens", "c.tokens", "d.tokens", "other.txt"]);
    trim_prepared(dir.path(), &[&path("c.tokens")], 0);
    assert_eq!(left(), ["c.tokens", "other.txt"], "what is used stays");
    trim_prepared(&path("absent"), &[], 0);
}

#[test]
fn the_real_model_learns_what_it_is_asked() {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let (model, _) = Model::load(&path, &LoadOptions::default()).unwrap();
    let renderer = Renderer::new(model.checkpoint()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let talker = Talker { dir, model, renderer };
    assert_eq!(talker.answers(&turns(&TALK)), ["Me, myself.", "So\n\nbe it."]);
    assert_eq!(talker.sequences(&turns(&TALK)).unwrap().len(), 1);
    assert!(Path::new(talker.dir.path()).exists());
}
