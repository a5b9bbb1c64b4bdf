//! What can go wrong while a model is loaded or runs.

pub(crate) use offshoot_methods::one_line;
use thiserror::Error;

use crate::datastore::DatastoreError;
use crate::store::StoreError;
use crate::tune::DataError;

/// A model cannot be loaded, or cannot answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The model itself, its file or a step of it.
    #[error(transparent)]
    Model(#[from] offshoot_models::Error),
    /// Sampling or stop strings.
    #[error(transparent)]
    Method(#[from] offshoot_methods::Error),
    /// The model store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A datastore.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// A run of tuning, or a variant that one made.
    #[error(transparent)]
    Run(#[from] crate::tune::run::RunError),
    /// Processes that tune together.
    #[error(transparent)]
    Exchange(#[from] crate::tune::ExchangeError),
    /// Training data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, the context {context}: shorten the prompt or raise \
         --ctx-size"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty and the model has no begin-of-text token: give it some text")]
    EmptyPrompt,
    /// A text has no vector: the model computes no numbers for it.
    #[error(
        "what the model computes for the text is not finite: its arithmetic overflowed, or its \
         weights are not all numbers"
    )]
    NotFinite,
    /// The conversation spells out control tokens and has every character that could stand for one
    /// while the chat template runs.
    #[error("the conversation has all characters of the last private plane: remove some of them")]
    NoPrivateCharacterLeft,
    /// A drafter was asked for by name, and what it needs was not given.
    #[error("--spec {drafter}: give {needs}, or leave the choice to --spec auto")]
    DrafterMissing {
        /// The drafter's name.
        drafter: &'static str,
        /// The option that brings it.
        needs: &'static str,
    },
    /// Only packed weights serve here, and the model was loaded without.
    #[error("the packed executor alone does this: leave out --executor dense")]
    OnlyPacked,
    /// Only weights as tensors serve here, and the model was loaded without.
    #[error("the dense executor alone does this: load the model for it")]
    OnlyDense,
    /// The device cannot be used.
    #[error("--device {device}: {what}; see which there are, or take cpu")]
    Device {
        /// The device as it was asked for.
        device: String,
        /// What its driver says.
        what: String,
    },
    /// Guesses are to stand by a rule that a guard cannot keep exact.
    #[error(
        "--acceptance {rule}: the dense executor checks drafts by the exact rule alone, so leave it \
         out, or --executor dense"
    )]
    OnlyExact {
        /// The rule's name.
        rule: &'static str,
    },
    /// The model that is to draft speaks another language of tokens.
    #[error(
        "--draft-model: its token {token} is not that of the model it drafts for: take a smaller \
         model of the same family"
    )]
    OtherVocabulary {
        /// The first token that differs.
        token: u32,
    },
    /// A token filter contradicts itself.
    #[error("the token filter lets token {token} through its mask and has no state behind it")]
    Filter {
        /// The token that was chosen.
        token: u32,
    },
    /// A list of seed prompts cannot be used.
    #[error("seed prompts: {0}")]
    Prompts(String),
    /// Heads cannot be trained.
    #[error("training: {0}")]
    Training(String),
    /// A trajectory of another base.
    #[error(
        "the trajectory belongs to another base: its weights hash to {expected}, these to {got}; take \
         the base of the run, or give --force"
    )]
    OtherBase {
        /// The run's base.
        expected: offshoot_methods::tune::Hash,
        /// The one given.
        got: offshoot_methods::tune::Hash,
    },
    /// The file is no trajectory, or a damaged one.
    #[error("{}: {source}", path.display())]
    TrajectoryFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: offshoot_methods::tune::TrajectoryError,
    },
    /// A trajectory does not fit.
    #[error(transparent)]
    Trajectory(#[from] offshoot_methods::tune::TrajectoryError),
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Output {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Whoever was told of the progress ended it.
    #[error("stopped")]
    Stopped,
    /// A context cannot be as long as asked.
    #[error("a context of {asked} tokens: expected 1 to {limit}")]
    Context {
        /// Tokens asked for.
        asked: usize,
        /// The longest that can be had.
        limit: usize,
    },
    /// The memory that this process may take does not hold the model.
    #[error(
        "running it takes {} ({} of weights, the rest for {context} tokens of context) and {} are \
         free: {}",
        amount(*need), amount(*weights), amount(*available), memory_hint(*longest)
    )]
    Memory {
        /// Bytes needed in all.
        need: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Tokens of context asked for.
        context: u64,
        /// Bytes that may be taken.
        available: u64,
        /// Tokens of context that fit; 0 if none do.
        longest: u64,
    },
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{} MB", bytes.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Contexts shorter than this are of no use to a conversation, and are not offered.
const USEFUL_CONTEXT: u64 = 128;

fn memory_hint(longest: u64) -> String {
    match longest {
        0..USEFUL_CONTEXT => {
            "end other programs, or take a smaller model or one of fewer bits a weight".to_owned()
        }
        _ => format!("give --ctx-size {longest} or less, or end other programs"),
    }
}
