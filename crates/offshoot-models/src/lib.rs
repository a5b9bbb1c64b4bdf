//! What a model is: its weights under canonical names, its tokenizer and chat template, and its
//! architecture, stated once and run by two executors.

mod adapter;
mod architecture;
pub mod beside;
mod checkpoint;
mod config;
mod dense;
mod detokenizer;
mod error;
mod families;
mod generation_defaults;
pub mod gguf;
pub mod huggingface;
mod identity;
pub mod medusa;
mod packed;
mod recipe;
mod rope_rule;
mod scales;
mod shown;
mod step;
mod stop_tokens;
mod template;
mod tokenizer;
mod tokenizer_spec;
mod virtual_tokens;
mod written;
mod yarn;

pub use adapter::{Adapter, LoraAdapter, LowRank};
pub use architecture::{
    Attention, Blueprint, Executor, ExpertLayer, Frequencies, HeadNorms, Input, LinearId,
    LinearSpec, Output, PostNorm, Site, VectorId, VectorSpec,
};
pub use checkpoint::{Checkpoint, Contents, RowOrder, Tensor, TensorInfo};
pub use config::{Experts, Family, ModelConfig, RopeScaling, SlidingWindow};
pub use dense::{
    DenseAdapters, DenseCache, DenseHooks, DenseModel, DenseTuning, DraftTarget, Drafts,
    DropoutMasks, GradientOptions, Gradients, TextTarget,
};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use families::{Architecture, Decoder, Gemma3};
pub use generation_defaults::GenerationDefaults;
pub use identity::{BaseId, TemplateId, TokenizerId};
pub use offshoot_kernels::{Activation, RoutingRule};
pub use packed::{
    Asked, Beginnings, Hooks, NoHooks, PackedAdapters, PackedExecutor, PackedModel, Perturbed,
    SegmentRows, Stage, StagedStep, TrainableModel, TrainableTensor, WeightCache,
};
pub use recipe::Recipe;
pub use rope_rule::{Llama3, RopeRule};
pub use scales::{MatrixFactors, PackedScales, ScaleFactors};
pub use step::{LogitRows, RopeId, Segment, VariantId, chain};
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::{Charsmap, Controls, Special, Tokenizer};
pub use tokenizer_spec::{
    ExtraSpaces, Matching, Pieces, PreTokenizer, SentencePiece, SpacePrefix, TokenKind,
    TokenizerModel, TokenizerSpec,
};
pub use virtual_tokens::{VirtualKind, VirtualTokens};
pub use written::ExportError;
pub use yarn::Yarn;
