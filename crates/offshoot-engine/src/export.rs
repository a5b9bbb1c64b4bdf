//! A model into a Hugging Face folder, written whole or not at all.

use std::fs::{self, DirEntry, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use offshoot_kernels::{BlockType, Cpu};
use offshoot_models::huggingface::{FolderExport, FolderOptions};
use offshoot_models::medusa::{HEADS_FILE, HeadsFile};
use offshoot_models::{
    BaseId, Checkpoint, ExportError, Family, ModelConfig, Recipe, RopeRule, RopeScaling,
    TemplateId, TokenizerId,
};

use crate::Error;
use crate::beside::{Partial, place};
use crate::merged::Source;

/// How far a factor of Llama 3's rule may be from that of the file that it was found in.
const CLOSE: f32 = 1e-6;

/// The files of a model's folder, but for the weights.
const FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    HEADS_FILE,
];

/// How a folder is written.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions<'a> {
    /// The float of the weights; `None` for that of [`floats_of`].
    pub floats: Option<Recipe>,
    /// Bytes of weights in one file.
    pub shard_bytes: u64,
    /// Whether a model's folder that is there may be replaced.
    pub overwrite: bool,
    /// The folder of a variant of the model, or of the run that made it, or of an adapter: it is written
    /// instead, what it learned in the weights.
    pub variant: Option<&'a Path>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The float of the weights.
    pub floats: Recipe,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub weights: u64,
    /// Number of files of weights.
    pub weight_files: usize,
    /// How many tensors have each format.
    pub formats: Vec<(BlockType, usize)>,
    /// Tensors of the source that the architecture does not have and that were left out.
    pub left_out: Vec<String>,
    /// Why there is no tokenizer, where the model has one that offshoot cannot write.
    pub without_tokenizer: Option<String>,
    /// Whether the tokenizer has another identity than the model's, since a GGUF file can say of
    /// tokens what a folder cannot.
    pub tokenizer_differs: bool,
    /// Which tokenizer the folder has, if it is one that offshoot builds.
    pub tokenizer: Option<TokenizerId>,
    /// Which chat template it has, if any.
    pub template: Option<TemplateId>,
    /// Whether draft heads that learned with the variant went along.
    pub heads: bool,
}

/// The float in which most matrices of a model are, where all are floats; else half precision, which
/// what is quantised is brought to.
pub fn floats_of(checkpoint: &Checkpoint) -> Recipe {
    let matrices = checkpoint.tensors().filter(|tensor| tensor.info.shape.len() > 1);
    let blocks: Vec<BlockType> = matrices.map(|tensor| tensor.info.block).collect();
    if blocks.iter().any(|block| !block.is_float()) {
        return Recipe::F16;
    }
    let count = |wanted| blocks.iter().filter(|block| **block == wanted).count();
    let floats = [
        (count(BlockType::F32), Recipe::F32),
        (count(BlockType::F16), Recipe::F16),
        (count(BlockType::Bf16), Recipe::Bf16),
    ];
    floats.into_iter().max_by_key(|(n, _)| *n).map_or(Recipe::F16, |(_, recipe)| recipe)
}

