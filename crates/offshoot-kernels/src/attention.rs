//! Attention of a step's rows over a cache and, behind it, over their ancestors in the step.
//!
//! Arithmetic, the same whatever rows, sequences and threads share a step. A row sees logical
//! positions `0..n`: the cache's, then its ancestors in order of depth, then itself. They are cut
//! into chunks of [`CHUNK`] and blocks of 16 at absolute positions. In a chunk:
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

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::kv_cache::{KEYS, key_offset};
use crate::lanes::Lanes;
use crate::{Buffer, Cpu, KvCache, math};

/// Positions of a chunk.
const CHUNK: usize = 128;
/// Query vectors that a pass over a chunk serves.
const BATCH: usize = 8;
/// Query vectors of an item at most.
const ITEM_VECTORS: usize = 64;
/// Greatest magnitude of half precision.
const F16_MAX: f32 = 65504.0;

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
#[derive(Debug)]
pub struct AttentionScratch {
    members: Vec<Buffer<f32>>,
    tails: Vec<Buffer<u16>>,
    partials: Buffer<f32>,
    items: Vec<Item>,
    ancestors: Vec<u32>,
    /// First row of each sequence.
    firsts: Vec<usize>,
}

impl Default for AttentionScratch {
    fn default() -> Self {
        Self::new()
    }
}

impl AttentionScratch {
    /// No room.
    pub fn new() -> Self {
        Self {
            members: Vec::new(),
            tails: Vec::new(),
            partials: Buffer::zeroed(0),
            items: Vec::new(),
            ancestors: Vec::new(),
            firsts: Vec::new(),
        }
    }
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
}

/// Rows of one sequence that are computed together for one head of keys.
#[derive(Debug, Clone, Copy)]
struct Item {
    sequence: usize,
    kv_head: usize,
    /// First row, counted from the sequence's first, and how many.
    row: usize,
    rows: usize,
    /// Where the ancestors of a row that is no plain continuation stand, and how many.
    ancestors: Option<(usize, usize)>,
}

/// Appends keys and values of all `sequences` in `layer` and writes the attention's result, `out`
/// as `heads.q`.
///
/// # Panics
/// If shapes disagree, a cache has too little room, or a parent stands behind its child.
pub fn attend<S: SequenceRows>(
    cpu: &Cpu,
    layer: usize,
    sequences: &mut [S],
    heads: Heads<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let Some(first) = sequences.first() else { return };
    let (kv_heads, head_dim) = (first.cache().kv_heads(), first.cache().head_dim());
    let stored = first.cache().width();
    let rows: usize = sequences.iter().map(|s| s.parents().len()).sum();
    assert!(heads.heads.is_multiple_of(kv_heads), "heads that the cache can serve");
    assert_eq!(heads.q.len(), rows * heads.heads * head_dim, "queries");
    assert_eq!(heads.k.len(), rows * kv_heads * head_dim, "keys");
    assert_eq!(heads.v.len(), heads.k.len(), "values");
    assert_eq!(out.len(), heads.q.len(), "results");
    let group = heads.heads / kv_heads;
    assert!(group <= ITEM_VECTORS, "at most {ITEM_VECTORS} query heads a head of keys");
    for s in sequences.iter() {
        let (cache, rows) = (s.cache(), s.parents().len());
        assert!(cache.len() + rows <= cache.capacity(), "room in the cache");
        assert!(cache.kv_heads() == kv_heads && cache.head_dim() == head_dim, "one shape");
        assert!(layer < cache.layers(), "a layer of the cache");
    }
    scratch.firsts.clear();
    let mut next = 0;
    for s in sequences.iter_mut() {
        scratch.firsts.push(next);
        let rows = s.parents().len();
        append(cpu, layer, s.cache_mut(), next..next + rows, heads);
        next += rows;
    }
    plan(sequences, kv_heads, group, cpu.team().threads(), scratch);
    let whole_items = rows > BATCH || scratch.items.len() >= 4 * cpu.team().threads();
    let longest = sequences.iter().map(|s| s.cache().len() + s.parents().len()).max();
    let chunks = longest.unwrap_or(0).div_ceil(CHUNK);
    let width = partial_width(stored);
    scratch.reserve(cpu.team().threads(), rows, group, stored);
    if !whole_items {
        scratch.reserve_partials(chunks * group * width);
    }
    let AttentionScratch { members, tails, partials, items, ancestors, firsts } = scratch;
    let job =
        Job { sequences, firsts, heads, layer, group, head_dim: stored, out_dim: head_dim, width };
    let members: Vec1<'_, f32> = Vec1::new(members);
    let tails: Vec1<'_, u16> = Vec1::new(tails);
    let out = Disjoint::new(out);
    if whole_items {
        cpu.team().for_pieces(items.len(), 1, |member, piece| {
            for item in &items[piece] {
                // SAFETY: a member's room is its own.
                let (room, tail) = unsafe { (members.of(member), tails.of(member)) };
                job.whole(cpu, item, ancestors, room, tail, &out);
            }
        });
        return;
    }
    // Few rows: chunks are shared out too, and merged by a second, small job.
    let stride = chunks * group * job.width;
    let shared = Disjoint::new(partials);
    cpu.team().for_pieces(items.len() * chunks, 1, |member, piece| {
        for unit in piece {
            let (item, chunk) = (unit / chunks, unit % chunks);
            // SAFETY: a member's room is its own, and so is each unit's part of the partials.
            let (room, tail, partial) = unsafe {
                let start = item * stride + chunk * group * job.width;
                (members.of(member), tails.of(member), shared.slice(start, group * job.width))
            };
            job.one_chunk(cpu, &items[item], chunk, ancestors, room, tail, partial);
        }
    });
    for (i, item) in items.iter().enumerate() {
        // SAFETY: the job above is done, and items write results that do not overlap.
        let partial = unsafe { shared.slice(i * stride, stride) };
        job.merge_all(cpu, item, chunks, partial, &out);
    }
}

