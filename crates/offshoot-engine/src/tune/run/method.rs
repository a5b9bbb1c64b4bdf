//! The ways of tuning, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a model is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Low-rank differences of matrices, by their gradients.
    #[default]
    Lora,
    /// All weights, by their gradients.
    Full,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lora, Self::Full];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
        }
    }

    /// The learning rate where none is asked for.
    pub fn learning_rate(self) -> f64 {
        match self {
            // TRL's advice for adapters, and its SFTConfig.
            Self::Lora => 1e-4,
            Self::Full => 2e-5,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).into_iter();
        Self::ALL.into_iter().find(|method| method.name() == text).ok_or_else(|| {
            let near = super::config_file::nearest(text, names());
            format!(
                "no method {text:?}{near}; there are {}",
                names().collect::<Vec<_>>().join(", ")
            )
        })
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_found_by_its_name_and_a_near_one_suggested() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        let told = "lore".parse::<Method>().unwrap_err();
        assert!(told.contains("did you mean `lora`?") && told.contains("full"), "{told}");
    }
}
