//! Tables of our own on huge pages, where a lookup would else miss the TLB before it misses the cache: read-only ones, and such
//! as hold atomics.
//!
//! Owns the mapping, and knows nothing of what stands in it. DPDK's memory is not its matter.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::fs;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Zeroable;

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Lets tables made from now on take huge pages. Until then none does: they are scarce, and only a running appliance is to
/// take them.
pub fn allow_hugepages() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Items that no longer change, on huge pages if they fill one and the machine has enough left, else in ordinary memory.
#[derive(Debug)]
pub struct Table<T: Copy> {
    items: NonNull<[T]>,
    hugepages: bool,
}

// SAFETY: it owns its items, as a box does.
unsafe impl<T: Copy + Send> Send for Table<T> {}
// SAFETY: it only lends them out to be read.
unsafe impl<T: Copy + Sync> Sync for Table<T> {}

impl<T: Copy> Table<T> {
    /// A table of these items.
    pub fn new(items: Vec<T>) -> Table<T> {
        Table::placed(items, ALLOWED.load(Ordering::Relaxed))
    }

    fn placed(items: Vec<T>, allowed: bool) -> Table<T> {
        if let Some(at) = allowed.then(|| pages(Layout::for_value(&*items))).flatten().map(NonNull::cast::<T>) {
            // SAFETY: the mapping is new, aligned to a page and long enough for all items, which are plain values.
            unsafe { ptr::copy_nonoverlapping(items.as_ptr(), at.as_ptr(), items.len()) };
            return Table { items: NonNull::slice_from_raw_parts(at, items.len()), hugepages: true };
        }
        let items = Box::leak(items.into_boxed_slice());
        Table { items: items.into(), hugepages: false }
    }

    /// True if it is on huge pages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }
}

impl<T: Copy> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `placed` filled all of them, and nothing writes to them since.
        unsafe { self.items.as_ref() }
    }
}

impl<T: Copy> Drop for Table<T> {
    fn drop(&mut self) {
        if self.hugepages {
            // SAFETY: `pages` made the mapping for items of this layout, and nothing refers to them any more.
            unsafe { hugepage_rs::dealloc(self.items.as_ptr().cast(), Layout::for_value(&**self)) };
        } else {
            // SAFETY: `placed` leaked this box.
            drop(unsafe { Box::from_raw(self.items.as_ptr()) });
        }
    }
}

/// Items that begin as zeros and are shared to be changed in place (atomics): on huge pages if they fill one and the machine has
/// enough left; else in ordinary memory, none of which is taken before it is written to, with huge pages where the kernel makes
/// such.
#[derive(Debug)]
pub struct Shared<T> {
    items: NonNull<[T]>,
    hugepages: bool,
}

// SAFETY: it owns its items, as a box does.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: it only lends them out to be read.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Zeroable> Shared<T> {
    /// So many items. Out of memory is an error, not an abort.
    pub fn zeroed(count: usize) -> io::Result<Shared<T>> {
        Shared::placed(count, ALLOWED.load(Ordering::Relaxed))
    }

    fn placed(count: usize, allowed: bool) -> io::Result<Shared<T>> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>()) };
        let layout = Layout::array::<T>(count.max(1)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let huge = allowed.then(|| pages(layout)).flatten();
        let at = match huge {
            Some(at) => at,
            None => map(layout.size())?,
        };
        Ok(Shared { items: NonNull::slice_from_raw_parts(at.cast(), count), hugepages: huge.is_some() })
    }

    /// True if it is on reserved huge pages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }
}

impl<T> Deref for Shared<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `placed` made them of zeros, which are a value of a `Zeroable`; only shared references are ever given out.
        unsafe { self.items.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (at, size) = (self.items.as_ptr().cast::<u8>(), size_of::<T>() * self.items.len().max(1));
        if self.hugepages {
            if let Ok(layout) = Layout::array::<T>(self.items.len().max(1)) {
                // SAFETY: `pages` made the mapping for items of this layout, and nothing refers to them any more.
                unsafe { hugepage_rs::dealloc(at, layout) };
            }
        } else {
            // SAFETY: `map` made the mapping with this size, and nothing refers to it any more.
            unsafe { libc::munmap(at.cast(), size) };
        }
    }
}

/// Ordinary memory, zero and not yet there, aligned to a page.
fn map(size: usize) -> io::Result<NonNull<u8>> {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range is the mapping's. Only a wish: a kernel without such pages refuses it, and nothing is lost.
    unsafe { libc::madvise(at, size, libc::MADV_HUGEPAGE) };
    NonNull::new(at.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Huge pages for `layout`, present and zero; `None` if it does not fill one or there are too few.
fn pages(layout: Layout) -> Option<NonNull<u8>> {
    // hugepage_rs panics on a kernel that has none.
    let page = page_size(&fs::read_to_string("/proc/meminfo").ok()?)?;
    if layout.size() < page {
        return None;
    }
    // SAFETY: the layout is not empty.
    let at = NonNull::new(unsafe { hugepage_rs::alloc(layout) })?;
    // A control group may allow fewer pages than the kernel has promised, and the first access to one too many would end the
    // process: this fails instead (Linux 5.14; before that, it always does).
    // SAFETY: the range is the mapping's.
    if unsafe { libc::madvise(at.as_ptr().cast(), layout.size().next_multiple_of(page), libc::MADV_POPULATE_WRITE) }
        != 0
    {
        // SAFETY: just allocated with this layout.
        unsafe { hugepage_rs::dealloc(at.as_ptr(), layout) };
        return None;
    }
    Some(at)
}

/// The size of a huge page in bytes (proc_meminfo(5)).
fn page_size(meminfo: &str) -> Option<usize> {
    let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?.trim().strip_suffix(" kB")?;
    kilobytes.parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_items_wherever_they_are() {
        let items: Vec<u64> = (0..600_000).collect();
        for allowed in [false, true] {
            let table = Table::placed(items.clone(), allowed);
            assert!(*table == items[..] && (allowed || !table.hugepages()));
        }
        assert!(Table::<u64>::placed(Vec::new(), true).is_empty());
    }

    #[test]
    fn shared_items_begin_as_zeros_and_keep_what_is_stored() {
        use std::sync::atomic::AtomicU64;
        for allowed in [false, true] {
            let shared = Shared::<AtomicU64>::placed(600_000, allowed).expect("memory");
            assert!(shared.len() == 600_000 && shared.iter().all(|item| item.load(Ordering::Relaxed) == 0));
            shared[599_999].store(7, Ordering::Relaxed);
            assert_eq!(shared[599_999].load(Ordering::Relaxed), 7);
            assert!(allowed || !shared.hugepages());
        }
        assert!(Shared::<AtomicU64>::placed(0, true).expect("nothing").is_empty());
        assert!(Shared::<AtomicU64>::placed(usize::MAX / 4, false).is_err());
    }

    #[test]
    fn small_tables_take_no_page() {
        assert!(!Table::placed(vec![1u8; 1000], true).hugepages());
        assert_eq!(page_size("MemTotal:  1 kB\nHugepagesize:       2048 kB\n"), Some(2 << 20));
        assert_eq!(page_size("MemTotal:  1 kB\n"), None);
    }
}
