// Space is real before it is handed out.
//
// A sparse file promises bytes it may not have; the store that finds out dies of SIGBUS. So each slab has a
// mark, `real_bytes`: that many of its bytes the medium has really given (fallocate succeeded). Nothing
// beyond the mark is ever handed to a writer. One elected process raises the marks ahead of everybody; a
// writer that arrives sooner raises it for its own chunk. The mark only grows, and raising it twice does no
// harm.
#pragma once

#include "pool.h"

namespace maru {

// Make the first `bytes` of a slab real, and the slab's extent headers with its first byte. False: the medium
// (or this container's memory limit) refuses; the pool is smaller than it was meant to be, nothing worse.
bool make_real(Pool& pool, uint64_t slab, uint64_t bytes);

// Bytes that may still be allocated under this process's memory limits: its control group's and those above
// it, of either version. UINT64_MAX when there is none. `root` stands before /proc and /sys, for tests.
uint64_t memory_headroom_bytes(const std::string& root = "");

// Bytes of all slabs that are real now.
uint64_t real_bytes_total(const Pool& pool);

}  // namespace maru
