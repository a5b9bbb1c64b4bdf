//! The lowest room of offshoot: what touches memory, instructions and threads directly.
//!
//! Everything here works on plain slices and knows nothing of models, files' formats or tokens.
//! It is the only crate of the workspace with `unsafe` code; it gives the others a safe read-only
//! file map ([`FileMap`]), weights on disk ([`ScratchFile`]) and a thread team ([`Team`]) so that they
//! need none.
//!
//! Every kernel is one generic function over sixteen logical lanes, compiled once per instruction
//! set ([`Isa`]). The order of operations is part of its definition: a row's bits depend neither on
//! the instruction set nor on how many rows, threads or sequences share a step.

mod activations;
mod attention;
mod blocks;
mod buffer;
mod bytes;
mod ceilings;
mod cpu;
mod disjoint;
mod disk;
mod file_block;
mod file_map;
mod gated;
mod greatest;
mod isa;
mod kv_cache;
mod lanes;
mod log_softmax;
mod math;
mod noise;
mod parts;
mod philox;
mod product;
mod ranked;
mod rope;
mod routing;
mod rows;
mod team;
mod terms;
mod tile;
mod update;

pub use activations::{Activations, Forms};
pub use attention::{
    AttentionScratch, HeadNorms, Heads, ITEM_VECTORS as MAX_GROUP, SequenceRows, attend,
};
pub use blocks::conversion::Conversion;
pub use blocks::{BlockError, BlockType};
pub use buffer::{Buffer, Plain};
pub use bytes::SharedBytes;
pub use ceilings::{dot_rate, stream_fill, stream_read};
pub use cpu::Cpu;
pub use disk::disk_bytes;
pub use file_block::{FileBlock, ScratchFile, Traffic};
pub use file_map::FileMap;
pub use gated::{GatedPair, multiply_gated, multiply_gated_parts};
pub use greatest::{Greatest, GreatestScratch, multiply_greatest};
pub use isa::Isa;
pub use kv_cache::{KvCache, KvType};
pub use log_softmax::{
    LogSoftmaxScratch, RowScores, Wanted, log_softmax_rows, multiply_log_softmax,
};
pub use noise::{Distribution, Noise, Purpose, Rounding, tensor_id};
pub use parts::{Part, multiply_part, multiply_parts};
pub use philox::Philox;
pub use product::{
    Compute, FloatMatrix, FloatOutput, Forming, FormingScratch, GroupFactors, Product, form_for,
    multiply, multiply_floats, multiply_formed,
};
pub use ranked::{Ranked, rank_rows};
pub use rope::RopeTable;
pub use routing::{Choice, Routes, Rule as RoutingRule};
pub use rows::{
    Activation, add_assign, add_normed, argmax, gelu_gate, rms_norm, rotate, silu_gate, soft_cap,
    softmax,
};
pub use team::{Pinning, Team, available_threads, pin_current_thread};
pub use terms::{Entries, Mask, Term, add_terms, add_terms_to_rows};
pub use tile::{FloatStore, PackedMatrix, TILE_KIND, TileError};
pub use update::{Change, Moments, update_matrix, update_rows};
