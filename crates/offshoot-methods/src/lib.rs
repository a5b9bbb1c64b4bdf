//! Methods as pure functions of slices and counted budgets: nothing here opens a file, reads a
//! clock, prints, or knows what a tensor is.
//!
//! Today the room holds what turns logits into text: [`Sampler`] chooses a token,
//! [`LogProbabilities`] reports what the model thought of it, [`StopMatcher`] ends the text at a
//! stop string, and [`Philox`] makes the random numbers. [`draft`] guesses
//! what comes next, for a step of the model to check: from the text itself, from stored text
//! ([`Retriever`]), how many guesses pay, and which choices stand where logits are known up to an
//! error. [`tune`] changes a model by its losses alone: the zeroth-order methods, and the runs that
//! they leave behind.
//!
//! ```
//! use offshoot_methods::{Sampler, SamplingOptions};
//!
//! let options = SamplingOptions { seed: Some(7), ..SamplingOptions::default() };
//! let mut sampler = Sampler::new(options)?;
//! let prompt = [2, 0];
//! let (choice, position) = (0, 0); // first answer, its first token
//! let sampled = sampler.sample(&mut [0.5, 3.0, -1.0], &prompt, choice, position)?;
//! assert!(sampled.token < 3);
//! # Ok::<(), offshoot_methods::Error>(())
//! ```

mod decode;
pub mod draft;
mod error;
pub mod optim;
mod page;
mod philox;
pub mod tune;

pub use decode::{
    Emit, FilterState, LogProbabilities, Purpose, Sampled, Sampler, SamplingOptions, StopMatcher,
    TokenFilter, TokenLogprob, uniform, uniform_for,
};
pub use draft::{
    DraftNode, Match, Retriever, RetrieverOptions, SAMPLED_TOKENS, Shard, ShardParts, TokenWidth,
};
pub use error::{Error, one_line};
pub use page::page_of;
pub use philox::Philox;
