//! Attention of a step's rows over a cache and, behind it, over their ancestors in the step.
//!
//! Arithmetic, the same whatever rows, sequences and threads share a step. A row sees logical
//! positions `0..n`: the cache's, then its ancestors in order of depth, then itself; within a window
//! of `w` it sees the last `w` of these. They are cut into chunks of [`CHUNK`] and blocks of 16 at
//! absolute positions. In a chunk:
//!
//! ```text
//! s[p] = sum over d in order of fma(scale * q[d], k[p][d])         16 positions in 16 lanes
//! m    = max s,  e[p] = exp(s[p] - m),  l = sum e by lanes, then by the fixed tree
//! o[d] = sum over p in order of fma(e[p], v[p][d])                 16 elements in 16 lanes
//! ```
//!
//! Chunks are merged in order (M, L, O being the state so far, empty at first):
//!
//! ```text
//! M' = max(M, m),  a = exp(M - M'),  b = exp(m - M'),  L' = L a + l b,  O' = O a + o b
//! ```
//!
//! and the result is `O / L`. This is the running softmax of Milakov & Gimelshein 2018,
//! <https://arxiv.org/abs/1805.02867>, with fixed cuts.
//!
//! What a row does not see has weight zero, which hides everything but a NaN: one in a row's values
//! may reach the results of rows before it in the step. It is an error wherever it goes.
//!
//! Queries and keys are normed, where a model does that, and rotated by their positions on the way in,
//! and the result is brought into the
//! forms that the next product reads on the way out, so that neither takes a pass of its own.

mod chunk;

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::disjoint::Disjoint;
use crate::kv_cache::{ByType, Element, KEYS};
use crate::{Activations, Buffer, Cpu, Forms, KvCache, rms_norm, rotate};
use chunk::{BATCH, CHUNK, Pass, Tree, chunk_pass, chunk_pass_single, clear, merge};

/// Query vectors of an item at most, and so the query heads that may share a head of keys.
pub const ITEM_VECTORS: usize = 64;
/// Steps of no more rows share out their chunks too.
const FEW_ROWS: usize = 16;
/// But not where that would keep the results of more chunks than this, over all rows.
const FEW_ROW_CHUNKS: usize = 2048;

/// The rows that one sequence has in a step. Rows of a step are those of its sequences, in order.
pub trait SequenceRows: Sync {
    /// Its cache; the rows' keys and values are written behind [`KvCache::len`].
    fn cache(&self) -> &KvCache;
    /// The same cache, to be written.
    fn cache_mut(&mut self) -> &mut KvCache;
    /// For each row the row of the sequence that it follows; `None` for rows that follow the
    /// cache's last position. Parents stand before their children.
    fn parents(&self) -> &[Option<u32>];
}

/// Room that attention works in; grows to the largest step seen.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    members: Vec<Buffer<f32>>,
    /// Results of chunks, `[kv head][chunk][row][vector of the group][width]`.
    partials: Buffer<f32>,
    /// Rotated and scaled queries, `[kv head][batch][stored width][BATCH]`.
    queries: Buffer<f32>,
    /// Rotated keys, `[kv head][row][head_dim]`.
    keys: Buffer<f32>,
    items: Vec<Item>,
    /// Paths from the root to rows of trees, themselves included, and where each row's stands.
    ancestors: Vec<u32>,
    paths: Vec<Range<usize>>,
    /// The first vector of each row, counted in whole batches for each item.
    vectors: Vec<usize>,
    /// First row of each sequence.
    firsts: Vec<usize>,
    /// Positions up to which each row of the step sees: its own and one.
    visible: Vec<usize>,
}

impl AttentionScratch {
    /// No room.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Norms of each head of queries and of keys, before it is rotated.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Weight of a query head, `[head_dim]`.
    pub query: &'a [f32],
    /// Weight of a key head, `[head_dim]`.
    pub key: &'a [f32],
    /// Added to the mean square before the root.
    pub eps: f32,
}

