//! The program's allocator: the system's, but in the parser, whose memory is limited, a request that
//! cannot be met ends the process with an exit code that says so.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a parser that ran out of memory.
pub(super) const OUT_OF_MEMORY: i32 = 40;

static LIMITED: AtomicBool = AtomicBool::new(false);

/// Allocations from so many bytes on go back to the system when they are freed.
const LARGE: libc::c_int = 128 << 10;

/// From now on this process ends when its memory is used up; what is freed is there for the next file.
pub(super) fn end_without_memory() {
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    LIMITED.store(true, Ordering::Relaxed);
}

/// To be the `#[global_allocator]` of the program.
#[derive(Debug)]
pub struct Allocator;

fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() && LIMITED.load(Ordering::Relaxed) {
        // SAFETY: ends the process at once, whatever state it is in.
        unsafe { libc::_exit(OUT_OF_MEMORY) };
    }
    memory
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one that is needed.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.realloc(memory, layout, size) })
    }
}

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
