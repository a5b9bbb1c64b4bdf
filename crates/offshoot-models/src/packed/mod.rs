//! The packed executor: the kernels' own buffers, no gradients, no allocation per token. It runs
//! everything on the CPU that needs no gradient.

mod adapters;
mod beginnings;
mod executor;
mod experts;
mod head;
mod hooks;
mod lockstep;
mod trainable;
mod weights;

pub use adapters::PackedAdapters;
pub use beginnings::Beginnings;
pub use executor::PackedExecutor;
pub use hooks::{Hooks, NoHooks, SegmentRows};
pub use lockstep::{Asked, Stage, StagedStep};
pub use trainable::{Perturbed, TrainableModel, TrainableTensor};
pub use weights::{PackedModel, WeightCache};