/// The rows of a step as attention takes them, `[rows, heads * head_dim]` each.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Queries, `heads` heads.
    pub q: &'a [f32],
    /// Keys, as many heads as the caches have.
    pub k: &'a [f32],
    /// Values, as many heads as the caches have.
    pub v: &'a [f32],
    /// Query heads: a multiple of the caches' heads.
    pub heads: usize,
    /// Factor of the scores, commonly `head_dim^-1/2`.
    pub scale: f32,
    /// How many positions a row sees, itself the last of them; `None` for all.
    pub window: Option<NonZeroUsize>,
    /// Norms of each head of queries and keys, if the model has them.
    pub norms: Option<HeadNorms<'a>>,
    /// Cosines of each row's position, `[rows, rotary_dim / 2]`, by which the first `rotary_dim`
    /// elements of each head of queries and keys are rotated; the others stay.
    pub cos: &'a [f32],
    /// Sines of each row's position.
    pub sin: &'a [f32],
}

/// Rows of one sequence that are computed together for one head of keys, over some chunks.
#[derive(Debug, Clone)]
struct Item {
    sequence: usize,
    kv_head: usize,
    /// First row, counted in the step, and how many.
    row: usize,
    rows: usize,
    /// Whether some row of the sequence does not follow the row before it.
    tree: bool,
    chunks: Range<usize>,
    /// Chunks of the items before it.
    first_unit: usize,
}

/// Rotates queries and keys, appends keys and values of all `sequences` in `layer`, and writes the
/// attention's result, `[rows, heads * head_dim]` in `forms`, to `out`.
///
/// # Panics
/// If shapes disagree, a cache has too little room, or a parent stands behind its child; or as
/// [`Activations::fill`].
pub fn attend<S: SequenceRows>(
    cpu: &Cpu,
    layer: usize,
    sequences: &mut [S],
    heads: Heads<'_>,
    scratch: &mut AttentionScratch,
    (forms, out): (Forms, &mut Activations),
) {
    let Some(shape) = Shape::new(layer, sequences, heads) else {
        out.begin(cpu, (0, 0), Forms::default());
        return;
    };
    let longest = sequences.iter().map(|s| s.cache().len() + s.parents().len()).max();
    let chunks = longest.unwrap_or(0).div_ceil(CHUNK);
    let few = shape.rows <= FEW_ROWS && shape.rows * chunks <= FEW_ROW_CHUNKS;
    let vectors = plan(sequences, shape, cpu.team().threads(), few, scratch);
    let kept = if few { chunks } else { 0 };
    scratch.reserve(sequences, shape, cpu.team().threads(), kept, vectors);
    for (s, &first) in sequences.iter_mut().zip(&scratch.firsts) {
        let (queries, keys) = (&mut scratch.queries, &mut scratch.keys);
        let vectors = (&scratch.vectors[..], vectors);
        enter(cpu, layer, shape, (s, first), heads, vectors, (queries, keys));
    }
    let AttentionScratch { members, partials, queries, items, ancestors, paths, .. } = scratch;
    let AttentionScratch { firsts, visible, vectors: places, .. } = scratch;
    let job = Job {
        sequences,
        layer,
        shape,
        firsts,
        visible,
        queries,
        vectors: (places, vectors),
        items,
        ancestors,
        paths,
    };
    let members = Rooms::new(members);
    let width = heads.heads * shape.head_dim;
    let new = out.begin(cpu, (shape.rows, width), forms);
    // SAFETY: heads of a row are written by one member each, and rows are encoded by one, later.
    let result =
        |row: usize, head: usize| unsafe { new.part(row, head * shape.head_dim, shape.head_dim) };
    if !few {
        cpu.team().for_pieces(items.len(), 1, |member, piece| {
            // SAFETY: a member's room is its own.
            let room = unsafe { members.of(member) };
            for item in &job.items[piece] {
                job.whole(cpu, item, room, result);
            }
        });
        cpu.team().for_pieces(shape.rows, 1, |_, piece| {
            // SAFETY: the job above is done, and pieces do not overlap.
            piece.for_each(|row| unsafe { new.encode(row, 0, width) });
        });
        return;
    }
    // Few rows: chunks are shared out too, and merged by a second, small job.
    let each = shape.group * shape.width();
    let shared = Disjoint::new(partials);
    let units = items.last().map_or(0, |item| item.first_unit + item.chunks.len());
    cpu.team().for_pieces(units, 1, |member, piece| {
        // SAFETY: a member's room is its own, and so is each unit's part of the partials.
        let room = unsafe { members.of(member) };
        for unit in piece {
            let item = &job.items[job.items.partition_point(|item| item.first_unit <= unit) - 1];
            let chunk = item.chunks.start + unit - item.first_unit;
            let at = (item.kv_head * chunks + chunk) * shape.rows + item.row;
            // SAFETY: as above.
            let partial = unsafe { shared.slice(at * each, item.rows * each) };
            job.pass(cpu, item, chunk, room, partial);
        }
    });
    cpu.team().for_pieces(shape.rows, 1, |member, piece| {
        // SAFETY: as above; the partials are only read from here on.
        let state = unsafe { &mut members.of(member)[..each] };
        for row in piece {
            for kv_head in 0..shape.kv_heads {
                clear(state, shape.width());
                for chunk in job.seen(row).start / CHUNK..job.seen(row).end.div_ceil(CHUNK) {
                    let at = (kv_head * chunks + chunk) * shape.rows + row;
                    // SAFETY: as above.
                    merge(
                        cpu.isa(),
                        state,
                        unsafe { shared.slice(at * each, each) },
                        shape.width(),
                    );
                }
                job.finish(row, kv_head, state, result);
            }
            // SAFETY: pieces do not overlap.
            unsafe { new.encode(row, 0, width) };
        }
    });
}

