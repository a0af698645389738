//! Aligned memory for activations and weights, and how threads share a matrix.

use std::{marker::PhantomData, ops::Range};

use super::arena::{Arena, CACHE_LINE, Piece};

/// A slice of memory that begins at a cache line.
#[derive(Debug)]
pub(super) struct Aligned<T>(Memory<T>);

#[derive(Debug)]
enum Memory<T> {
    Heap { values: Vec<T>, start: usize, length: usize },
    Arena(Piece<T>),
}

impl<T: Copy + Default> Aligned<T> {
    /// So many default values.
    pub(super) fn new(length: usize) -> Self {
        let values = vec![T::default(); length + CACHE_LINE / size_of::<T>()];
        // Where the offset cannot be known, as in an interpreter, the memory is just not aligned.
        let start = values.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE / size_of::<T>());
        Self(Memory::Heap { values, start, length })
    }

    /// The same, in an arena that has room.
    pub(super) fn new_in(arena: &mut Arena, length: usize) -> Self {
        arena.take(length).map_or_else(|| Self::new(length), |piece| Self(Memory::Arena(piece)))
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match &self.0 {
            Memory::Heap { values, start, length } => &values[*start..][..*length],
            Memory::Arena(piece) => piece.as_slice(),
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Heap { values, start, length } => &mut values[*start..][..*length],
            Memory::Arena(piece) => piece.as_mut_slice(),
        }
    }
}

/// A matrix, row after row. Rows may be longer than they have columns: what is left over is zero.
#[derive(Debug)]
pub(crate) struct Matrix<T> {
    values: Aligned<T>,
    stride: usize,
}

impl<T: Copy + Default> Matrix<T> {
    /// A matrix of zeros; its rows begin at cache lines, and have at least `columns` columns.
    pub(crate) fn new(rows: usize, columns: usize) -> Self {
        let line = CACHE_LINE / size_of::<T>();
        // An odd number of cache lines: rows that are read side by side would else share the few
        // sets of a cache that hold lines at the same distance.
        let stride = (columns.div_ceil(line) | 1) * line;
        Self { values: Aligned::new(rows * stride), stride }
    }

    /// Elements from the beginning of a row to that of the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A row, with what is left over.
    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.values.as_slice()[row * self.stride..][..self.stride]
    }

    /// A row, with what is left over.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.values.as_mut_slice()[row * self.stride..][..self.stride]
    }

    /// All from the beginning of a row.
    pub(super) fn rows_from(&self, row: usize) -> &[T] {
        &self.values.as_slice()[row * self.stride..]
    }

    /// The matrix for several threads to write at the same time.
    pub(super) fn shared(&mut self) -> SharedMatrix<'_, T> {
        let stride = self.stride;
        let values = self.values.as_mut_slice();
        SharedMatrix {
            values: values.as_mut_ptr(),
            length: values.len(),
            stride,
            borrowed: PhantomData,
        }
    }
}

/// A matrix that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(super) struct SharedMatrix<'a, T> {
    values: *mut T,
    length: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, and lets several threads have parts of it only by `part`,
// whose callers see to it that they are apart.
unsafe impl<T: Send> Send for SharedMatrix<'_, T> {}
// SAFETY: as above; it has no interior that a shared reference could change.
unsafe impl<T: Send> Sync for SharedMatrix<'_, T> {}

impl<T> SharedMatrix<'_, T> {
    /// Some columns of a row. Panics when they are not in the matrix.
    ///
    /// # Safety
    /// While the slice lives, no other part that overlaps it may be asked for.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    #[inline(always)]
    pub(super) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [T] {
        assert!(columns.start <= columns.end && columns.end <= self.stride);
        assert!(row * self.stride + columns.end <= self.length);
        // SAFETY: the range is inside the slice that the pointer was made of, which is borrowed
        // for as long as `self` lives; the caller keeps it apart from all others.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.values.add(row * self.stride + columns.start),
                columns.len(),
            )
        }
    }
}
