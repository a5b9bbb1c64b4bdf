//! What chat templates make of conversations, for `scripts/oracles/templates.py --published`.
//!
//! Standard input holds JSON as `tests/data/templates.json`; standard output gets, for each
//! template, a text, the template's own refusal or a failure for each conversation.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, SystemTime};

use offshoot_models::{ChatTemplate, Message, RenderOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Input {
    now: u64,
    cases: Vec<Case>,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    options: Map<String, Value>,
}

#[derive(Deserialize)]
struct Template {
    source: String,
    bos: Option<String>,
    eos: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let input: Input = serde_json::from_reader(std::io::stdin().lock())?;
    let mut output = Map::new();
    for (name, template) in &input.templates {
        let Template { source, bos, eos } = template;
        let template = ChatTemplate::new(source, bos.as_deref(), eos.as_deref())?;
        let results = input.cases.iter().map(|case| result(&template, case, input.now));
        output.insert(name.clone(), results.collect());
    }
    serde_json::to_writer(std::io::stdout().lock(), &output)?;
    Ok(())
}

fn result(template: &ChatTemplate, case: &Case, now: u64) -> Value {
    let mut extra = case.options.clone();
    let tools = extra.shift_remove("tools").filter(|tools| !tools.is_null());
    let prompt = extra.shift_remove("add_generation_prompt");
    let options = RenderOptions {
        tools: tools.as_ref(),
        add_generation_prompt: prompt != Some(Value::Bool(false)),
        extra,
        now: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(now)),
    };
    match template.render(&case.messages, &options) {
        Ok(text) => json!({ "text": text }),
        Err(offshoot_models::Error::Template(words)) => json!({ "refuses": words }),
        Err(_) => json!({ "fails": true }),
    }
}
