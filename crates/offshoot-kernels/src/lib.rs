//! The lowest room of offshoot: what touches memory, instructions and threads directly.
//!
//! Everything here works on plain slices and knows nothing of models, files' formats or tokens.
//! It is the only crate of the workspace with `unsafe` code; it gives the others a safe read-only
//! file map ([`FileMap`]) and a pinned thread team so that they need none.

mod blocks;
mod file_map;

pub use blocks::{BlockError, BlockType};
pub use file_map::FileMap;
