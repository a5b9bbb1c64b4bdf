//! The `tojson` filter as transformers defines it: Python's `json.dumps`, not escaped for HTML.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Lists within lists that are written; no chat has more, and deeper ones would use up the stack.
const DEPTH_LIMIT: usize = 128;

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            Some((text(&pair.get_item(&0.into())?)?, text(&pair.get_item(&1.into())?)?))
        }
        _ => None,
    };
    let ascii: Option<Value> = options.get("ensure_ascii")?;
    let sort: Option<Value> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(&indent));
    let indent = indent.transpose()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or_else(|| (comma.into(), ": ".into()));
    let is_true = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let mut writer = Writer {
        state,
        indent,
        comma,
        colon,
        ascii: is_true(ensure_ascii.or(ascii)),
        sort: is_true(sort),
        out: String::new(),
        paid: 0,
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

/// Python's `indent`: a number of spaces, or the text itself.
fn indentation(indent: &Value) -> Result<String, Error> {
    const WIDEST: i64 = 64;
    match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Ok(" ".repeat(i64::try_from(indent.clone())?.clamp(0, WIDEST) as usize)),
    }
}

/// A string, or an error that says what stands there.
fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(refused(format!("tojson: a separator is a {}", value.kind()))),
    }
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

struct Writer<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    indent: Option<String>,
    comma: String,
    colon: String,
    ascii: bool,
    sort: bool,
    out: String,
    /// Bytes of `out` that fuel was used for.
    paid: usize,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        if depth > DEPTH_LIMIT {
            return Err(refused(format!("tojson: more than {DEPTH_LIMIT} lists within lists")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => return self.list(value, depth),
            ValueKind::Map => return self.map(value, depth),
            other => return Err(refused(format!("tojson: a value is {other}"))),
        }
        Ok(())
    }

    /// Uses fuel for the item at hand and for what was written since the last.
    fn pay(&mut self) -> Result<(), Error> {
        let bytes = self.out.len() - self.paid;
        self.paid = self.out.len();
        self.state.consume_fuel(1 + bytes as u64 / 64)
    }

    fn list(&mut self, list: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in list.try_iter()? {
            self.before_item(empty, depth + 1);
            empty = false;
            self.value(&item, depth + 1)?;
        }
        self.close(']', empty, depth);
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort {
            keys.sort();
        }
        self.out.push('{');
        for (i, key) in keys.iter().enumerate() {
            self.before_item(i == 0, depth + 1);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                ValueKind::None => self.string("null"),
                ValueKind::Bool => self.string(if key.is_true() { "true" } else { "false" }),
                ValueKind::Number => self.string(&number(key)),
                other => return Err(refused(format!("tojson: a key is a {other}"))),
            }
            self.out.push_str(&self.colon);
            self.value(&map.get_item(key)?, depth + 1)?;
        }
        self.close('}', keys.is_empty(), depth);
        Ok(())
    }

    fn before_item(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.comma);
        }
        self.new_line(depth);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// A character as the `\u` escapes of its UTF-16 units.
    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _always_ok = write!(self.out, "\\u{unit:04x}");
        }
    }
}

/// A number as Python writes it: `1e16` is `1e+16`, `1e-7` is `1e-07`.
fn number(value: &Value) -> String {
    let Some(float) = f64::try_from(value.clone()).ok().filter(|_| !value.is_integer()) else {
        return value.to_string();
    };
    if !float.is_finite() {
        let names = ["NaN", "Infinity", "-Infinity"];
        return names[if float.is_nan() { 0 } else { 1 + usize::from(float < 0.0) }].to_owned();
    }
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, power)) => {
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
            format!("{digits}e{sign}{power:0>2}")
        }
    }
}