/// Writes the keys and values of the step's rows `rows` behind the decided positions of `cache`.
fn append(
    cpu: &Cpu,
    layer: usize,
    cache: &mut KvCache,
    rows: std::ops::Range<usize>,
    heads: Heads<'_>,
) {
    let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
    let stored = cache.width();
    let (base, stride, first) = (cache.len(), cache.stride(), rows.start);
    let rows = rows.len();
    let start = cache.head_start(layer, 0);
    let (k, v) = cache.parts_mut();
    let (k, v) = (Disjoint::new(k), Disjoint::new(v));
    let width = kv_heads * head_dim;
    let isa = cpu.isa();
    let write = |kv_head: usize| {
        let at = start + kv_head * stride;
        // SAFETY: heads do not overlap, and one member writes a head.
        let (k, v) = unsafe { (k.slice(at, stride), v.slice(at, stride)) };
        for row in 0..rows {
            let from = (first + row) * width + kv_head * head_dim;
            let position = base + row;
            let v = &mut v[position * stored..(position + 1) * stored];
            let block = &mut k[key_offset(position, 0, stored)..];
            for at in (0..head_dim).step_by(KEYS) {
                // A head that is no whole number of registers is filled up with zeroes.
                let n = KEYS.min(head_dim - at);
                let (mut key, mut value) = ([0f32; KEYS], [0f32; KEYS]);
                key[..n].copy_from_slice(&heads.k[from + at..from + at + n]);
                value[..n].copy_from_slice(&heads.v[from + at..from + at + n]);
                narrow(isa, &value, &mut v[at..at + KEYS]);
                let mut halves = [0u16; KEYS];
                narrow(isa, &key, &mut halves);
                for (i, half) in halves.into_iter().enumerate() {
                    block[(at + i) * KEYS] = half;
                }
            }
        }
    };
    if rows < 8 {
        (0..kv_heads).for_each(write);
    } else {
        cpu.team().for_pieces(kv_heads, 1, |_, piece| piece.for_each(&write));
    }
}

