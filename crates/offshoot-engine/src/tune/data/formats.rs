//! The formats of rows, each a function from a row to what it says.

use offshoot_models::Message;
use serde_json::{Map, Value};

use super::error::{Fault, Shown};
use super::record::{Record, Said};
use super::row::{Row, scalar};

/// Reads a row of a format.
pub(crate) type Parse = fn(&Row) -> Result<Record, Fault>;

pub(crate) fn text(row: &Row) -> Result<Record, Fault> {
    Ok(Record::Text(filled(row, "text")?.to_owned()))
}

pub(crate) fn completion(row: &Row) -> Result<Record, Fault> {
    let prompt = said(row, "prompt", "user")?;
    match (prompt, said(row, "completion", "assistant")?) {
        (Said::Text(prompt), Said::Text(completion)) => {
            filled(row, "completion")?;
            Ok(Record::Completion { prompt, completion })
        }
        (prompt, completion) => {
            let mut messages = turns(prompt, "user");
            let from = messages.len();
            messages.extend(turns(completion, "assistant"));
            chat(row, "completion", messages, from)
        }
    }
}

pub(crate) fn messages(row: &Row) -> Result<Record, Fault> {
    no_tools(row)?;
    let messages = message_list(row, "messages")?;
    chat(row, "messages", messages, 0)
}

pub(crate) fn sharegpt(row: &Row) -> Result<Record, Fault> {
    no_tools(row)?;
    let mut messages = message_list(row, "conversations")?;
    if let Some(system) = row.optional_text("system")?.filter(|text| !text.is_empty()) {
        messages.insert(0, Message::new("system", system));
    }
    chat(row, "conversations", messages, 0)
}

pub(crate) fn alpaca(row: &Row) -> Result<Record, Fault> {
    let mut messages = Vec::new();
    if let Some(system) = row.optional_text("system")?.filter(|text| !text.is_empty()) {
        messages.push(Message::new("system", system));
    }
    if row.get("history").is_some() {
        for (i, pair) in row.list("history")?.iter().enumerate() {
            match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(asked), Value::String(said)]) => {
                    messages.push(Message::new("user", asked.as_str()));
                    messages.push(Message::new("assistant", said.as_str()));
                }
                _ => {
                    let field = format!("history[{i}]");
                    return Err(row.expected(&field, "a pair of texts", pair));
                }
            }
        }
    }
    // As LLaMA-Factory: the input stands below the instruction.
    let mut asked = filled(row, "instruction")?.to_owned();
    if let Some(input) = row.optional_text("input")?.filter(|text| !text.is_empty()) {
        asked = format!("{asked}\n{input}");
    }
    messages.push(Message::new("user", asked));
    messages.push(Message::new("assistant", filled(row, "output")?));
    Ok(Record::Chat { messages, from: 0 })
}

pub(crate) fn choices(row: &Row) -> Result<Record, Fault> {
    let prompt = said(row, "prompt", "user")?;
    let list = row.list("choices")?;
    let text = |(i, value): (usize, &Value)| {
        let text = scalar(value).filter(|text| !text.is_empty());
        text.ok_or_else(|| row.expected(&format!("choices[{i}]"), "a text", value))
    };
    let choices = list.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
    if choices.len() < 2 {
        let what = format!("{} choices, expected at least two", choices.len());
        return Err(row.fault("choices", what));
    }
    let answer = row.need("answer")?;
    let answers = match answer {
        Value::Array(items) => items.iter().map(|item| place(row, item, &choices)).collect(),
        one => place(row, one, &choices).map(|at| vec![at]),
    };
    let mut answers: Vec<usize> = answers?;
    answers.sort_unstable();
    answers.dedup();
    if answers.is_empty() {
        return Err(row.fault("answer", "no choice is right"));
    }
    let candidates = choices.into_iter().map(|text| spaced(&prompt, text)).collect();
    Ok(Record::Choice { prompt, candidates, answers })
}

/// The number of the choice that `answer` names, from 0: a number, or the choice's own text.
fn place(row: &Row, answer: &Value, choices: &[String]) -> Result<usize, Fault> {
    let number = match answer {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match choices.iter().position(|choice| choice == text) {
            Some(at) => Some(at as u64),
            None => text.trim().parse().ok(),
        },
        _ => None,
    };
    let fits = number.and_then(|n| usize::try_from(n).ok()).filter(|&n| n < choices.len());
    fits.ok_or_else(|| {
        let expected = format!("a number from 0 to {} or a choice's text", choices.len() - 1);
        row.expected("answer", &expected, answer)
    })
}

