//! Zeroth-order tuning: losses at points near the weights instead of gradients.
//!
//! A [`Space`] says what is tuned and how a model is run at points near it; an [`Objective`] says
//! what a batch's loss is; a method of [`offshoot_methods::tune`] says where the loss is asked for
//! and what is added to the weights in the end. A [`ZerothOrderTrainer`] carries that out on the
//! packed executor, in the memory of running the model: no weight changes for a probe, and no
//! activation is kept. Or on a device of the dense one (`dense.rs`), which is brought each point.

mod dense;
mod entries;
mod forward;
mod noise;
mod objective;
mod record;
mod replay;
mod snapshot;
mod space;
mod together;
mod trainer;
mod tree;
mod variant;

pub use dense::DensePoints;
pub use forward::StepLimits;
pub use objective::{
    Classification, CrossEntropy, Metric, MetricCommand, MetricKind, Objective, Part, Points, mean,
};
pub use record::{Origin, weights_hash};
pub use replay::{
    base_hash, carry_out, promised_end, quantized, read_trajectory, remake, space_of,
    write_trajectory,
};
pub use snapshot::write as write_tensors;
pub(crate) use space::layer_of;
pub use space::{
    Activations, FullOptions, FullSpace, LoraOptions, LoraSpace, PrefixOptions, PromptOptions,
    ScalesOptions, ScalesSpace, Space, VirtualSpace,
};
pub use together::Share;
pub use trainer::{TRAJECTORY_FILE, ZerothOrderOptions, ZerothOrderTrainer};
pub(crate) use tree::TextTree;
