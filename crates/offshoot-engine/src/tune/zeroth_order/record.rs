//! What is kept of a run: its trajectory, which says how the weights came to be.

use offshoot_kernels::FloatStore;
use offshoot_methods::tune::{
    Chunk, Hash, Header, MethodCard, MethodChoice, Record, Schedule, SpaceChoice, Step,
    TrajectoryWriter,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::space::{Space, read_in_parts};
use crate::Error;
use crate::tune::numbers::to_bytes;

/// What a run was made of, as far as a trajectory tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The base model's weights, as [`BaseId`](offshoot_models::BaseId) names them.
    pub base: Hash,
    /// The tokenizer.
    pub tokenizer: Option<Hash>,
    /// The data.
    pub data: Option<Hash>,
    /// The chat template.
    pub template: Option<Hash>,
}

/// A trajectory in memory, as the bytes that its file has.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) header: Header,
    writer: TrajectoryWriter,
    bytes: Vec<u8>,
    /// The schedule's base rate in force.
    pub(super) base_rate: f64,
}

/// What a trajectory says of a run before its first step.
pub(super) fn header(
    space: &dyn Space,
    (card, options): (&MethodCard, &Value),
    origin: &Origin,
    schedule: Schedule,
    decay: f64,
) -> Header {
    let name = card.name.to_owned();
    let method = MethodChoice { name, options: card.options(options) };
    let choice: SpaceChoice = space.choice();
    let initial_seeds = [(choice.name.clone(), space.seed())].into_iter().collect();
    Header {
        base: origin.base,
        quantized: space.model().checkpoint().recipe().map(|recipe| recipe.name().to_owned()),
        tokenizer: origin.tokenizer,
        data: origin.data,
        template: origin.template,
        seed: space.seed(),
        distribution: space.distribution(),
        store: space.store().name().to_owned(),
        schedule,
        decay,
        tensors: space.layout().hash(),
        initial_seeds,
        ..Header::new(method, choice)
    }
}

impl Recorder {
    pub(super) fn start(header: Header) -> Result<Self, Error> {
        let (writer, chunk) = TrajectoryWriter::start(&header)?;
        Ok(Self { base_rate: header.rate, header, writer, bytes: chunk.bytes })
    }

    /// Goes on behind the first `steps` steps of `bytes`.
    pub(super) fn resume(
        header: Header,
        bytes: &[u8],
        (steps, base_rate): (u32, f64),
    ) -> Result<Self, Error> {
        let (writer, chunk) = TrajectoryWriter::resume(bytes, steps)?;
        let mut all = bytes.to_vec();
        place(&mut all, chunk);
        Ok(Self { header, writer, bytes: all, base_rate })
    }

    /// The number of the step that comes next.
    pub(super) fn next_step(&self) -> u32 {
        self.writer.next_step()
    }

    /// Takes in a step at base rate `base`.
    pub(super) fn push(&mut self, record: Record, base: f64) {
        let changed = self.base_rate.to_bits() != base.to_bits();
        self.base_rate = base;
        let step = Step { record, rate: changed.then_some(base) };
        if let Some(chunk) = self.writer.push(step) {
            place(&mut self.bytes, chunk);
        }
    }

    /// The file's bytes as of now; with the hash of the weights if the run has come to its end.
    pub(super) fn bytes(&self, end: Option<&Hash>) -> Vec<u8> {
        let mut all = self.bytes.clone();
        place(&mut all, end.map_or_else(|| self.writer.tail(), |end| self.writer.finish(end)));
        all
    }
}

fn place(bytes: &mut Vec<u8>, chunk: Chunk) {
    bytes.truncate(chunk.offset as usize);
    bytes.extend(chunk.bytes);
}

/// The SHA-256 of what is tuned: of each tensor, in ascending order of names, its numbers row by row as
/// they are in memory, the lowest byte first.
///
/// # Errors
/// If a tensor cannot be read.
pub fn weights_hash(space: &dyn Space) -> Result<Hash, Error> {
    let (mut sha, mut bytes) = (Sha256::new(), Vec::new());
    for tensor in 0..space.layout().tensors.len() {
        read_in_parts(space, tensor, &mut |values| {
            to_bytes(values, FloatStore::F32, &mut bytes);
            sha.update(&bytes);
            Ok(())
        })?;
    }
    Ok(Hash(sha.finalize().into()))
}
