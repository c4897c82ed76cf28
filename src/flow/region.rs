//! The memory of flow tables: one mapping, present from the start, without pointers in it.
//!
//! Tried in this order: a memory file on huge pages; a memory file on transparent huge pages, where the kernel makes such; and
//! anonymous memory, which dies with the process. Owns the mapping and hands out disjoint arrays of it; knows nothing of what
//! is in them.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytemuck::Pod;

/// How a region is to be placed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    /// Take huge pages if the machine has them.
    pub huge: bool,
    /// Make all of it present now, so that no packet pays for a page fault.
    pub present: bool,
    /// The NUMA node to take it from, if that matters.
    pub node: Option<u32>,
}

/// What a region came to lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reserved huge pages (hugetlb).
    HugePages,
    /// A memory file for which the kernel makes huge pages where it can.
    TransparentHugePages,
    /// Anonymous memory, likewise.
    Anonymous,
}

/// One mapping.
#[derive(Debug)]
struct Mapping {
    at: NonNull<u8>,
    len: usize,
    /// Keeps the memory file's name in /proc/PID/fd, by which another process could take the mapping over.
    _file: Option<File>,
}

// SAFETY: the mapping is plain memory; who may touch which part is settled by the arrays cut from it.
unsafe impl Send for Mapping {}
// SAFETY: as above: a mapping by itself gives no access to its bytes.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `at` and `len` are of the mapping that `map` made, and no array is left: each holds a reference to this.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A mapping from which arrays are cut, front to back.
#[derive(Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    cut: usize,
    kind: Kind,
}

const HUGE_PAGE: usize = 2 << 20;

impl Region {
    /// Zeroed memory of at least `len` bytes.
    pub fn new(len: usize, placement: Placement) -> io::Result<Region> {
        let len = len.max(1).next_multiple_of(if len >= HUGE_PAGE { HUGE_PAGE } else { 4096 });
        let mut kinds = vec![Kind::Anonymous];
        if len >= HUGE_PAGE && placement.huge {
            kinds.splice(..0, [Kind::HugePages, Kind::TransparentHugePages]);
        }
        let mut last = None;
        for kind in kinds {
            match map(len, kind, placement) {
                Ok(mapping) => return Ok(Region { mapping: Arc::new(mapping), cut: 0, kind }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::OutOfMemory.into()))
    }

    /// What it lies on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The next `count` zeroed items of the mapping, on a cache line of their own; `None` if it has not as many left.
    pub fn array<T: Pod>(&mut self, count: usize) -> Option<Array<T>> {
        const { assert!(align_of::<T>() <= 64) };
        let start = self.cut.next_multiple_of(64);
        let end = count.checked_mul(size_of::<T>())?.checked_add(start)?;
        if end > self.mapping.len {
            return None;
        }
        self.cut = end;
        // SAFETY: start..end lies within the mapping.
        let at = unsafe { self.mapping.at.add(start) }.cast();
        Some(Array { at, count, _mapping: self.mapping.clone() })
    }
}

/// Items in a region that nobody else refers to.
#[derive(Debug)]
pub struct Array<T> {
    at: NonNull<T>,
    count: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: it owns its items as a box does, and keeps their mapping alive.
unsafe impl<T: Send> Send for Array<T> {}
// SAFETY: shared, it only lends them out to be read.
unsafe impl<T: Sync> Sync for Array<T> {}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `Region::array` gave these items, aligned, inside a live mapping, to this array alone; every bit pattern of
        // a Pod is a value.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl<T: Pod> DerefMut for Array<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` excludes any other view.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.count) }
    }
}

fn map(len: usize, kind: Kind, placement: Placement) -> io::Result<Mapping> {
    let file = match kind {
        Kind::HugePages => Some(memory_file(len, libc::MFD_HUGETLB)?),
        Kind::TransparentHugePages if makes_huge_files() => Some(memory_file(len, 0)?),
        Kind::TransparentHugePages => return Err(io::ErrorKind::Unsupported.into()),
        Kind::Anonymous => None,
    };
    let (flags, fd) = match &file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        // Pages that nobody touches need no memory behind them: a replay takes as many entries as a machine would.
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address the kernel chooses.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let Some(at) = NonNull::new(at.cast::<u8>()) else { return Err(io::ErrorKind::OutOfMemory.into()) };
    let mapping = Mapping { at, len, _file: file };
    if let Some(node) = placement.node {
        prefer(&mapping, node);
    }
    if kind != Kind::HugePages && len >= HUGE_PAGE && (placement.huge || placement.present) {
        // SAFETY: the range is the mapping's. Advice that is not taken changes nothing.
        unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
    // On huge pages in any case: a page that a control group does not grant would end the process when first touched.
    if placement.present || kind == Kind::HugePages {
        // SAFETY: the range is the mapping's.
        if unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) } != 0 {
            let error = io::Error::last_os_error();
            // Kernels before 5.14 do not know it: then pages come as they are touched.
            if kind == Kind::HugePages || error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
    }
    Ok(mapping)
}

fn memory_file(len: usize, flags: u32) -> io::Result<File> {
    // SAFETY: the name is a C string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"flowgate-flows".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    Ok(file)
}

/// True if the kernel makes huge pages for memory files that ask for them.
fn makes_huge_files() -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|word| setting.contains(word))
}

/// Asks for pages of a NUMA node (mbind(2), MPOL_PREFERRED); where it cannot be had, any other is as good as none.
fn prefer(mapping: &Mapping, node: u32) {
    const PREFERRED: libc::c_int = 1;
    if node >= 64 {
        return;
    }
    let mask: u64 = 1 << node;
    let (at, len) = (mapping.at.as_ptr(), mapping.len);
    // SAFETY: the range is the mapping's, and the mask has the 64 bits that are announced (the kernel takes one less).
    unsafe { libc::syscall(libc::SYS_mbind, at, len, PREFERRED, &raw const mask, 65usize, 0usize) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_zero_and_apart() {
        for placement in [Placement::default(), Placement { huge: true, present: true, node: Some(0) }] {
            let mut region = Region::new(3 << 20, placement).expect("memory");
            let mut first = region.array::<u64>(1000).expect("room");
            let mut second = region.array::<[u8; 64]>(100).expect("room");
            first.fill(u64::MAX);
            assert!(second.iter().all(|item| *item == [0; 64]) && second.as_ptr().addr().is_multiple_of(64));
            second.fill([7; 64]);
            assert!(first.iter().all(|item| *item == u64::MAX));
            assert!(region.array::<u64>(1 << 20).is_none() && region.array::<u64>(usize::MAX).is_none());
            drop(region);
            assert_eq!((first[999], second[99][63]), (u64::MAX, 7), "arrays keep their mapping");
        }
    }
}
