//! Memory for weights, in pages as large as the system has.
//!
//! A batch streams through all weights. In pages of 4 KiB these are more than the processor keeps
//! addresses of, and each look into the page tables, which in a virtual machine are two deep, stops
//! the stream. Linux makes pages of 2 MiB of one large mapping, where that is not switched off.

use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

/// Bytes of a cache line, and of the widest register: what is to be read fast begins at one.
pub(super) const CACHE_LINE: usize = 64;

/// One large piece of memory, given out in parts.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Option<Arc<MmapRaw>>,
    used: usize,
}

impl Arena {
    /// So many bytes; those that are never written take no memory. Where the system does not give
    /// them, the arena has none.
    pub(crate) fn new(bytes: usize) -> Self {
        let memory = MmapMut::map_anon(bytes.max(1)).ok().map(MmapRaw::from);
        #[cfg(target_os = "linux")]
        if let Some(memory) = &memory {
            // A kernel that has no large pages says so; small ones do as well.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        Self { memory: memory.map(Arc::new), used: 0 }
    }

    /// So many default values, or `None` when too little is left.
    pub(super) fn take<T: Copy + Default>(&mut self, length: usize) -> Option<Piece<T>> {
        assert!(align_of::<T>() <= CACHE_LINE);
        let memory = self.memory.as_ref()?;
        let from = self.used.next_multiple_of(CACHE_LINE);
        let to = length.checked_mul(size_of::<T>())?.checked_add(from)?;
        if to > memory.len() {
            return None;
        }
        self.used = to;
        // SAFETY: `from` is inside the mapping, which begins at a page, so that the piece is
        // aligned; there is room for `length` values up to `to`. No other piece has this memory.
        let start = unsafe {
            let start = memory.as_mut_ptr().add(from).cast::<T>();
            (0..length).for_each(|index| start.add(index).write(T::default()));
            start
        };
        Some(Piece { start, length, _memory: Arc::clone(memory) })
    }
}

/// A part of an arena, which lives as long as one of its parts.
#[derive(Debug)]
pub(super) struct Piece<T> {
    start: *mut T,
    length: usize,
    _memory: Arc<MmapRaw>,
}

// SAFETY: a piece owns its values as a boxed slice does: nothing else points to them.
unsafe impl<T: Send> Send for Piece<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Piece<T> {}

impl<T> Piece<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: `take` wrote `length` values there, which nothing changes while `self` is
        // borrowed; the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and nothing else reads or changes them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_aligned_and_outlive_the_arena() {
        let mut arena = Arena::new(1_000);
        let mut bytes = arena.take::<u16>(3).unwrap();
        let mut floats = arena.take::<f32>(100).unwrap();
        assert!(arena.take::<f32>(1_000).is_none(), "there are 1,000 bytes");
        drop(arena);
        assert_eq!(floats.as_slice(), [0.0; 100]);
        assert!(floats.start.addr().is_multiple_of(CACHE_LINE));
        bytes.as_mut_slice().fill(7);
        floats.as_mut_slice().fill(1.0);
        assert_eq!(
            (bytes.as_slice(), floats.as_slice()),
            ([7; 3].as_slice(), [1.0; 100].as_slice())
        );
    }
}