pub(crate) fn answers(row: &Row) -> Result<Record, Fault> {
    let prompt = said(row, "prompt", "user")?;
    let answers = texts(row, "answers")?;
    let separator = spaced(&prompt, answers[0].clone());
    let separator = separator[..separator.len() - answers[0].len()].to_owned();
    Ok(Record::Answer { prompt, separator, answers, end: None })
}

pub(crate) fn preference(row: &Row) -> Result<Record, Fault> {
    no_tools(row)?;
    let (chosen, rejected) = (said(row, "chosen", "")?, said(row, "rejected", "")?);
    let (prompt, chosen, rejected) = match row.get("prompt") {
        Some(_) => (said(row, "prompt", "user")?, chosen, rejected),
        None => implicit(row, chosen, rejected)?,
    };
    if chosen == rejected {
        return Err(row.fault("rejected", "is the same as chosen: there is nothing to prefer"));
    }
    // Where one is a conversation, all are.
    let talks = [&prompt, &chosen, &rejected].iter().any(|said| matches!(said, Said::Turns(_)));
    let (prompt, chosen, rejected) = match talks {
        false => (prompt, chosen, rejected),
        true => {
            let given = turns(prompt, "user");
            let (chosen, rejected) = (turns(chosen, "assistant"), turns(rejected, "assistant"));
            // What TRL's sets have: both sides repeat the question.
            let behind = |side: Vec<Message>| match side.strip_prefix(&given[..]) {
                Some(rest) if !rest.is_empty() => rest.to_vec(),
                _ => side,
            };
            let sides = (Said::Turns(behind(chosen)), Said::Turns(behind(rejected)));
            (Said::Turns(given), sides.0, sides.1)
        }
    };
    for (field, side) in [("chosen", &chosen), ("rejected", &rejected)] {
        let said = match side {
            Said::Text(text) => !text.is_empty(),
            Said::Turns(turns) => turns.iter().any(|turn| turn.role == "assistant"),
        };
        if !said {
            return Err(row.fault(field, "says nothing of the assistant's"));
        }
    }
    Ok(Record::Preference { prompt, chosen, rejected, rewards: rewards(row)? })
}

/// What both sides begin with, where no field says it, as TRL's `extract_prompt` finds it.
fn implicit(row: &Row, chosen: Said, rejected: Said) -> Result<(Said, Said, Said), Fault> {
    match (chosen, rejected) {
        (Said::Turns(chosen), Said::Turns(rejected)) => {
            let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
            let (given, chosen) = chosen.split_at(same);
            let (given, chosen) = (given.to_vec(), chosen.to_vec());
            Ok((Said::Turns(given), Said::Turns(chosen), Said::Turns(rejected[same..].to_vec())))
        }
        (Said::Text(chosen), Said::Text(rejected)) => {
            let pairs = chosen.char_indices().zip(rejected.chars());
            let same = pairs.take_while(|((_, a), b)| a == b);
            let mut at = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
            // A space that both begin with is theirs, since tokens begin with it.
            if chosen[..at].ends_with(' ') {
                at -= 1;
            }
            let text = |text: &str| Said::Text(text.to_owned());
            Ok((text(&chosen[..at]), text(&chosen[at..]), text(&rejected[at..])))
        }
        _ => Err(row.fault("rejected", "chosen and rejected are of different kinds")),
    }
}

fn rewards(row: &Row) -> Result<Option<[f64; 2]>, Fault> {
    let number = |field: &str| {
        let value = row.get(field);
        let number = value.map(|value| value.as_f64().filter(|x| x.is_finite()));
        match (value, number) {
            (Some(value), Some(None)) => Err(row.expected(field, "a number", value)),
            (_, number) => Ok(number.flatten()),
        }
    };
    match (number("chosen_reward")?, number("rejected_reward")?) {
        (Some(chosen), Some(rejected)) => Ok(Some([chosen, rejected])),
        (None, None) => Ok(None),
        (Some(_), None) => Err(row.fault("rejected_reward", "is missing beside chosen_reward")),
        (None, Some(_)) => Err(row.fault("chosen_reward", "is missing beside rejected_reward")),
    }
}

