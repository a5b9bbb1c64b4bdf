//! A model's weights in tiles, packed from a checkpoint or read from a file of packed tiles.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use offshoot_kernels::{
    BlockType, Buffer, Conversion, Cpu, FloatStore, Forms, KvCache, KvType, MAX_GROUP,
    PackedMatrix, ScratchFile, SharedBytes, TILE_KIND, TileError, form_for,
};

use crate::beside::Partial;
use crate::{
    Architecture, Blueprint, Checkpoint, Error, LinearId, LinearSpec, ModelConfig, VectorId,
};

/// First bytes of a file of packed tiles.
const MAGIC: &[u8; 8] = b"OFFSPACK";
/// Rises whenever tiles change their layout.
const VERSION: u32 = 1;
/// Bytes before the tiles: magic, version, tile kind, key, length and digest of the tiles, padding.
const HEADER: usize = 128;

/// A place where packed tiles are kept between runs.
#[derive(Debug, Clone, Copy)]
pub struct WeightCache<'a> {
    /// The file.
    pub path: &'a Path,
    /// What the tiles were made from: a digest of the model's files.
    pub key: [u8; 32],
}

impl WeightCache<'_> {
    /// Begins every such file, whatever its version.
    pub const MAGIC: &'static [u8] = MAGIC;
}

/// A matrix and its bias.
#[derive(Debug)]
pub(super) struct PackedLinear {
    pub(super) matrix: PackedMatrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// A model ready for the packed executor.
#[derive(Debug)]
pub struct PackedModel {
    checkpoint: Arc<Checkpoint>,
    pub(super) architecture: Architecture,
    blueprint: Blueprint,
    linears: Vec<PackedLinear>,
    vectors: Vec<Vec<f32>>,
    pub(super) forms: Forms,
    from_cache: bool,
    /// The embedding where it is neither read from the file nor the output head.
    embedding: Embedding,
    /// Rows of it that were read from the file.
    looked_up: AtomicUsize,
}

/// Rows of the embedding after which the file's pages are let go: with each row Linux maps what lies
/// about it, 64 KiB in all, and a batch of texts would soon have the whole embedding in memory.
const LOOKED_UP: usize = 256;

/// Where rows of the embedding are looked up.
#[derive(Debug)]
enum Embedding {
    /// In the file, or, where the file's are rounded, among the head's tiles.
    File,
    /// Among the head's tiles.
    Head,
    /// Among tiles of its own.
    Own(PackedMatrix),
}

/// Where each matrix stands among the tiles.
struct Layout {
    /// Format, first byte and length of each matrix, in the blueprint's order.
    places: Vec<(BlockType, usize, usize)>,
    total: usize,
}

impl PackedModel {
    /// Packs the weights of `checkpoint`, or reads them from `cache` if it holds them whole. A cache
    /// that is missing, damaged or of other weights is written anew; that it cannot be written is
    /// no error.
    ///
    /// Packing goes matrix by matrix and releases the file's pages as it goes, so that memory holds
    /// one form of the weights. Float matrices that the checkpoint wants quantised become so on the
    /// way, a row at a time.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a matrix has another shape than the architecture asks for, or a weight
    /// that its format cannot hold; [`Error::Config`] as [`ModelConfig::validate`].
    pub fn load(
        checkpoint: Arc<Checkpoint>,
        cpu: &Cpu,
        cache: Option<WeightCache<'_>>,
    ) -> Result<Self, Error> {
        Self::load_watched(checkpoint, cpu, cache, &mut |_, _| {})
    }

