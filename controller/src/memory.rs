//! The controller's memory as the system sees it. As in the agent, the C library's allocator serves (docs/decisions,
//! 0012).

/// From this size on a block is mapped by itself, and goes back to the system as soon as it is freed: pages of a list,
/// views, answers.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 256 << 10;
/// So much may lie unused at the end of a heap.
#[cfg(target_env = "gnu")]
const UNUSED: libc::c_int = 1 << 20;

/// Few heaps: threads hand each other what they allocate, and each heap keeps what is freed in it. To be called before
/// the first thread starts.
pub fn frugal() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, UNUSED)]
    {
        // SAFETY: it sets a number, before any other thread can allocate.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

/// Gives the system what is free inside the heaps: a thousand agents that all come at once leave much of it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it frees what the allocator holds and nobody uses; any thread may ask for it.
    unsafe {
        libc::malloc_trim(0);
    }
}