/// A conversation in which something can be learned from turn `from` on.
fn chat(row: &Row, field: &str, messages: Vec<Message>, from: usize) -> Result<Record, Fault> {
    if messages.is_empty() {
        return Err(row.fault(field, "the conversation has no messages"));
    }
    if !messages[from..].iter().any(|message| message.role == "assistant") {
        let what = "no trainable token: there is no turn of the assistant";
        return Err(row.fault(field, what));
    }
    for (i, message) in messages.iter().enumerate().skip(from) {
        let content = message.content.as_deref().unwrap_or_default();
        if message.role == "assistant" && content.trim().is_empty() {
            let what = "no trainable token: the assistant's turn is empty";
            let i = if field == "completion" { i - from } else { i };
            return Err(row.fault(&format!("{field}[{i}].content"), what));
        }
    }
    Ok(Record::Chat { messages, from })
}

/// Texts of `field`, at least one, none of them empty.
pub(crate) fn texts(row: &Row, field: &str) -> Result<Vec<String>, Fault> {
    let value = row.need(field)?;
    let list = match value {
        Value::String(text) if !text.trim_start().starts_with('[') => vec![value.clone()],
        Value::Number(_) | Value::Bool(_) => vec![value.clone()],
        _ => row.list(field)?,
    };
    let mut texts = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let text = scalar(value).filter(|text| !text.trim().is_empty());
        let field = format!("{field}[{i}]");
        texts.push(text.ok_or_else(|| row.expected(&field, "a text that is not empty", value))?);
    }
    match texts.is_empty() {
        true => Err(row.fault(field, "the list is empty")),
        false => Ok(texts),
    }
}

/// The text of `field`, which says something.
fn filled<'r>(row: &'r Row, field: &str) -> Result<&'r str, Fault> {
    let text = row.text(field)?;
    match text.trim().is_empty() {
        true => Err(row.fault(field, "no trainable token: the text is empty")),
        false => Ok(text),
    }
}

/// A text, or a list of messages; `speaker` is whose words a text would be.
fn said(row: &Row, field: &str, speaker: &str) -> Result<Said, Fault> {
    let value = row.need(field)?;
    match value {
        Value::String(text) if !text.trim_start().starts_with("[{") => Ok(Said::Text(text.clone())),
        Value::String(text) if serde_json::from_str::<Vec<Map<String, Value>>>(text).is_err() => {
            Ok(Said::Text(text.clone()))
        }
        Value::Array(_) | Value::String(_) => Ok(Said::Turns(message_list(row, field)?)),
        // One message where a list of one is meant.
        Value::Object(_) if !speaker.is_empty() => {
            Ok(Said::Turns(vec![message(row, field, value)?]))
        }
        other => Err(row.expected(field, "a text or a list of messages", other)),
    }
}

fn turns(said: Said, speaker: &str) -> Vec<Message> {
    match said {
        Said::Turns(turns) => turns,
        Said::Text(text) if text.is_empty() => Vec::new(),
        Said::Text(text) => vec![Message::new(speaker, text)],
    }
}

/// A continuation with the space that stands before it, unless there is one.
pub(crate) fn spaced(prompt: &Said, text: String) -> String {
    let needed = match prompt {
        // Behind a template's prompt the answer begins at once.
        Said::Turns(_) => false,
        Said::Text(prompt) => {
            !prompt.is_empty()
                && !prompt.ends_with(char::is_whitespace)
                && !text.starts_with(char::is_whitespace)
        }
    };
    if needed { format!(" {text}") } else { text }
}

fn no_tools(row: &Row) -> Result<(), Fault> {
    let empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::String(text) => matches!(text.trim(), "" | "[]"),
        _ => false,
    };
    match row.get("tools").filter(|tools| !empty(tools)) {
        Some(_) => Err(row.fault("tools", NO_TOOLS)),
        None => Ok(()),
    }
}

const NO_TOOLS: &str =
    "tools and their calls are not supported in training data: leave such rows out";

fn message_list(row: &Row, field: &str) -> Result<Vec<Message>, Fault> {
    let list = row.list(field)?;
    list.iter().enumerate().map(|(i, m)| message(row, &format!("{field}[{i}]"), m)).collect()
}