/// Writes the model at `source`, a file or a folder, or a variant of it, to the folder `output`, on the
/// threads of `cpu`.
/// `progress` is told the weights done and all of them, and says whether to go on.
///
/// The folder is made beside its place, read back, and moved there when it is complete. A folder that is
/// there and not empty is replaced only if that is allowed and it is a model's: the files of one alone,
/// with a `config.json` among them. If `output` is a link, what it leads to is meant.
///
/// # Errors
/// [`Error::Model`] if the model cannot be read or not be written so, or `output` is in the way;
/// [`Error::Output`] if the folder cannot be written, [`Error::Stopped`] if `progress` said so. Nothing
/// is left behind then.
pub fn export_folder(
    cpu: &Cpu,
    source: &Path,
    output: &Path,
    options: ExportOptions<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Exported, Error> {
    let Source { checkpoint, adapter, heads } = Source::open(source, options.variant)?;
    let wrong = |source| Error::Output { path: output.to_owned(), source };
    let place = place(output).map_err(wrong)?;
    let there = in_the_way(&place).map_err(wrong)?;
    if there {
        refuse_to_replace(&checkpoint, &place, options.overwrite)?;
    }
    let floats = options.floats.unwrap_or_else(|| floats_of(&checkpoint));
    let folder = FolderOptions { floats, single_vectors: false, shard_bytes: options.shard_bytes };
    let mut export = FolderExport::new(&checkpoint, &folder)?;
    adapter.as_ref().map_or(Ok(()), |adapter| export.merge(adapter))?;
    let partial = Partial::folder(&place).map_err(wrong)?;
    let weights = export.weights();
    let mut create = |name: &str| {
        let file = File::create_new(partial.path().join(name))?;
        Ok(Box::new(BufWriter::with_capacity(1 << 20, file)) as Box<dyn Write>)
    };
    let written = export.write(cpu, &mut create, &mut |done| progress(done, weights));
    written.map_err(|error| from_export(error, output))?;
    let read = Checkpoint::open(partial.path())?;
    same_model(&checkpoint, &read)?;
    if let Some(heads) = &heads {
        of_the_base(heads, &read)?.save(&partial.path().join(HEADS_FILE))?;
    }
    let bytes = settle(partial.path()).map_err(wrong)?;
    let tokenizer = |of: &Checkpoint| of.tokenizer().ok().map(TokenizerId::of);
    let done = Exported {
        floats,
        bytes,
        weights,
        weight_files: export.weight_files(),
        formats: export.formats(),
        left_out: export.left_out().to_vec(),
        without_tokenizer: export.without_tokenizer().map(str::to_owned),
        tokenizer_differs: tokenizer(&read).is_some() && tokenizer(&read) != tokenizer(&checkpoint),
        tokenizer: tokenizer(&read),
        template: read.chat_template().map(TemplateId::of),
        heads: heads.is_some(),
    };
    drop(read);
    // That it may be replaced is some time ago.
    if there {
        refuse_to_replace(&checkpoint, &place, options.overwrite)?;
    }
    let moved = if there { partial.replace(&place) } else { partial.move_to(&place) };
    moved.map_err(wrong)?;
    Ok(done)
}

/// `heads` of a variant as those of `base`, which is that variant by itself.
fn of_the_base(heads: &HeadsFile, base: &Checkpoint) -> Result<HeadsFile, Error> {
    let mut heads = heads.clone();
    if let Some(card) = &mut heads.card {
        card.base = BaseId::of(base)?;
        card.adapter = None;
    }
    Ok(heads)
}

/// What went wrong with writing `output`.
pub(crate) fn from_export(error: ExportError, output: &Path) -> Error {
    match error {
        ExportError::Model(error) => Error::Model(error),
        ExportError::Output(source) => Error::Output { path: output.to_owned(), source },
        ExportError::Stopped => Error::Stopped,
    }
}

/// Checks that what was written and read again says what the model it was made from does.
///
/// # Errors
/// If it does not, which is a fault of the writer: the file is not moved to its place then.
pub(crate) fn same_model(model: &Checkpoint, written: &Checkpoint) -> Result<(), Error> {
    let by_rule = matches!(written.rope_rule(), Some(RopeRule::Llama3(_)));
    let mut differing = differing(model.config(), written.config(), by_rule);
    if model.stop_tokens() != written.stop_tokens() {
        differing.push("stop_tokens");
    }
    if differing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "what was written of {} is another model: {} differ; please report this",
        model.path().display(),
        differing.join(", ")
    );
    Err(offshoot_models::Error::Export(what).into())
}

