//! Which guesses of a step stand.

use std::fmt;

use offshoot_methods::draft::Typical;
use serde::Serialize;

use crate::Error;

/// The rule by which guesses stand. At temperature 0 all of them keep the likeliest token and so are
/// the first.
///
/// The other two make texts that depend on the guesses. So that a seed still names a text there, on
/// any number of threads, their trees are sized by what a run begins with and by the answer itself,
/// not by measured times: drafting that does not pay is not noticed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// A guess stands if plain decoding would draw it: the text is that of plain decoding.
    #[default]
    Exact,
    /// Guesses that were drawn from a distribution are weighed against the model's (Leviathan et al.
    /// 2022, <https://arxiv.org/abs/2211.17192>). Texts have the model's own distribution; the text
    /// of a seed is another one than without drafts. A guess that was not drawn is kept as often by
    /// the first rule, so without a draft model this is that.
    Rejection,
    /// Guesses stand that the model finds likely enough (Cai et al. 2024, section 2.3.1,
    /// <https://arxiv.org/abs/2401.10774>). Texts no longer have the model's distribution.
    Typical(Typical),
}

impl Acceptance {
    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Rejection => "rejection",
            Self::Typical(_) => "typical",
        }
    }

    /// Checks its numbers against their bounds.
    ///
    /// # Errors
    /// [`offshoot_methods::Error::Option`] names the field.
    pub fn validate(self) -> Result<(), Error> {
        match self {
            Self::Typical(typical) => Ok(typical.validate()?),
            Self::Exact | Self::Rejection => Ok(()),
        }
    }

    /// What it comes to at this temperature, where guesses are drawn or not.
    pub(crate) fn at(self, temperature: f32, draws: bool) -> Self {
        match self {
            Self::Rejection if !draws => Self::Exact,
            _ if temperature == 0.0 => Self::Exact,
            rule => rule,
        }
    }
}

impl fmt::Display for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
