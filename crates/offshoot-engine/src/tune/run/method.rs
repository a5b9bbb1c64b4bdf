//! The ways of tuning, by name.

use std::fmt;
use std::str::FromStr;

use offshoot_methods::tune::{METHODS, MethodCard, SpaceKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Shape;

/// How a model is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Low-rank differences of matrices, by their gradients.
    #[default]
    Lora,
    /// All weights, by their gradients.
    Full,
    /// The method of this name among [`METHODS`], which asks for losses alone.
    ZerothOrder(&'static str),
}

impl Method {
    /// All of them, but those for a space that a run cannot have.
    pub fn all() -> impl Iterator<Item = Self> {
        let had = METHODS.iter().filter(|card| card.space != Some(SpaceKind::Scales));
        let zeroth = had.map(|card| Self::ZerothOrder(card.name));
        [Self::Lora, Self::Full].into_iter().chain(zeroth)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::ZerothOrder(name) => name,
        }
    }

    /// One sentence on it.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Lora => "Low-rank differences of matrices, by their gradients.",
            Self::Full => "All weights, by their gradients.",
            Self::ZerothOrder(_) => self.card().map_or("", |card| card.summary),
        }
    }

    /// Its row in the catalogue of methods without gradients.
    pub(crate) fn card(self) -> Option<&'static MethodCard> {
        METHODS.iter().find(|card| self == Self::ZerothOrder(card.name))
    }

    /// The learning rate where none is asked for; none where losses about the weights say it.
    pub fn learning_rate(self) -> Option<f64> {
        match self {
            // TRL's advice for adapters, and its SFTConfig.
            Self::Lora => Some(1e-4),
            Self::Full => Some(2e-5),
            Self::ZerothOrder(_) => None,
        }
    }

    /// The shape of the learning rate where none is asked for.
    pub fn shape(self) -> Shape {
        match self {
            Self::Lora | Self::Full => Shape::default(),
            // As in MeZO.
            Self::ZerothOrder(_) => Shape::Constant,
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
        let names = || Self::all().map(Self::name);
        Self::all().find(|method| method.name() == text).ok_or_else(|| {
            let near = super::config_file::nearest(text, names());
            let names = names().collect::<Vec<_>>().join(", ");
            format!("no method {text:?}{near} (there are {names})")
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
        for method in Method::all() {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        let told = "lore".parse::<Method>().unwrap_err();
        assert!(told.contains("did you mean `lora`?") && told.contains("full, mezo"), "{told}");
    }
}
