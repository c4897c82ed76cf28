//! Records behind small indices, in chunks: growing neither copies nor leaves half of the room empty.

const CHUNK: usize = 1 << 12;

/// Records of one type. A removed one reads as `T::default()` until its index is used again.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    /// Without records.
    pub fn new() -> Slab<T> {
        Slab { chunks: Vec::new(), free: Vec::new() }
    }

    /// Keeps a record; the result is its index.
    pub fn insert(&mut self, record: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self[index] = record;
            return index;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let chunk = self.chunks.last_mut().expect("one with room was pushed");
        chunk.push(record);
        (before + chunk.len() - 1) as u32
    }

    /// Takes a record out.
    pub fn remove(&mut self, index: u32) -> T {
        self.free.push(index);
        std::mem::take(&mut self[index])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let last = self.chunks.last().map_or(0, Vec::len);
        self.chunks.len().saturating_sub(1) * CHUNK + last - self.free.len()
    }

    /// All indices that are or were in use.
    pub fn indices(&self) -> std::ops::Range<u32> {
        0..(self.len() + self.free.len()) as u32
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, index: u32) -> &T {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stay_and_are_used_again() {
        let mut slab = Slab::new();
        let indices: Vec<u32> = (0..10_000_u32).map(|n| slab.insert(n + 1)).collect();
        assert_eq!((indices[9_999], slab.len(), slab[7_000]), (9_999, 10_000, 7_001));
        assert_eq!((slab.remove(5_000), slab[5_000], slab.len()), (5_001, 0, 9_999));
        assert_eq!((slab.insert(7), slab[5_000], slab.len(), slab.indices()), (5_000, 7, 10_000, 0..10_000));
    }
}
