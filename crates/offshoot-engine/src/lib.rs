//! Loops that run methods on models, and what those loops need from the machine.

mod error;
mod generate;
mod model;
pub mod store;

pub use error::Error;
pub use generate::{Answer, Control, FinishReason, GenerateOptions, Piece, Session, Timings};
pub use model::{LoadOptions, LoadTimings, Model};
