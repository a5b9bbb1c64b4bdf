//! Keys and values of one sequence, in the order that attention reads them.

use std::ops::Range;

use crate::buffer::Plain;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::{Buffer, Isa};
use half::f16;

/// Positions whose keys share a block.
pub(crate) const KEYS: usize = 16;
/// Greatest magnitude of half precision.
const F16_MAX: f32 = 65504.0;

/// What keys and values are kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision, as models are served with.
    #[default]
    Half,
    /// Single precision, for what is read off small differences.
    Single,
}

/// A key's or value's element as it is stored.
pub(crate) trait Element: Plain {
    /// Sixteen of them, widened.
    ///
    /// # Safety
    /// `p` points to sixteen, and the instructions of `L` exist.
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F;

    /// Writes whole registers of floats, rounded.
    fn store(isa: Isa, x: &[f32], out: &mut [Self]);

    /// A number, as [`Element::store`] rounds it.
    fn of(x: f32) -> Self;

    /// The number that it is.
    fn widen(self) -> f32;
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(p) }
    }

    fn store(isa: Isa, x: &[f32], out: &mut [Self]) {
        narrow(isa, x, out);
    }

    fn of(x: f32) -> Self {
        // A NaN stays.
        f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits()
    }

    fn widen(self) -> f32 {
        f16::from_bits(self).to_f32()
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load(p) }
    }

    fn store(_: Isa, x: &[f32], out: &mut [Self]) {
        out.copy_from_slice(x);
    }

    fn of(x: f32) -> Self {
        x
    }

    fn widen(self) -> f32 {
        self
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

/// Keys and values, by their type.
#[derive(Debug)]
pub(crate) enum ByType<H, S> {
    Half(H),
    Single(S),
}

/// Keys and values to be read.
pub(crate) type Head<'a> = ByType<Pair<&'a [u16]>, Pair<&'a [f32]>>;
/// Keys and values to be written.
pub(crate) type PartsMut<'a> = ByType<Pair<&'a mut [u16]>, Pair<&'a mut [f32]>>;
type Pair<T> = (T, T);

/// Keys and values of all heads, `[layer][kv head][capacity * width]` each.
#[derive(Debug)]
struct Kept<T: Plain> {
    k: Buffer<T>,
    v: Buffer<T>,
}

impl<T: Element> Kept<T> {
    fn reserved(len: usize) -> Self {
        Self { k: Buffer::reserved(len), v: Buffer::reserved(len) }
    }

    /// Copies elements `from` of `other` to where `to` begins.
    fn copy(&mut self, to: usize, other: &Self, from: Range<usize>) {
        self.k[to..to + from.len()].copy_from_slice(&other.k[from.clone()]);
        self.v[to..to + from.len()].copy_from_slice(&other.v[from]);
    }

    /// The same of another type.
    fn convert<O: Element>(&mut self, to: usize, other: &Kept<O>, from: Range<usize>) {
        for (own, other) in [(&mut self.k, &other.k), (&mut self.v, &other.v)] {
            let own = &mut own[to..to + from.len()];
            own.iter_mut().zip(&other[from.clone()]).for_each(|(own, x)| *own = T::of(x.widen()));
        }
    }

    /// Moves position `from` of the head that begins at `start` to `to`.
    fn move_row(&mut self, start: usize, width: usize, (from, to): (usize, usize)) {
        for d in 0..width {
            self.k[start + key_offset(to, d, width)] = self.k[start + key_offset(from, d, width)];
        }
        let v = start + from * width;
        self.v.copy_within(v..v + width, start + to * width);
    }
}

/// Does `$do` with `$kept`, whatever its type.
macro_rules! of_any {
    ($store:expr, $kept:ident => $do:expr) => {
        match $store {
            ByType::Half($kept) => $do,
            ByType::Single($kept) => $do,
        }
    };
}

/// The cache of one sequence: every layer's keys and values for the positions decided so far, and
/// room behind them for a step's tentative rows.
///
/// Keys of 16 positions stand together, `[block][width][16]`, so that a register holds one
/// element of 16 keys; values stand by position, `[position][width]`; `width` is
/// `head_dim` rounded up to whole registers. A step writes its rows
/// behind [`KvCache::len`]; [`KvCache::commit`] keeps a path of them.
///
/// One that is [passing](KvCache::passing) has room for the rows of one layer at a time, and keeps none.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole registers; elements beyond it are zero.
    width: usize,
    capacity: usize,
    len: usize,
    /// Layers that there is room for: all, or one after the other.
    stored_layers: usize,
    kept: ByType<Kept<u16>, Kept<f32>>,
}

