//! What a model, its tokenizer and its chat template are, as 32 bytes each.
//!
//! Every file that offshoot writes about a model carries these, so that it is never used with
//! another. They are BLAKE3 hashes in key-derivation mode, each under a context of its own, over
//! fields with their lengths before them; they depend on what the weights, the tokenizer and the
//! template are, not on the file they came from.
//!
//! ```text
//! tensor digest = blake3(TENSOR,    values as little-endian f32, canonical row order)
//! BaseId        = blake3(BASE,      for each tensor by name: name, shape, tensor digest)
//! TokenizerId   = blake3(TOKENIZER, every field of the TokenizerSpec in order of declaration)
//! TemplateId    = blake3(TEMPLATE,  source)
//! ```
//! A model stored as F16 in a GGUF file and as F16 in a Hugging Face folder thus has one id; a
//! quantised model has another than the model it was quantised from, since its weights differ.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::{
    Checkpoint, Error, ExtraSpaces, Pieces, SentencePiece, SpacePrefix, Tensor, TokenKind,
    TokenizerModel, TokenizerSpec,
};

const TENSOR: &str = "offshoot 2026 tensor digest v1";
const BASE: &str = "offshoot 2026 base id v1";
const TOKENIZER: &str = "offshoot 2026 tokenizer id v1";
const TEMPLATE: &str = "offshoot 2026 template id v1";

/// Weights that a thread dequantises before it hashes them.
const CHUNK_WEIGHTS: usize = 1 << 18;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// Shown, parsed and serialised as 64 hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The identity with these bytes, as a file holds them.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The identity's bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 12 hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let hash = blake3::Hash::from_hex(text).map_err(|_| {
                    Error::Identity(format!(
                        "of a {}: {text:?}, expected 64 hexadecimal digits",
                        $what
                    ))
                })?;
                Ok(Self(*hash.as_bytes()))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identity! {
    /// Which weights a model has.
    BaseId, "model"
}
identity! {
    /// Which tokenizer a model has.
    TokenizerId, "tokenizer"
}
identity! {
    /// Which chat template a model has.
    TemplateId, "chat template"
}

impl BaseId {
    /// Hashes every weight of `checkpoint`, on as many threads as the machine has cores.
    ///
    /// Cost: one pass over the weights, dequantised a chunk at a time: some two megabytes a thread,
    /// and the file's pages are released as they are done with.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a tensor cannot be dequantised.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let tensors: Vec<Tensor<'_>> = checkpoint.tensors().collect();
        let digests = tensor_digests(&tensors)?;
        let mut fields = Fields::new(BASE);
        for (tensor, digest) in tensors.iter().zip(&digests) {
            fields.text(tensor.name);
            fields.count(tensor.info.shape.len());
            for n in &tensor.info.shape {
                fields.count(*n);
            }
            fields.0.update(digest);
        }
        Ok(Self(fields.finish()))
    }
}

impl TokenizerId {
    /// The identity of `spec`.
    pub fn of(spec: &TokenizerSpec) -> Self {
        let mut fields = Fields::new(TOKENIZER);
        fields.count(spec.tokens.len());
        spec.tokens.iter().for_each(|token| fields.text(token));
        fields.count(spec.kinds.len());
        spec.kinds.iter().for_each(|kind| fields.byte(kind_byte(*kind)));
        match &spec.model {
            TokenizerModel::ByteLevel { merges, pre } => {
                fields.count(merges.len());
                for (left, right) in merges {
                    fields.text(left);
                    fields.text(right);
                }
                fields.text(pre.name());
            }
            TokenizerModel::SentencePiece(model) => sentence_piece(&mut fields, model),
        }
        // Tokenizers whose added tokens are found by their text alone have the identity that they
        // had before other ways were known.
        if !spec.matching.is_empty() {
            fields.count(spec.matching.len());
            for (id, how) in &spec.matching {
                fields.count(*id as usize);
                let flags = [how.lstrip, how.rstrip, how.normalized];
                flags.into_iter().for_each(|flag| fields.byte(u8::from(flag)));
            }
            fields.text("matching");
        }
        for id in [spec.bos, spec.eos, spec.pad, spec.unk] {
            fields.byte(u8::from(id.is_some()));
            fields.count(id.unwrap_or(0) as usize);
        }
        fields.byte(u8::from(spec.add_bos));
        fields.byte(u8::from(spec.add_eos));
        fields.count(spec.end_of_turn.len());
        spec.end_of_turn.iter().for_each(|id| fields.count(*id as usize));
        Self(fields.finish())
    }
}

