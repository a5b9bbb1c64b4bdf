//! Drafts: what might come next, proposed without the model, for the model to check.

mod rest;

pub use rest::{
    DraftNode, Match, Retriever, RetrieverOptions, SAMPLED_TOKENS, Shard, ShardParts, TokenWidth,
};