/// Cuts the step into items.
fn plan<S: SequenceRows>(
    sequences: &[S],
    kv_heads: usize,
    group: usize,
    threads: usize,
    scratch: &mut AttentionScratch,
) {
    scratch.items.clear();
    scratch.ancestors.clear();
    let rows: usize = sequences.iter().map(|s| s.parents().len()).sum();
    // Few rows stand alone, so that chunks can be shared out; many are taken together.
    let share = (rows * kv_heads).div_ceil(4 * threads);
    let together = if rows <= BATCH { 1 } else { (ITEM_VECTORS / group).clamp(1, share.max(1)) };
    for (sequence, s) in sequences.iter().enumerate() {
        let parents = s.parents();
        let chain = parents
            .iter()
            .enumerate()
            .take_while(|&(i, p)| if i == 0 { p.is_none() } else { *p == Some(i as u32 - 1) });
        let chain = chain.count();
        for kv_head in 0..kv_heads {
            let mut row = 0;
            while row < chain {
                let rows = together.min(chain - row);
                scratch.items.push(Item { sequence, kv_head, row, rows, ancestors: None });
                row += rows;
            }
        }
        for row in chain..parents.len() {
            let start = scratch.ancestors.len();
            let mut at = Some(row as u32);
            while let Some(ancestor) = at {
                scratch.ancestors.push(ancestor);
                at = parents[ancestor as usize];
                assert!(at.is_none_or(|parent| parent < ancestor), "parents before children");
            }
            scratch.ancestors[start..].reverse();
            let ancestors = Some((start, scratch.ancestors.len() - start));
            for kv_head in 0..kv_heads {
                scratch.items.push(Item { sequence, kv_head, row, rows: 1, ancestors });
            }
        }
    }
}

/// Floats of a chunk's result for one query vector: m, l, then o, padded to whole registers.
const fn partial_width(head_dim: usize) -> usize {
    16 + head_dim
}

/// What all items share.
struct Job<'a, S> {
    sequences: &'a [S],
    firsts: &'a [usize],
    heads: Heads<'a>,
    layer: usize,
    group: usize,
    /// Elements of a head as the cache stores it: whole registers.
    head_dim: usize,
    /// Elements of a head as the step has it.
    out_dim: usize,
    width: usize,
}

impl AttentionScratch {
    fn reserve(&mut self, threads: usize, rows: usize, group: usize, head_dim: usize) {
        let vectors = ITEM_VECTORS.max(group);
        let room = vectors * (head_dim + CHUNK + 2 * partial_width(head_dim));
        let tail = 2 * (rows + 2 * KEYS) * head_dim;
        while self.members.len() < threads {
            self.members.push(Buffer::zeroed(0));
            self.tails.push(Buffer::zeroed(0));
        }
        for (member, tails) in self.members.iter_mut().zip(&mut self.tails) {
            if member.len() < room {
                *member = Buffer::zeroed(room);
            }
            if tails.len() < tail {
                *tails = Buffer::zeroed(tail);
            }
        }
    }

    fn reserve_partials(&mut self, each: usize) {
        let partials = self.items.len() * each;
        if self.partials.len() < partials {
            // Twice the need, so that a growing context does not ask at every chunk.
            self.partials = Buffer::zeroed(2 * partials);
        }
    }
}

/// Buffers of which each team member uses its own.
struct Vec1<'a, T: crate::buffer::Plain>(Disjoint<'a, Buffer<T>>);

impl<'a, T: crate::buffer::Plain> Vec1<'a, T> {
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

/// Where the keys and values of a head stand: the cache up to block `split`, a copied tail from it.
#[derive(Clone, Copy)]
struct Source<'a> {
    k: &'a [u16],
    v: &'a [u16],
    split: usize,
    tail_k: &'a [u16],
    tail_v: &'a [u16],
}

/// Query vectors of one pass: scaled queries `[n][head_dim]`, scores `[n][CHUNK]`, results
/// `[n][width]`, and how many positions of the chunk each sees.
struct Pass<'a> {
    q: &'a [f32],
    scores: &'a mut [f32],
    results: &'a mut [f32],
    counts: &'a [usize],
    head_dim: usize,
    width: usize,
    /// First position of the chunk.
    start: usize,
}

