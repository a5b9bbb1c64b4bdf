//! A slice that several threads write at once, each its own part.

use std::marker::PhantomData;

/// A mutable slice shared among a team whose members write parts that do not overlap. A copy is the
/// same slice.
pub(crate) struct Disjoint<'a, T> {
    ptr: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Disjoint<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Disjoint<'_, T> {}

// SAFETY: access goes through `slice`, whose caller promises parts that do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as a `&mut [T]` would be.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes `slice` for as long as the parts are in use.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part of `len` elements from `start`.
    ///
    /// # Safety
    /// No other part in use at the same time may overlap it.
    ///
    /// # Panics
    /// If the part does not lie inside the slice.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part of the slice");
        // SAFETY: inside the slice by the check above, and not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