    /// As [`PackedModel::load`]; `progress` is told how many bytes of tiles are packed, and of how
    /// many, if they have to be.
    ///
    /// # Errors
    /// As [`PackedModel::load`].
    pub fn load_watched(
        checkpoint: Arc<Checkpoint>,
        cpu: &Cpu,
        cache: Option<WeightCache<'_>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let config = checkpoint.config();
        check_config(config)?;
        let (architecture, blueprint) = Architecture::new(config);
        let layout = Layout::new(&checkpoint, &blueprint)?;
        let cached = cache.and_then(|cache| open_cache(cache, cpu, layout.total));
        let from_cache = cached.is_some();
        let tiles = match cached {
            Some(tiles) => tiles,
            None => {
                let tiles = pack_all(&checkpoint, cpu, &blueprint, &layout, progress)?;
                if let Some(cache) = cache {
                    // The next start packs again; this one has its weights.
                    let _ = write_cache(cache, &tiles);
                }
                tiles
            }
        };
        let tiles = SharedBytes::from(tiles);
        let mut linears = Vec::with_capacity(blueprint.linears.len());
        // Who takes 8 bits wants the model as it is; beside coarser weights the difference is lost.
        let fine = |block: &BlockType| block.is_float() || *block == BlockType::Q8_0;
        let rest = layout.places.iter().all(|(block, ..)| fine(block));
        let mut forms = Forms { rest, ..Forms::default() };
        for (spec, &(block, start, len)) in blueprint.linears.iter().zip(&layout.places) {
            forms = forms.and(form_for(block));
            let bytes = tiles.slice(start..start + len).ok_or_else(|| wrong(spec, "tiles"))?;
            let matrix = PackedMatrix::from_packed(block, spec.rows, spec.cols, bytes)
                .map_err(|e| wrong(spec, e))?;
            let bias = match spec.bias {
                true => Some(vector(&checkpoint, &format!("{}.bias", spec.name), spec.rows)?),
                false => None,
            };
            linears.push(PackedLinear { matrix, bias });
        }
        let vectors = blueprint
            .vectors
            .iter()
            .map(|spec| vector(&checkpoint, &spec.name, spec.len))
            .collect::<Result<_, _>>()?;
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = checkpoint.require(&blueprint.embedding)?;
        if embedding.info.shape != shape {
            return Err(shape_error(&blueprint.embedding, &embedding.info.shape, &shape));
        }
        let embedding = Embedding::File;
        let model = Self {
            checkpoint,
            architecture,
            blueprint,
            linears,
            vectors,
            forms,
            from_cache,
            embedding,
            looked_up: AtomicUsize::new(0),
        };
        model.checkpoint.release();
        Ok(model)
    }

    /// The weights of `checkpoint` in floats, vectors in single precision and matrices as `store` says,
    /// each matrix in memory of its own or in a block of `file`, and the embedding too unless it is the
    /// output head. The checkpoint's pages are released on the way.
    ///
    /// # Errors
    /// As [`PackedModel::load`], and [`Error::Io`] if `file` fails.
    pub(super) fn in_floats(
        checkpoint: Arc<Checkpoint>,
        cpu: &Cpu,
        store: FloatStore,
        mut file: Option<&mut ScratchFile>,
    ) -> Result<Self, Error> {
        check_config(checkpoint.config())?;
        let (architecture, blueprint) = Architecture::new(checkpoint.config());
        let mut linears = Vec::with_capacity(blueprint.linears.len());
        for spec in &blueprint.linears {
            let name = format!("{}.weight", spec.name);
            let shape = [spec.rows, spec.cols];
            let file = file.as_deref_mut();
            let matrix = float_matrix(&checkpoint, cpu, &name, shape, (store, file))?;
            let bias = match spec.bias {
                true => Some(vector(&checkpoint, &format!("{}.bias", spec.name), spec.rows)?),
                false => None,
            };
            linears.push(PackedLinear { matrix, bias });
        }
        let vectors = blueprint.vectors.iter();
        let vectors = vectors.map(|spec| vector(&checkpoint, &spec.name, spec.len));
        let vectors = vectors.collect::<Result<_, _>>()?;
        let config = checkpoint.config();
        let shape = [config.vocab_size, config.hidden_size];
        let tied = blueprint.linears.last().is_some_and(|head| {
            [head.rows, head.cols] == shape
                && blueprint.embedding.strip_suffix(".weight") == Some(&head.name)
        });
        let embedding = match tied {
            true => Embedding::Head,
            false => {
                let name = &blueprint.embedding;
                Embedding::Own(float_matrix(&checkpoint, cpu, name, shape, (store, file))?)
            }
        };
        let (forms, from_cache) = (Forms::default(), false);
        let model = Self {
            checkpoint,
            architecture,
            blueprint,
            linears,
            vectors,
            forms,
            from_cache,
            embedding,
            looked_up: AtomicUsize::new(0),
        };
        model.checkpoint.release();
        Ok(model)
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The checkpoint that the weights come from.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// What the architecture asked for.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Whether the tiles came from the cache.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }

    /// Bytes of weights that a step with one row must read: of experts, those of as many as a row goes
    /// through, if they are all alike.
    pub fn step_bytes(&self) -> usize {
        let vectors: usize = self.vectors.iter().map(|v| 4 * v.len()).sum();
        let biases: usize =
            self.linears.iter().filter_map(|l| l.bias.as_ref()).map(|b| 4 * b.len()).sum();
        self.of_a_row(PackedMatrix::byte_len) + vectors + biases
    }

    /// Weights that a row of a step is multiplied with.
    pub fn weights(&self) -> usize {
        self.of_a_row(|matrix| matrix.rows() * matrix.cols())
    }

    /// The sum of `size` over the matrices that a row is multiplied with.
    fn of_a_row(&self, size: impl Fn(&PackedMatrix) -> usize) -> usize {
        let sum = |routed| -> usize {
            let each = self.blueprint.linears.iter().zip(&self.linears);
            let of_it = each.filter(|(spec, _)| spec.routed == routed);
            of_it.map(|(_, linear)| size(&linear.matrix)).sum()
        };
        match &self.config().experts {
            Some(experts) => {
                sum(false) + sum(true) / experts.num_experts * experts.num_experts_per_tok
            }
            None => sum(false),
        }
    }

    /// An empty cache for a sequence of up to `capacity` rows, tentative ones included, in half
    /// precision.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        self.new_cache_of(KvType::Half, capacity)
    }

