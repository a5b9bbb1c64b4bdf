//! Which drafters an answer is made with.

use std::fmt;
use std::str::FromStr;

/// A drafter that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arm {
    /// What followed earlier occurrences in the conversation.
    Suffix,
    /// What followed in stored text.
    Rest,
    /// What heads on the model's own state say.
    Medusa,
    /// What a smaller model would write.
    Draft,
}

impl Arm {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 4] = [Self::Suffix, Self::Rest, Self::Medusa, Self::Draft];

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Suffix => "suffix",
            Self::Rest => "rest",
            Self::Medusa => "medusa",
            Self::Draft => "draft",
        }
    }

    /// The option that brings what it needs.
    pub(crate) fn needs(self) -> &'static str {
        match self {
            Self::Suffix => "nothing",
            Self::Rest => "--datastore",
            Self::Medusa => "--medusa",
            Self::Draft => "--draft-model",
        }
    }
}

/// What `--spec` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SpecMode {
    /// All drafters that are at hand; none where a row's logits depend on the rows beside it, as there
    /// drafts have to be asked for by name.
    #[default]
    Auto,
    /// None: one token a step.
    Off,
    /// These.
    Only(Vec<Arm>),
}

impl SpecMode {
    /// Whether `arm` is to be used where it is at hand.
    pub fn allows(&self, arm: Arm) -> bool {
        match self {
            Self::Auto => true,
            Self::Off => false,
            Self::Only(arms) => arms.contains(&arm),
        }
    }
}

impl FromStr for SpecMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let arm = |name: &str| {
            Arm::ALL.into_iter().find(|arm| arm.name() == name).ok_or_else(|| {
                let names = Arm::ALL.map(Arm::name).join(", ");
                format!("{name:?} is no drafter: expected auto, off, or of {names}, with commas")
            })
        };
        let mut arms =
            text.split(',').map(|name| arm(name.trim())).collect::<Result<Vec<_>, _>>()?;
        arms.sort_unstable();
        arms.dedup();
        Ok(Self::Only(arms))
    }
}

impl fmt::Display for SpecMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Only(arms) => {
                f.write_str(&arms.iter().map(|arm| arm.name()).collect::<Vec<_>>().join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for text in ["auto", "off", "suffix"] {
            assert_eq!(text.parse::<SpecMode>().unwrap().to_string(), text);
        }
        let error = "suffix,oracle".parse::<SpecMode>().unwrap_err();
        assert!(error.contains("\"oracle\" is no drafter"), "{error}");
    }
}
