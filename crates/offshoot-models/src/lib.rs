//! What a model is: its weights under canonical names, its tokenizer and chat template, and its
//! architecture, stated once and run by two executors.

mod checkpoint;
mod config;
mod detokenizer;
mod error;
pub mod gguf;
mod identity;
mod template;
mod tokenizer;
mod tokenizer_spec;

pub use checkpoint::{Checkpoint, Contents, RowOrder, Tensor, TensorInfo};
pub use config::{Family, ModelConfig, RopeScaling};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use identity::{BaseId, TemplateId, TokenizerId};
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::{Controls, Special, Tokenizer};
pub use tokenizer_spec::{PreTokenizer, TokenKind, TokenizerSpec};