    /// The same with elements of type `kind`.
    pub fn new_cache_of(&self, kind: KvType, capacity: usize) -> KvCache {
        let c = self.config();
        let (layers, heads) = (c.num_hidden_layers, c.num_key_value_heads);
        KvCache::typed(kind, layers, heads, c.head_dim, capacity)
    }

    /// A cache for sequences of up to `capacity` rows that run in one step, behind nothing, and are not
    /// gone on with: it has room for one layer.
    pub fn passing_cache(&self, kind: KvType, capacity: usize) -> KvCache {
        let c = self.config();
        let (layers, heads) = (c.num_hidden_layers, c.num_key_value_heads);
        KvCache::passing(kind, layers, heads, c.head_dim, capacity)
    }

    pub(super) fn linear(&self, id: LinearId) -> &PackedLinear {
        &self.linears[id.index()]
    }

    pub(super) fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.index()]
    }

    pub(super) fn linear_mut(&mut self, id: LinearId) -> &mut PackedLinear {
        &mut self.linears[id.index()]
    }

    pub(super) fn vector_mut(&mut self, id: VectorId) -> &mut [f32] {
        &mut self.vectors[id.index()]
    }

    /// The embedding, where it is a matrix of its own.
    pub(super) fn own_embedding(&self) -> Option<&PackedMatrix> {
        match &self.embedding {
            Embedding::Own(matrix) => Some(matrix),
            Embedding::File | Embedding::Head => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn own_embedding_mut(&mut self) -> Option<&mut PackedMatrix> {
        match &mut self.embedding {
            Embedding::Own(matrix) => Some(matrix),
            Embedding::File | Embedding::Head => None,
        }
    }

    /// Whether the embedding is the output head, looked up among its tiles.
    pub(super) fn embeds_from_head(&self) -> bool {
        matches!(self.embedding, Embedding::Head)
    }

    /// Writes the embedding of `token`.
    pub(super) fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), Error> {
        let tiles = match &self.embedding {
            Embedding::Own(matrix) => Some(matrix),
            Embedding::Head => self.linears.last().map(|head| &head.matrix),
            Embedding::File => None,
        };
        if let Some(tiles) = tiles {
            if token as usize >= tiles.rows() || out.len() != tiles.cols() {
                let what = format!("no row {token} of {} places", out.len());
                return Err(Error::Tensor { name: self.blueprint.embedding.clone(), what });
            }
            tiles.dequantize_row(token as usize, out);
            return Ok(());
        }
        let embedding = self.checkpoint.require(&self.blueprint.embedding)?;
        // Rounding a row anew gives the same bits as the head's tiles have, in more time.
        if embedding.block != embedding.info.block
            && let (Some(spec), Some(head)) = (self.blueprint.linears.last(), self.linears.last())
            && embedding.name.strip_suffix(".weight") == Some(&spec.name)
            && (token as usize) < spec.rows
            && out.len() == spec.cols
        {
            head.matrix.dequantize_row(token as usize, out);
            return Ok(());
        }
        embedding.read_row(token as usize, out)?;
        if self.looked_up.fetch_add(1, Ordering::Relaxed) % LOOKED_UP == LOOKED_UP - 1 {
            embedding.release();
        }
        Ok(())
    }
}