impl KvCache {
    /// An empty cache with room for at least `capacity` positions, in half precision. Memory is taken as
    /// it is filled.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        Self::typed(KvType::Half, layers, kv_heads, head_dim, capacity)
    }

    /// The same, of elements of type `kind`.
    pub fn typed(
        kind: KvType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Self {
        Self::of(kind, [layers, layers], kv_heads, head_dim, capacity)
    }

    /// One for sequences of up to `capacity` rows that run in one step, behind nothing, and are not gone
    /// on with: a layer's keys and values take the place of those of the layer before.
    pub fn passing(
        kind: KvType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Self {
        Self::of(kind, [layers, 1], kv_heads, head_dim, capacity)
    }

    fn of(
        kind: KvType,
        [layers, stored_layers]: [usize; 2],
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Self {
        let capacity = capacity.next_multiple_of(KEYS);
        let width = head_dim.next_multiple_of(KEYS);
        let total = stored_layers * kv_heads * capacity * width;
        let kept = match kind {
            KvType::Half => ByType::Half(Kept::reserved(total)),
            KvType::Single => ByType::Single(Kept::reserved(total)),
        };
        Self { layers, kv_heads, head_dim, width, capacity, len: 0, stored_layers, kept }
    }

    /// Positions decided.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is decided.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that there is room for, tentative ones included.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// What its keys and values are kept as.
    pub fn kind(&self) -> KvType {
        match self.kept {
            ByType::Half(_) => KvType::Half,
            ByType::Single(_) => KvType::Single,
        }
    }

    /// Bytes that one position takes.
    pub fn bytes_per_position(&self) -> usize {
        let element = match self.kind() {
            KvType::Half => 2,
            KvType::Single => 4,
        };
        2 * element * self.stored_layers * self.kv_heads * self.width
    }

    /// Forgets all positions from `len` on. More than there are: nothing changes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keeps tentative rows `path`, in order, as the next positions; `path[i]` counts from
    /// [`KvCache::len`] and rises strictly, as a path from a tree's root does.
    ///
    /// # Panics
    /// If the path does not rise strictly or leaves the room, or the cache is a passing one.
    pub fn commit(&mut self, path: &[usize]) {
        self.check_keeps(path.len());
        assert!(path.windows(2).all(|w| w[0] < w[1]), "a path that rises");
        assert!(path.last().is_none_or(|last| self.len + last < self.capacity), "within the room");
        let base = self.len;
        for (i, &row) in path.iter().enumerate() {
            self.move_row(base + row, base + i);
        }
        self.len += path.len();
    }

    /// Keeps the first `rows` tentative rows as the next positions.
    ///
    /// # Panics
    /// If they leave the room, or the cache is a passing one.
    pub fn commit_chain(&mut self, rows: usize) {
        self.check_keeps(rows);
        assert!(self.len + rows <= self.capacity, "within the room");
        self.len += rows;
    }

    /// Decides one more position: its keys, rotated, and its values, `[layers][kv heads][head_dim]`
    /// each, are rounded to what the cache keeps, half precision saturating.
    ///
    /// # Panics
    /// If there are other numbers of them, or no room is left, or the cache is a passing one.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        self.check_keeps(1);
        let heads = self.layers * self.kv_heads;
        assert!(keys.len() == heads * self.head_dim && values.len() == keys.len(), "a position");
        assert!(self.len < self.capacity, "within the room");
        let (width, at, stride, dim) = (self.width, self.len, self.stride(), self.head_dim);
        fn put<T: Element>(place: &mut T, x: f32) {
            *place = T::of(x);
        }
        for head in 0..heads {
            let (start, first) = (head * stride, head * dim);
            for d in 0..dim {
                of_any!(&mut self.kept, kept => {
                    put(&mut kept.k[start + key_offset(at, d, width)], keys[first + d]);
                    put(&mut kept.v[start + at * width + d], values[first + d]);
                });
            }
        }
        self.len += 1;
    }

    /// Checks that `rows` rows more can be kept.
    fn check_keeps(&self, rows: usize) {
        assert!(rows == 0 || self.stored_layers == self.layers, "a cache that keeps its rows");
    }

    /// Keeps only the decided positions `rows`, in order; they rise strictly.
    ///
    /// # Panics
    /// If the rows do not rise strictly or are not decided.
    pub fn gather(&mut self, rows: &[usize]) {
        assert!(rows.windows(2).all(|w| w[0] < w[1]), "rows that rise");
        assert!(rows.last().is_none_or(|&last| last < self.len), "decided rows");
        for (to, &from) in rows.iter().enumerate() {
            self.move_row(from, to);
        }
        self.len = rows.len();
    }

    /// Replaces all by the first `len` positions of `other`, a cache of the same model, of whatever type.
    ///
    /// # Panics
    /// If the shapes differ, or there are fewer positions, or less room, than `len`, or the cache is a
    /// passing one and `len` is not 0.
    pub fn copy_prefix(&mut self, other: &KvCache, len: usize) {
        self.check_keeps(len);
        let shape = |c: &KvCache| (c.layers, c.kv_heads, c.head_dim);
        assert_eq!(shape(self), shape(other), "caches of one model");
        assert!(len <= other.len && len <= self.capacity, "positions that exist and fit");
        self.len = len;
        if len == 0 {
            // A passing cache has no place for each layer.
            return;
        }
        let filled = len.next_multiple_of(KEYS) * self.width;
        for head in 0..self.layers * self.kv_heads {
            let (to, from) = (head * self.stride(), head * other.stride());
            let from = from..from + filled;
            match (&mut self.kept, &other.kept) {
                (ByType::Half(own), ByType::Half(other)) => own.copy(to, other, from),
                (ByType::Single(own), ByType::Single(other)) => own.copy(to, other, from),
                (ByType::Half(own), ByType::Single(other)) => own.convert(to, other, from),
                (ByType::Single(own), ByType::Half(other)) => own.convert(to, other, from),
            }
        }
    }

    /// The key and value of `position` in `layer` for `kv_head`, widened.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn read(&self, layer: usize, kv_head: usize, position: usize) -> (Vec<f32>, Vec<f32>) {
        assert!(layer < self.layers && kv_head < self.kv_heads && position < self.capacity);
        let head = self.head_start(layer, kv_head);
        let at = |d| (head + key_offset(position, d, self.width), head + position * self.width + d);
        (0..self.head_dim)
            .map(at)
            .map(|(k, v)| of_any!(&self.kept, kept => (kept.k[k].widen(), kept.v[v].widen())))
            .unzip()
    }

    fn move_row(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let (stride, width) = (self.stride(), self.width);
        for head in 0..self.layers * self.kv_heads {
            of_any!(&mut self.kept, kept => kept.move_row(head * stride, width, (from, to)));
        }
    }

    /// Elements of a key or value as it is stored.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Elements of one head of one layer.
    pub(crate) fn stride(&self) -> usize {
        self.capacity * self.width
    }

    /// Where a head of a layer begins.
    pub(crate) fn head_start(&self, layer: usize, kv_head: usize) -> usize {
        (layer % self.stored_layers * self.kv_heads + kv_head) * self.stride()
    }

    /// The keys and values of one head of one layer.
    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> Head<'_> {
        let start = self.head_start(layer, kv_head);
        let range = start..start + self.stride();
        match &self.kept {
            ByType::Half(kept) => ByType::Half((&kept.k[range.clone()], &kept.v[range])),
            ByType::Single(kept) => ByType::Single((&kept.k[range.clone()], &kept.v[range])),
        }
    }

    /// All keys and all values, to be written by head.
    pub(crate) fn parts_mut(&mut self) -> PartsMut<'_> {
        match &mut self.kept {
            ByType::Half(kept) => ByType::Half((&mut kept.k, &mut kept.v)),
            ByType::Single(kept) => ByType::Single((&mut kept.k, &mut kept.v)),
        }
    }
}