impl<S: SequenceRows> Job<'_, S> {
    /// Positions that row `row` of an item sees.
    fn visible(&self, item: &Item, row: usize) -> usize {
        let base = self.sequences[item.sequence].cache().len();
        match item.ancestors {
            Some((_, n)) => base + n,
            None => base + item.row + row + 1,
        }
    }

    /// Copies what a row sees behind the last whole block of decided positions.
    fn source<'b>(&'b self, item: &Item, ancestors: &[u32], tail: &'b mut [u16]) -> Source<'b> {
        let cache = self.sequences[item.sequence].cache();
        let (k, v) = cache.head(self.layer, item.kv_head);
        let Some((start, n)) = item.ancestors else {
            return Source { k, v, split: usize::MAX, tail_k: &[], tail_v: &[] };
        };
        let (base, hd) = (cache.len(), self.head_dim);
        let split = base / KEYS;
        let kept = base - split * KEYS;
        let blocks = (kept + n).div_ceil(KEYS);
        let (tail_k, rest) = tail.split_at_mut(blocks * KEYS * hd);
        let tail_v = &mut rest[..blocks * KEYS * hd];
        for i in 0..kept + n {
            let slot = match i.checked_sub(kept) {
                None => split * KEYS + i,
                Some(a) => base + ancestors[start + a] as usize,
            };
            for d in 0..hd {
                tail_k[key_offset(i, d, hd)] = k[key_offset(slot, d, hd)];
            }
            tail_v[i * hd..(i + 1) * hd].copy_from_slice(&v[slot * hd..(slot + 1) * hd]);
        }
        Source { k, v, split, tail_k, tail_v }
    }

    /// Writes the scaled queries of an item.
    fn load_queries(&self, item: &Item, q: &mut [f32]) {
        let (hd, group) = (self.out_dim, self.group);
        let first = self.firsts[item.sequence] + item.row;
        for row in 0..item.rows {
            let from = (first + row) * self.heads.heads * hd + item.kv_head * group * hd;
            let from = &self.heads.q[from..from + group * hd];
            let to = &mut q[row * group * self.head_dim..(row + 1) * group * self.head_dim];
            for (to, from) in to.chunks_exact_mut(self.head_dim).zip(from.chunks_exact(hd)) {
                to[hd..].fill(0.0);
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from * self.heads.scale;
                }
            }
        }
    }

    /// All of an item: its chunks in order, merged as they come.
    fn whole(
        &self,
        cpu: &Cpu,
        item: &Item,
        ancestors: &[u32],
        room: &mut [f32],
        tail: &mut [u16],
        out: &Disjoint<'_, f32>,
    ) {
        let n = item.rows * self.group;
        let (q, room) = room.split_at_mut(n * self.head_dim);
        let (scores, room) = room.split_at_mut(n * CHUNK);
        let (results, state) = room.split_at_mut(n * self.width);
        let state = &mut state[..n * self.width];
        self.load_queries(item, q);
        clear(state, self.width);
        let source = self.source(item, ancestors, tail);
        let chunks = self.visible(item, item.rows - 1).div_ceil(CHUNK);
        let mut counts = [0; ITEM_VECTORS];
        for chunk in 0..chunks {
            let start = chunk * CHUNK;
            for (j, count) in counts[..n].iter_mut().enumerate() {
                *count = self.visible(item, j / self.group).saturating_sub(start).min(CHUNK);
            }
            let mut pass = Pass {
                q,
                scores,
                results,
                counts: &counts[..n],
                head_dim: self.head_dim,
                width: self.width,
                start,
            };
            chunk_pass(cpu.isa(), &mut pass, source);
            merge(cpu.isa(), state, results, self.width);
        }
        self.finish(item, state, out);
    }

    /// One chunk of an item of one row, its result to `partial`.
    #[allow(clippy::too_many_arguments)]
    fn one_chunk(
        &self,
        cpu: &Cpu,
        item: &Item,
        chunk: usize,
        ancestors: &[u32],
        room: &mut [f32],
        tail: &mut [u16],
        partial: &mut [f32],
    ) {
        let n = self.group;
        let start = chunk * CHUNK;
        let count = self.visible(item, 0).saturating_sub(start).min(CHUNK);
        if count == 0 {
            return;
        }
        let (q, room) = room.split_at_mut(n * self.head_dim);
        let scores = &mut room[..n * CHUNK];
        self.load_queries(item, q);
        let source = self.source(item, ancestors, tail);
        let counts = [count; ITEM_VECTORS];
        let mut pass = Pass {
            q,
            scores,
            results: partial,
            counts: &counts[..n],
            head_dim: self.head_dim,
            width: self.width,
            start,
        };
        chunk_pass(cpu.isa(), &mut pass, source);
    }

    /// Merges the chunks of an item of one row, in order; the first chunk's place holds the state.
    fn merge_all(
        &self,
        cpu: &Cpu,
        item: &Item,
        chunks: usize,
        partials: &mut [f32],
        out: &Disjoint<'_, f32>,
    ) {
        let n = self.group * self.width;
        let used = self.visible(item, 0).div_ceil(CHUNK).min(chunks);
        let mut state = [0f32; 16 * (16 + 256)];
        let state = match state.get_mut(..n) {
            Some(state) => state,
            None => &mut vec![0f32; n][..],
        };
        clear(state, self.width);
        for partial in partials.chunks_exact(n).take(used) {
            merge(cpu.isa(), state, partial, self.width);
        }
        self.finish(item, state, out);
    }

    /// Writes `O / L`.
    fn finish(&self, item: &Item, state: &[f32], out: &Disjoint<'_, f32>) {
        let (hd, group) = (self.out_dim, self.group);
        let first = self.firsts[item.sequence] + item.row;
        for (j, state) in state.chunks_exact(self.width).enumerate() {
            let (row, head) = (j / group, item.kv_head * group + j % group);
            let at = (first + row) * self.heads.heads * hd + head * hd;
            // SAFETY: each item writes the results of its own rows and heads.
            let out = unsafe { out.slice(at, hd) };
            for (out, o) in out.iter_mut().zip(&state[16..]) {
                *out = o / state[1];
            }
        }
    }
}

