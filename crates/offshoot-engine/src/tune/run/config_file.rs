//! Settings from a file, and from flags over them.
//!
//! A file is TOML or YAML, by the end of its name; both hold one table of the same names. The names
//! that transformers, TRL and PEFT have for a setting are understood as well.

use std::path::Path;

use serde_json::{Map, Value};

use super::{RunConfig, RunError};
use crate::error::one_line;

/// Longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Names that others have for settings, and ours.
const ALIASES: [(&str, &str); 21] = [
    ("base", "model"),
    ("dataset", "data"),
    ("early_stopping_patience", "patience"),
    ("eval_steps", "eval_every"),
    ("gradient_accumulation_steps", "accumulation"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("lora_r", "rank"),
    ("lora_target_modules", "target_modules"),
    ("lr", "learning_rate"),
    ("lr_scheduler_type", "schedule"),
    ("max_seq_length", "max_length"),
    ("max_steps", "steps"),
    ("model_name_or_path", "model"),
    ("num_train_epochs", "epochs"),
    ("optim", "optimizer"),
    ("output_dir", "output"),
    ("per_device_train_batch_size", "batch"),
    ("save_steps", "save_every"),
    ("save_total_limit", "keep"),
    ("use_rslora", "rslora"),
];
/// Fields that are written only where they are set.
const UNSET: [&str; 19] = [
    "executor",
    "dtype",
    "max_length",
    "train",
    "freeze",
    "options",
    "quantize",
    "schedule",
    "format",
    "task",
    "map",
    "steps",
    "learning_rate",
    "medusa_from",
    "medusa_weight",
    "eval_every",
    "patience",
    "save_every",
    "output",
];

/// Settings that were given, by their own names.
pub type Given = Map<String, Value>;

/// Reads the settings of the file at `path`.
///
/// # Errors
/// [`RunError::Config`] with file, line and field.
pub fn read_config(path: &Path) -> Result<Given, RunError> {
    let at = |line: Option<usize>, what: String| RunError::Config {
        place: match line {
            Some(line) => format!("{}:{line}: ", path.display()),
            None => format!("{}: ", path.display()),
        },
        what,
    };
    let size = std::fs::metadata(path).map_err(|e| at(None, e.to_string()))?.len();
    if size > BYTES_MAX {
        return Err(at(None, format!("longer than {BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| at(None, e.to_string()))?;
    let table = match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => parse_toml(&text),
        Some("yaml" | "yml") => parse_yaml(&text),
        _ => return Err(at(None, "name it .toml or .yaml, for what it is".to_owned())),
    };
    let table = table.map_err(|(line, what)| at(line, what))?;
    let mut given = Given::new();
    for (name, value) in table {
        let own = ALIASES.iter().find(|(other, _)| *other == name).map_or(&*name, |(_, own)| own);
        let value = setting(own, value).map_err(|what| at(line_of(&text, &name), what))?;
        if given.insert(own.to_owned(), value).is_some() {
            return Err(at(line_of(&text, &name), format!("{own}: given twice")));
        }
    }
    Ok(given)
}

/// A syntax error: its line, where it has one, and what is wrong.
type Misread = (Option<usize>, String);

fn parse_toml(text: &str) -> Result<Given, Misread> {
    toml::from_str(text).map_err(|e: toml::de::Error| {
        let line =
            e.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        (line, words(e.message()))
    })
}

fn parse_yaml(text: &str) -> Result<Given, Misread> {
    // An empty file says nothing, which is no error.
    let value: Option<Given> = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map(|place| place.line() as usize);
        (line, words(&e.without_snippet().to_string()))
    })?;
    Ok(value.unwrap_or_default())
}

/// A parser's words, broken over lines, on one.
fn words(text: &str) -> String {
    one_line(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The line of the table that begins with `name`.
fn line_of(text: &str, name: &str) -> Option<usize> {
    let begins = |line: &str| {
        let rest = line.trim_start().trim_start_matches(['"', '\'', '[']).strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(|c: char| !c.is_alphanumeric() && c != '_'))
    };
    text.lines().position(begins).map(|at| at + 1)
}

/// Checks one setting. A single text where a list is expected is a list of it.
fn setting(name: &str, value: Value) -> Result<Value, String> {
    let known = known();
    if !known.iter().any(|field| field == name) {
        let near = nearest(name, known.iter().map(String::as_str));
        return Err(format!("no setting {:?}{near}", shortened(name)));
    }
    let check = |value: &Value| {
        let one = Map::from_iter([(name.to_owned(), value.clone())]);
        serde_json::from_value::<RunConfig>(Value::Object(one)).map(drop)
    };
    let listed = Value::Array(vec![value.clone()]);
    match check(&value) {
        Ok(()) => Ok(value),
        Err(_) if value.is_string() && check(&listed).is_ok() => Ok(listed),
        Err(e) => Err(format!("{name}: {}", words(&e.to_string()))),
    }
}

/// The names of all settings.
fn known() -> Vec<String> {
    let all = serde_json::to_value(RunConfig::default()).ok();
    let written = all.as_ref().and_then(Value::as_object).into_iter().flatten();
    written.map(|(name, _)| name.clone()).chain(UNSET.map(str::to_owned)).collect()
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

/// `: did you mean ...?`, if one of `names` is near.
pub(crate) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> String {
    let name = shortened(name);
    let scored = names.map(|other| (strsim::jaro_winkler(&name, other), other));
    match scored.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((score, other)) if score > 0.75 => format!(": did you mean `{other}`?"),
        _ => String::new(),
    }
}

impl RunConfig {
    /// The settings of a file with those of flags over them.
    ///
    /// # Errors
    /// [`RunError::Config`] with the field that cannot be.
    pub fn of(mut file: Given, flags: Given) -> Result<Self, RunError> {
        let wrong = |what| RunError::Config { place: String::new(), what };
        for (name, value) in flags {
            let value = setting(&name, value).map_err(wrong)?;
            file.insert(name, value);
        }
        serde_json::from_value(Value::Object(file)).map_err(|e| wrong(e.to_string()))
    }

    /// All settings as a file that says them.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use offshoot_methods::tune::Curve;

    use super::*;

    fn read(name: &str, text: &str) -> Result<RunConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let given = read_config(&path).map_err(|e| e.to_string())?;
        RunConfig::of(given, Given::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = "model = \"m\"\ndata = [\"a.jsonl\"]\nlearning_rate = 2e-4\n\
                    schedule = \"cosine\"\n[map]\nprompt = \"question\"\n";
        let yaml = "model: m\ndata:\n  - a.jsonl\nlearning_rate: 2e-4\nschedule: cosine\n\
                    map:\n  prompt: question\n";
        let config = read("c.toml", toml).unwrap();
        assert_eq!(read("c.yaml", yaml).unwrap(), config);
        assert_eq!((config.learning_rate, config.schedule), (Some(2e-4), Some(Curve::Cosine)));
        assert_eq!(config.map["prompt"], "question");
        assert_eq!(read("empty.yaml", "# nothing\n").unwrap(), RunConfig::default());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = RunConfig {
            model: "m".into(),
            steps: Some(4),
            learning_rate: Some(1e-3),
            map: [("a".to_owned(), "b".to_owned())].into(),
            output: Some("out".into()),
            ..RunConfig::default()
        };
        assert_eq!(read("c.toml", &full.to_toml()).unwrap(), full);
    }

    #[test]
    fn names_that_others_have_are_understood_and_a_single_file_is_a_list() {
        let config = read("c.yaml", "num_train_epochs: 1\nlora_r: 4\ndata: a.csv\n").unwrap();
        assert_eq!((config.epochs, config.rank), (1.0, 4));
        assert_eq!(config.data, [Path::new("a.csv")]);
    }

    #[test]
    fn a_fault_is_told_with_file_line_and_field() {
        for (name, text, says) in [
            ("c.toml", "rank = 8\nleraning_rate = 1\n", "c.toml:2: no setting \"leraning_rate\""),
            ("c.toml", "leraning_rate = 1\n", "did you mean `learning_rate`?"),
            ("c.yaml", "rank: 8\nbatch: many\n", "c.yaml:2: batch: invalid type: string"),
            ("c.yaml", "method: lorra\n", "c.yaml:1: method: no method \"lorra\": did you mean"),
            ("c.toml", "a = 1\nb = = 2\n", "c.toml:2: "),
            ("c.yaml", "a: [1\nb: 2\n", "c.yaml:"),
            ("c.toml", "lr = 1.0\nlearning_rate = 2.0\n", "learning_rate: given twice"),
            ("c.json", "{}", "name it .toml or .yaml"),
        ] {
            let told = read(name, text).unwrap_err();
            assert!(told.contains(says), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }

    #[test]
    fn a_file_that_unfolds_without_end_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let items = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{items}]\n");
        }
        read("c.yaml", &text).unwrap_err();
    }

    #[test]
    fn flags_stand_over_the_file() {
        let pairs = |pairs: &[(&str, Value)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
        };
        let file: Given = pairs(&[("rank", 4.into()), ("batch", 2.into())]);
        let config = RunConfig::of(file, pairs(&[("rank", 16.into())])).unwrap();
        assert_eq!((config.rank, config.batch), (16, 2));
    }

    #[test]
    fn every_field_is_a_known_setting() {
        let text = serde_json::from_str::<RunConfig>("{\"nonsense\": 1}").unwrap_err().to_string();
        let named = text.matches('`').count() / 2 - 1;
        assert_eq!(named, known().len(), "{text}");
        for (_, own) in ALIASES {
            assert!(known().iter().any(|name| name == own), "{own}");
        }
    }
}
