//! Tuning: a model and examples in, a variant of the model out.

pub mod data;
mod example;
mod scorer;
mod trainer;

pub use data::DataError;
pub use example::{Example, Sequence};
pub use scorer::{Scored, Scorer};
pub use trainer::{StepReport, Trainer};
