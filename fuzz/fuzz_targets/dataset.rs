//! Parses bytes as a file of prepared examples; as they are, and as a task and a line of its data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_engine::tune::Example;
use offshoot_engine::tune::data::{Task, TokenFile};

fuzz_target!(|bytes: &[u8]| {
    match TokenFile::parse(bytes) {
        Ok(file) => {
            for example in file.iter().take(1 << 12) {
                match example {
                    Ok(example) => sound(&example),
                    Err(error) => one_line(&error),
                }
            }
        }
        Err(error) => one_line(&error),
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = Task::parse(text)
    {
        one_line(&error);
    }
});

/// What training relies on without asking.
fn sound(example: &Example) {
    match example {
        Example::Text(sequence) => {
            assert_eq!(sequence.tokens.len(), sequence.trained.len());
            assert!(!sequence.trained[0]);
        }
        Example::Choice { prompt, candidates, answers } => {
            assert!(!prompt.is_empty() && candidates.len() >= 2 && !answers.is_empty());
            assert!(answers.iter().all(|&answer| answer < candidates.len()));
        }
        Example::Answer { gold, prompt, answers } => {
            assert!(*prompt < gold.tokens.len() && !answers.is_empty());
        }
        Example::Preference { chosen, rejected, rewards } => {
            assert!(!chosen.trained[0] && !rejected.trained[0]);
            assert!(rewards.iter().flatten().all(|reward| reward.is_finite()));
        }
    }
}

fn one_line(text: &str) {
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
}
