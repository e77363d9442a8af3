//! The agent's memory as the system sees it.
//!
//! The C library's allocator serves: mimalloc kept 27 MiB more of what starting took, and jemalloc
//! bakes in the page size (docs/decisions, 0012).

/// Few heaps: threads hand each other what they allocate, and each heap keeps what is freed in it.
/// Called before the first thread starts.
pub fn frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, before any other thread can allocate.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives the system what starting took and running does not need: the kernel's type information and
/// rules as text.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it frees what the allocator holds and nobody uses; any thread may ask for it.
    unsafe {
        libc::malloc_trim(0);
    }
}