/// The numbers that all parts of a step share.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Rows of the step.
    rows: usize,
    kv_heads: usize,
    /// Query heads for each head of keys.
    group: usize,
    /// Elements of a head as the step has it.
    head_dim: usize,
    /// Elements of a head as the cache has it: whole registers.
    stored: usize,
    /// Cosines of a row: half the elements of a head that are rotated.
    half: usize,
    scale: f32,
    window: usize,
}

impl Shape {
    /// Checks that all parts fit; `None` without sequences.
    fn new<S: SequenceRows>(layer: usize, sequences: &[S], heads: Heads<'_>) -> Option<Self> {
        let first = sequences.first()?.cache();
        let (kv_heads, head_dim) = (first.kv_heads(), first.head_dim());
        let rows: usize = sequences.iter().map(|s| s.parents().len()).sum();
        assert!(heads.heads.is_multiple_of(kv_heads), "heads that the cache can serve");
        assert_eq!(heads.q.len(), rows * heads.heads * head_dim, "queries");
        assert_eq!(heads.k.len(), rows * kv_heads * head_dim, "keys");
        assert_eq!(heads.v.len(), heads.k.len(), "values");
        let half = heads.cos.len() / rows.max(1);
        assert!(heads.cos.len() == rows * half && 2 * half <= head_dim, "cosines");
        assert!(half > 0 || rows == 0, "cosines");
        assert_eq!(heads.sin.len(), heads.cos.len(), "sines");
        if let Some(norms) = heads.norms {
            let whole = norms.query.len() == head_dim && norms.key.len() == head_dim;
            assert!(whole, "weights of whole heads");
        }
        let group = heads.heads / kv_heads;
        assert!(group <= ITEM_VECTORS, "at most {ITEM_VECTORS} query heads a head of keys");
        for s in sequences {
            let (cache, rows) = (s.cache(), s.parents().len());
            assert!(cache.len() + rows <= cache.capacity(), "room in the cache");
            assert!(cache.kv_heads() == kv_heads && cache.head_dim() == head_dim, "one shape");
            assert!(layer < cache.layers(), "a layer of the cache");
        }
        let (stored, scale) = (first.width(), heads.scale);
        let window = heads.window.map_or(usize::MAX, NonZeroUsize::get);
        Some(Self { rows, kv_heads, group, head_dim, stored, half, scale, window })
    }

    /// Floats of a chunk's result for one query vector: m, l, then o from the second register on.
    fn width(self) -> usize {
        16 + self.stored
    }
}

/// Rotates the rows of one sequence, its first being row `first` of the step; writes keys and values
/// behind the decided positions of its cache, and scaled queries where they are read.
fn enter<S: SequenceRows>(
    cpu: &Cpu,
    layer: usize,
    shape: Shape,
    (sequence, first): (&mut S, usize),
    heads: Heads<'_>,
    (vectors, all): (&[usize], usize),
    (queries, keys): (&mut [f32], &mut [f32]),
) {
    let rows = sequence.parents().len();
    let cache = sequence.cache_mut();
    let place = Place {
        base: cache.len(),
        rows,
        first,
        stride: cache.stride(),
        start: cache.head_start(layer, 0),
    };
    match cache.parts_mut() {
        ByType::Half(kept) => {
            enter_as(cpu, shape, place, heads, (vectors, all), kept, (queries, keys));
        }
        ByType::Single(kept) => {
            enter_as(cpu, shape, place, heads, (vectors, all), kept, (queries, keys));
        }
    }
}

