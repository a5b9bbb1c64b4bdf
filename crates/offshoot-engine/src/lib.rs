//! Loops that run methods on models, and what those loops need from the machine.

mod bench;
pub mod datastore;
mod disguise;
mod error;
mod generate;
pub mod medusa;
mod memory;
mod model;
mod perplexity;
mod quantize;
pub mod spec;
pub mod store;

pub use bench::{Bench, BenchOptions, StepTime, measure, peak_rss_bytes};
pub use error::Error;
pub use generate::{Answer, Control, FinishReason, GenerateOptions, Piece, Session, Timings};
pub use memory::{MemoryNeed, available_memory};
pub use model::{LoadOptions, LoadTimings, Model};
pub use perplexity::{Perplexity, perplexity};
pub use quantize::{QuantizeOptions, Quantized, quantize};