/// An empty state: no position seen.
fn clear(state: &mut [f32], width: usize) {
    state.fill(0.0);
    for state in state.chunks_exact_mut(width) {
        state[0] = f32::NEG_INFINITY;
    }
}

by_isa! {
    /// Rounds whole registers of floats to half precision, saturating.
    fn narrow(x: &[f32], out: &mut [u16]) = narrow_lanes
}

#[inline(always)]
unsafe fn narrow_lanes<L: Lanes>(x: &[f32], out: &mut [u16]) {
    for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: 16 elements each; the caller runs where the instructions of `L` exist. A NaN is
        // the second operand and stays.
        unsafe {
            let x = L::max(L::splat(-F16_MAX), L::load(x.as_ptr()));
            L::store_f16(out.as_mut_ptr(), L::min(L::splat(F16_MAX), x));
        }
    }
}

by_isa! {
    /// The results of one chunk for all vectors of a pass.
    fn chunk_pass(pass: &mut Pass<'_>, source: Source<'_>) = chunk_pass_lanes
}

by_isa! {
    /// Merges a chunk's results into the state, vector by vector.
    fn merge(state: &mut [f32], results: &[f32], width: usize) = merge_lanes
}

#[inline(always)]
unsafe fn chunk_pass_lanes<L: Lanes>(pass: &mut Pass<'_>, source: Source<'_>) {
    let n = pass.counts.len();
    let mut from = 0;
    while from < n {
        let batch = BATCH.min(n - from);
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe {
            match batch {
                1 => batch_pass::<L, 1>(pass, source, from),
                2 => batch_pass::<L, 2>(pass, source, from),
                3 => batch_pass::<L, 3>(pass, source, from),
                4 => batch_pass::<L, 4>(pass, source, from),
                5 => batch_pass::<L, 5>(pass, source, from),
                6 => batch_pass::<L, 6>(pass, source, from),
                7 => batch_pass::<L, 7>(pass, source, from),
                _ => batch_pass::<L, 8>(pass, source, from),
            }
        }
        from += batch;
    }
}

