//! Keys and values of one sequence, in half precision, in the order that attention reads them.

use crate::Buffer;
use half::f16;

/// Positions whose keys share a block.
pub(crate) const KEYS: usize = 16;

/// The cache of one sequence: every layer's keys and values for the positions decided so far, and
/// room behind them for a step's tentative rows.
///
/// Keys of 16 positions stand together, `[block][width][16]`, so that a register holds one
/// element of 16 keys; values stand by position, `[position][width]`; `width` is
/// `head_dim` rounded up to whole registers. A step writes its rows
/// behind [`KvCache::len`]; [`KvCache::commit`] keeps a path of them.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole registers; elements beyond it are zero.
    width: usize,
    capacity: usize,
    len: usize,
    /// `[layer][kv head][capacity * width]`
    k: Buffer<u16>,
    v: Buffer<u16>,
}

impl KvCache {
    /// An empty cache with room for at least `capacity` positions. Memory is taken as it is filled.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(KEYS);
        let width = head_dim.next_multiple_of(KEYS);
        let total = layers * kv_heads * capacity * width;
        let (k, v) = (Buffer::reserved(total), Buffer::reserved(total));
        Self { layers, kv_heads, head_dim, width, capacity, len: 0, k, v }
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

    /// Bytes that one position takes.
    pub fn bytes_per_position(&self) -> usize {
        2 * 2 * self.layers * self.kv_heads * self.width
    }

    /// Forgets all positions from `len` on. More than there are: nothing changes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keeps tentative rows `path`, in order, as the next positions; `path[i]` counts from
    /// [`KvCache::len`] and rises strictly, as a path from a tree's root does.
    ///
    /// # Panics
    /// If the path does not rise strictly or leaves the room.
    pub fn commit(&mut self, path: &[usize]) {
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
    /// If they leave the room.
    pub fn commit_chain(&mut self, rows: usize) {
        assert!(self.len + rows <= self.capacity, "within the room");
        self.len += rows;
    }

    /// Decides one more position: its keys, rotated, and its values, `[layers][kv heads][head_dim]`
    /// each, are rounded to half precision.
    ///
    /// # Panics
    /// If there are other numbers of them, or no room is left.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        let heads = self.layers * self.kv_heads;
        assert!(keys.len() == heads * self.head_dim && values.len() == keys.len(), "a position");
        assert!(self.len < self.capacity, "within the room");
        let (width, at) = (self.width, self.len);
        for head in 0..heads {
            let (start, first) = (head * self.stride(), head * self.head_dim);
            for d in 0..self.head_dim {
                let bits = |x: f32| f16::from_f32(x).to_bits();
                self.k[start + key_offset(at, d, width)] = bits(keys[first + d]);
                self.v[start + at * width + d] = bits(values[first + d]);
            }
        }
        self.len += 1;
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

    /// Replaces all by the first `len` positions of `other`, a cache of the same model.
    ///
    /// # Panics
    /// If the shapes differ or there are fewer positions, or less room, than `len`.
    pub fn copy_prefix(&mut self, other: &KvCache, len: usize) {
        let shape = |c: &KvCache| (c.layers, c.kv_heads, c.head_dim);
        assert_eq!(shape(self), shape(other), "caches of one model");
        assert!(len <= other.len && len <= self.capacity, "positions that exist and fit");
        let filled = len.next_multiple_of(KEYS) * self.width;
        for head in 0..self.layers * self.kv_heads {
            let (to, from) = (head * self.stride(), head * other.stride());
            self.k[to..to + filled].copy_from_slice(&other.k[from..from + filled]);
            self.v[to..to + filled].copy_from_slice(&other.v[from..from + filled]);
        }
        self.len = len;
    }

    /// The key and value of `position` in `layer` for `kv_head`, widened.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn read(&self, layer: usize, kv_head: usize, position: usize) -> (Vec<f32>, Vec<f32>) {
        assert!(layer < self.layers && kv_head < self.kv_heads && position < self.capacity);
        let head = self.head_start(layer, kv_head);
        (0..self.head_dim)
            .map(|d| {
                let k = self.k[head + key_offset(position, d, self.width)];
                let v = self.v[head + position * self.width + d];
                (f16::from_bits(k).to_f32(), f16::from_bits(v).to_f32())
            })
            .unzip()
    }

    fn move_row(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        for head in 0..self.layers * self.kv_heads {
            let start = head * self.stride();
            for d in 0..self.width {
                self.k[start + key_offset(to, d, self.width)] =
                    self.k[start + key_offset(from, d, self.width)];
            }
            let v = start + from * self.width;
            self.v.copy_within(v..v + self.width, start + to * self.width);
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

    pub(crate) fn head_start(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * self.stride()
    }

    /// The keys and values of one head of one layer.
    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> (&[u16], &[u16]) {
        let range =
            self.head_start(layer, kv_head)..self.head_start(layer, kv_head) + self.stride();
        (&self.k[range.clone()], &self.v[range])
    }

    /// All keys and all values, to be written by head.
    pub(crate) fn parts_mut(&mut self) -> (&mut [u16], &mut [u16]) {
        (&mut self.k, &mut self.v)
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
    fn a_full_cache_takes_no_more() {
        let mut cache = KvCache::new(1, 1, 4, 16);
        (0..16).for_each(|_| cache.push(&[0.0; 4], &[0.0; 4]));
        let more = std::panic::catch_unwind(move || cache.push(&[0.0; 4], &[0.0; 4]));
        assert!(more.is_err());
    }
}
