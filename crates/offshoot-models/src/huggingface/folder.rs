//! A folder on disk: which files are read, and that none leads elsewhere.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::FileMap;

use super::{
    CONFIG, INDEX, Parts, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS, config, contents,
    generation_config, shards, tokenizer, tokenizer_config, weight_files, wrong,
};
use crate::Error;
use crate::checkpoint::Opened;

/// Opens the folder at `path`.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read, [`Error::File`] as [`contents`] says.
pub(crate) fn open(path: &Path) -> Result<Opened, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let folder = Folder { path, real: path.canonicalize().map_err(io)? };
    folder.open().map_err(|error| error.within(path))
}

/// Further files of a tokenizer that folders have beside those that are read.
const FURTHER: [&str; 6] = [
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
];

/// The bytes of all files of the folder at `path` but the weights and their index, by name.
///
/// # Errors
/// As [`open`].
pub(super) fn side_files(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let folder = Folder { path, real: path.canonicalize().map_err(io)? };
    let read = [
        (CONFIG, config::BYTES_MAX),
        (TOKENIZER, tokenizer::BYTES_MAX),
        (TOKENIZER_CONFIG, tokenizer_config::BYTES_MAX),
        (TEMPLATE, tokenizer_config::BYTES_MAX),
        (generation_config::NAME, generation_config::BYTES_MAX),
    ];
    let further = FURTHER.map(|name| (name, tokenizer::BYTES_MAX));
    let mut files = Vec::new();
    for (name, most) in read.into_iter().chain(further) {
        let bytes = folder.read(name, most).map_err(|error| error.within(path))?;
        if let Some(bytes) = bytes {
            files.push((name.to_owned(), bytes));
        }
    }
    Ok(files)
}

/// Files of a folder that hold tensors of one kind.
pub(crate) struct PartFiles {
    pub(crate) files: Vec<(PathBuf, Arc<FileMap>)>,
    /// The tensors that the index says are there; none without an index.
    pub(crate) listed: Vec<String>,
}

/// The files that hold the tensors whose names begin with `prefix`, of the model whose folder is at
/// `path`, or whose index of several files is.
///
/// # Errors
/// As [`open`], and if the index lists no such tensor.
pub(crate) fn part_files(path: &Path, prefix: &str) -> Result<PartFiles, Error> {
    let index = path.file_name().and_then(|name| name.to_str()).filter(|_| !path.is_dir());
    let (path, index) = match index {
        // The folder of a bare name is "", which is no path.
        Some(_) => (path.parent().filter(|folder| *folder != Path::new("")), index),
        None => (Some(path), None),
    };
    let path = path.unwrap_or(Path::new("."));
    let io = |source| Error::Io { path: path.to_owned(), source };
    let folder = Folder { path, real: path.canonicalize().map_err(io)? };
    folder.part(index, prefix).map_err(|error| error.within(path))
}

struct Folder<'a> {
    path: &'a Path,
    /// The same without links.
    real: PathBuf,
}

