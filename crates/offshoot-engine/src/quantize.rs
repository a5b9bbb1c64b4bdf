//! A model into a GGUF file of another format, written whole or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use offshoot_kernels::{BlockType, Cpu};
use offshoot_models::gguf::{Export, ExportOptions};
use offshoot_models::{Checkpoint, Recipe, TemplateId, TokenizerId};

use crate::Error;
use crate::beside::{Partial, place};
use crate::export::{from_export, same_model};
use crate::merged::Source;

/// How a model is quantised.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeOptions<'a> {
    /// Which format each matrix takes.
    pub recipe: Recipe,
    /// Whether a model that is quantised already may be quantised again.
    pub requantize: bool,
    /// The folder of a variant of the model, or of the run that made it, or of an adapter: it is written
    /// instead, what it learned in the weights. Draft heads stay: a file has no place for them.
    pub variant: Option<&'a Path>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Bytes of the new file.
    pub bytes: u64,
    /// Bytes of the tensors that it was made from.
    pub source_bytes: u64,
    /// Number of weights.
    pub weights: u64,
    /// How many tensors have each format.
    pub formats: Vec<(BlockType, usize)>,
    /// Tensors of the source that the architecture does not have and that were left out.
    pub left_out: Vec<String>,
    /// Which tokenizer the file has, if it is one that offshoot builds.
    pub tokenizer: Option<TokenizerId>,
    /// Which chat template it has, if any.
    pub template: Option<TemplateId>,
}

/// Writes the model at `source`, a file or a folder, or a variant of it, to the GGUF file `output`, on
/// the threads of `cpu`. `progress` is told the weights done and all of them, and says whether to go on.
///
/// The file is made beside its place, read back, and moved there when it is complete: whatever
/// stood at `output` before is there, whole, until the new file is. If `output` is a link, what it leads
/// to is written and the link stays.
///
/// # Errors
/// [`Error::Model`] if the model cannot be read or not be quantised so, [`Error::Output`] if the
/// file cannot be written, [`Error::Stopped`] if `progress` said so. Nothing is left behind then.
pub fn quantize(
    cpu: &Cpu,
    source: &Path,
    output: &Path,
    options: QuantizeOptions<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Quantized, Error> {
    let Source { checkpoint, adapter, .. } = Source::open(source, options.variant)?;
    let wrong = |source| Error::Output { path: output.to_owned(), source };
    if output.to_string_lossy().ends_with(std::path::is_separator) {
        return Err(wrong(std::io::ErrorKind::IsADirectory.into()));
    }
    // It is read back, so that no device and no pipe is one either.
    let place = place(output).map_err(wrong)?;
    if place.is_dir() {
        return Err(wrong(std::io::ErrorKind::IsADirectory.into()));
    }
    refuse_own_files(&checkpoint, &place)?;
    let export = ExportOptions {
        recipe: options.recipe,
        requantize: options.requantize,
        name: options
            .variant
            .unwrap_or(source)
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| !is_commit(name)),
    };
    let mut export = Export::new(&checkpoint, &export)?;
    adapter.as_ref().map_or(Ok(()), |adapter| export.merge(adapter))?;
    let (partial, file) = Partial::file(&place).map_err(wrong)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let weights = export.weights();
    let written = export.write(cpu, &mut file, &mut |done| progress(done, weights));
    written.map_err(|error| from_export(error, output))?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(wrong)?;
    let bytes = file.get_ref().metadata().map_err(wrong)?.len();
    drop(file);
    // What lies beside is no part of what was written.
    let read = Checkpoint::open_gguf(partial.path())?;
    same_model(&checkpoint, &read)?;
    let done = Quantized {
        bytes,
        source_bytes: checkpoint.tensors().map(|t| t.bytes().len() as u64).sum(),
        weights,
        formats: export.formats(),
        left_out: export.left_out().to_vec(),
        tokenizer: read.tokenizer().ok().map(TokenizerId::of),
        template: read.chat_template().map(TemplateId::of),
    };
    drop(read);
    partial.move_to(&place).map_err(wrong)?;
    Ok(done)
}

/// Whether a folder is named as the hub's cache names snapshots, which says nothing of the model.
fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The model's own files stay as they are: they are read while the new one is written.
fn refuse_own_files(checkpoint: &Checkpoint, output: &Path) -> Result<(), Error> {
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    let own = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == real);
    match checkpoint.files().iter().any(own) {
        false => Ok(()),
        true => {
            let what = format!("{} is the model itself; name another output", output.display());
            Err(offshoot_models::Error::Export(what).into())
        }
    }
}
