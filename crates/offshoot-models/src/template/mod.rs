//! Chat templates: a conversation to the text that a model was trained on.
//!
//! A model file carries its template as Jinja source. It is rendered as transformers does
//! (<https://huggingface.co/docs/transformers/chat_templating>): `trim_blocks`, `lstrip_blocks`,
//! loop controls, Python's string methods, `tojson` as `json.dumps`, `raise_exception`,
//! `strftime_now`, and `{% generation %}` tags.
//!
//! A template is somebody else's program. It reads nothing but the conversation, and it runs on
//! fuel: each step and each 64 bytes it makes use some, so its memory is bounded and, nearly always,
//! its time. What takes time without fuel is ended by the clock.

mod generation;
mod json;
mod limits;
mod namespaces;

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use limits::{Broken, Printed};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use namespaces::Namespaces;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Longest source that is compiled; published ones are under 20 KB.
const SOURCE_LIMIT: usize = 64 << 10;
/// Fuel of every render; a short chat uses some hundreds.
const FUEL: usize = 200_000;
/// Further fuel for each message.
const FUEL_PER_MESSAGE: usize = 500;
/// Bytes of the conversation that give one further fuel.
const BYTES_PER_FUEL: usize = 4;
/// Fuel of any render at most: some 64 MB of data, or values nested 130 thousand deep.
const FUEL_LIMIT: usize = 1_000_000;
/// Bytes that every render may print.
const OUTPUT_LIMIT: usize = 4 << 20;
/// Further bytes for each byte of the conversation.
const OUTPUT_PER_BYTE: usize = 16;
/// Calls, includes and blocks within each other, weighted by their cost in stack.
const RECURSION_LIMIT: usize = 200;
/// The name under which the source is compiled; it has no ending that would turn escaping on.
const NAME: &str = "chat";

/// One message of a conversation.
///
/// Fields that are absent are absent for the template, too; `content` alone is always there, as
/// none where a message has only tool calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: Option<String>,
    /// Name of the speaker or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tool calls of an assistant, in the form that templates know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
    /// The call that a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Further fields for the template, such as `reasoning_content`, in order.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            name: None,
            tool_calls: None,
            tool_call_id: None,
            extra: serde_json::Map::new(),
        }
    }
}