/// A message of `role` and `content`, or of `from` and `value`.
fn message(row: &Row, field: &str, value: &Value) -> Result<Message, Fault> {
    let Some(fields) = value.as_object() else {
        return Err(row.expected(field, "a message", value));
    };
    let text = |names: [&str; 2]| {
        let found = names.iter().find_map(|&name| Some((name, fields.get(name)?)));
        let (name, value) = found
            .ok_or_else(|| row.fault(&format!("{field}.{}", names[0]), "the field is missing"))?;
        let at = format!("{field}.{name}");
        let text = words(value).ok_or_else(|| row.expected(&at, "a text", value))?;
        Ok((at, text))
    };
    let calls = ["tool_calls", "function_call"].iter().find(|&&name| {
        fields.get(name).is_some_and(|calls| !calls.is_null() && *calls != Value::Array(vec![]))
    });
    if let Some(name) = calls {
        return Err(row.fault(&format!("{field}.{name}"), NO_TOOLS));
    }
    let (at, role) = text(["role", "from"])?;
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" | "model" | "bot" | "chatgpt" => "assistant",
        "tool" | "function" | "function_call" | "observation" => {
            return Err(row.fault(&at, NO_TOOLS));
        }
        other => {
            let what = format!("the role {}: expected system, user or assistant", Shown(other));
            return Err(row.fault(&at, what));
        }
    };
    let mut message = Message::new(role, text(["content", "value"])?.1);
    // What templates know beside the words.
    if let Some(Value::String(thought)) = fields.get("reasoning_content") {
        message.extra.insert("reasoning_content".to_owned(), thought.clone().into());
    }
    Ok(message)
}