impl TemplateId {
    /// The identity of the template with this source.
    pub fn of(source: &str) -> Self {
        Self(blake3::derive_key(TEMPLATE, source.as_bytes()))
    }
}

/// A hash over fields whose lengths stand before them, so that no two lists of fields run together.
struct Fields(blake3::Hasher);

impl Fields {
    fn new(context: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    fn count(&mut self, n: usize) {
        self.0.update(&(n as u64).to_le_bytes());
    }

    fn byte(&mut self, byte: u8) {
        self.0.update(&[byte]);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Written out, so that a change of the enum's order cannot change identities.
fn kind_byte(kind: TokenKind) -> u8 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
        TokenKind::Unused => 5,
        TokenKind::Byte => 6,
    }
}

/// Digests of the tensors, in their order; threads take the next tensor as they become free.
fn tensor_digests(tensors: &[Tensor<'_>]) -> Result<Vec<[u8; 32]>, Error> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, [u8; 32])>, Error> {
        let mut done = Vec::new();
        while let Some((i, tensor)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            tensors.get(i).map(|tensor| (i, tensor))
        } {
            done.push((i, tensor_digest(tensor)?));
        }
        Ok(done)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let done: Result<Vec<_>, Error> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut digests = vec![[0; 32]; tensors.len()];
    for (i, digest) in done?.into_iter().flatten() {
        digests[i] = digest;
    }
    Ok(digests)
}

fn sentence_piece(fields: &mut Fields, model: &SentencePiece) {
    match &model.pieces {
        Pieces::Bpe(merges) => {
            fields.count(merges.len());
            for (left, right) in merges {
                fields.count(*left as usize);
                fields.count(*right as usize);
            }
            fields.text("sentencepiece bpe");
        }
        Pieces::Unigram(scores) => {
            fields.count(scores.len());
            scores.iter().for_each(|score| fields.count(score.to_bits() as usize));
            fields.text("sentencepiece unigram");
        }
    }
    fields.text(match model.prefix {
        SpacePrefix::Never => "never",
        SpacePrefix::Start => "start",
        SpacePrefix::Parts => "parts",
        SpacePrefix::EveryPart => "every part",
    });
    for flag in [model.strip_space, model.cut_at_spaces, model.byte_fallback] {
        fields.byte(u8::from(flag));
    }
    // Others have the identity that they had before such tables and settings were known.
    if let Some(charsmap) = &model.charsmap {
        let bytes = charsmap.to_bytes();
        fields.count(bytes.len());
        fields.0.update(&bytes);
        fields.text("charsmap");
    }
    match model.extra_spaces {
        ExtraSpaces::Keep => {}
        ExtraSpaces::Merge => fields.text("merged spaces"),
        ExtraSpaces::Remove => fields.text("removed spaces"),
    }
}

/// The hash of a tensor's values as little-endian `f32` in canonical order.
fn tensor_digest(tensor: &Tensor<'_>) -> Result<[u8; 32], Error> {
    let cols = tensor.cols();
    let rows = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    let mut weights = vec![0.0f32; rows * cols];
    let mut bytes = vec![0u8; 4 * rows * cols];
    let mut hasher = blake3::Hasher::new_derive_key(TENSOR);
    for start in (0..tensor.row_count()).step_by(rows) {
        let end = tensor.row_count().min(start + rows);
        let weights = &mut weights[..(end - start) * cols];
        for (row, out) in (start..end).zip(weights.chunks_exact_mut(cols)) {
            tensor.read_row(row, out)?;
        }
        for (bytes, weight) in bytes.chunks_exact_mut(4).zip(weights.iter()) {
            bytes.copy_from_slice(&weight.to_le_bytes());
        }
        hasher.update(&bytes[..4 * weights.len()]);
        tensor.release_rows(start..end);
    }
    tensor.release();
    Ok(*hasher.finalize().as_bytes())
}
