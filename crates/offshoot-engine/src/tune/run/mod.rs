//! Runs: a trainer driven over examples, in a folder from which the run can go on at any time.
//!
//! ```text
//! run.json        what the run is: settings, base, data
//! log.jsonl       what happened, a line each; everything shown of a run is made from it
//! tensorboard/    the same as TensorBoard reads it
//! checkpoints/    the last few and the best, whole or not there
//! variant/        the best so far, as it is served
//! lock            held while the run works
//! ```
//! What is learned is a function of the base, the examples and the settings: a run that was killed
//! at any moment goes on from its last checkpoint and ends with the same bits.

mod advice;
mod card;
mod checkpoint;
mod config;
mod config_file;
mod description;
mod drive;
mod error;
mod evaluation;
mod events;
mod examples;
mod executor;
mod files;
mod float_store;
mod lock;
mod log;
mod memory;
mod method;
mod objective;
mod order;
mod pages;
mod ranks;
mod step_time;
mod trainers;
mod variant;

pub use crate::tune::zeroth_order::Share;
pub use advice::{Advice, Way};
use checkpoint::Checkpoints;
pub use config::{Metric, Offload, Optimizer, RunConfig, RunPlan, Space};
pub use config_file::{Given, read_config};
pub use description::RunDescription;
use drive::TRAINER;
pub use drive::{Happening, Outcome, Run};
pub use error::RunError;
pub use evaluation::{Evaluate, check_examples, evaluate_held_out};
pub use events::event_file;
pub use examples::{Examples, Part, digest};
pub use executor::Executor;
pub use log::{EndReason, EvalLine, LogLine, StartLine, StepLine, read_log};
pub use memory::TuneNeed;
pub use method::Method;
pub use objective::Objective;
pub use order::BatchOrder;
pub use pages::{Page, Topic, pages, pages_on};
pub use ranks::follow;
pub use step_time::TuneTime;
pub use trainers::Base;
pub use variant::{Variant, VariantFile};