/// Checks what the packed executor needs of a model.
fn check_config(config: &ModelConfig) -> Result<(), Error> {
    config.validate()?;
    if config.num_attention_heads / config.num_key_value_heads > MAX_GROUP {
        return Err(Error::Config(format!(
            "{} query heads for {} heads of keys: at most {MAX_GROUP} may share one",
            config.num_attention_heads, config.num_key_value_heads
        )));
    }
    Ok(())
}

/// A matrix of the checkpoint in floats, in memory or in a file.
fn float_matrix(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    name: &str,
    shape: [usize; 2],
    (store, file): (FloatStore, Option<&mut ScratchFile>),
) -> Result<PackedMatrix, Error> {
    let tensor = checkpoint.require(name)?;
    if tensor.info.shape != shape {
        return Err(shape_error(name, &tensor.info.shape, &shape));
    }
    let folder = file.as_deref().map(|file| file.folder().to_owned());
    let error = |e: TileError| tile_error(name, folder.as_deref(), e);
    let matrix = match file {
        Some(file) => PackedMatrix::in_file(store, shape[0], shape[1], file),
        None => PackedMatrix::zeroed(store, shape[0], shape[1]),
    };
    let mut matrix = matrix.map_err(error)?;
    let tensor = tensor.passing();
    let failed = std::sync::Mutex::new(None);
    let read = |row: usize, out: &mut [f32]| {
        if let Err(e) = tensor.read_row(row, out) {
            let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failed.get_or_insert(e);
        }
    };
    matrix.fill_rows(cpu, read).map_err(error)?;
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(matrix),
    }
}

/// A fault of tensor `name`, or of the file in `folder` that weights lie in.
pub(super) fn tile_error(name: &str, folder: Option<&Path>, error: TileError) -> Error {
    match (error, folder) {
        (TileError::File { kind, told }, Some(folder)) => {
            let what = format!("the weights that are kept here while the run goes on: {told}");
            let source = std::io::Error::new(kind, what);
            Error::Io { path: folder.to_owned(), source }
        }
        (error, _) => Error::Tensor { name: name.to_owned(), what: error.to_string() },
    }
}

impl Layout {
    fn new(checkpoint: &Checkpoint, blueprint: &Blueprint) -> Result<Self, Error> {
        let mut places = Vec::with_capacity(blueprint.linears.len());
        let mut total = 0usize;
        for spec in &blueprint.linears {
            let name = format!("{}.weight", spec.name);
            let tensor = checkpoint.require(&name)?;
            if tensor.info.shape != [spec.rows, spec.cols] {
                return Err(shape_error(&name, &tensor.info.shape, &[spec.rows, spec.cols]));
            }
            let block = tensor.block;
            let len = PackedMatrix::packed_bytes(block, spec.rows, spec.cols)
                .map_err(|e| wrong(spec, e))?;
            places.push((block, total, len));
            total = total
                .checked_add(len)
                .ok_or_else(|| wrong(spec, "the model is too large to address"))?;
        }
        Ok(Self { places, total })
    }
}

