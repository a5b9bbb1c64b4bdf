//! Tuning: a model and examples in, a variant of the model out.

pub mod data;
pub mod eval;
mod example;
mod exchange;
mod first_order;
mod numbers;
pub mod run;
mod scorer;
mod trainer;
pub mod zeroth_order;

pub use data::DataError;
pub use example::{Example, Sequence};
pub use exchange::{Alone, Exchange, ExchangeError, Threads, Traffic};
pub use first_order::{
    ChoiceLoss, DraftHeads, FirstOrder, FirstOrderOptions, FirstOrderSpace, LoraMatrices,
    LoraOptions, TensorNames,
};
pub use scorer::{Scored, Scorer};
pub use trainer::{StepReport, Trainer};
