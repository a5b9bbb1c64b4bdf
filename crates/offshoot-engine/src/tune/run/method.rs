//! The ways of tuning, by name.

use std::fmt;
use std::str::FromStr;

use offshoot_methods::tune::{Curve, METHODS, MethodCard};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Space;

/// How a model is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Low-rank differences of matrices, by their gradients.
    #[default]
    Lora,
    /// All weights, by their gradients.
    Full,
    /// What `space` says, along random directions by their exact slopes.
    ForwardGradient,
    /// What `space` says, the last blocks by their gradients and the first along random directions.
    Hybrid,
    /// The method of this name among [`METHODS`], which asks for losses alone.
    ZerothOrder(&'static str),
}

impl Method {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let zeroth = METHODS.iter().map(|card| Self::ZerothOrder(card.name));
        [Self::Lora, Self::Full, Self::Hybrid, Self::ForwardGradient].into_iter().chain(zeroth)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::Hybrid => "hybrid",
            Self::ForwardGradient => "fwdgrad",
            Self::ZerothOrder(name) => name,
        }
    }

    /// One sentence on it.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Lora => "Low-rank differences of matrices, by their gradients.",
            Self::Full => "All weights, by their gradients.",
            Self::Hybrid => {
                "The last blocks by their gradients, the first along random directions."
            }
            Self::ForwardGradient => {
                "Random directions, by exact slopes: in the memory of gradients, to compare with."
            }
            Self::ZerothOrder(_) => self.card().map_or("", |card| card.summary),
        }
    }

    /// Its row in the catalogue of methods without gradients.
    pub(crate) fn card(self) -> Option<&'static MethodCard> {
        METHODS.iter().find(|card| self == Self::ZerothOrder(card.name))
    }

    /// The learning rate where none is asked for; none where losses about the weights say it.
    pub fn learning_rate(self, space: Space) -> Option<f64> {
        match self {
            // TRL's advice for adapters, and its SFTConfig.
            Self::Lora => Some(1e-4),
            Self::Full => Some(2e-5),
            Self::Hybrid if space == Space::Full => Some(2e-5),
            Self::Hybrid => Some(1e-4),
            // As MeZO's of all weights and, in its appendix D, of LoRA; the benchmark's best for full
            // tuning is 5e-7.
            Self::ForwardGradient if space == Space::Full => Some(1e-6),
            Self::ForwardGradient => Some(5e-5),
            Self::ZerothOrder(_) => None,
        }
    }

    /// The shape of the learning rate where none is asked for.
    pub fn curve(self) -> Curve {
        match self {
            // transformers' get_scheduler.
            Self::Lora | Self::Full | Self::Hybrid => Curve::Linear,
            // As in MeZO.
            Self::ZerothOrder(_) | Self::ForwardGradient => Curve::Constant,
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
        assert!(
            told.contains("did you mean `lora`?") && told.contains("full, hybrid, fwdgrad"),
            "{told}"
        );
    }
}