/// Where rows of a sequence go in its cache.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Decided positions before them.
    base: usize,
    rows: usize,
    /// The first of them in the step.
    first: usize,
    /// Elements of a head.
    stride: usize,
    /// Where the layer's heads begin.
    start: usize,
}

/// As [`enter`], to keys and values of one type.
fn enter_as<T: Element>(
    cpu: &Cpu,
    shape: Shape,
    place: Place,
    heads: Heads<'_>,
    (vectors, all): (&[usize], usize),
    (k, v): (&mut [T], &mut [T]),
    (queries, keys): (&mut [f32], &mut [f32]),
) {
    let Place { base, rows, first, stride, start } = place;
    let (k, v) = (Disjoint::new(k), Disjoint::new(v));
    let (queries, keys) = (Disjoint::new(queries), Disjoint::new(keys));
    let Shape { kv_heads, group, head_dim, stored, half, .. } = shape;
    let isa = cpu.isa();
    // A unit is one head and the rows in one block of positions: it alone writes the block's lines.
    let first_block = base / KEYS;
    let blocks = (base + rows).div_ceil(KEYS) - first_block;
    let run = |unit: usize| {
        let (kv_head, block) = (unit / blocks, first_block + unit % blocks);
        let at = start + kv_head * stride + block * KEYS * stored;
        // SAFETY: units write blocks, keys and queries that do not overlap.
        let (k, v) = unsafe { (k.slice(at, KEYS * stored), v.slice(at, KEYS * stored)) };
        for position in base.max(block * KEYS)..(base + rows).min((block + 1) * KEYS) {
            let row = first + position - base;
            let turn = (&heads.cos[row * half..][..half], &heads.sin[row * half..][..half]);
            // SAFETY: as above.
            let key = unsafe { keys.slice((kv_head * shape.rows + row) * head_dim, head_dim) };
            let from = (row * kv_heads + kv_head) * head_dim;
            let of_head = &heads.k[from..from + head_dim];
            match heads.norms {
                Some(norms) => rms_norm(isa, of_head, norms.key, norms.eps, key),
                None => key.copy_from_slice(of_head),
            }
            rotate(isa, &mut key[..2 * half], turn.0, turn.1);
            let value = &heads.v[from..from + head_dim];
            let slot = position % KEYS;
            for at in (0..head_dim).step_by(KEYS) {
                // A head that is no whole number of registers is filled up with zeroes.
                let n = KEYS.min(head_dim - at);
                let (mut wide, mut kept) = ([0f32; KEYS], [T::of(0.0); KEYS]);
                wide[..n].copy_from_slice(&value[at..at + n]);
                T::store(isa, &wide, &mut v[slot * stored + at..][..KEYS]);
                wide[..n].copy_from_slice(&key[at..at + n]);
                T::store(isa, &wide, &mut kept);
                for (i, kept) in kept.into_iter().enumerate() {
                    k[(at + i) * KEYS + slot] = kept;
                }
            }
            let from = (row * kv_heads + kv_head) * group * head_dim;
            let from = heads.q[from..from + group * head_dim].chunks_exact(head_dim);
            for (j, from) in from.enumerate() {
                // The key is written; its place serves the queries.
                match heads.norms {
                    Some(norms) => rms_norm(isa, from, norms.query, norms.eps, key),
                    None => key.copy_from_slice(from),
                }
                rotate(isa, &mut key[..2 * half], turn.0, turn.1);
                let vector = kv_head * all + vectors[row] + j;
                let at = vector / BATCH * BATCH * stored + vector % BATCH;
                for d in 0..stored {
                    let x = key.get(d).map_or(0.0, |x| x * shape.scale);
                    // SAFETY: as above; a vector is of one row.
                    unsafe { queries.slice(at + d * BATCH, 1)[0] = x };
                }
            }
        }
    };
    if rows < 4 {
        (0..kv_heads * blocks).for_each(run);
    } else {
        cpu.team().for_pieces(kv_heads * blocks, 1, |_, piece| piece.for_each(&run));
    }
}

