//! Read-only tables of our own on huge pages, where a lookup would else miss the TLB before it misses the cache.
//!
//! Owns the mapping, and knows nothing of what stands in it. DPDK's memory is not its matter.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::fs;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

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
    fn small_tables_take_no_page() {
        assert!(!Table::placed(vec![1u8; 1000], true).hugepages());
        assert_eq!(page_size("MemTotal:  1 kB\nHugepagesize:       2048 kB\n"), Some(2 << 20));
        assert_eq!(page_size("MemTotal:  1 kB\n"), None);
    }
}
