//! Keeping what people write from passing for what a chat template writes.
//!
//! A template puts a message's words between control tokens, as text. Words that spell out a control
//! token would become one when the whole is turned into ids: an answer ended early, a turn forged.
//! So while the template runs, each control token that a message spells out stands as one character
//! that nothing in the conversation has. A single character is neither cut in two by a template nor
//! taken for the token that it stands for, whatever field it came in.

use offshoot_models::Message;
use serde_json::Value;

/// Characters that mean nothing and that hardly any text has: the last private plane.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// The control tokens that a conversation spells out, each with the character that stands for it.
pub(crate) struct Disguise<'c> {
    stand_ins: Vec<(char, &'c str)>,
}

impl<'c> Disguise<'c> {
    /// What must be hidden of `messages` if `controls` are the texts of the control tokens.
    ///
    /// `None` if the conversation leaves no character to stand for it.
    pub(crate) fn of(messages: &[Message], controls: &'c [String]) -> Option<Self> {
        let mut words = Vec::new();
        messages.iter().for_each(|message| words_of(message, &mut words));
        let spelled: Vec<&str> = controls
            .iter()
            .map(String::as_str)
            .filter(|control| words.iter().any(|words| words.contains(control)))
            .collect();
        let mut free = STAND_INS.filter(|&c| {
            !words.iter().any(|words| words.contains(c)) && !controls.iter().any(|t| t.contains(c))
        });
        let pairs = spelled.into_iter().map(|control| Some((free.next()?, control)));
        Some(Self { stand_ins: pairs.collect::<Option<_>>()? })
    }

    /// The messages as the template is to see them.
    pub(crate) fn put_on(&self, messages: &[Message]) -> Vec<Message> {
        let mut messages = messages.to_vec();
        for message in &mut messages {
            self.hide(&mut message.role);
            let texts = [&mut message.content, &mut message.name, &mut message.tool_call_id];
            texts.into_iter().flatten().for_each(|text| self.hide(text));
            message.tool_calls.iter_mut().for_each(|calls| self.hide_in(calls));
            self.hide_in_fields(&mut message.extra);
        }
        messages
    }

    /// The words behind the stand-ins of a template's text.
    pub(crate) fn take_off(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for &(stand_in, control) in &self.stand_ins {
            if text.contains(stand_in) {
                text = text.replace(stand_in, control);
            }
        }
        text
    }

    fn hide(&self, text: &mut String) {
        for &(stand_in, control) in &self.stand_ins {
            if text.contains(control) {
                *text = text.replace(control, stand_in.encode_utf8(&mut [0; 4]));
            }
        }
    }

    fn hide_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => self.hide(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item)),
            Value::Object(fields) => self.hide_in_fields(fields),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Names of fields are a stranger's words too: those of a tool call's arguments.
    fn hide_in_fields(&self, fields: &mut serde_json::Map<String, Value>) {
        for (mut name, mut value) in std::mem::take(fields) {
            self.hide(&mut name);
            self.hide_in(&mut value);
            fields.insert(name, value);
        }
    }
}

/// Appends every string of a message.
fn words_of<'m>(message: &'m Message, words: &mut Vec<&'m str>) {
    words.push(&message.role);
    let texts = [&message.content, &message.name, &message.tool_call_id];
    words.extend(texts.into_iter().flatten().map(String::as_str));
    message.tool_calls.iter().for_each(|calls| words_in(calls, words));
    words_in_fields(&message.extra, words);
}

fn words_in<'m>(value: &'m Value, words: &mut Vec<&'m str>) {
    match value {
        Value::String(text) => words.push(text),
        Value::Array(items) => items.iter().for_each(|item| words_in(item, words)),
        Value::Object(fields) => words_in_fields(fields, words),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn words_in_fields<'m>(fields: &'m serde_json::Map<String, Value>, words: &mut Vec<&'m str>) {
    for (name, value) in fields {
        words.push(name);
        words_in(value, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn controls() -> Vec<String> {
        ["<s>", "<|im_end|>", "a<s>b", "!"].map(str::to_owned).to_vec()
    }

    fn everywhere(text: &str) -> Message {
        Message {
            role: format!("user{text}"),
            content: Some(format!("{text}x{text}")),
            name: Some(text.to_owned()),
            tool_calls: Some(json!([{"function": {"arguments": {text: [text, 1, null]}}}])),
            tool_call_id: Some(text.to_owned()),
            extra: [(text.to_owned(), json!({"reason": text}))].into_iter().collect(),
        }
    }

    #[test]
    fn a_conversation_that_spells_out_nothing_stays_as_it_is() {
        let messages = [everywhere("no control token \u{100000}")];
        let controls = controls();
        let disguise = Disguise::of(&messages, &controls).unwrap();
        assert!(disguise.stand_ins.is_empty());
        assert_eq!(disguise.put_on(&messages), messages);
    }

    proptest! {
        /// Of every field, names of arguments among them.
        #[test]
        fn no_string_of_a_disguised_message_spells_out_a_control_token(
            text in "(<s>|<\\|im_end\\|>|a|b|<|!|\u{100000}|\u{100001}|é){0,8}",
        ) {
            let (messages, controls) = ([everywhere(&text)], controls());
            let disguise = Disguise::of(&messages, &controls).unwrap();
            let hidden = disguise.put_on(&messages);
            let mut words = Vec::new();
            words_of(&hidden[0], &mut words);
            prop_assert!(words.len() >= 9);
            for words in words {
                prop_assert!(!controls.iter().any(|control| words.contains(control)), "{words}");
            }
            prop_assert_eq!(disguise.take_off(hidden[0].name.as_deref().unwrap()), text);
        }
    }
}