/// Cuts the step into items, and notes what each row sees. Gives the number of query vectors of a head
/// of keys, those included that fill up batches.
fn plan<S: SequenceRows>(
    sequences: &[S],
    shape: Shape,
    threads: usize,
    few: bool,
    scratch: &mut AttentionScratch,
) -> usize {
    let AttentionScratch { items, ancestors, paths, firsts, visible, vectors, .. } = scratch;
    items.clear();
    ancestors.clear();
    paths.clear();
    firsts.clear();
    visible.clear();
    vectors.clear();
    let most = ITEM_VECTORS / shape.group;
    // Where only items are shared out, there must be some for every member.
    let share = (shape.rows * shape.kv_heads).div_ceil(4 * threads).max(1);
    let most = if few { most } else { most.min(share) };
    let (mut first_unit, mut next_vector) = (0, 0);
    for (sequence, s) in sequences.iter().enumerate() {
        let (base, parents, first) = (s.cache().len(), s.parents(), visible.len());
        firsts.push(first);
        for (row, parent) in parents.iter().enumerate() {
            assert!(parent.is_none_or(|parent| (parent as usize) < row), "parents before children");
            let before = parent.map_or(base, |parent| visible[first + parent as usize]);
            visible.push(before + 1);
        }
        let follows = |row: usize| row.checked_sub(1).map(|before| before as u32);
        let tree = parents.iter().enumerate().any(|(row, parent)| *parent != follows(row));
        for row in 0..parents.len() {
            let start = ancestors.len();
            let mut at = if tree { Some(row as u32) } else { None };
            while let Some(ancestor) = at {
                ancestors.push(ancestor);
                at = parents[ancestor as usize];
            }
            ancestors[start..].reverse();
            paths.push(start..ancestors.len());
        }
        // In about equal parts.
        let parts = parents.len().div_ceil(most);
        for part in 0..parts {
            let border = |part: usize| first + parents.len() * part / parts;
            let (row, rows) = (border(part), border(part + 1) - border(part));
            vectors.extend((0..rows).map(|i| next_vector + i * shape.group));
            next_vector += (rows * shape.group).next_multiple_of(BATCH);
            // From the first chunk that a row sees something of to the last.
            let of_part = &visible[row..row + rows];
            let earliest = of_part.iter().map(|end| end.saturating_sub(shape.window)).min();
            let end = of_part.iter().max().map_or(0, |end| end.div_ceil(CHUNK));
            for kv_head in 0..shape.kv_heads {
                let chunks = earliest.unwrap_or(0) / CHUNK..end;
                let units = chunks.len();
                items.push(Item { sequence, kv_head, row, rows, tree, chunks, first_unit });
                first_unit += units;
            }
        }
    }
    next_vector
}

/// What all items share.
struct Job<'a, S> {
    sequences: &'a [S],
    layer: usize,
    shape: Shape,
    firsts: &'a [usize],
    visible: &'a [usize],
    queries: &'a [f32],
    /// The first vector of each row, and how many vectors a head of keys has.
    vectors: (&'a [usize], usize),
    items: &'a [Item],
    ancestors: &'a [u32],
    paths: &'a [Range<usize>],
}

impl AttentionScratch {
    /// Room for the inputs, `vectors` of them for a head of keys, for the partial results of `chunks`
    /// chunks, and for what each member works in.
    fn reserve<S: SequenceRows>(
        &mut self,
        sequences: &[S],
        shape: Shape,
        threads: usize,
        chunks: usize,
        vectors: usize,
    ) {
        self.queries.grow(shape.kv_heads * vectors * shape.stored);
        self.keys.grow(shape.rows * shape.kv_heads * shape.head_dim);
        let trees = self.items.iter().filter(|item| item.tree).map(|item| {
            let s = &sequences[item.sequence];
            Tree::room(item.rows * shape.group, s.cache().len(), s.parents().len())
        });
        let room = ITEM_VECTORS * (CHUNK + 2 * shape.width()) + trees.max().unwrap_or(0);
        while self.members.len() < threads {
            self.members.push(Buffer::zeroed(0));
        }
        self.members.iter_mut().for_each(|member| member.grow(room));
        let partials = shape.kv_heads * chunks * shape.rows * shape.group * shape.width();
        if self.partials.len() < partials {
            // Twice the need, so that a growing context does not ask at every chunk.
            self.partials = Buffer::zeroed(2 * partials);
        }
    }
}