/// The names of the fields in which two configurations say different things; `by_rule` if the second has
/// its rotary factors by Llama 3's formula, which the first gives as numbers.
fn differing(model: &ModelConfig, written: &ModelConfig, by_rule: bool) -> Vec<&'static str> {
    // Taken apart, so that a new field is not forgotten.
    macro_rules! fields {
        ($($field:ident),*) => {{
            let ModelConfig { $($field: _),* } = model;
            vec![$((stringify!($field), model.$field == written.$field)),*]
        }};
    }
    let mut fields = fields!(
        family,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rotary_dim,
        vocab_size,
        max_position_embeddings,
        rms_norm_eps,
        rope_theta,
        rope_scaling,
        rope_magnitude,
        rope_local_base_freq,
        query_pre_attn_scalar,
        final_logit_softcapping,
        sliding_window,
        tie_word_embeddings,
        attention_bias,
        mlp_bias,
        experts
    );
    // A Mistral without a window is a Llama in GGUF files.
    let family = |config: &ModelConfig| match (config.family, &config.sliding_window) {
        (Family::Mistral, None) => Family::Llama,
        (family, _) => family,
    };
    let close = |told: &[f32], own: &[f32]| {
        let mut pairs = told.iter().zip(own);
        told.len() == own.len() && pairs.all(|(told, own)| (own / told - 1.0).abs() < CLOSE)
    };
    for (name, same) in &mut fields {
        *same |= match (*name, &model.rope_scaling, &written.rope_scaling) {
            ("family", ..) => family(model) == family(written),
            ("rope_scaling", RopeScaling::Factors(told), RopeScaling::Factors(own)) => {
                by_rule && close(told, own)
            }
            _ => false,
        };
    }
    fields.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

/// Whether something is at `place` that a new folder cannot be moved over.
fn in_the_way(place: &Path) -> std::io::Result<bool> {
    match fs::read_dir(place) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn refuse_to_replace(checkpoint: &Checkpoint, place: &Path, allowed: bool) -> Result<(), Error> {
    let refused = |what: String| Err(offshoot_models::Error::Export(what).into());
    let shown = place.display();
    if !allowed {
        return refused(format!("{shown} is there already; name another, or give --overwrite"));
    }
    let entries: Vec<_> = fs::read_dir(place).into_iter().flatten().flatten().collect();
    if let Some(other) = entries.iter().find(|entry| !is_of_a_model(entry)) {
        return refused(format!(
            "{shown} is no folder of a model and nothing else: it holds {}; name another output",
            other.file_name().display()
        ));
    }
    if !place.join("config.json").is_file() {
        return refused(format!(
            "{shown} is no folder of a model: it holds no config.json; name another output"
        ));
    }
    if holds(place, checkpoint) {
        return refused(format!("{shown} holds the model itself; name another output"));
    }
    Ok(())
}

/// Whether it is a file as a model's folder has them.
fn is_of_a_model(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let name = name.to_str().unwrap_or_default();
    let weights = name.strip_prefix("model").and_then(|rest| rest.strip_suffix(".safetensors"));
    let part = |rest: &str| rest.is_empty() || (rest.starts_with('-') && rest.contains("-of-"));
    let known = FILES.contains(&name) || weights.is_some_and(part);
    known && entry.file_type().is_ok_and(|kind| !kind.is_dir())
}

/// Whether the model lies in the folder at `place`, itself or, as in snapshots of the hub's cache, by
/// links.
fn holds(place: &Path, checkpoint: &Checkpoint) -> bool {
    let Ok(real) = place.canonicalize() else { return true };
    let is_place = |path: &Path| path.canonicalize().is_ok_and(|path| path == real);
    let within = |file: &Path| {
        let own = match file.parent() {
            Some(parent) if parent.as_os_str().is_empty() => is_place(Path::new(".")),
            Some(parent) => is_place(parent),
            None => false,
        };
        own || file.canonicalize().is_ok_and(|file| file.parent() == Some(&real))
    };
    let path = checkpoint.path();
    // A folder that holds the model's folder holds other things than files.
    is_place(path) || within(path) || checkpoint.files().iter().any(|file| within(file))
}

/// Brings a folder's files to the disk; gives the bytes of all.
fn settle(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        bytes += file.metadata()?.len();
    }
    Ok(bytes)
}
