//! Counts what is allocated and not freed: a leak shows here to the byte, where the system's figures hold the
//! allocator's own reserves too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes.
pub fn live() -> u64 {
    LIVE.load(Ordering::Relaxed) as u64
}

// SAFETY: everything is the system's; only numbers are added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        let place = unsafe { System.alloc(layout) };
        if !place.is_null() {
            LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(place, layout) }
    }
}
