//! From logits to text: how a token is chosen and where the text ends.

mod filter;
mod log_probabilities;
mod options;
mod sampler;
mod stop;
mod top_k;
mod uniform;

pub use filter::{FilterState, TokenFilter};
pub use log_probabilities::{LogProbabilities, TokenLogprob};
pub use options::SamplingOptions;
pub use sampler::{Sampled, Sampler};
pub use stop::{Emit, StopMatcher};
pub(crate) use top_k::{Candidate, select_top_k};
pub use uniform::{Purpose, uniform, uniform_for};
