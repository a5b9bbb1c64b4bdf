//! The dense executor: an architecture run over tensors that record how they were made, so that
//! gradients flow to any weight, on whatever device the tensors live.
//!
//! It is for tuning, for accelerators, and for checking the packed executor; on a CPU it serves only who
//! asks for it by name. Its products sum in an order that depends on the number of rows, so a row's
//! logits differ in the last bits with the rows beside it. Only operations whose backward pass the tensor library knows are used: its fused softmax, RMS
//! norm, rotary embedding and attention record nothing, and a loss behind them trains nothing without
//! a word of warning.
//!
//! Number types follow transformers: weights and activations in the model's type, norms and softmax
//! in f32 at least.

mod adapters;
mod beginning;
mod cache;
mod executor;
mod experts;
mod hooks;
mod model;
mod ops;
mod primitives;
mod train;

pub use adapters::DenseAdapters;
pub use cache::DenseCache;
pub use hooks::DenseHooks;
pub use model::DenseModel;
pub use train::{
    DenseTuning, DraftTarget, Drafts, DropoutMasks, GradientOptions, Gradients, TextTarget,
};

impl From<candle_core::Error> for crate::Error {
    fn from(error: candle_core::Error) -> Self {
        // The library appends a backtrace, if the environment asks for one; an error is one line.
        let text = error.to_string();
        crate::Error::Tensors(text.lines().next().unwrap_or("unknown error").to_owned())
    }
}
