//! Loops that run methods on models, and what those loops need from the machine.

mod bench;
mod beside;
mod conversation;
pub mod datastore;
mod disguise;
mod embed;
mod error;
mod executor;
mod export;
mod generate;
mod kept;
pub mod medusa;
mod memory;
mod merged;
mod model;
mod packed_cache;
mod perplexity;
mod quantize;
mod runner;
mod score;
pub mod spec;
pub mod store;
pub mod tune;

pub use bench::{Bench, BenchOptions, StepTime, measure, peak_rss_bytes};
pub use embed::{Pooling, embed, normalize};
pub use error::Error;
pub use executor::{DenseDevice, DenseType, ExecutorKind};
pub use export::{ExportOptions, Exported, export_folder, floats_of};
pub use generate::{Answer, Control, FinishReason, GenerateOptions, Piece, Session, Timings};
pub use memory::{MemoryNeed, available_memory};
pub use model::{LoadOptions, LoadTimings, Model};
pub use packed_cache::{packed_cache_bytes, packed_cache_limit};
pub use perplexity::{Perplexity, perplexity};
pub use quantize::{QuantizeOptions, Quantized, quantize};
pub use score::{TokenScore, score};
