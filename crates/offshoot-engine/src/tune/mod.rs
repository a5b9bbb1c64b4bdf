//! Tuning: a model and examples in, a variant of the model out.

mod example;
mod first_order;
mod scorer;
mod trainer;

pub use example::{Example, Sequence};
pub use first_order::{
    ChoiceLoss, FirstOrder, FirstOrderOptions, FirstOrderSpace, LoraMatrices, LoraOptions,
    TensorNames,
};
pub use scorer::{Scored, Scorer};
pub use trainer::{StepReport, Trainer};