/// The words of a message: a text, or parts of which all are texts.
fn words(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part.get("type").and_then(Value::as_str) {
                Some("text") => part.get("text").and_then(Value::as_str),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::tune::data::{Count, Format, Place};

    fn row(value: Value) -> Row {
        let Value::Object(fields) = value else { unreachable!("tests write objects") };
        let file: Arc<Path> = Arc::from(Path::new("set.jsonl"));
        Row { place: Place { file, count: Count::Line, number: 7 }, fields }
    }

    fn chat_of(turns: &[(&str, &str)]) -> Record {
        let messages = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        Record::Chat { messages, from: 0 }
    }

    #[test]
    fn formats_say_the_same_in_their_own_fields() {
        let expected = chat_of(&[("system", "S"), ("user", "Q\nI"), ("assistant", "A")]);
        let rows = [
            (
                Format::Alpaca,
                json!({"instruction": "Q", "input": "I", "output": "A", "system": "S"}),
            ),
            (
                Format::ShareGpt,
                json!({"conversations": [{"from": "system", "value": "S"},
                    {"from": "human", "value": "Q\nI"}, {"from": "gpt", "value": "A"}]}),
            ),
            (
                Format::Messages,
                json!({"messages": [{"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "text", "text": "Q\n"},
                        {"type": "text", "text": "I"}]},
                    {"role": "assistant", "content": "A"}]}),
            ),
            // As a table has them.
            (
                Format::Messages,
                json!({"messages": "[{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \
                    \"user\", \"content\": \"Q\\nI\"}, {\"role\": \"assistant\", \"content\": \
                    \"A\"}]"}),
            ),
        ];
        for (format, value) in rows {
            assert_eq!(format.parse(&row(value)), Ok(expected.clone()), "{format}");
        }
    }

    #[test]
    fn a_history_becomes_turns_before_the_question() {
        let value = json!({"instruction": "Q", "output": "A", "input": "",
            "history": [["q1", "a1"], ["q2", "a2"]]});
        let turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")];
        let expected = chat_of(&[&turns[..], &[("user", "Q"), ("assistant", "A")]].concat());
        assert_eq!(Format::Alpaca.parse(&row(value)), Ok(expected));
    }

    #[test]
    fn preferences_without_a_prompt_share_what_both_begin_with() {
        let value = json!({"chosen": "The sky is blue.", "rejected": "The sky is green.",
            "chosen_reward": 1.5, "rejected_reward": -1});
        let said = |text: &str| Said::Text(text.to_owned());
        let expected = Record::Preference {
            prompt: said("The sky is"),
            chosen: said(" blue."),
            rejected: said(" green."),
            rewards: Some([1.5, -1.0]),
        };
        assert_eq!(Format::Preference.parse(&row(value)), Ok(expected));
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let talks = |prompt: bool| {
            let mut value = json!({
                "chosen": [turn("user", "Q"), turn("assistant", "good")],
                "rejected": [turn("user", "Q"), turn("assistant", "bad")],
            });
            if prompt {
                value["prompt"] = json!("Q");
            }
            Format::Preference.parse(&row(value)).unwrap()
        };
        assert_eq!(talks(true), talks(false));
    }

    #[test]
    fn every_fault_names_the_field_and_what_to_do() {
        let user = json!({"role": "user", "content": "Q"});
        for (format, value, told) in [
            (Format::Text, json!({"txt": "a"}), "text: the field is missing; the row has \"txt\""),
            (Format::Text, json!({"text": 3}), "text: expected a text, got 3"),
            (Format::Text, json!({"text": " \n"}), "text: no trainable token: the text is empty"),
            (
                Format::Text,
                json!({"text": null}),
                "text: the field is missing; the row has \"text\"",
            ),
            (
                Format::Completion,
                json!({"prompt": "a", "completion": ""}),
                "completion: no trainable token: the text is empty",
            ),
            (
                Format::Completion,
                json!({"prompt": 1, "completion": "b"}),
                "prompt: expected a text or a list of messages, got 1",
            ),
            (
                Format::Messages,
                json!({"messages": []}),
                "messages: the conversation has no messages",
            ),
            (
                Format::Messages,
                json!({"messages": "hello"}),
                "messages: expected a list, got \"hello\"",
            ),
            (
                Format::Messages,
                json!({"messages": [user]}),
                "messages: no trainable token: there is no turn of the assistant",
            ),
            (
                Format::Messages,
                json!({"messages": [{"role": "assistant", "content": ""}]}),
                "messages[0].content: no trainable token: the assistant's turn is empty",
            ),
            (
                Format::Messages,
                json!({"messages": [user, {"role": "king\n", "content": "A"}]}),
                "messages[1].role: the role \"king\\n\": expected system, user or assistant",
            ),
            (
                Format::Messages,
                json!({"messages": [user, {"content": "A"}]}),
                "messages[1].role: the field is missing",
            ),
            (
                Format::Messages,
                json!({"messages": [user, {"role": "assistant", "content": 5}]}),
                "messages[1].content: expected a text, got 5",
            ),
            (
                Format::Messages,
                json!({"messages": [{"role": "user", "content": [{"type":
                "image"}]}]}),
                "messages[0].content: expected a text, got a list of 1",
            ),
            (
                Format::Messages,
                json!({"messages": [user], "tools": [{}]}),
                "tools: tools and their calls are not supported in training data: leave such rows \
                 out",
            ),
            (
                Format::ShareGpt,
                json!({"conversations": [{"from": "human", "value": "Q"},
                {"from": "observation", "value": "x"}]}),
                "conversations[1].from: tools and their calls are not supported in training data: \
                 leave such rows out",
            ),
            (
                Format::Choices,
                json!({"prompt": "a", "choices": ["x"], "answer": 0}),
                "choices: 1 choices, expected at least two",
            ),
            (
                Format::Choices,
                json!({"prompt": "a", "choices": ["x", "y"], "answer": 2}),
                "answer: expected a number from 0 to 1 or a choice's text, got 2",
            ),
            (
                Format::Choices,
                json!({"prompt": "a", "choices": ["x", ""], "answer": 0}),
                "choices[1]: expected a text, got \"\"",
            ),
            (Format::Answers, json!({"prompt": "a", "answers": []}), "answers: the list is empty"),
            (
                Format::Answers,
                json!({"prompt": "a", "answers": ["x", {}]}),
                "answers[1]: expected a text that is not empty, got an object of 0 fields",
            ),
            (
                Format::Alpaca,
                json!({"instruction": "a", "output": "b", "history": [["x"]]}),
                "history[0]: expected a pair of texts, got a list of 1",
            ),
            (
                Format::Preference,
                json!({"chosen": "a", "rejected": "a"}),
                "rejected: is the same as chosen: there is nothing to prefer",
            ),
            (
                Format::Preference,
                json!({"prompt": "p", "chosen": "a", "rejected": ""}),
                "rejected: says nothing of the assistant's",
            ),
            (
                Format::Preference,
                json!({"chosen": "a", "rejected": "b", "chosen_reward": "x"}),
                "chosen_reward: expected a number, got \"x\"",
            ),
            (
                Format::Preference,
                json!({"chosen": "a", "rejected": "b", "chosen_reward": 1}),
                "rejected_reward: is missing beside chosen_reward",
            ),
        ] {
            let fault = format.parse(&row(value)).unwrap_err().to_string();
            assert_eq!(fault, format!("set.jsonl:7:{told}"));
        }
    }

    #[test]
    fn choices_are_named_by_number_or_by_their_text() {
        for answer in [json!(1), json!("1"), json!("yes"), json!([1]), json!(["yes", 1])] {
            let value = json!({"prompt": "Is it?", "choices": ["no", "yes"], "answer": answer});
            let expected = Record::Choice {
                prompt: Said::Text("Is it?".to_owned()),
                candidates: vec![" no".to_owned(), " yes".to_owned()],
                answers: vec![1],
            };
            assert_eq!(Format::Choices.parse(&row(value)), Ok(expected));
        }
    }
}
