use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::tune::data::{Count, Place};

fn row(value: Value) -> Row {
    let Value::Object(fields) = value else { unreachable!("tests write objects") };
    let file: Arc<Path> = Arc::from(Path::new("set.csv"));
    Row { place: Place { file, count: Count::Line, number: 2 }, fields }
}

fn parse(task: &str, value: Value) -> Result<Record, String> {
    let task = Task::find(task).unwrap();
    task.parse_row(&row(value)).map_err(|fault| fault.to_string())
}

/// The prompt with the right continuation, `|` between them.
fn written(task: &str, value: Value) -> String {
    match parse(task, value).unwrap() {
        Record::Choice { prompt: Said::Text(prompt), candidates, answers } => {
            format!("{prompt}|{}", candidates[answers[0]])
        }
        Record::Answer { prompt: Said::Text(prompt), separator, answers, end } => {
            format!("{prompt}|{separator}{}{}", answers[0], end.unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn built_in_tasks_write_what_mezo_writes() {
    for (task, value, expected) in [
        ("sst2", json!({"sentence": "a fine film ", "label": 1}), "a fine film It was| great"),
        ("sst2", json!({"sentence": "a bore", "label": "0"}), "a bore It was| terrible"),
        ("sst5", json!({"text": "so so", "label": 2.0}), "so so It was| okay"),
        (
            "rte",
            json!({"premise": "P.", "hypothesis": "H.", "label": 0}),
            "P.\nDoes this mean that \"H.\" is true? Yes or No?|\nYes",
        ),
        (
            "cb",
            json!({"premise": "P.", "hypothesis": "H", "label": 2}),
            "Suppose P. Can we infer that \"H\"? Yes, No, or Maybe?|\nMaybe",
        ),
        (
            "boolq",
            json!({"passage": "P.", "question": "is it so", "label": true}),
            "P. Is it so?|\nYes",
        ),
        (
            "wsc",
            json!({"text": "T.", "span1_text": "the cat", "span2_text": "It", "label": 0}),
            "T.\nIn the previous sentence, does the pronoun \"it\" refer to the cat? Yes or \
             No?|\nNo",
        ),
        (
            "wic",
            json!({"word": "bank", "sentence1": "A", "sentence2": "B", "label": 1}),
            "Does the word \"bank\" have the same meaning in these two sentences? Yes, \
             No?\nA\nB|\nYes",
        ),
        (
            "multirc",
            json!({"paragraph": "P", "question": "Q?", "answer": "A", "label": 0}),
            "P\nQuestion: Q?\nI found this answer \"A\". Is that correct? Yes or No?|\nNo",
        ),
        (
            "copa",
            json!({"premise": "It rained.", "question": "effect", "choice1": "The sun shone.",
            "choice2": "I got wet.", "label": 1}),
            "It rained so| I got wet.",
        ),
        (
            "copa",
            json!({"premise": "It rained.", "question": "cause", "choice1": "The sun shone.",
            "choice2": "I got wet.", "label": 0}),
            "It rained because| the sun shone.",
        ),
        (
            "record",
            json!({"passage": "P\n@highlight\nH", "query": "Q @placeholder Q",
            "entities": ["A", "B"], "answers": ["B"]}),
            "P\n- H\n-| Q B Q",
        ),
        (
            "squad",
            json!({"title": "T", "context": "C", "question": " Q? ",
            "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}),
            "Title: T\nContext: C\nQuestion: Q?\nAnswer:| a\n",
        ),
        (
            "drop",
            json!({"passage": "P", "question": "Q?", "answers_spans": {"spans": ["7"]}}),
            "Passage: P\nQuestion: Q?\nAnswer:| 7\n",
        ),
        (
            "winogrande",
            json!({"sentence": "Ann fed Eve since _ was kind.", "option1": "Ann",
            "option2": "Eve", "answer": "1"}),
            "Ann fed Eve since| Ann was kind.",
        ),
        (
            "trec",
            json!({"text": "Who is it ?", "coarse_label": 3}),
            "Question: Who is it ?\nType:| Human",
        ),
        (
            "snli",
            json!({"premise": "P.", "hypothesis": "H", "label": 1}),
            "Suppose P. Can we infer that \"H\"? Yes, No, or Maybe?|\nMaybe",
        ),
        (
            "mnli",
            json!({"premise": "P.", "hypothesis": "H", "label": "contradiction"}),
            "Suppose P. Can we infer that \"H\"? Yes, No, or Maybe?|\nNo",
        ),
    ] {
        assert_eq!(written(task, value), expected, "{task}");
    }
}

#[test]
fn every_built_in_task_is_sound_and_has_a_name_of_its_own() {
    let tasks = table();
    tasks.iter().for_each(|task| assert_eq!(task.validate(), Ok(()), "{}", task.name));
    let mut names = Task::built_in();
    assert_eq!(names.len(), 16);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 16);
    assert_eq!(Task::find("squad").unwrap().metric(), Metric::TokenF1);
    assert_eq!(Task::find("copa").unwrap().metric(), Metric::Accuracy);
}

#[test]
fn faults_of_rows_name_the_field() {
    for (task, value, told) in [
        (
            "sst2",
            json!({"sentence": "a", "label": 7}),
            "set.csv:2:label: the label \"7\": expected 0, negative, 1, positive",
        ),
        (
            "sst2",
            json!({"sentence": "a", "label": -1}),
            "set.csv:2:label: -1 marks the unlabelled rows of a hidden test set: leave them out",
        ),
        (
            "sst2",
            json!({"label": 1}),
            "set.csv:2:sentence: the field is missing; the row has \"label\"",
        ),
        (
            "winogrande",
            json!({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}),
            "set.csv:2:sentence: \"_\" is not in the text",
        ),
        (
            "winogrande",
            json!({"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}),
            "set.csv:2:answer: expected 1 to 2, got \"\"",
        ),
        (
            "record",
            json!({"passage": "P", "query": "Q", "entities": ["A", "B"], "answers": ["C"]}),
            "set.csv:2:answers: none of them is among entities",
        ),
        (
            "squad",
            json!({"title": "T", "context": "C", "question": "Q", "answers": {"text": []}}),
            "set.csv:2:answers.text: the list is empty",
        ),
    ] {
        assert_eq!(parse(task, value).unwrap_err(), told);
    }
}

#[test]
fn a_task_that_is_none_is_told_on_one_line() {
    let sound = "name = \"s\"\ntemplate = \"{text}\"\n";
    let two =
        "verbalizers = [{ labels = [\"0\"], text = \"a\" }, { labels = [\"1\"], text = \"b\" }]";
    assert!(Task::parse(&format!("{sound}{two}")).is_ok());
    for (source, part) in [
        (sound.to_owned(), "expected one of verbalizers, choices"),
        (format!("{sound}answers = \"a\"\n{two}"), "expected one of verbalizers, choices"),
        (format!("{sound}choices = [\"a\"]"), "at least two"),
        (format!("{sound}{}", two.replace('1', "0")), "\"0\" has two verbalizers"),
        (format!("{sound}temlate = \"x\"\n{two}"), "line 3: unknown field `temlate`"),
        (format!("name = \"s\"\ntemplate = \"{{text\"\n{two}"), "line 2: a brace alone"),
        (format!("{sound}\"t\\rm\" = 1\n{two}"), "unknown field `t\\rm`"),
        (format!("{sound}metric = \"bleu\"\n{two}"), "line 3: unknown variant `bleu`"),
        (format!("{sound}answers = \"a\"\nmax_new_tokens = 0"), "max_new_tokens is 0"),
        ("name = ".to_owned(), "line 1"),
    ] {
        let told = Task::parse(&source).unwrap_err();
        assert!(told.contains(part) && !told.contains(char::is_control), "{told}");
    }
    let told = Task::find("sst9").unwrap_err().to_string();
    assert!(told.contains("is not built in; there are sst2, sst5, rte"), "{told}");
}
