//! A model loaded whole: weights, tokenizer, template and where its answers end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use offshoot_kernels::{Cpu, Isa, available_threads};
use offshoot_models::medusa::{HEADS_FILE, HeadsFile};
use offshoot_models::{
    Adapter, BaseId, ChatTemplate, Checkpoint, DenseModel, Message, ModelConfig, PackedModel,
    Recipe, Tokenizer, TokenizerId, WeightCache,
};

use crate::conversation::Conversation;
use crate::executor::ExecutorKind;
use crate::medusa::ReadyHeads;
use crate::packed_cache::{Cached, packed_cache_limit};
use crate::store::{FileDigests, hash, joined};
use crate::tune::run::Variant;
use crate::{Error, MemoryNeed};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What is to run its steps.
    pub executor: ExecutorKind,
    /// Threads of a step; by default as many as the process may use.
    pub threads: usize,
    /// The instruction set; by default the best.
    pub isa: Isa,
    /// Folder for packed weights and remembered digests; `None` packs at every start.
    pub cache: Option<PathBuf>,
    /// Bytes that the packed weights of all models together may take; the longest unused go first.
    /// `None` is [`packed_cache_limit`].
    pub cache_limit: Option<u64>,
    /// Tokens of context that must fit into memory beside the weights, else loading is refused;
    /// at most what the model was trained for. `None` checks nothing.
    pub context: Option<usize>,
    /// What float matrices become while they are loaded; those that are quantised stay as they are.
    pub quantize: Option<Recipe>,
    /// The folder of an adapter as PEFT saves it: sessions then run as the variant that it makes of the model. The
    /// weights, and so the identity, are still the base's.
    pub adapter: Option<PathBuf>,
    /// The folder of a variant of the model, or of the run that made it: as `adapter`, with the chat
    /// template and the stop tokens that it was tuned with, and refused where the weights are not those
    /// that it was tuned from. Not beside an adapter.
    pub variant: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            executor: ExecutorKind::default(),
            threads: available_threads(),
            isa: Isa::best(),
            cache: None,
            cache_limit: None,
            context: None,
            quantize: None,
            adapter: None,
            variant: None,
        }
    }
}

/// How long the parts of loading took.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadTimings {
    /// Opening and checking the file.
    pub open: Duration,
    /// Packing the weights, or reading them from the cache.
    pub weights: Duration,
    /// What the tokenizer and template took beyond that.
    pub text: Duration,
}

/// Weights as an executor takes them.
#[derive(Debug)]
enum Weights {
    Packed(Arc<PackedModel>),
    Dense(Box<DenseModel>),
}

impl Weights {
    fn load(
        checkpoint: &Arc<Checkpoint>,
        cpu: &Cpu,
        cache: Option<WeightCache<'_>>,
        executor: ExecutorKind,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        Ok(match executor {
            ExecutorKind::Packed => {
                let checkpoint = Arc::clone(checkpoint);
                Self::Packed(Arc::new(PackedModel::load_watched(checkpoint, cpu, cache, progress)?))
            }
            ExecutorKind::Dense { device, dtype } => {
                let model = DenseModel::load(checkpoint, &device.open()?, dtype.dtype())?;
                Self::Dense(Box::new(model))
            }
        })
    }
}

/// A model that can answer.
#[derive(Debug)]
pub struct Model {
    weights: Weights,
    executor: ExecutorKind,
    checkpoint: Arc<Checkpoint>,
    tokenizer: Arc<Tokenizer>,
    tokenizer_id: TokenizerId,
    template: Option<ChatTemplate>,
    stop_tokens: Vec<u32>,
    /// Texts of the control tokens.
    controls: Vec<String>,
    timings: LoadTimings,
    files: Vec<PathBuf>,
    /// The files' digest, where loading needed it.
    digest: Option<[u8; 32]>,
    /// The same, where it was asked for and loading did not need it.
    asked_digest: OnceLock<[u8; 32]>,
    file_len: u64,
    cache: Option<PathBuf>,
    /// What sessions add to the weights.
    adapter: Option<Adapter>,
    /// The draft heads that lie beside that.
    heads: Option<Arc<ReadyHeads>>,
}

