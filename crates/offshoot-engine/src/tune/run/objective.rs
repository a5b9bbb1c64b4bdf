//! What a method without gradients makes less.

use serde::{Deserialize, Serialize};

/// What a method without gradients makes less.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Objective {
    /// The cross-entropy of the tokens that count.
    #[default]
    Loss,
    /// The cross-entropy of the right one among the candidates of a choice.
    Classification,
    /// The share of wrong choices.
    Accuracy,
    /// One less the overlap of an answer's words with the right one's.
    F1,
    /// The share of answers that are wrong.
    ExactMatch,
    /// The negative of the number that this command prints of answers, see
    /// [`MetricCommand`](crate::tune::zeroth_order::MetricCommand).
    Command(String),
}

impl Objective {
    /// Whether it is of answers that have to be written.
    pub(super) fn is_of_answers(&self) -> bool {
        matches!(self, Self::F1 | Self::ExactMatch | Self::Command(_))
    }
}

/// Objectives that are a name, as they are written.
const OBJECTIVES: [(&str, Objective); 5] = [
    ("loss", Objective::Loss),
    ("classification", Objective::Classification),
    ("accuracy", Objective::Accuracy),
    ("f1", Objective::F1),
    ("exact_match", Objective::ExactMatch),
];
/// What stands before a command.
const COMMAND: &str = "command:";

impl TryFrom<String> for Objective {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix(COMMAND).map(str::trim) {
            Some("") => Err(format!("{COMMAND} is followed by no command")),
            Some(command) => Ok(Self::Command(command.to_owned())),
            None => {
                let found = OBJECTIVES.into_iter().find(|(name, _)| *name == text);
                let names = OBJECTIVES.map(|(name, _)| name).join(", ");
                let told = || format!("no objective {text:?}: there are {names} and {COMMAND}CMD");
                found.map(|(_, objective)| objective).ok_or_else(told)
            }
        }
    }
}

impl From<Objective> for String {
    fn from(objective: Objective) -> Self {
        if let Objective::Command(command) = objective {
            return format!("{COMMAND}{command}");
        }
        let found = OBJECTIVES.into_iter().find(|(_, other)| *other == objective);
        found.map_or("", |(name, _)| name).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_is_a_name_or_a_command() {
        for text in ["loss", "classification", "accuracy", "f1", "exact_match", "command:wc -l"] {
            let objective = Objective::try_from(text.to_owned()).unwrap();
            assert_eq!(String::from(objective), text);
        }
        for (text, says) in [("rouge", "no objective \"rouge\""), ("command: ", "no command")] {
            let told = Objective::try_from(text.to_owned()).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
    }
}
