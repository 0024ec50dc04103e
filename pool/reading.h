// Reading a prefix out of the pool: pinned, copied, compared, let go, in one call.
//
// The bytes are pinned while they are copied, so nobody frees them; with the `always` checksum policy they
// are hashed in the same pass that copies them, which is what makes a verified read nearly as fast as a plain
// one. Reading in place (pins, python_view) has to look at every byte before it hands it out.
#pragma once

#include "pool.h"

namespace maru {

struct ReadTarget {
  void* bytes;
  uint64_t size;
};

// Copy the leading run of `keys` into its targets, one a key, by at most `pool.copy_threads` threads; returns
// how many chunks are there, whole and intact. What lies in the targets after those is unspecified. A chunk
// whose bytes changed is quarantined: it, and everything after it, is a miss. Raises BadSize for a target
// that is not of its chunk's size; nothing was copied then.
uint64_t read_leading(Pool& pool, const Key* keys, uint64_t count, const ReadTarget* targets);

}  // namespace maru