impl Model {
    /// Loads the model at `path`, a file or a folder, for steps on a processor that is returned beside it.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<(Self, Cpu), Error> {
        let cpu = Cpu::new(options.isa, options.threads);
        Ok((Self::load_on(&cpu, path, options)?, cpu))
    }

    /// As [`Model::load`], for steps on `cpu`: threads and instruction set are that one's.
    pub fn load_on(cpu: &Cpu, path: &Path, options: &LoadOptions) -> Result<Self, Error> {
        Self::load_watched(cpu, path, options, &mut |_, _| {})
    }

    /// As [`Model::load_on`]; `progress` is told how many bytes of weights are packed, and of how
    /// many, if they have to be.
    pub fn load_watched(
        cpu: &Cpu,
        path: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let variant = options.variant.as_deref().map(Variant::open).transpose()?;
        let checkpoint = Arc::new(opened(path, options.quantize, variant.as_ref())?);
        let added = variant.as_ref().filter(|variant| !variant.is_whole());
        let folder = added.map(Variant::folder).or(options.adapter.as_deref());
        let adapter = folder.map(|folder| Adapter::open(folder, checkpoint.config()));
        let adapter = adapter.transpose().map_err(|error| reason(error, &checkpoint, &variant))?;
        let heads = folder.map(heads_beside).transpose()?.flatten();
        let heads = heads.map(|file| ReadyHeads::new(file).map(Arc::new)).transpose()?;
        let available = match options.executor {
            // A device of its own memory says by itself when that is full.
            ExecutorKind::Dense { device, .. } if !device.shares_memory() => None,
            _ => crate::available_memory(),
        };
        if let (Some(context), Some(available)) = (options.context, available) {
            let context = context.min(checkpoint.config().max_position_embeddings);
            let mut need = MemoryNeed::on(&checkpoint, options.executor);
            // As it was read, and as a session has it.
            need.weights += adapter.as_ref().map_or(0, |adapter| 2 * adapter.bytes() as u64);
            need.check(context as u64, available)?;
        }
        let open = start.elapsed();
        let executor = options.executor;
        let dir = options.cache.as_deref();
        let cached = dir.and_then(|dir| Cached::of(dir, checkpoint.files(), checkpoint.recipe()));
        // The tokenizer is made on a thread of its own while the weights are packed.
        let (loaded, text) = std::thread::scope(|scope| {
            let text = scope.spawn(|| text_of(&checkpoint));
            let weights =
                cached.as_ref().map(|cached| WeightCache { path: &cached.path, key: cached.key });
            let loaded = Weights::load(&checkpoint, cpu, weights, executor, progress);
            let took = start.elapsed() - open;
            let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ((loaded, took), text)
        });
        let ((weights, took), Text { tokenizer, tokenizer_id, template }) = (loaded, text?);
        let weights = weights?;
        if let (Some(dir), Some(cached), Weights::Packed(_)) = (dir, &cached, &weights) {
            cached.used(dir, options.cache_limit.unwrap_or_else(|| packed_cache_limit(dir)));
        }
        let timings = LoadTimings { open, weights: took, text: start.elapsed() - open - took };
        let stop_tokens = checkpoint.stop_tokens().to_vec();
        let controls = tokenizer.control_texts().map(str::to_owned).collect();
        let (files, digest) = (checkpoint.files().to_vec(), cached.map(|cached| cached.digest));
        let file_len = files.iter().filter_map(|file| std::fs::metadata(file).ok());
        let file_len = file_len.map(|metadata| metadata.len()).sum();
        let mut model = Self {
            weights,
            executor,
            checkpoint,
            tokenizer,
            tokenizer_id,
            template,
            stop_tokens,
            controls,
            timings,
            files,
            digest,
            asked_digest: OnceLock::new(),
            file_len,
            cache: options.cache.clone(),
            adapter,
            heads,
        };
        if let Some(variant) = &variant {
            model.become_variant(variant)?;
        }
        Ok(model)
    }

    /// Takes over what `variant` was tuned with, if it is of these weights.
    fn become_variant(&mut self, variant: &Variant) -> Result<(), Error> {
        if !variant.is_whole() {
            variant.check(self.tokenizer_id, || self.base_id())?;
        }
        let Some(file) = variant.file() else { return Ok(()) };
        self.stop_tokens.clone_from(&file.stop_tokens);
        let (bos, eos) = edge_texts(&self.tokenizer);
        self.template = variant.template(bos.as_deref(), eos.as_deref())?;
        Ok(())
    }

    /// The adapter that its sessions run with.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The draft heads that were trained beside that adapter, if it has some.
    pub fn heads(&self) -> Option<&Arc<ReadyHeads>> {
        self.heads.as_ref()
    }

    /// What runs its steps.
    pub fn executor(&self) -> ExecutorKind {
        self.executor
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The weights of the packed executor.
    ///
    /// # Errors
    /// [`Error::OnlyPacked`] if it was loaded for another.
    pub fn packed(&self) -> Result<&PackedModel, Error> {
        match &self.weights {
            Weights::Packed(model) => Ok(model),
            Weights::Dense(_) => Err(Error::OnlyPacked),
        }
    }

    /// The weights of the packed executor, to be shared.
    ///
    /// # Errors
    /// [`Error::OnlyPacked`] if it was loaded for another.
    pub fn shared_packed(&self) -> Result<Arc<PackedModel>, Error> {
        match &self.weights {
            Weights::Packed(model) => Ok(Arc::clone(model)),
            Weights::Dense(_) => Err(Error::OnlyPacked),
        }
    }

    /// The weights of the dense executor.
    ///
    /// # Errors
    /// [`Error::OnlyDense`] if it was loaded for another.
    pub fn dense(&self) -> Result<&DenseModel, Error> {
        match &self.weights {
            Weights::Dense(model) => Ok(model),
            Weights::Packed(_) => Err(Error::OnlyDense),
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Which tokenizer it is.
    pub fn tokenizer_id(&self) -> TokenizerId {
        self.tokenizer_id
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The ids at which an answer ends.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// The digest of the model's files, if it was loaded with a cache, which remembers it: the BLAKE3
    /// of a single one.
    pub fn digest(&self) -> Option<&[u8; 32]> {
        self.digest.as_ref()
    }

    /// The digest of the model's files; they are read whole, once, if loading did not need that.
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn file_digest(&self) -> Result<[u8; 32], Error> {
        if let Some(digest) = self.digest.or_else(|| self.asked_digest.get().copied()) {
            return Ok(digest);
        }
        let digest = |path: &PathBuf| {
            let unread = |source| offshoot_models::Error::Io { path: path.clone(), source };
            hash(path).map_err(unread)
        };
        let digest = joined(&self.files.iter().map(digest).collect::<Result<Vec<_>, _>>()?);
        Ok(*self.asked_digest.get_or_init(|| digest))
    }

    /// Bytes that the model's files had when it was loaded.
    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Which weights it has. Every one of them is read and hashed, once if there is a cache to
    /// remember the result.
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn base_id(&self) -> Result<BaseId, Error> {
        let compute = || BaseId::of(&self.checkpoint);
        let Some(dir) = &self.cache else { return Ok(compute()?) };
        let digests = FileDigests::open(&dir.join("digests.json"));
        let base = match self.checkpoint.recipe() {
            None => "base".to_owned(),
            Some(recipe) => format!("base as {recipe}, v2"),
        };
        let (file, identity) = match (&self.files[..], self.digest) {
            ([file], _) => (file, base),
            // Remembered beside the first file for the digest of all, unless one has changed since.
            ([first, ..], Some(all)) if digests.blake3_of_all(&self.files)? == all => {
                (first, format!("{base} of {}", blake3::Hash::from_bytes(all)))
            }
            _ => return Ok(compute()?),
        };
        let digest =
            digests.digest_of(file, &identity, |_| Ok::<_, Error>(*compute()?.as_bytes()))?;
        Ok(BaseId::from_bytes(digest))
    }

    /// How long loading took.
    pub fn timings(&self) -> LoadTimings {
        self.timings
    }

    /// What it was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What its weights were quantised to while they were loaded, if they were.
    pub fn recipe(&self) -> Option<Recipe> {
        self.checkpoint.recipe()
    }

    /// The longest context that the model was trained for, less what its variant has before every text.
    pub fn trained_context(&self) -> usize {
        self.config().max_position_embeddings - self.positions_before()
    }

    /// How many positions stand before every text of its variant.
    pub fn positions_before(&self) -> usize {
        self.adapter.as_ref().map_or(0, Adapter::positions_before)
    }

    /// The ids of a raw text, with the begin-of-text token that the model expects before it.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, Error> {
        use offshoot_models::Special;
        let mut ids = Vec::new();
        if let (true, Some(bos)) = (self.tokenizer.add_bos(), self.tokenizer.bos()) {
            ids.push(bos);
        }
        ids.extend(self.tokenizer.encode(text, Special::Parse)?);
        Ok(ids)
    }

    /// As [`Model::encode_chat`]; where the model has no chat template, the messages' own texts, a line
    /// each, as [`Model::encode_text`] takes them.
    ///
    /// # Errors
    /// As both.
    pub fn encode_messages(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        if let Some(tokens) = self.encode_chat(messages)? {
            return Ok(tokens);
        }
        let texts: Vec<&str> = messages.iter().filter_map(|m| m.content.as_deref()).collect();
        self.encode_text(&texts.join("\n"))
    }

    /// As [`Model::encode_text`], with the end-of-text token that the model expects behind a text
    /// that is whole.
    pub fn encode_whole_text(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode_text(text)?;
        if let (true, Some(eos)) = (self.tokenizer.add_eos(), self.tokenizer.eos()) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The ids of a conversation that the assistant is to continue, or `None` if the model has no
    /// chat template. What messages spell out stays text (`conversation.rs`).
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Option<Vec<u32>>, Error> {
        let Some(template) = &self.template else { return Ok(None) };
        let talk = Conversation::new(&self.tokenizer, template, &self.controls, messages)?;
        let rendered = talk.render(messages, true)?;
        talk.encode(&rendered).map(Some)
    }
}

/// The draft heads of the adapter in `folder`: those that name the adapter that they belong to.
pub(crate) fn heads_beside(folder: &Path) -> Result<Option<HeadsFile>, Error> {
    let path = folder.join(HEADS_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let file = HeadsFile::open(&path)?;
    let named = file.card.as_ref().is_some_and(|card| card.adapter.is_some());
    Ok(named.then_some(file))
}

/// Why an adapter cannot be applied: that its variant is of another base, if it is.
fn reason(
    error: offshoot_models::Error,
    checkpoint: &Checkpoint,
    variant: &Option<Variant>,
) -> Error {
    let other = |variant: &Variant| {
        let tokenizer = TokenizerId::of(checkpoint.tokenizer().ok()?);
        variant.check(tokenizer, || Ok(BaseId::of(checkpoint)?)).err()
    };
    variant.as_ref().and_then(other).unwrap_or_else(|| error.into())
}

/// The weights that are run: those of `variant`, if it is a whole model and was made of the one at
/// `path`, else those there.
fn opened(
    path: &Path,
    recipe: Option<Recipe>,
    variant: Option<&Variant>,
) -> Result<Checkpoint, Error> {
    let mut checkpoint = Checkpoint::open(path)?;
    if let Some(variant) = variant.filter(|variant| variant.is_whole()) {
        let tokenizer = TokenizerId::of(checkpoint.tokenizer()?);
        variant.check(tokenizer, || Ok(BaseId::of(&checkpoint)?))?;
        checkpoint = Checkpoint::open(variant.folder())?;
    }
    Ok(match recipe {
        Some(recipe) => checkpoint.quantized(recipe),
        None => checkpoint,
    })
}

/// What turns text into tokens and back.
pub(crate) struct Text {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) tokenizer_id: TokenizerId,
    pub(crate) template: Option<ChatTemplate>,
}

pub(crate) fn text_of(checkpoint: &Checkpoint) -> Result<Text, Error> {
    let spec = checkpoint.tokenizer()?;
    let tokenizer_id = TokenizerId::of(spec);
    let tokenizer = Tokenizer::new(spec)?;
    let (bos, eos) = edge_texts(&tokenizer);
    let template = checkpoint
        .chat_template()
        .map(|source| ChatTemplate::new(source, bos.as_deref(), eos.as_deref()))
        .transpose()?;
    Ok(Text { tokenizer: Arc::new(tokenizer), tokenizer_id, template })
}

/// The texts of the tokens at which a text begins and ends.
fn edge_texts(tokenizer: &Tokenizer) -> (Option<String>, Option<String>) {
    let text = |id: Option<u32>| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id));
        bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    (text(tokenizer.bos()), text(tokenizer.eos()))
}