/// Buffers of which each team member uses its own.
struct Rooms<'a, T: crate::buffer::Plain>(Disjoint<'a, Buffer<T>>);

impl<'a, T: crate::buffer::Plain> Rooms<'a, T> {
    fn new(buffers: &'a mut [Buffer<T>]) -> Self {
        Self(Disjoint::new(buffers))
    }

    /// # Safety
    /// Only member `member` may ask for this buffer, and not twice at a time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn of(&self, member: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        let one = unsafe { self.0.slice(member, 1) };
        &mut one[0]
    }
}

impl<S: SequenceRows> Job<'_, S> {
    /// The logical positions that a row sees.
    fn seen(&self, row: usize) -> Range<usize> {
        let end = self.visible[row];
        end.saturating_sub(self.shape.window)..end
    }

    /// One chunk of an item: its results to `results`, working in `room`.
    fn pass(&self, cpu: &Cpu, item: &Item, chunk: usize, room: &mut [f32], results: &mut [f32]) {
        let Shape { group, stored, .. } = self.shape;
        let (n, start) = (item.rows * group, chunk * CHUNK);
        let mut seen = [(0, 0); ITEM_VECTORS];
        for (j, seen) in seen[..n].iter_mut().enumerate() {
            let Range { start: from, end } = self.seen(item.row + j / group);
            let in_chunk = |position: usize| position.saturating_sub(start).min(CHUNK);
            *seen = (in_chunk(from), in_chunk(end));
        }
        let s = &self.sequences[item.sequence];
        let (scores, room) = room.split_at_mut(n * CHUNK);
        let tree = item.tree.then(|| Tree {
            base: s.cache().len(),
            // Rows behind the item's last are no row's ancestors.
            rows: item.row + item.rows - self.firsts[item.sequence],
            group,
            paths: &self.paths[item.row..item.row + item.rows],
            ancestors: self.ancestors,
            scores: room,
        });
        let (vectors, all) = self.vectors;
        let first = (item.kv_head * all + vectors[item.row]) * stored;
        let mut pass = Pass {
            q: &self.queries[first..first + n.next_multiple_of(BATCH) * stored],
            scores,
            results,
            seen: &seen[..n],
            head_dim: stored,
            width: self.shape.width(),
            start,
            tree,
        };
        match s.cache().head(self.layer, item.kv_head) {
            ByType::Half((k, v)) => chunk_pass(cpu.isa(), &mut pass, k, v),
            ByType::Single((k, v)) => chunk_pass_single(cpu.isa(), &mut pass, k, v),
        }
    }

    /// All of an item: its chunks in order, merged as they come.
    fn whole<'o>(
        &self,
        cpu: &Cpu,
        item: &Item,
        room: &mut [f32],
        result: impl Fn(usize, usize) -> &'o mut [f32],
    ) {
        let (group, width) = (self.shape.group, self.shape.width());
        let n = item.rows * group;
        let (results, room) = room.split_at_mut(n * width);
        let (state, room) = room.split_at_mut(n * width);
        clear(state, width);
        for chunk in item.chunks.clone() {
            self.pass(cpu, item, chunk, room, results);
            merge(cpu.isa(), state, results, width);
        }
        for (row, state) in state.chunks_exact(group * width).enumerate() {
            self.finish(item.row + row, item.kv_head, state, &result);
        }
    }

    /// Writes `O / L` for the vectors of one row and one head of keys.
    fn finish<'o>(
        &self,
        row: usize,
        kv_head: usize,
        state: &[f32],
        result: impl Fn(usize, usize) -> &'o mut [f32],
    ) {
        for (j, state) in state.chunks_exact(self.shape.width()).enumerate() {
            let out = result(row, kv_head * self.shape.group + j);
            for (out, o) in out.iter_mut().zip(&state[16..]) {
                *out = o / state[1];
            }
        }
    }
}