impl Folder<'_> {
    fn open(&self) -> Result<Opened, Error> {
        let Some(config) = self.read(CONFIG, config::BYTES_MAX)? else {
            return Err(wrong(
                "",
                format_args!("a folder without {CONFIG}; give a GGUF file or a model's folder"),
            ));
        };
        let index = self.index()?;
        let names = weight_files(index.as_deref())?;
        let maps = names.iter().map(|name| self.map(name, INDEX)).collect::<Result<Vec<_>, _>>()?;
        let weights: Vec<(String, &[u8])> =
            names.iter().cloned().zip(maps.iter().map(|map| &***map)).collect();
        let tokenizer = self.read(TOKENIZER, tokenizer::BYTES_MAX)?;
        let tokenizer_config = self.read(TOKENIZER_CONFIG, tokenizer_config::BYTES_MAX)?;
        let chat_template = self.read(TEMPLATE, tokenizer_config::BYTES_MAX)?;
        let generation = self.read(generation_config::NAME, generation_config::BYTES_MAX)?;
        let contents = contents(&Parts {
            config: &config,
            index: index.as_deref(),
            weights: &weights,
            tokenizer: tokenizer.as_deref(),
            tokenizer_config: tokenizer_config.as_deref(),
            chat_template: chat_template.as_deref(),
            generation_config: generation.as_deref(),
        })?;
        let files = [CONFIG].into_iter().chain(names.iter().map(String::as_str));
        let paths = files.map(|name| self.path.join(name)).collect();
        Ok(Opened { paths, maps, contents })
    }

    fn part(&self, index: Option<&str>, prefix: &str) -> Result<PartFiles, Error> {
        let name = index.unwrap_or(INDEX);
        let file = |file: String| Ok::<_, Error>((self.path.join(&file), self.map(&file, name)?));
        let missing = || wrong(name, "missing");
        let bytes = match index {
            Some(name) => Some(self.read(name, shards::INDEX_MAX)?.ok_or_else(missing)?),
            None => self.index()?,
        };
        let Some(bytes) = bytes else {
            return Ok(PartFiles { files: vec![file(WEIGHTS.to_owned())?], listed: Vec::new() });
        };
        let mut listed = shards::read_index(name, &bytes)?;
        listed.retain(|tensor, _| tensor.starts_with(prefix));
        if listed.is_empty() {
            return Err(wrong(name, format_args!("weight_map: no tensor is named {prefix}*")));
        }
        let files = shards::files_of(name, listed.values().cloned())?.into_iter().map(file);
        let files = files.collect::<Result<Vec<_>, _>>()?;
        Ok(PartFiles { files, listed: listed.into_keys().collect() })
    }

    /// The index, unless all weights are in one file, which transformers prefers as well.
    fn index(&self) -> Result<Option<Vec<u8>>, Error> {
        if self.find(WEIGHTS)?.is_some() {
            return Ok(None);
        }
        let Some(index) = self.read(INDEX, shards::INDEX_MAX)? else {
            let torch = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
            let what = match torch.into_iter().any(|name| self.path.join(name).exists()) {
                true => "missing; the weights are a torch checkpoint, save them as safetensors",
                false => "missing, and there is no model.safetensors.index.json",
            };
            return Err(wrong(WEIGHTS, what));
        };
        Ok(Some(index))
    }

    /// The place of the file called `name`, if there is one.
    ///
    /// A link must stay in the folder or lead to the blobs of the hub cache that the folder is a
    /// snapshot of: a folder that somebody else made must not make offshoot read other files.
    fn find(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let path = self.path.join(name);
        let io = |source| Error::Io { path: path.clone(), source };
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
            Ok(_) => {}
        }
        let real = path.canonicalize().map_err(io)?;
        if !real.starts_with(&self.real) && !self.blobs().is_some_and(|b| real.starts_with(b)) {
            return Err(wrong(name, "a link that leads out of the folder; put the file there"));
        }
        if !fs::metadata(&real).map_err(io)?.is_file() {
            return Err(wrong(name, "not a regular file"));
        }
        Ok(Some(real))
    }

    /// Where a hub cache keeps the files of its snapshots, if the folder is one of those.
    fn blobs(&self) -> Option<PathBuf> {
        let snapshots = self.real.parent().filter(|parent| parent.ends_with("snapshots"))?;
        snapshots.parent()?.join("blobs").canonicalize().ok()
    }

    /// The bytes of a file that may have `most` of them.
    fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        let Some(real) = self.find(name)? else { return Ok(None) };
        let io = |source| Error::Io { path: self.path.join(name), source };
        let mut bytes = Vec::new();
        let file = File::open(real).map_err(io)?;
        file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() > most {
            return Err(wrong(name, format_args!("more than {most} bytes")));
        }
        Ok(Some(bytes))
    }

    fn map(&self, name: &str, index: &str) -> Result<Arc<FileMap>, Error> {
        let Some(real) = self.find(name)? else {
            return Err(wrong(name, format_args!("missing, {index} names it")));
        };
        let io = |source| Error::Io { path: self.path.join(name), source };
        Ok(Arc::new(FileMap::open(&real).map_err(io)?))
    }
}
