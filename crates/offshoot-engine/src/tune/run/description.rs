//! What a run is: written when it begins, compared when it goes on.

use std::path::Path;

use offshoot_methods::tune::Curve;
use offshoot_models::BaseId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoint::{json, read_json};
use super::{RunConfig, RunError, VariantFile};
use crate::Error;
use crate::beside::write_whole;

/// The file in the run's folder.
const FILE: &str = "run.json";
/// Settings that change nothing of what is learned, or whose content is compared instead.
const FREE: [&str; 12] = [
    "data",
    "device",
    "dtype",
    "eval_data",
    "executor",
    "keep",
    "max_length",
    "model",
    "offload",
    "output",
    "save_every",
    "share",
];
/// Settings that only say where the run ends, where the rate does not hang on that.
const LENGTH: [&str; 2] = ["epochs", "steps"];

/// A run and all that its result depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunDescription {
    /// Its name: no two runs have the same.
    pub id: String,
    /// The settings.
    pub config: RunConfig,
    /// The digest of the examples that are trained on, see [`super::digest`].
    pub data: String,
    /// How many they are.
    pub examples: usize,
    /// The digest of those held out.
    pub held_out_data: String,
    /// How many they are.
    pub held_out: usize,
    /// The command that began it, for the record.
    pub command: String,
    /// What a variant of the base has to bring along.
    pub variant: VariantFile,
}

impl RunDescription {
    /// Reads that of the run in `folder`.
    ///
    /// # Errors
    /// [`RunError::NothingToResume`] if there is no run; [`RunError::Damaged`].
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE);
        if !path.exists() {
            let what = "there is no run here".to_owned();
            return Err(RunError::NothingToResume { folder: folder.to_owned(), what }.into());
        }
        read_json(&path)
    }

    /// Whether `folder` has a run.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    /// Writes it into the run's folder.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        write_whole(&folder.join(FILE), &json(self))
    }

    /// The base's identity.
    pub fn base(&self) -> BaseId {
        self.variant.base
    }

    /// What `asked` would do otherwise than this run does, a field at a time.
    pub fn differences(&self, asked: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, was: &Value, is: &Value| {
            if was != is {
                found.push(format!("{name}: {} then, {} now", shown(was), shown(is)));
            }
        };
        let text = |text: &str| Value::from(text);
        let (was, is) = (self.base().short(), asked.base().short());
        compare("base", &text(&was), &text(&is));
        compare("data", &text(&short(&self.data)), &text(&short(&asked.data)));
        let held_out = (short(&self.held_out_data), short(&asked.held_out_data));
        compare("eval_data", &text(&held_out.0), &text(&held_out.1));
        let fields = |config: &RunConfig| serde_json::to_value(config).unwrap_or_default();
        let (was, is) = (fields(&self.config), fields(&asked.config));
        let names = [&was, &is].into_iter().filter_map(Value::as_object).flatten();
        let mut names: Vec<&String> = names.map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        // Draft heads learn alone for a share of the steps.
        let whole = self.config.warmup_ratio != 0.0 || self.config.has_heads();
        let constant = self.config.curve() == Curve::Constant && !whole;
        for name in names {
            let free = FREE.contains(&name.as_str());
            if !(free || constant && LENGTH.contains(&name.as_str())) {
                compare(name, &was[name], &is[name]);
            }
        }
        found
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not given".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn description(config: RunConfig) -> RunDescription {
        let variant = VariantFile {
            format: super::super::variant::FORMAT,
            base: BaseId::from_bytes([1; 32]),
            tokenizer: offshoot_models::TokenizerId::from_bytes([2; 32]),
            chat_template: None,
            stop_tokens: vec![0],
            method: config.method.to_string(),
            offshoot: "1".to_owned(),
        };
        RunDescription {
            id: "id".into(),
            config,
            data: "d".repeat(64),
            examples: 3,
            held_out_data: "e".repeat(64),
            held_out: 0,
            command: "offshoot tune".into(),
            variant,
        }
    }

    #[test]
    fn differences_are_told_field_by_field_and_only_where_they_matter() {
        let was = description(RunConfig::default());
        let same = RunConfig { keep: 9, model: "moved".into(), ..RunConfig::default() };
        assert!(was.differences(&description(same)).is_empty());
        let mut other = description(RunConfig { rank: 16, steps: Some(5), ..RunConfig::default() });
        other.data = "f".repeat(64);
        assert_eq!(
            was.differences(&other),
            [
                "data: \"dddddddddddd\" then, \"ffffffffffff\" now",
                "rank: 8 then, 16 now",
                "steps: not given then, 5 now",
            ]
        );
    }

    #[test]
    fn a_run_of_a_constant_rate_may_become_longer() {
        let config =
            |shape, steps| RunConfig { schedule: Some(shape), steps, ..RunConfig::default() };
        for (shape, expected) in [(Curve::Constant, 0), (Curve::Linear, 1)] {
            let was = description(config(shape, Some(5)));
            let longer = description(config(shape, Some(9)));
            assert_eq!(was.differences(&longer).len(), expected, "{shape:?}");
        }
    }
}