/// Scores, softmax and weighted sum of `J` vectors over one chunk.
#[inline(always)]
unsafe fn batch_pass<L: Lanes, const J: usize>(
    pass: &mut Pass<'_>,
    source: Source<'_>,
    from: usize,
) {
    let (hd, width) = (pass.head_dim, pass.width);
    let counts: [usize; J] = std::array::from_fn(|j| pass.counts[from + j]);
    let longest = counts.into_iter().fold(0, usize::max);
    let results = &mut pass.results[from * width..(from + J) * width];
    let scores = &mut pass.scores[from * CHUNK..(from + J) * CHUNK];
    let q = &pass.q[from * hd..(from + J) * hd];
    // SAFETY: the caller runs where the instructions of `L` exist; `keys` and `values` check their
    // ranges, and the rooms above hold `J` vectors.
    unsafe {
        let first_block = pass.start / KEYS;
        let blocks = longest.div_ceil(KEYS);
        let mut b = 0;
        while b + 2 <= blocks {
            let k = [keys(source, first_block + b, hd), keys(source, first_block + b + 1, hd)];
            score::<L, J, 2>(q.as_ptr(), hd, k, scores.as_mut_ptr().add(b * KEYS));
            b += 2;
        }
        if b < blocks {
            let k = [keys(source, first_block + b, hd)];
            score::<L, J, 1>(q.as_ptr(), hd, k, scores.as_mut_ptr().add(b * KEYS));
        }
        for (j, count) in counts.into_iter().enumerate() {
            let scores = scores.as_mut_ptr().add(j * CHUNK);
            let (m, l) = softmax::<L>(scores, count, blocks);
            results[j * width] = m;
            results[j * width + 1] = l;
        }
        let mut d = 0;
        while d + 32 <= hd {
            sum_values::<L, J, 2>(pass.start, longest, source, hd, d, scores, results, width);
            d += 32;
        }
        if d < hd {
            sum_values::<L, J, 1>(pass.start, longest, source, hd, d, scores, results, width);
        }
    }
}

/// The keys of absolute block `block`, `[head_dim][16]`.
#[inline(always)]
fn keys(source: Source<'_>, block: usize, hd: usize) -> *const u16 {
    let n = KEYS * hd;
    if block < source.split {
        source.k[block * n..(block + 1) * n].as_ptr()
    } else {
        let block = block - source.split;
        source.tail_k[block * n..(block + 1) * n].as_ptr()
    }
}

/// Scores of `J` vectors against `B` blocks of 16 keys.
#[inline(always)]
unsafe fn score<L: Lanes, const J: usize, const B: usize>(
    q: *const f32,
    hd: usize,
    k: [*const u16; B],
    out: *mut f32,
) {
    // SAFETY: see the caller: `q` holds `J * hd` floats, each of `k` `hd * 16` halves, and each of
    // `J` rows of `out` has room for `B * 16` floats.
    unsafe {
        let mut acc = [[L::splat(0.0); B]; J];
        for d in 0..hd {
            let mut key = [L::splat(0.0); B];
            for (key, k) in key.iter_mut().zip(k) {
                *key = L::load_f16(k.add(d * KEYS));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let q = L::splat(*q.add(j * hd + d));
                for (acc, key) in acc.iter_mut().zip(key) {
                    *acc = L::fma(q, key, *acc);
                }
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (b, acc) in acc.into_iter().enumerate() {
                L::store(out.add(j * CHUNK + b * KEYS), acc);
            }
        }
    }
}

/// Turns the first `count` of `blocks * 16` scores into weights, the rest into zeroes; gives the
/// greatest score and the sum of the weights.
#[inline(always)]
unsafe fn softmax<L: Lanes>(scores: *mut f32, count: usize, blocks: usize) -> (f32, f32) {
    // SAFETY: see the caller: there are `blocks * 16` scores.
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut m = lowest;
        for b in 0..count.div_ceil(KEYS) {
            let s = L::load(scores.add(b * KEYS));
            m = L::max(m, L::first(count - b * KEYS, s, lowest));
        }
        let greatest = L::greatest(m);
        let m = L::splat(greatest);
        let mut l = L::splat(0.0);
        for b in 0..blocks {
            let p = scores.add(b * KEYS);
            let e = math::exp::<L>(L::sub(L::load(p), m));
            let e = L::first(count.saturating_sub(b * KEYS), e, L::splat(0.0));
            L::store(p, e);
            l = L::add(l, e);
        }
        (greatest, L::sum(l))
    }
}

