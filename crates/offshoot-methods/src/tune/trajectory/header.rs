//! What a run was, in words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::TrajectoryError;
use crate::one_line;
use crate::tune::{Distribution, Hash, Schedule};

/// The version of the layout of bytes.
pub(super) const FORMAT: u32 = 1;
/// The version of the order of operations in [`Update`](crate::tune::Update) and of the draws.
pub(super) const UPDATE: u32 = 1;

/// A method and all of its options.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodChoice {
    /// Its name in the catalogue.
    pub name: String,
    /// Its options, all of them, so that later defaults change nothing.
    pub options: Value,
}

/// What was tuned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceChoice {
    /// Its name: `full`, `lora`, ...
    pub name: String,
    /// Its options, all of them.
    pub options: Value,
}

/// A trajectory that this one was made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The SHA-256 of its bytes.
    pub trajectory: Hash,
    /// The weight that its changes have here.
    pub weight: f64,
}

/// What a run was, but for its steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the layout of bytes.
    pub format: u32,
    /// Version of the order of operations.
    pub update: u32,
    /// The program that made the run, with its version.
    pub program: String,
    /// The base model's fingerprint.
    pub base: Hash,
    /// What float matrices of the base were quantised to while it was loaded, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<String>,
    /// The tokenizer's, if there is one.
    pub tokenizer: Option<Hash>,
    /// The data's.
    pub data: Option<Hash>,
    /// The chat template's.
    pub template: Option<Hash>,
    /// How steps were made.
    pub method: MethodChoice,
    /// The seed of all draws.
    pub seed: u64,
    /// How directions were drawn.
    #[serde(with = "distribution")]
    pub distribution: Distribution,
    /// The schedule's base rate at the first step.
    pub rate: f64,
    /// The rate's course.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub decay: f64,
    /// What was tuned.
    pub space: SpaceChoice,
    /// [`Layout::hash`](crate::tune::Layout::hash) of it.
    pub tensors: Hash,
    /// How matrices are stored: `f32`, or `bf16`, rounded by chance after every update.
    pub store: String,
    /// Seeds of what was drawn before the first step, by what it is.
    pub initial_seeds: BTreeMap<String, u64>,
    /// How many processes made the run together, if it depends on that; else 1.
    pub processes: u32,
    /// The number of the first step here: other than 0 in a later slice.
    pub first_step: u32,
    /// What the changes are multiplied by: other than 1 in a merge.
    pub weight: f64,
    /// What this was merged or sliced from.
    pub parents: Vec<Parent>,
}

impl Header {
    /// A header of this program's versions, to be filled in: weight 1, one process, stored in
    /// `f32`.
    pub fn new(method: MethodChoice, space: SpaceChoice) -> Self {
        Self {
            format: FORMAT,
            update: UPDATE,
            program: concat!("offshoot ", env!("CARGO_PKG_VERSION")).to_owned(),
            method,
            space,
            store: "f32".to_owned(),
            processes: 1,
            weight: 1.0,
            ..Self::default()
        }
    }

    /// The header's text: keys in ascending order at every depth, no spaces.
    ///
    /// # Errors
    /// [`TrajectoryError::Header`] if it would not be read as it is: if a number is not finite.
    pub(super) fn text(&self) -> Result<String, TrajectoryError> {
        let wrong = |e: serde_json::Error| TrajectoryError::Header(e.to_string());
        let text = sorted(serde_json::to_value(self).map_err(wrong)?).to_string();
        match Self::parse(text.as_bytes()) {
            Ok(read) if read == *self => Ok(text),
            Ok(_) => Err(TrajectoryError::Header("it would be read as another".to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Reads what [`Self::text`] writes.
    pub(super) fn parse(text: &[u8]) -> Result<Self, TrajectoryError> {
        let version = |what, got, known| TrajectoryError::Version { what, got, known };
        let wrong = |e: serde_json::Error| TrajectoryError::Header(one_line(&e));
        // A later version may have other fields, so it is looked for first.
        let value: Value = serde_json::from_slice(text).map_err(wrong)?;
        for (what, known) in [("format", FORMAT), ("update", UPDATE)] {
            let got = value.get(what).and_then(Value::as_u64);
            match got.map(|got| u32::try_from(got).unwrap_or(u32::MAX)) {
                Some(got) if got != known => return Err(version(what, got, known)),
                _ => {}
            }
        }
        serde_json::from_value(value).map_err(wrong)
    }
}

/// `value` with the keys of all objects in ascending order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<(String, Value)> = map.into_iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            let pairs = pairs.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(pairs.collect::<Map<String, Value>>())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// A distribution by its name.
mod distribution {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Distribution;

    pub(super) fn serialize<S: Serializer>(d: &Distribution, to: S) -> Result<S::Ok, S::Error> {
        d.name().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Distribution, D::Error> {
        let name = String::deserialize(d)?;
        Distribution::named(&name)
            .ok_or_else(|| D::Error::custom(format!("there is no distribution {name:?}")))
    }
}