/// Packs every matrix, releasing the file's pages on the way.
fn pack_all(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    blueprint: &Blueprint,
    layout: &Layout,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Buffer<u8>, Error> {
    let mut tiles = Buffer::zeroed(layout.total);
    for (spec, &(block, start, len)) in blueprint.linears.iter().zip(&layout.places) {
        let tensor = checkpoint.require(&format!("{}.weight", spec.name))?;
        let stored = tensor.info.block;
        let tensor = tensor.passing();
        let row = |row| tensor.row_bytes(row);
        let out = &mut tiles[start..start + len];
        let packed = if stored == block {
            PackedMatrix::pack_into(cpu, block, (spec.rows, spec.cols), row, out)
        } else {
            Conversion::new(stored, block, spec.cols)
                .map_err(TileError::from)
                .and_then(|to| PackedMatrix::pack_converted(cpu, &to, spec.rows, row, out))
        };
        packed.map_err(|e| wrong(spec, e))?;
        progress((start + len) as u64, layout.total as u64);
    }
    Ok(tiles)
}

/// The tiles in `cache`, if it holds those of its key, whole and undamaged.
///
/// They are read rather than mapped: memory of large pages streams faster than the pages of a file
/// (a fifth for one thread), and every byte has to be looked at for the digest anyway.
fn open_cache(cache: WeightCache<'_>, cpu: &Cpu, total: usize) -> Option<Buffer<u8>> {
    let mut file = std::fs::File::open(cache.path).ok()?;
    if cfg!(unix) {
        // Who removes files to make room leaves those that somebody has a lock of. Without one it
        // can be read as well, and is packed anew if it goes meanwhile.
        let _ = file.try_lock_shared();
    }
    let length = u64::try_from(HEADER.checked_add(total)?).ok()?;
    let mut head = [0; HEADER];
    if file.metadata().ok()?.len() != length || file.read_exact(&mut head).is_err() {
        return None;
    }
    if head[..HEADER - 48] != header(cache.key, total)[..HEADER - 48] {
        return None;
    }
    let mut tiles = Buffer::zeroed(total);
    let share = total.div_ceil(cpu.team().threads()).max(1);
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = tiles
            .chunks_mut(share)
            .enumerate()
            .map(|(i, part)| {
                let read = move || {
                    let mut file = std::fs::File::open(cache.path)?;
                    file.seek(SeekFrom::Start((HEADER + i * share) as u64))?;
                    file.read_exact(part)
                };
                std::thread::Builder::new().spawn_scoped(scope, read)
            })
            .collect();
        readers.into_iter().all(|reader| matches!(reader.map(|r| r.join()), Ok(Ok(Ok(())))))
    });
    let whole = read && head[HEADER - 48..HEADER - 16] == *digest(&tiles).as_bytes();
    whole.then_some(tiles)
}

/// A digest of the tiles, taken in pieces by several threads.
fn digest(tiles: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_rayon(tiles);
    hasher.finalize()
}

/// The header without its digest, which stands in bytes `HEADER - 48 .. HEADER - 16`.
fn header(key: [u8; 32], total: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&TILE_KIND.to_le_bytes());
    header[16..48].copy_from_slice(&key);
    header[48..56].copy_from_slice(&(total as u64).to_le_bytes());
    header
}

/// Writes the cache beside its place and moves it there when it is complete.
fn write_cache(cache: WeightCache<'_>, tiles: &[u8]) -> std::io::Result<()> {
    let mut header = header(cache.key, tiles.len());
    header[HEADER - 48..HEADER - 16].copy_from_slice(digest(tiles).as_bytes());
    let (partial, mut file) = Partial::file(cache.path)?;
    file.write_all(&header)?;
    file.write_all(tiles)?;
    file.sync_all()?;
    partial.move_to(cache.path)
}

fn vector(checkpoint: &Checkpoint, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let tensor = checkpoint.require(name)?;
    if tensor.info.shape != [len] {
        return Err(shape_error(name, &tensor.info.shape, &[len]));
    }
    let mut out = vec![0.0; len];
    tensor.read_row(0, &mut out)?;
    Ok(out)
}

fn shape_error(name: &str, got: &[usize], expected: &[usize]) -> Error {
    Error::Tensor {
        name: name.to_owned(),
        what: format!("its shape is {got:?}, the configuration needs {expected:?}"),
    }
}

fn wrong(spec: &LinearSpec, what: impl std::fmt::Display) -> Error {
    Error::Tensor { name: format!("{}.weight", spec.name), what: what.to_string() }
}