/// What a template is told besides the conversation.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions<'a> {
    /// Tools that the model may call: a list of JSON schemas.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether to end with the start of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, `enable_thinking` for one; they replace the template's others.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The time of `strftime_now`, shown in UTC; without it the system's, in local time.
    pub now: Option<SystemTime>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    /// Whether a render did not end in time: its thread may still run, so there is no second one.
    late: AtomicBool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::BrokenTemplate`] on a source that is no template, is too long, or is nested too
    /// deeply.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, Error> {
        if source.len() > SOURCE_LIMIT {
            return Err(Error::BrokenTemplate(format!(
                "the source has {} bytes, at most {SOURCE_LIMIT} are taken",
                source.len()
            )));
        }
        let source = generation::without_generation_tags(source).into_owned();
        let environment = limits::run(move || {
            let mut environment = environment()?;
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        })?;
        Ok(Self {
            environment: environment.map_err(|e: minijinja::Error| reason(&e))?,
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
            late: AtomicBool::new(false),
        })
    }

    /// The text of `messages`.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own words if it refuses the conversation;
    /// [`Error::BrokenTemplate`] with place and reason if it is wrong, and when it has used up its
    /// fuel or printed too much.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, Error> {
        let messages = serde_json::to_value(messages)
            .map_err(|e| Error::Template(format!("a message cannot be given to it: {e}")))?;
        let size = size_of(&messages) + options.tools.map_or(0, size_of);
        let turns = messages.as_array().map_or(0, Vec::len);
        let fuel = FUEL + FUEL_PER_MESSAGE * turns + size / BYTES_PER_FUEL;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel.min(FUEL_LIMIT) as u64));
        let namespaces = Namespaces::default();
        let context = self.context(&messages, options, &namespaces);
        let limit = OUTPUT_LIMIT + OUTPUT_PER_BYTE * size;
        if self.late.load(Ordering::Relaxed) {
            return Err(Broken::Late.into());
        }
        let printed = limits::run(move || {
            let printed = print(&environment, context, limit);
            namespaces.empty();
            printed
        });
        self.late.fetch_or(matches!(printed, Err(Broken::Late)), Ordering::Relaxed);
        printed?
    }

    /// The variables that transformers gives a template.
    fn context(
        &self,
        messages: &serde_json::Value,
        options: &RenderOptions<'_>,
        namespaces: &Namespaces,
    ) -> Value {
        let now = options.now;
        let mut variables = vec![
            ("messages", value_of(messages)),
            ("tools", options.tools.map_or(Value::from(()), value_of)),
            ("documents", Value::from(())),
            ("namespace", namespaces.function()),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", Value::from_function(move |format: &str| strftime(now, format))),
        ];
        variables.extend(self.bos.as_deref().map(|bos| ("bos_token", Value::from(bos))));
        variables.extend(self.eos.as_deref().map(|eos| ("eos_token", Value::from(eos))));
        let extra = options.extra.iter().map(|(name, value)| (name.as_str(), value_of(value)));
        Value::from_pairs(variables.into_iter().chain(extra))
    }
}

/// Renders the template, or says in one line why not.
fn print(environment: &Environment<'_>, context: Value, limit: usize) -> Result<String, Error> {
    let mut printed = Printed { text: Vec::new(), limit };
    let template = environment.get_template(NAME);
    let done = template.and_then(|it| it.render_captured_to(context, &mut printed).map(drop));
    match done {
        Err(_) if printed.is_full() => {
            Err(Error::BrokenTemplate(format!("it prints more than {limit} bytes")))
        }
        Err(error) => Err(reason(&error)),
        Ok(()) => String::from_utf8(printed.text)
            .map_err(|e| Error::BrokenTemplate(format!("it printed no text: {e}"))),
    }
}

/// transformers' environment, without a template yet.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_debug(false);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python_method);
    environment.add_filter("tojson", json::tojson);
    // The engine goes over none as over an empty list; Gemma 3's templates ask before they do.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: Cow<'_, str>| {
        let raised = Raised(message.into_owned());
        Err::<Value, _>(minijinja::Error::from(ErrorKind::InvalidOperation).with_source(raised))
    });
    Ok(environment)
}

/// Python's methods of strings, lists and maps.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    // The engine makes the text of a width before it counts it, so widths are bounded here.
    const WIDTH_DIGITS: usize = 4;
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    let wide = |text: &str| digits(text).is_some_and(|digits| digits > WIDTH_DIGITS);
    if method == "format" && value.as_str().is_some_and(wide) {
        let what = format!("format: a number of more than {WIDTH_DIGITS} digits in the pattern");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    unknown_method_callback(state, value, method, arguments)
}

/// What a template says as it refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// One line on what went wrong: the template's own words as it refuses, or the engine's.
fn reason(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut out_of_fuel = false;
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref::<Raised>() {
            return Error::Template(one_line(&raised.0));
        }
        let engine = cause.downcast_ref::<minijinja::Error>();
        out_of_fuel |= engine.is_some_and(|engine| engine.kind() == ErrorKind::OutOfFuel);
        source = cause.source();
    }
    if out_of_fuel {
        let what = "it runs longer or makes more data than a template may";
        return Error::BrokenTemplate(what.to_owned());
    }
    Error::BrokenTemplate(one_line(&error.to_string()))
}

/// What a template or a message says, without what a terminal would obey.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ")
}

/// Python's `datetime.now().strftime(format)`.
fn strftime(now: Option<SystemTime>, format: &str) -> Result<String, minijinja::Error> {
    let invalid = |e: jiff::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"))
    };
    let now = match now {
        Some(time) => Timestamp::try_from(time).map_err(invalid)?.to_zoned(TimeZone::UTC),
        None => Zoned::now(),
    };
    jiff::fmt::strtime::format(format, &now).map_err(invalid)
}

/// JSON as the engine's value, maps in order.
fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value_of).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), value_of(value))))
        }
    }
}

/// About how many bytes of a conversation a JSON value holds.
fn size_of(json: &serde_json::Value) -> usize {
    match json {
        serde_json::Value::String(text) => 8 + text.len(),
        serde_json::Value::Array(items) => 8 + items.iter().map(size_of).sum::<usize>(),
        serde_json::Value::Object(fields) => {
            8 + fields.iter().map(|(name, value)| name.len() + size_of(value)).sum::<usize>()
        }
        _ => 8,
    }
}
