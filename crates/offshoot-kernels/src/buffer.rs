//! Zeroed memory aligned to cache lines, and to large pages where the system offers them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Element types of a [`Buffer`]: plain numbers, for which all bit patterns and zero are valid.
///
/// # Safety
/// Implementors must be valid for every bit pattern, and without padding or drop.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for i8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

const LINE: usize = 64;
const LARGE_PAGE: usize = 2 << 20;

/// A slice of fixed length, zeroed at first, aligned to 64 bytes.
///
/// Buffers of two megabytes and more are mapped on their own, aligned to large pages and offered to
/// the system as such as far as they fill some: streaming weights then costs fewer page walks.
/// Untouched pages of those take no memory.
pub struct Buffer<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
    /// The mapping that holds a large buffer; a small one lives on the heap.
    map: Option<memmap2::MmapMut>,
}

// SAFETY: the buffer owns its memory and `T` is a plain number.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeroes.
    ///
    /// # Panics
    /// As any allocation does where the system has no memory for it.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { ptr: NonNull::dangling(), len, map: None };
        }
        if layout.size() >= LARGE_PAGE {
            return Self::mapped(len, layout, true);
        }
        // SAFETY: the layout has a size above zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr.cast::<T>()) else { handle_alloc_error(layout) };
        Self { ptr, len, map: None }
    }

    /// Makes the slice at least `len` long. Where it was shorter, all of it is zero afterwards.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }

    /// `len` zeroes, mapped page by page as they are touched, whatever their number: for room that
    /// is reserved early and filled late.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub fn reserved(len: usize) -> Self {
        if len == 0 {
            return Self::zeroed(0);
        }
        Self::mapped(len, Self::layout(len), false)
    }

    fn mapped(len: usize, layout: Layout, large_pages: bool) -> Self {
        let Some(size) = layout.size().checked_add(LARGE_PAGE) else { handle_alloc_error(layout) };
        let Ok(mut map) = memmap2::MmapMut::map_anon(size) else { handle_alloc_error(layout) };
        let skip = map.as_ptr().align_offset(LARGE_PAGE);
        #[cfg(target_os = "linux")]
        if large_pages {
            // A hint: where large pages are off, small ones serve. They also serve what is less than a
            // large page at the end, which would otherwise take one.
            let whole = layout.size() / LARGE_PAGE * LARGE_PAGE;
            let _ = map.advise_range(memmap2::Advice::HugePage, skip, whole);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = large_pages;
        let ptr = NonNull::from(&mut map[skip..skip + layout.size()]).cast::<T>();
        Self { ptr, len, map: Some(map) }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len)
            .and_then(|layout| layout.align_to(LINE))
            .expect("a buffer's size fits the address space")
    }
}

impl<T: Plain> Default for Buffer<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if self.map.is_none() && layout.size() > 0 {
            // SAFETY: allocated on the heap in `zeroed` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were allocated and zeroed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} x {})", self.len, std::any::type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_and_aligned() {
        for len in [0, 1, 63, 4096, 3 << 20] {
            let mut b = Buffer::<u8>::zeroed(len);
            assert!(b.iter().all(|&x| x == 0));
            b.fill(7);
            assert_eq!(b.len(), len);
            assert!(len == 0 || (b.as_ptr() as usize).is_multiple_of(64));
        }
    }
}