/// Where element `d` of the key of `position` stands in its head.
#[inline(always)]
pub(crate) fn key_offset(position: usize, d: usize, head_dim: usize) -> usize {
    (position / KEYS * head_dim + d) * KEYS + position % KEYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pushed_position_is_read_back_rounded_to_half_precision() {
        let (layers, heads, dim) = (2, 3, 20);
        let mut cache = KvCache::new(layers, heads, dim, 40);
        let row = |position: usize, sign: f32| -> Vec<f32> {
            (0..layers * heads * dim).map(|i| sign * (i + 1000 * position) as f32 / 7.0).collect()
        };
        for position in 0..40 {
            cache.push(&row(position, 1.0), &row(position, -1.0));
        }
        assert_eq!(cache.len(), 40);
        for position in [0, 15, 16, 39] {
            for (layer, head) in [(0, 0), (1, 2)] {
                let (k, v) = cache.read(layer, head, position);
                let first = (layer * heads + head) * dim;
                let expected = |x: &[f32]| -> Vec<f32> {
                    x[first..first + dim].iter().map(|x| f16::from_f32(*x).to_f32()).collect()
                };
                assert_eq!(k, expected(&row(position, 1.0)));
                assert_eq!(v, expected(&row(position, -1.0)));
            }
        }
    }

    #[test]
    fn a_cache_of_single_precision_rounds_nothing_and_takes_beginnings_of_either() {
        let row: Vec<f32> = (0..40).map(|i| i as f32 / 7.0).collect();
        let mut single = KvCache::typed(KvType::Single, 2, 1, 20, 16);
        single.push(&row, &row);
        assert_eq!(single.read(1, 0, 0).1, row[20..]);
        let mut half = KvCache::new(2, 1, 20, 16);
        half.copy_prefix(&single, 1);
        let rounded: Vec<f32> = row.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        assert_eq!(half.read(1, 0, 0).0, rounded[20..]);
        single.copy_prefix(&half, 1);
        assert_eq!(single.read(0, 0, 0).0, rounded[..20]);
        assert_eq!((single.bytes_per_position(), half.bytes_per_position()), (512, 256));
    }

    #[test]
    fn what_half_precision_cannot_hold_saturates_however_it_comes_into_a_cache() {
        let mut x = [0.0f32; 16];
        let far = [65504.0, 65519.0, 65520.0, 1e6, f32::MAX, f32::INFINITY, 6e-8, 1.0 / 3.0];
        for (i, far) in far.into_iter().enumerate() {
            (x[2 * i], x[2 * i + 1]) = (far, -far);
        }
        for isa in Isa::available() {
            let mut stored = [0u16; 16];
            u16::store(isa, &x, &mut stored);
            assert_eq!(x.map(u16::of), stored, "{isa}");
            u16::store(isa, &[f32::NAN; 16], &mut stored);
            assert!(stored.into_iter().all(|x| x.widen().is_nan()), "{isa}");
        }
        assert!(u16::of(f32::NAN).widen().is_nan());
        let mut single = KvCache::typed(KvType::Single, 1, 1, 16, 16);
        single.push(&x, &x);
        let mut copied = KvCache::new(1, 1, 16, 16);
        copied.copy_prefix(&single, 1);
        let mut pushed = KvCache::new(1, 1, 16, 16);
        pushed.push(&x, &x);
        for cache in [copied, pushed] {
            let (k, v) = cache.read(0, 0, 0);
            assert_eq!(k[..4], [F16_MAX, -F16_MAX, F16_MAX, -F16_MAX]);
            assert!(k == v && k.iter().all(|x| x.abs() <= F16_MAX));
        }
    }

    #[test]
    fn no_position_is_copied_between_passing_caches_and_others() {
        let mut passing = KvCache::passing(KvType::Half, 30, 3, 64, 16);
        let mut kept = KvCache::new(30, 3, 64, 16);
        passing.copy_prefix(&kept, 0);
        kept.push(&[1.0; 30 * 3 * 64], &[1.0; 30 * 3 * 64]);
        kept.copy_prefix(&passing, 0);
        assert!(passing.is_empty() && kept.is_empty());
        kept.commit_chain(1);
        assert!(std::panic::catch_unwind(move || passing.copy_prefix(&kept, 1)).is_err());
    }

    #[test]
    fn a_passing_cache_has_room_for_one_layer_and_keeps_nothing() {
        let mut cache = KvCache::passing(KvType::Half, 30, 3, 64, 16);
        assert_eq!((cache.layers(), cache.bytes_per_position()), (30, 2 * 2 * 3 * 64));
        assert_eq!(cache.head_start(29, 2), cache.head_start(0, 2));
        cache.commit(&[]);
        assert!(std::panic::catch_unwind(move || cache.commit_chain(1)).is_err());
    }

    #[test]
    fn a_full_cache_takes_no_more() {
        let mut cache = KvCache::new(1, 1, 4, 16);
        (0..16).for_each(|_| cache.push(&[0.0; 4], &[0.0; 4]));
        let more = std::panic::catch_unwind(move || cache.push(&[0.0; 4], &[0.0; 4]));
        assert!(more.is_err());
    }
}