/// Adds up `n` values with their weights, elements `d .. d + 16 * V`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn sum_values<L: Lanes, const J: usize, const V: usize>(
    start: usize,
    n: usize,
    source: Source<'_>,
    hd: usize,
    d: usize,
    weights: &[f32],
    results: &mut [f32],
    width: usize,
) {
    // SAFETY: see the caller; the two ranges of positions are checked by slicing.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; J];
        let split = source.split.saturating_mul(KEYS);
        let cached = split.saturating_sub(start).min(n);
        let v = &source.v[start * hd..(start + cached) * hd];
        weighted::<L, J, V>(v, hd, d, weights.as_ptr(), &mut acc);
        if cached < n {
            let from = start + cached - split;
            let v = &source.tail_v[from * hd..(from + n - cached) * hd];
            weighted::<L, J, V>(v, hd, d, weights.as_ptr().add(cached), &mut acc);
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (i, acc) in acc.into_iter().enumerate() {
                // Adding zero makes -0, which skipped positions could leave, +0.
                let o = L::add(acc, L::splat(0.0));
                L::store(results.as_mut_ptr().add(j * width + 16 + d + 16 * i), o);
            }
        }
    }
}

#[inline(always)]
unsafe fn weighted<L: Lanes, const J: usize, const V: usize>(
    v: &[u16],
    hd: usize,
    d: usize,
    weights: *const f32,
    acc: &mut [[L::F; V]; J],
) {
    // SAFETY: see the caller: `weights` has `J` rows of `CHUNK`.
    unsafe {
        for (p, v) in v.chunks_exact(hd).enumerate() {
            let mut value = [L::splat(0.0); V];
            for (i, value) in value.iter_mut().enumerate() {
                *value = L::load_f16(v.as_ptr().add(d + 16 * i));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let w = L::splat(*weights.add(j * CHUNK + p));
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc = L::fma(w, value, *acc);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn merge_lanes<L: Lanes>(state: &mut [f32], results: &[f32], width: usize) {
    assert_eq!(state.len(), results.len(), "a result for each state");
    for (state, result) in state.chunks_exact_mut(width).zip(results.chunks_exact(width)) {
        let (m, n) = (state[0], result[0]);
        if result[1] == 0.0 {
            // The vector sees nothing of this chunk.
            continue;
        }
        let both = if m > n { m } else { n };
        // SAFETY: the caller runs where the instructions of `L` exist; widths are whole registers.
        unsafe {
            let a = math::exp::<L>(L::splat(m - both));
            let b = math::exp::<L>(L::splat(n - both));
            let l = L::fma(L::splat(result[1]), b, L::mul(L::splat(state[1]), a));
            for i in (16..width).step_by(16) {
                let o = L::load(state.as_ptr().add(i));
                let r = L::load(result.as_ptr().add(i));
                L::store(state.as_mut_ptr().add(i), L::fma(r, b, L::mul(o, a)));
            }
            let mut lanes = [0f32; 16];
            L::store(lanes.as_mut_ptr(), l);
            state[0] = both;
            state[1] = lanes[0];
        }
    }
}
